"""Figures, tables and the self-contained HTML page, from run folders."""
