"""A memory as a folder: round trips are bytes, reading is strict."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import ahn
from ahn.checkpoint.names import CONFIG_FILE, WEIGHTS_FILE
from ahn.io.checksum import metadata_of, write_tensors
from tiny_models import CELLS


def saved(cell, folder):
    """The embedded base with a random memory, and the folder it was saved to."""
    model = ahn.from_pretrained("embedded", dtype=torch.float32)
    ahn.attach(model, ahn.AHNConfig(memory=cell, window=32, num_sinks=4))
    for name, parameter in model.named_parameters():
        if ".ahn." in name:
            torch.nn.init.normal_(parameter, std=0.1)
    ahn.save_pretrained(model, folder)
    return model.eval()


@pytest.mark.parametrize("cell", CELLS)
def test_save_load_save_gives_the_same_bytes_and_logits(cell, tmp_path):
    model = saved(cell, tmp_path / "a")
    again = ahn.from_pretrained("embedded", tmp_path / "a", dtype=torch.float32)
    ahn.save_pretrained(again, tmp_path / "b")
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    ids = torch.arange(5, 85)[None]
    assert torch.equal(model(ids).logits, again(ids).logits)
    with ahn.memory_off(again):
        assert not torch.equal(model(ids).logits, again(ids).logits)


def test_window_given_by_the_user_wins(tmp_path):
    saved("DeltaNet", tmp_path)
    model = ahn.from_pretrained("embedded", tmp_path, window=7, num_sinks=0)
    assert (model.config.ahn_config["window"], model.config.ahn_config["num_sinks"]) == (7, 0)


@pytest.mark.parametrize("name", ahn.checkpoint.NAMED_MODELS["embedded"].cells())
def test_shipped_memories_load_by_name(name):
    model, tokenizer = ahn.embedded.load(name)
    config = model.config.ahn_config
    assert (config["memory"], config.get("slots", 0) > 0) == {
        "DeltaNet": ("DeltaNet", False),
        "GatedDeltaNet": ("GatedDeltaNet", False),
        "GatedDeltaNet-Slots": ("GatedDeltaNet", True),
        "Mamba2": ("Mamba2", False),
        "Slots": (None, True),
    }[name]
    assert model.dtype == torch.float32
    text = "import os\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    for part, is_there in ((".ahn.", config["memory"]), (".ahn_slots.", config.get("slots"))):
        size = sum(p.numel() for n, p in model.named_parameters() if part in n)
        assert (0.003 < size / model.num_parameters() < 0.025) if is_there else size == 0


def test_without_a_memory_it_is_the_plain_base():
    model = ahn.from_pretrained("embedded")
    assert type(model).__name__ == "Qwen3ForCausalLM"
    with pytest.raises(ValueError, match="window: expected a memory"):
        ahn.from_pretrained("embedded", window=5)


def test_the_embedded_base_fits_in_sixteen_megabytes():
    files = ahn.embedded.BASE.iterdir()
    assert sum(file.stat().st_size for file in files) <= 16_000_000


def change_weights(folder, change):
    file = folder / WEIGHTS_FILE
    state, written_with = load_file(file), metadata_of(file)
    change(state)
    write_tensors(file, state, written_with)


KEY = "model.layers.0.ahn.fn.b_proj.weight"
BROKEN = {
    "missing key": (lambda f: change_weights(f, lambda s: s.pop(KEY)), "missing"),
    "unknown key": (
        lambda f: change_weights(f, lambda s: s.update({KEY + "s": torch.ones(1)})),
        "unknown",
    ),
    "shape": (lambda f: change_weights(f, lambda s: s.update({KEY: torch.ones(3)})), KEY),
    "no weights": (lambda f: (f / WEIGHTS_FILE).unlink(), "ahn_model.safetensors"),
    "no config": (lambda f: (f / CONFIG_FILE).unlink(), "ahn_config.json"),
    "broken config": (lambda f: (f / CONFIG_FILE).write_text("{"), "expected JSON"),
    "other config": (lambda f: (f / CONFIG_FILE).write_text("{}"), "ahn_config"),
    "no checksum": (
        lambda f: save_file(load_file(f / WEIGHTS_FILE), f / WEIGHTS_FILE),
        "checksum",
    ),
    "not finite": (
        lambda f: change_weights(f, lambda s: s[KEY].fill_(float("nan"))),
        f"{KEY}: expected finite",
    ),
    "integers": (
        lambda f: change_weights(f, lambda s: s.update({KEY: s[KEY].int()})),
        f"{KEY}: expected 16 to 64 bit floats, got torch.int32",
    ),
    "base weights too": (
        lambda f: change_weights(f, lambda s: s.update({"lm_head.weight": torch.ones(2)})),
        "memory alone, got .'lm_head.weight'",
    ),
    "no record of a base": (
        lambda f: (f / CONFIG_FILE).write_text('{"ahn_config": {}}'),
        "expected the key base",
    ),
    "truncated": (
        lambda f: (f / WEIGHTS_FILE).write_bytes((f / WEIGHTS_FILE).read_bytes()[:1000]),
        "safetensors",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_folder_is_named(case, tmp_path):
    saved("DeltaNet", tmp_path)
    damage, message = BROKEN[case]
    damage(tmp_path)
    with pytest.raises(ValueError, match=message):
        ahn.from_pretrained("embedded", tmp_path)


def test_an_unknown_setting_is_named(tmp_path):
    saved("DeltaNet", tmp_path)
    file = tmp_path / CONFIG_FILE
    values = json.loads(file.read_text())
    values["ahn_config"]["sliding"] = 3
    file.write_text(json.dumps(values))
    with pytest.raises(ValueError, match="sliding"):
        ahn.from_pretrained("embedded", tmp_path)


def test_saving_needs_a_memory(tmp_path):
    base = AutoModelForCausalLM.from_pretrained(ahn.embedded.BASE)
    with pytest.raises(ValueError, match="memory attached"):
        ahn.save_pretrained(base, tmp_path)
