"""The configuration of a run: schema, presets, overrides and lint."""
