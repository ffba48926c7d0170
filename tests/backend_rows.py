"""Rows of the table of backends, changed for the length of a test."""

from __future__ import annotations

from dataclasses import replace

from ahn.ops import backends


def replace_reason(monkeypatch, op: str, name: str, unsupported_reason) -> None:
    """Another answer to why a backend of `op` cannot run."""
    rows = backends._TABLE[op]
    row = replace(rows[name], unsupported_reason=unsupported_reason)
    monkeypatch.setitem(rows, name, row)
