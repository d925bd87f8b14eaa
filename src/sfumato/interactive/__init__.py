"""What a person steers while it runs."""
