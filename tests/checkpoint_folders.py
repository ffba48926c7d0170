"""Tiny bases and memories as folders, for the tests of checkpoints."""

from __future__ import annotations

import copy
from pathlib import Path

import ahn
import standin
from tiny_models import shared_base, shared_model


def save_base(folder: Path, family: str = "Qwen2", **options) -> Path:
    """The base of `models.shared_model`, with a tokenizer that has a chat template."""
    shared_base(family).save_pretrained(folder, **options)
    tokenizer = copy.deepcopy(standin.tokenizer())
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    tokenizer.save_pretrained(folder)
    return folder


def save_memory(folder: Path, cell: str = "DeltaNet", family: str = "Qwen2", format="ahn") -> Path:
    """The memory of `models.shared_model`."""
    ahn.save_pretrained(shared_model(family, cell), folder, format=format)
    return folder


def same_files(a: Path, b: Path) -> bool:
    """Whether two folders hold the same files, byte for byte."""
    names = sorted(path.name for path in a.iterdir())
    return names == sorted(path.name for path in b.iterdir()) and all(
        (a / name).read_bytes() == (b / name).read_bytes() for name in names
    )
