"""Networks: the U-Net, its average, the classifier; and what stands between them and pixels."""
