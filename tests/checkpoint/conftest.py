"""What tests of a merged folder start from."""

from __future__ import annotations

import pytest

from checkpoint_folders import save_base, save_memory


@pytest.fixture
def parts(tmp_path):
    """A base in several shards and a memory of our layout."""
    base = save_base(tmp_path / "base", max_shard_size="40KB")
    assert len(list(base.glob("*.safetensors"))) > 2
    return base, save_memory(tmp_path / "memory")
