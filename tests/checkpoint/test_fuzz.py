"""Damaged folders: a named error, or what was saved; none is silently wrong, no code is run."""

from __future__ import annotations

import json
import pickle
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from damage import CONFIGS, MERGED, WEIGHTS, RunsCode
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import ahn
from ahn.checkpoint import merge, read_memory
from ahn.checkpoint.memory import files_of
from ahn.checkpoint.names import BASE_FACTS, FORMATS
from ahn.io.checksum import INDEX
from checkpoint_folders import save_base, save_memory
from fuzz_cases import cases, damaged, outcome
from tiny_models import CELLS, shared_model

MEMORIES = [(layout, cell) for layout in FORMATS for cell in CELLS]
KINDS = [*WEIGHTS, *CONFIGS]
MODELS = ("merged", "saved")  # by merge, and by the model itself


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A tiny base, a memory of each layout and cell, and models of both in one folder."""
    root = tmp_path_factory.mktemp("fuzz")
    save_base(root / "base")
    for layout, cell in MEMORIES:
        save_memory(root / layout / cell, cell, format=layout)
    merge(root / "base", root / "ahn" / "DeltaNet", root / "merged")
    shared_model(cell="DeltaNet").save_pretrained(root / "saved")
    return root


@pytest.fixture(autouse=True)
def _no_word_of_saves_cut_short():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def copied(folders: Path, *names: str) -> Path:
    """A copy for one case, in the place of the last one's."""
    copy = folders / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    return Path(shutil.copytree(folders.joinpath(*names), copy))


def refused(function, *arguments) -> None:
    result, why = outcome(function, *arguments)
    assert why, f"silent: {result!r:.200}"


@pytest.mark.parametrize("kind", KINDS)
@given(memory=st.sampled_from(MEMORIES), chance=st.randoms(use_true_random=False))
@cases("a memory's files", over=len(KINDS))
def test_a_damaged_memory(folders, kind, memory, chance):
    layout, cell = memory
    config, weights = files_of(layout)
    copy = copied(folders, layout, cell)
    if kind in WEIGHTS:
        WEIGHTS[kind](copy / weights, chance)
    else:
        CONFIGS[kind](copy / config, chance)
    refused(ahn.from_pretrained, folders / "base", copy)


@given(memory=st.sampled_from(MEMORIES), which=st.integers(0, 1), data=st.data())
@cases("a memory's bytes")
def test_any_changed_bytes_of_a_memory_are_seen_or_change_nothing(folders, memory, which, data):
    layout, cell = memory
    copy, was = copied(folders, layout, cell), read_memory(folders / layout / cell)
    path = copy / files_of(layout)[which]
    path.write_bytes(data.draw(damaged(path.read_bytes())))
    read, why = outcome(read_memory, copy)
    if not why:
        assert read.settings == was.settings
        assert all(read.base.get(fact) == was.base.get(fact) for fact in BASE_FACTS)
        assert read.state.keys() == was.state.keys()
        assert all(torch.equal(tensor, was.state[name]) for name, tensor in read.state.items())


@pytest.mark.parametrize("kind", MERGED)
@given(chance=st.randoms(use_true_random=False))
@cases("a model's files", over=len(MERGED))
def test_a_damaged_merged_folder(folders, kind, chance):
    copy = copied(folders, "merged")
    MERGED[kind](copy, chance)
    refused(AutoModelForCausalLM.from_pretrained, copy)


@pytest.mark.parametrize("place", MODELS)
@given(data=st.data())
@cases("a model's bytes", over=len(MODELS))
def test_any_changed_bytes_of_a_model_are_seen_or_change_nothing(folders, place, data):
    copy = copied(folders, place)
    names = sorted(x.name for x in copy.iterdir() if x.suffix in (".safetensors", ".json"))
    path = copy / data.draw(st.sampled_from([x for x in names if not x.startswith("token")]))
    path.write_bytes(data.draw(damaged(path.read_bytes())))
    model, why = outcome(ahn.from_pretrained, copy)
    if not why:
        was = ahn.from_pretrained(folders / place)
        assert model.config.ahn_config == was.config.ahn_config
        tensors = was.state_dict()
        assert all(torch.equal(tensor, tensors[k]) for k, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/passwd", "a/b.safetensors", 3, "x"])
@pytest.mark.parametrize("place", ["released/DeltaNet", "merged"])
def test_an_index_that_leads_elsewhere(folders, place, name):
    copy = copied(folders, place)
    keys = list(load_file(folders / "released" / "DeltaNet" / "model.safetensors"))
    save_file(load_file(folders / "released" / "DeltaNet" / "model.safetensors"),
              folders / "other.safetensors", metadata={"format": "pt"})  # fmt: skip
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
    copy, mark = copied(folders, layout, "DeltaNet"), tmp_path / "mark"
    weights = copy / files_of(layout)[1]
    if name != "as safetensors":
        weights.unlink()
        weights = copy / name
    weights.write_bytes(pickle.dumps(RunsCode(mark)))
    refused(ahn.from_pretrained, folders / "base", copy)
    assert not mark.exists()
