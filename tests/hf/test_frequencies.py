"""Law: one table of rotary frequencies for a whole text, whatever its length and chunks."""

from __future__ import annotations

import pytest
import torch

import ahn
from tiny_models import (
    WINDOW,
    assert_close,
    base_model,
    left_padded,
    one_shot,
    pieces,
    random_ids,
    read,
    wake,
)

BUDGET = WINDOW + 4
ROPES = {  # family, and what makes its frequencies move at a length of 32
    "dynamic": (
        "Qwen2",
        {
            "max_position_embeddings": 32,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
        },
    ),
    "longrope": (
        "Phi3",
        {
            "sliding_window": None,
            "max_position_embeddings": 256,
            "original_max_position_embeddings": 32,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "short_factor": [1.0] * 8,
                "long_factor": [2.0] * 8,
                "original_max_position_embeddings": 32,
            },
        },
    ),
}
over_ropes = pytest.mark.parametrize("name", ROPES)


def attached(name, window=WINDOW):
    family, values = ROPES[name]
    return wake(ahn.attach(base_model(family, **values), ahn.AHNConfig(window=window, num_sinks=4)))


@over_ropes
@torch.no_grad()
def test_chunks_equal_one_shot_and_generate_the_plain_loop(name):
    model, ids = attached(name), random_ids(100)
    expected = one_shot(model, ids)
    for chunks in ([15, *[1] * 40, 45], pieces(100, 7)):
        assert_close(read(model, ids, chunks), expected, 1e-5)
    text = ids[:, :25]
    answer = model.generate(text, max_new_tokens=20, do_sample=False)
    for _ in range(20):
        text = torch.cat([text, one_shot(model, text)[:, -1:].argmax(-1)], 1)
    assert torch.equal(answer, text)


@over_ropes
@torch.no_grad()
def test_padded_rows_are_answered_as_alone(name):
    model, (rows, ids, mask) = attached(name), left_padded((40, 12))
    options = {"max_new_tokens": 12, "do_sample": False}
    answers = model.generate(ids, attention_mask=mask, **options)
    for answer, row in zip(answers, rows):
        assert torch.equal(answer[-12:], model.generate(row, **options)[0, -12:])


@pytest.mark.parametrize("window", [WINDOW, 60])  # below the length where the table moves, above
@over_ropes
@torch.no_grad()
def test_the_table_is_that_of_a_text_as_long_as_the_budget(name, window, tmp_path):
    family, values = ROPES[name]
    model, base, ids = attached(name, window), base_model(family, **values), random_ids(window + 4)
    expected = base(ids).logits
    one_shot(model, random_ids(100))  # moves nothing
    assert torch.equal(model(ids).logits, expected)
    model.save_pretrained(tmp_path)
    assert torch.equal(type(model).from_pretrained(tmp_path).eval()(ids).logits, expected)
    model = ahn.detach(model)
    for length in (100, 20, window + 4):
        text = random_ids(length)
        assert torch.equal(model(text).logits, base(text).logits)


def test_tables_that_move_in_some_layers_alone_are_refused():
    model = base_model("Gemma3")
    model.model.rotary_emb.rope_type = {"full_attention": "dynamic", "sliding_attention": "default"}
    with pytest.raises(ahn.UnsupportedModel, match=r"one rope_type for all layers, .* got dynamic"):
        ahn.attach(model, ahn.AHNConfig())
