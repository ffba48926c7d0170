"""The command line."""

from ahn.cli.app import app, main

__all__ = ["app", "main"]
