"""uint8 images -> features: Inception (FID's), CLIP, DINOv2, the small CLIP and the classifier."""
