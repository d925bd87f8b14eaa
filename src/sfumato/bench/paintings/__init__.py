"""Synthetic paintings: 27 styles as palettes, motifs and brushes. Nothing is copied."""
