"""Metrics: functions of features, labels and pixels, with sums in float64, and their registry.

A new metric is one module of this package that holds a `Metric` (see `registry.py`).
"""
