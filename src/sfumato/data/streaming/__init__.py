"""Streaming of large Parquet data sets in one reproducible order."""
