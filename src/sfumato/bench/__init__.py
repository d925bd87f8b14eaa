"""Benchmarks: training, sampling and data loading against plain reference loops."""
