"""Short names of models: one registry, which every function that takes a base's name asks."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

import ahn
import standin
from ahn.checkpoint import NAMED_MODELS, load_tokenizer, merge
from ahn.checkpoint.named_models import (
    EMBEDDED,
    NamedModel,
    default_memory,
    evaluation_dtype,
    resolve,
)

IDS = torch.arange(3, 63)[None]
SOURCE = Path(ahn.__file__).parent


@pytest.fixture
def toy(monkeypatch, tmp_path):
    """The folder of a package whose model is named toy."""
    standin.install_as(monkeypatch, tmp_path, "toy", cells=("DeltaNet", "Mamba2"))
    return tmp_path / "toy_package"


def test_a_name_becomes_folders_and_all_else_stays(toy):
    assert resolve("toy") == (toy / "base", None)
    assert resolve("toy", "Mamba2") == (toy / "base", toy / "memories" / "Mamba2")
    assert resolve("toy", "user/memory") == (toy / "base", "user/memory")
    assert resolve("toy", toy) == (toy / "base", toy)
    assert resolve("user/base", "Mamba2") == ("user/base", "Mamba2")
    assert resolve(toy / "base", None) == (toy / "base", None)
    message = "expected one of DeltaNet, Mamba2, a folder or a name on the hub .*, got 'Elman'"
    with pytest.raises(ValueError, match=message):
        resolve("toy", "Elman")


def test_a_memory_of_the_model_wins_over_a_folder_of_its_name(toy, tmp_path, monkeypatch):
    (tmp_path / "Mamba2").mkdir()
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve("toy", "Mamba2")[1] == toy / "memories" / "Mamba2"
    assert resolve("toy", "./Mamba2")[1] == "./Mamba2"
    assert resolve("toy", "mine")[1] == "mine"


def test_a_model_whose_package_is_not_installed_is_named(monkeypatch):
    absent = NamedModel("no_such_package/base", "no_such_package/memories", "DeltaNet", "float32")
    monkeypatch.setitem(NAMED_MODELS, "absent", absent)
    with pytest.raises(ValueError, match="expected the package no_such_package to be installed"):
        ahn.from_pretrained("absent")


def test_default_memory_and_dtype(toy):
    assert default_memory("toy") == "DeltaNet" and default_memory("user/base") is None
    assert evaluation_dtype("user/base", "bfloat16") == "bfloat16"
    for dtype in (None, "auto", "float32"):
        assert evaluation_dtype("toy", dtype) == "float32"
    with pytest.raises(ValueError, match="dtype: expected float32 for the toy model, got 'half'"):
        evaluation_dtype("toy", "half")


@torch.no_grad()
def test_loading_and_merging_take_the_name(toy, tmp_path):
    expected = standin.load("Mamba2")[0](IDS).logits
    model = ahn.from_pretrained("toy", "Mamba2", dtype=torch.float32)
    assert torch.equal(model(IDS).logits, expected)
    assert load_tokenizer("toy").get_vocab() == standin.tokenizer().get_vocab()
    merge("toy", "Mamba2", tmp_path / "merged")
    merged = ahn.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert torch.equal(merged(IDS).logits, expected)


def test_the_embedded_model_is_an_entry():
    model = NAMED_MODELS[EMBEDDED]
    assert model.base_folder() == ahn.embedded.BASE and ahn.embedded.BASE.is_dir()
    assert model.cells() == ["DeltaNet", "GatedDeltaNet", "GatedDeltaNet-Slots", "Mamba2", "Slots"]
    assert default_memory(EMBEDDED) == "GatedDeltaNet"
    with pytest.raises(ValueError, match="memory: expected one of DeltaNet, GatedDeltaNet, "):
        ahn.embedded.load("Elman")


def test_only_the_registry_spells_the_name():
    """Elsewhere in code the word is the subpackage's, or part of a sentence."""
    spelt = [
        path.relative_to(SOURCE).as_posix()
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value == EMBEDDED
    ]
    # The face of the package lists its subpackages, this one among them.
    assert sorted(spelt) == ["__init__.py", "__init__.py", "checkpoint/named_models.py"]
