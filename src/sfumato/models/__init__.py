"""Networks: the U-Net, its averaged copy, the judge; and schedulers by name."""
