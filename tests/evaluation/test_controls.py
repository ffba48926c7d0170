"""Controls of a memory with slots: other choices, and parts taken away."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch

import ahn
from ahn.evaluation import controls
from ahn.evaluation.lm.loading import check_method
from ahn.evaluation.lm.methods import METHODS
from ahn.layer.cache import AHNCache
from ahn.memory import STATE
from ahn.memory.slots import KEYS, PLACE, VALUES
from slot_models import SHARES, slot_model
from tiny_models import WINDOW, new_model

SINKS = 4
IDS = torch.randint(3, 90, (2, 70), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def read(model, ids=IDS):
    cache = AHNCache(model.config)
    model(ids, **{ahn.hf.cache_argument.CACHE: cache}, use_cache=True)
    return cache


def places(cache):
    """Of what stands in the slots, `[B, G, M]` in order."""
    heads = [layer.states[PLACE].unflatten(1, (2, -1)) for layer in cache.memory_layers]
    return [x.sort(-1).values for x in heads]


def test_the_newest_are_a_longer_window():
    model = slot_model()
    with controls.newest_slots(model):
        kept = places(read(model))
    newest = torch.arange(70 - WINDOW - 8, 70 - WINDOW) + 1
    assert all(torch.equal(x, newest.expand_as(x).int()) for x in kept)
    wider = ahn.attach(ahn.detach(slot_model()), ahn.AHNConfig(
        memory="GatedDeltaNet", window=WINDOW + 8, num_sinks=SINKS))  # fmt: skip
    with torch.no_grad(), controls.newest_slots(model), ahn.memory_off(wider):
        torch.testing.assert_close(model(IDS).logits, wider(IDS).logits)


def test_the_choices_differ_and_the_parameters_come_back():
    model = slot_model()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    kept = []
    for context in (nullcontext(), controls.newest_slots(model), controls.random_slots(model)):
        with context:
            kept.append(torch.stack(places(read(model))))
    assert all(not torch.equal(kept[i], kept[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    assert torch.equal(torch.stack(places(read(model))), kept[0])
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


@torch.no_grad()
def after(model, change, ids=IDS):
    """Logits of a token after a text whose cache is changed."""
    cache = copy.deepcopy(read(model))
    change(cache)
    return model(ids[:, :1], **{ahn.hf.cache_argument.CACHE: cache}, use_cache=True).logits


def test_empty_slots_leave_the_window():
    model = slot_model()
    plain = ahn.attach(ahn.detach(slot_model()), ahn.AHNConfig(
        memory="GatedDeltaNet", window=WINDOW, num_sinks=SINKS))  # fmt: skip
    logits = after(model, controls.empty_slots)
    assert (logits - after(model, lambda cache: None)).abs().max() > 1e-6
    # What was read before stays in the hidden states; the slots' pairs are gone.
    cache = read(model)
    controls.empty_slots(cache)
    assert all(not (layer.states[PLACE] > 0).any() for layer in cache.memory_layers)
    assert plain is not None


@pytest.mark.parametrize("settings", [{}, {"slot_shares": SHARES}, {"slot_bits": 8}], ids=str)
def test_exchanged_values_are_others_of_the_same_head(settings):
    model = slot_model(**settings)
    cache = read(model)
    before = [{k: x.clone() for k, x in layer.states.items()} for layer in cache.memory_layers]
    controls.exchange_values(cache)
    for index, (layer, old) in enumerate(zip(cache.memory_layers, before)):
        assert torch.equal(layer.states[KEYS], old[KEYS])
        sizes = model.model.layers[index].ahn_slots.sizes
        parts = (x.split(sizes, 1) for x in (old[PLACE], layer.states[VALUES], old[VALUES]))
        for places, new, own in zip(*parts):
            for row, place in enumerate(places):
                order = place.masked_fill(place == 0, 10**9).argsort()[: (place > 0).sum()]
                assert torch.equal(new[row, order], own[row, order].roll(-1, 0))
    assert (after(model, controls.exchange_values) - after(model, lambda c: None)).abs().max() > 0


def test_a_state_is_cleared_and_slots_stay():
    model = slot_model(memory="GatedDeltaNet")
    cache = read(model)
    controls.clear_states(cache)
    for layer in cache.memory_layers:
        assert not layer.states[STATE].any() and (layer.states[PLACE] > 0).all()


def test_methods_of_slots_refuse_a_memory_without():
    without, having = new_model("Qwen3", "GatedDeltaNet"), slot_model()
    for name, method in METHODS.items():
        check_method(having, name)
        if method.needs_slots:
            with pytest.raises(ValueError, match="memory: expected one with slots for method"):
                check_method(without, name)
        else:
            check_method(without, name)
