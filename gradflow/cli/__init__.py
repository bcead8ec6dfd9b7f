"""The command line, ``gradflow``."""

from gradflow.cli.main import main

__all__ = ["main"]
