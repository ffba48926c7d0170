"""The recipe of the shipped memories: its defaults made them, and it repeats itself."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import load_file

import ahn
from ahn.embedded import BASE, MEMORIES
from ahn.embedded.corpus import Corpus
from ahn.embedded.distill_memories import Settings, train_memory


def shipped(cell):
    return json.loads((MEMORIES / cell / "training.json").read_text())


@pytest.mark.parametrize("cell", ["GatedDeltaNet", "DeltaNet"])
def test_the_defaults_are_those_that_made_what_ships(cell):
    found = shipped(cell)
    assert found["settings"] == asdict(Settings(cell))
    assert found["held_out_nats_beyond_budget"]["recovered"] > 0.05


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of the recipe at a size that takes seconds."""
    lines = [f"value_{i} = sum(range({i}), {i % 7})\n" for i in range(400)]
    corpus = Corpus("3", (("a.py", "".join(lines)),), (("b.py", "".join(lines[::-1])),))
    settings = replace(Settings("DeltaNet"), window=32, steps=2, batch_size=1, length=256)
    folders = [tmp_path_factory.mktemp(name) for name in "ab"]
    results = [train_memory(BASE, corpus, settings, folder, "cpu") for folder in folders]
    return folders, results


@pytest.mark.slow
def test_it_repeats_itself_and_writes_a_memory_of_the_base(runs):
    folders, results = runs
    first, second = (load_file(folder / "ahn_model.safetensors") for folder in folders)
    assert first.keys() == load_file(MEMORIES / "DeltaNet" / "ahn_model.safetensors").keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(tensor.abs().max() > 0 for name, tensor in first.items() if "o_proj" in name)
    assert results[0]["held_out_nats_beyond_budget"] == results[1]["held_out_nats_beyond_budget"]
    model = ahn.from_pretrained(BASE, folders[0])
    assert model.config.ahn_config["window"] == 32


def test_it_trains_by_the_code_of_ahn_train(monkeypatch, tmp_path):
    """The same loss: a run that may not compute it fails."""

    def refuse(*args, **kwargs):
        raise ArithmeticError

    monkeypatch.setattr("ahn.training.distillation.head_losses", refuse)
    corpus = Corpus("3", (("a.py", "x = 1\n" * 400),), (("b.py", "x = 2\n" * 400),))
    settings = replace(Settings("DeltaNet"), window=32, steps=1, batch_size=1, length=256)
    with pytest.raises(ArithmeticError):
        train_memory(BASE, corpus, settings, tmp_path, "cpu")
