"""Loops over models and evaluations: tuning, ablation, guidance forms, training curves."""
