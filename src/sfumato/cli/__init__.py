"""The command line: `sfumato`. Commands load what they need when they run."""

from sfumato.cli.app import main

__all__ = ["main"]
