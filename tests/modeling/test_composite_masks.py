"""Images whose tokens see each other, as in Gemma 3: exact within the budget, else refused."""

from __future__ import annotations

import pytest
import torch
from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration
from transformers.generation import utils

import ahn
from ahn.hf.cache_argument import CACHE
from ahn.hf.support import UnsupportedModel
from composite_models import (
    BLOCKWISE,
    prompt,
    shared_composite,
    shared_composite_base,
    with_text,
    words,
)
from tiny_models import assert_close, one_shot

over_blockwise = pytest.mark.parametrize("family", BLOCKWISE)
TEXT = words(60)
REFUSED = "attention_mask: expected images within window and sinks"


@over_blockwise
@torch.no_grad()
def test_an_image_within_the_budget_is_read_as_by_the_base(family):
    base, model, inputs = shared_composite_base(family), shared_composite(family), prompt(family)
    expected = base(**inputs).logits
    assert torch.equal(model(**inputs).logits, expected)
    causal = {
        **inputs,
        "token_type_ids": torch.zeros_like(inputs["token_type_ids"]),
    }
    assert not torch.equal(base(**causal).logits, expected), "the image's tokens see each other"
    cache = ahn.AHNCache(model.config)
    first = model(words(3, seed=4), **{CACHE: cache}, use_cache=True).logits
    late = {**inputs, "input_ids": torch.cat([words(3, seed=4), inputs["input_ids"]], 1)}
    late["token_type_ids"] = torch.nn.functional.pad(inputs["token_type_ids"], (3, 0))
    call = {**inputs, "token_type_ids": late["token_type_ids"]}
    second = model(**call, **{CACHE: cache}, use_cache=True).logits
    assert_close(torch.cat([first, second], 1), base(**late).logits, 1e-12)


@over_blockwise
@torch.no_grad()
def test_text_after_it_is_read_in_any_chunks_and_generated(family):
    model, inputs, outputs = shared_composite(family), prompt(family), []
    for size in (60, 7, 1):
        cache = ahn.AHNCache(model.config)
        model(**inputs, **{CACHE: cache}, use_cache=True)
        chunks = [model(x, **{CACHE: cache}, use_cache=True).logits for x in TEXT.split(size, 1)]
        outputs.append(torch.cat(chunks, 1))
    for output in outputs[1:]:
        assert_close(output, outputs[0], 1e-12)
    whole, options = with_text(inputs, TEXT), {"max_new_tokens": 4, "do_sample": False}
    if hasattr(utils, "_slice_mm_encoder_output"):  # its first chunk is the budget
        answer = model.generate(**whole, **options)
        assert answer[0, -4] == outputs[0][0, -1].argmax()
    else:
        with pytest.raises(ValueError, match="expected images within window and sinks"):
            model.generate(**whole, **options)
    with ahn.memory_off(model):
        off = model(TEXT, use_cache=False).logits
    assert not torch.equal(off, one_shot(model, TEXT))


@over_blockwise
@torch.no_grad()
def test_an_image_beyond_the_budget_is_refused_and_text_with_marks_of_none_is_not(family):
    model, inputs = shared_composite(family), prompt(family)
    whole = with_text(inputs, TEXT)
    with pytest.raises(ValueError, match=REFUSED) as error:
        model(**whole)
    assert "\n" not in str(error.value)
    cache = ahn.AHNCache(model.config)
    model(TEXT, **{CACHE: cache}, use_cache=True)
    late = {**inputs, "token_type_ids": torch.nn.functional.pad(inputs["token_type_ids"], (60, 0))}
    with pytest.raises(ValueError, match=REFUSED):
        model(**late, **{CACHE: cache}, use_cache=True)
    marks = torch.zeros_like(TEXT)
    assert torch.equal(one_shot(model, TEXT, token_type_ids=marks), one_shot(model, TEXT))
    with ahn.disabled(model):
        assert torch.equal(model(**whole).logits, shared_composite_base(family)(**whole).logits)


def test_text_whose_tokens_see_those_that_follow_is_refused():
    settings = ahn.AHNConfig(window=16, num_sinks=4)
    text = {"model_type": "gemma", "num_hidden_layers": 1, "hidden_size": 64, "vocab_size": 97}
    vision = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = PaliGemmaConfig(text_config=text, vision_config=vision, projection_dim=64)
    with torch.device("meta"):
        model = PaliGemmaForConditionalGeneration(config)
    with pytest.raises(UnsupportedModel, match="causal attention, got use_bidirectional_attention"):
        ahn.attach(model, settings)
