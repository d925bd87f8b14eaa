"""Training as jobs of a queue."""
