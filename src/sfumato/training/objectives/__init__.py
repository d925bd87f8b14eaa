"""What differs between methods of training."""
