"""Metrics as pure functions on arrays of features, labels and pixels; sums in float64."""
