"""Slots on disk and beside a base: their tensors, shapes that do not fit, costs in advance."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

import ahn
from ahn.checkpoint import inspect
from ahn.cost import Shape, cache_bytes
from ahn.memory import Slots
from slot_models import SETTINGS, SHARES, slot_model
from tiny_models import base_model, memory_parameters, random_ids

over_kinds = pytest.mark.parametrize("settings", [SETTINGS[i] for i in (3, 5, 6)], ids=str)
NAMES = {"net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias", "rate"}


@over_kinds
@torch.no_grad()
def test_a_memory_with_slots_is_saved_and_loaded(settings, tmp_path):
    model = slot_model(dtype=torch.float32, **settings)
    ids = random_ids(60)
    ahn.save_pretrained(model, tmp_path / "memory")
    base_model("Qwen3").save_pretrained(tmp_path / "base")
    again = ahn.from_pretrained(tmp_path / "base", tmp_path / "memory")
    assert again.config.ahn_config == model.config.ahn_config
    assert torch.equal(again(ids).logits, model(ids).logits)
    ahn.save_pretrained(again, tmp_path / "again")
    weights = "ahn_model.safetensors"
    assert (tmp_path / "memory" / weights).read_bytes() == (
        tmp_path / "again" / weights
    ).read_bytes()
    found = inspect(tmp_path / "memory")["parameters"]
    assert {f"ahn_slots.{name}" for name in NAMES} <= set(found)


@torch.no_grad()
def test_names_are_beside_the_cell_and_layers_without_slots_have_none():
    model = slot_model(slot_shares=((0.0, 0.0), (0.25, 0.75)), memory="DeltaNet")
    names = {name for name in memory_parameters(model) if "ahn_slots" in name}
    assert names == {f"model.layers.1.ahn_slots.{name}" for name in NAMES}
    assert not any("slots" in name for name in ahn.attach(base_model(), _plain()).state_dict())


def _plain():
    return ahn.AHNConfig("DeltaNet", window=16, num_sinks=4)


@torch.no_grad()
def test_a_merged_folder_in_half_precision_keeps_the_scores_in_float32(tmp_path):
    model = slot_model(dtype=torch.float32)
    model.save_pretrained(tmp_path)
    half = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    kinds = {"ahn_slots" in name: x.dtype for name, x in half.state_dict().items()}
    assert kinds == {True: torch.float32, False: torch.bfloat16}
    attached = ahn.attach(base_model("Qwen3", torch.bfloat16), ahn.AHNConfig(None, slots=8))
    assert attached.model.layers[0].ahn_slots.rate.dtype == torch.float32
    whole = attached.to(torch.bfloat16)  # a cast of the whole model is the user's
    scores = whole.model.layers[0].ahn_slots.scores(torch.randn(1, 3, 64))
    assert scores.dtype == torch.float32


def test_detached_nothing_is_left():
    model = slot_model(dtype=torch.float32)
    before = base_model("Qwen3")
    ahn.detach(model)
    assert type(model) is type(before)
    assert set(model.state_dict()) == set(before.state_dict())


def test_the_released_layout_refuses_slots_by_name(tmp_path):
    model = slot_model(dtype=torch.float32, slot_bits=8)
    message = "format: expected ahn for a memory with slot_bits, slots, got released"
    with pytest.raises(ValueError, match=message):
        ahn.save_pretrained(model, tmp_path, format="released")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"slot_shares": ((1.0, 0.0),)}, r"slot_shares of \[layers, key heads\] = \[2, 2\], got"),
        ({"slot_shares": ((0.5,), (0.5,))}, r"slot_shares of .* got \[2, 1\]"),
        ({"window_shares": (0.5, 0.25, 0.25)}, "window_shares of 2 layers, got 3"),
        ({"window_shares": (1.0, 0.0)}, "window_shares above 0 .* got 0 in layer 1"),
    ],
    ids=str,
)
def test_shares_of_another_model_are_refused(settings, message):
    with pytest.raises(ahn.UnsupportedModel, match=message) as error:
        slot_model(dtype=torch.float32, **settings)
    assert "\n" not in str(error.value)


@torch.no_grad()
def test_a_memory_of_other_shares_is_not_loaded(tmp_path):
    from ahn.training.memory_state import load

    ahn.save_pretrained(slot_model(dtype=torch.float32, slot_shares=SHARES), tmp_path)
    with pytest.raises(ValueError, match="expected slot_shares=None, got"):
        load(slot_model(dtype=torch.float32), tmp_path)


@pytest.mark.parametrize("settings", [SETTINGS[i] for i in (3, 4, 5, 6)], ids=str)
@torch.no_grad()
def test_bytes_of_a_sequence_are_known_in_advance(settings):
    model = slot_model(dtype=torch.float32, **settings)
    config = ahn.AHNConfig.from_dict(model.config.ahn_config)
    cell = getattr(model.model.layers[0], "ahn", None)
    memory = None if cell is None else type(cell.fn)
    expected = cache_bytes(Shape.of(model.config), 10**6, config, memory, 4, Slots)
    cache = ahn.AHNCache(model.config)
    ahn.generation.prefill(model, random_ids(60, batch=3), cache)
    assert cache.nbytes == 3 * expected
