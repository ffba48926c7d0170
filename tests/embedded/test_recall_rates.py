"""Rates are lowered as far as long rows need, head after head."""

from __future__ import annotations

import pytest

from ahn.embedded import recall_rates
from ahn.memory import Slots
from slot_models import slot_model

SHARES = ((0.5, 0.02), (0.08, 0.4))
# What is found, by the factors of layer 0, head 0; layer 1, head 1; layer 1, head 0.
FOUND = {(1, 1, 1): 0.3, (0.5, 1, 1): 0.5, (0.25, 1, 1): 0.515, (0.25, 0.5, 1): 0.4}


@pytest.fixture
def model():
    model = slot_model(slots=50, slot_shares=SHARES)
    for slots in layers(model):
        slots.rate.data[:] = 0.25
    return model


def layers(model):
    return [x for x in model.modules() if isinstance(x, Slots)]


def factors(model):
    first, second = ((x.rate / 0.25).tolist() for x in layers(model))
    return (first[0], second[1], second[0]), first[1]


def test_each_large_head_takes_the_largest_factor_that_is_good_enough(model, monkeypatch):
    tried = []

    def found_share(model, rows, near):
        by_head, _ = factors(model)
        tried.append(by_head)
        return FOUND.get(by_head, 0.2)

    monkeypatch.setattr(recall_rates, "found_share", found_share)
    lines = []
    log = recall_rates.lower_rates(model, [], near=9, report=lines.append)
    assert factors(model) == ((0.5, 1, 1), 1)  # 0.25 finds more, but hardly
    assert [(x["layer"], x["head"], x["factor"]) for x in log] == [
        (0, 0, 0.5), (1, 1, 1.0), (1, 0, 1.0),
    ]  # fmt: skip
    assert log[0]["found"] == [0.3, 0.5, 0.515, 0.2] and len(tried) == 10
    assert lines[0] == "layer 0, head 0: rate x 0.5, found 0.500"
