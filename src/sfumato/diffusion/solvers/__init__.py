"""Solvers: how sampling goes from one noise level to the next."""
