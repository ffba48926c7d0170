"""How far a base's positions reach: a RoPE that is scaled reaches its factor times as far."""

from __future__ import annotations

import warnings

import pytest
import torch

from tiny_models import new_model, random_ids

YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0}
OTHERS = {
    "yarn": {**YARN, "original_max_position_embeddings": 64},
    "yarn, its length left out": YARN,
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
}


def model_of(**config):
    return new_model(overrides=tuple(config.items()))


def said(model, length):
    with warnings.catch_warnings(record=True) as caught, torch.no_grad():
        warnings.simplefilter("always")
        model(random_ids(length), use_cache=False)
    return [str(x.message) for x in caught if "untrained" in str(x.message)]


@pytest.mark.parametrize("rope", OTHERS.values(), ids=OTHERS)
def test_positions_that_a_scaled_rope_reaches_are_not_called_untrained(rope):
    model = model_of(max_position_embeddings=64, rope_parameters=rope)
    assert not said(model, 256)
    assert "257 tokens are more than" in said(model, 257)[0]


def test_positions_of_a_plain_rope_end_where_its_config_says():
    model = model_of(max_position_embeddings=64)
    assert not said(model, 64) and len(said(model, 65)) == 1
