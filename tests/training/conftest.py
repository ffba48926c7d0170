"""Fixtures of the tests of data."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from ahn.embedded import BASE


@pytest.fixture(scope="session")
def tokenizer():
    return AutoTokenizer.from_pretrained(BASE)


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    import datasets

    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
