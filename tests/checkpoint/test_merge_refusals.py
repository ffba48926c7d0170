"""A merge or a split that cannot be had is one named error and leaves nothing behind."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from ahn.checkpoint import merge, split
from ahn.io.checksum import INDEX
from checkpoint_folders import save_memory
from tiny_models import shared_model


def refused(parts, out, message):
    """A merge that must fail, and leave nothing behind."""
    before = sorted(out.parent.iterdir())
    with pytest.raises((ValueError, OSError), match=message):
        merge(*parts, out)
    assert sorted(out.parent.iterdir()) == before


def test_a_folder_in_use_is_not_touched(parts, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    refused(parts, tmp_path / "out", "expected a new or empty folder")
    shared_model().save_pretrained(tmp_path / "merged")
    with pytest.raises(ValueError, match="expected a new or empty folder"):
        split(tmp_path / "merged", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_a_quantised_base_is_refused(parts, tmp_path):
    config = parts[0] / "config.json"
    values = json.loads(config.read_text()) | {"quantization_config": {"quant_method": "gptq"}}
    config.write_text(json.dumps(values))
    refused(parts, tmp_path / "out", "not quantised")


@pytest.mark.parametrize("change", ["missing", "unknown"])
def test_a_base_with_other_tensors_is_refused(parts, tmp_path, change):
    shard = sorted(parts[0].glob("*.safetensors"))[0]
    weights = load_file(shard)
    if change == "missing":
        weights.popitem()
    else:
        weights["model.extra"] = torch.ones(1)
    save_file(weights, shard, metadata={"format": "pt"})
    refused(parts, tmp_path / "out", "expected the tensors of")
    (parts[0] / INDEX).unlink()
    shard.rename(parts[0] / "model.safetensors")
    refused(parts, tmp_path / "out", "expected the keys of Qwen2ForCausalLM, missing")


def test_a_memory_of_another_base_is_refused(parts, tmp_path):
    refused((parts[0], save_memory(tmp_path / "m", family="Llama")), tmp_path / "out", "model_type")


def test_pickles_are_refused(parts, tmp_path):
    for path in [*parts[0].glob("*.safetensors"), parts[0] / INDEX]:
        path.unlink()
    (parts[0] / "pytorch_model.bin").write_bytes(b"")
    refused(parts, tmp_path / "out", "the pickle pytorch_model.bin")


def test_a_base_without_memory_does_not_split(parts, tmp_path):
    with pytest.raises(ValueError, match="merged with a memory, got one without"):
        split(parts[0], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_said_before_anything_is_copied(parts, tmp_path, monkeypatch):
    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    refused(parts, tmp_path / "out", "bytes of free space")


def test_a_disk_that_fills_up_leaves_nothing(parts, tmp_path):
    def fail(name, done, total):
        if done > total // 2:
            raise OSError(28, "No space left on device")

    before = sorted(tmp_path.iterdir())
    with pytest.raises(OSError, match="No space"):
        merge(*parts, tmp_path / "out", progress=fail)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("at", [0.0, 0.5, 0.99])
def test_an_interrupted_merge_leaves_nothing(parts, tmp_path, at):
    def stop(name, done, total):
        if done > at * total:
            raise KeyboardInterrupt

    before = sorted(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        merge(*parts, tmp_path / "out", progress=stop)
    assert sorted(tmp_path.iterdir()) == before


def test_a_place_that_cannot_be_written_is_named(parts, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        merge(*parts, tmp_path / "file" / "out")
