"""Images with captions: where they come from and how batches are drawn from them."""
