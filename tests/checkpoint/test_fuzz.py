"""Hundreds of damaged folders: each one a named error, none loads silently wrong or runs code."""

from __future__ import annotations

import json
import pickle
import random
import shutil
from pathlib import Path

import pytest
from damage import CONFIGS, WEIGHTS, RunsCode, break_json, flip, truncate
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import ahn
from ahn.checkpoint import merge
from ahn.checkpoint.memory import files_of
from ahn.checkpoint.names import FORMATS
from ahn.io.checksum import INDEX
from ahn.modeling.saving import is_memory
from checkpoint_folders import save_base, save_memory
from tiny_models import CELLS

ROUNDS = 6  # of every damage to a memory of each layout and cell
NAMED = (ValueError, OSError)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A tiny base, a memory of each layout and cell, and both merged."""
    root = tmp_path_factory.mktemp("fuzz")
    save_base(root / "base")
    for layout in FORMATS:
        for cell in CELLS:
            save_memory(root / layout / cell, cell, format=layout)
    merge(root / "base", root / "ahn" / "DeltaNet", root / "merged")
    return root


def refused(function, *arguments) -> None:
    with pytest.raises(NAMED) as caught:
        function(*arguments)
    assert str(caught.value).strip(), "an error without a word"


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("kind", [*WEIGHTS, *CONFIGS])
def test_a_damaged_memory(folders, tmp_path, kind, layout, cell):
    config, weights = files_of(layout)
    for turn in range(ROUNDS):
        chance = random.Random(f"{kind}/{layout}/{cell}/{turn}")
        copy = tmp_path / str(turn)
        shutil.copytree(folders / layout / cell, copy)
        if kind in WEIGHTS:
            WEIGHTS[kind](copy / weights, chance)
        else:
            CONFIGS[kind](copy / config, chance)
        refused(ahn.from_pretrained, folders / "base", copy)


def test_any_flipped_bit_of_our_layout_is_seen(folders, tmp_path):
    source = folders / "ahn" / "GatedDeltaNet"
    for turn in range(60):
        copy = tmp_path / str(turn)
        shutil.copytree(source, copy)
        flip(copy / files_of("ahn")[1], random.Random(turn))
        refused(ahn.from_pretrained, folders / "base", copy)


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/passwd", "a/b.safetensors", 3, "x"])
@pytest.mark.parametrize("place", ["released/DeltaNet", "merged"])
def test_an_index_that_leads_elsewhere(folders, tmp_path, place, name):
    copy = tmp_path / "copy"
    shutil.copytree(folders / place, copy)
    keys = list(load_file(folders / "released" / "DeltaNet" / "model.safetensors"))
    save_file(load_file(folders / "released" / "DeltaNet" / "model.safetensors"),
              tmp_path / "other.safetensors", metadata={"format": "pt"})  # fmt: skip
    index = copy / INDEX
    values = json.loads(index.read_text()) if index.is_file() else {"weight_map": {}}
    values["weight_map"].update(dict.fromkeys(keys, name))
    (copy / "model.safetensors").unlink(missing_ok=True)
    index.write_text(json.dumps(values))
    if place == "merged":
        refused(AutoModelForCausalLM.from_pretrained, copy)
        refused(ahn.from_pretrained, copy)
    else:
        refused(ahn.from_pretrained, folders / "base", copy)


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("name", ["as safetensors", "pytorch_model.bin", "ahn_model.bin"])
def test_a_pickle_is_never_loaded(folders, tmp_path, layout, name):
    copy, mark = tmp_path / "copy", tmp_path / "mark"
    shutil.copytree(folders / layout / "DeltaNet", copy)
    weights = copy / files_of(layout)[1]
    if name != "as safetensors":
        weights.unlink()
        weights = copy / name
    weights.write_bytes(pickle.dumps(RunsCode(mark)))
    refused(ahn.from_pretrained, folders / "base", copy)
    assert not mark.exists()


def memory_shard(folder: Path) -> Path:
    return next(
        p for p in sorted(folder.glob("*.safetensors")) if any(map(is_memory, load_file(p)))
    )


def base_shard(folder: Path) -> Path:
    return next(p for p in sorted(folder.glob("*.safetensors")) if "lm_head.weight" in load_file(p))


def of_shard(find, damage):
    return lambda folder, chance: damage(find(folder), chance)


def flip_number(path: Path, chance: random.Random) -> None:
    flip(path, chance, 8 + int.from_bytes(path.read_bytes()[:8], "little"))


def swap_bytes(path: Path, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    one, other = 0, 0
    while data[one] == data[other]:
        one, other = chance.randrange(len(data)), chance.randrange(len(data))
    data[one], data[other] = data[other], data[one]
    path.write_bytes(data)


def swap_shards(folder: Path, chance: random.Random) -> None:
    one, other = base_shard(folder), memory_shard(folder)
    one_bytes = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(one_bytes)


def wrong_sum(folder: Path, chance: random.Random) -> None:
    values = json.loads((folder / INDEX).read_text())
    sums = values["metadata"]["sha256"]
    name = chance.choice(sorted(sums))
    sums[name] = sums[name][::-1]
    (folder / INDEX).write_text(json.dumps(values))


def index_without(folder: Path, chance: random.Random) -> None:
    values = json.loads((folder / INDEX).read_text())
    values["weight_map"].pop(chance.choice(sorted(values["weight_map"])))
    (folder / INDEX).write_text(json.dumps(values))


def other_size(folder: Path, chance: random.Random) -> None:
    values = json.loads((folder / "config.json").read_text())
    values[chance.choice(["hidden_size", "num_hidden_layers", "intermediate_size"])] += 16
    values.pop("layer_types")  # else transformers stops at a list of another length
    (folder / "config.json").write_text(json.dumps(values))


MERGED = {
    "memory truncated": of_shard(memory_shard, truncate),
    "memory bit flipped": of_shard(memory_shard, flip),
    "memory tensor missing": of_shard(memory_shard, WEIGHTS["missing"]),
    "memory tensor extra": of_shard(memory_shard, WEIGHTS["extra"]),
    "memory tensor misshapen": of_shard(memory_shard, WEIGHTS["misshapen"]),
    "base bit flipped": of_shard(base_shard, flip),
    "base bit flipped in its numbers": of_shard(base_shard, flip_number),
    "base bytes swapped": of_shard(base_shard, swap_bytes),
    "two shards swapped": swap_shards,
    "checksum changed": wrong_sum,
    "base truncated": of_shard(base_shard, truncate),
    "base tensor missing": of_shard(base_shard, WEIGHTS["missing"]),
    "shard gone": lambda folder, chance: chance.choice(
        sorted(folder.glob("*.safetensors"))).unlink(),
    "index without a tensor": index_without,
    "index broken": lambda folder, chance: break_json(folder / INDEX, chance),
    "config truncated": lambda folder, chance: truncate(folder / "config.json", chance),
    "config of another size": other_size,
}  # fmt: skip


@pytest.mark.parametrize("kind", MERGED)
def test_a_damaged_merged_folder(folders, tmp_path, kind):
    for turn in range(4):
        copy = tmp_path / str(turn)
        shutil.copytree(folders / "merged", copy)
        MERGED[kind](copy, random.Random(f"{kind}/{turn}"))
        refused(AutoModelForCausalLM.from_pretrained, copy)
