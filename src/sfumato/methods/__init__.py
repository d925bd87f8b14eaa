"""What can be trained: a configuration, an objective and what follows the run."""
