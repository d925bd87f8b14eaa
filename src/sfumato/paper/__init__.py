"""The figures, tables and findings of the paper."""
