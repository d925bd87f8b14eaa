"""One readable YAML file for each system."""
