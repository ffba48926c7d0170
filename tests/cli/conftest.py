"""What the commands are called on."""

from __future__ import annotations

import pytest

import ahn
import standin


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base model and, in `memory`, a memory for it."""
    path = tmp_path_factory.mktemp("model")
    standin.save_base(path)
    model, _ = standin.load("DeltaNet")
    ahn.save_pretrained(model, path / "memory")
    return path
