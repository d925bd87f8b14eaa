"""Models that come with sfumato, one folder each, and how such a folder is found and opened."""
