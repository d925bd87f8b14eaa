"""Sources of images: Parquet, the Hub, folders, IDX files, the digits of scikit-learn."""
