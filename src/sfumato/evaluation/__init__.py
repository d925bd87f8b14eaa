"""What a set of images is worth: features once, all metrics from them, one metric card."""
