"""The command line."""

from ahn.cli.commands import app, main

__all__ = ["app", "main"]
