"""`ahn bench`: speed and memory, as a table for people and one last line of JSON."""

from ahn.cli.bench.commands import app

__all__ = ["app"]
