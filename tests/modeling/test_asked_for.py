"""What was asked for is what is given, as the base would."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AttentionInterface, AutoModelForCausalLM
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module

import ahn
from ahn.generation import prefill
from ahn.layer.attention import NAME, ahn_attention
from slot_models import slot_model
from tiny_models import assert_close, base_model, new_model, one_shot, random_ids, shared_model

PAD = 0  # of the tiny models


def with_gaps(length, batch=2):
    """Prompts that hold the pad token: in the middle of each, twice, and at one's beginning."""
    ids = random_ids(length, batch=batch)
    ids[0, :3] = PAD
    ids[:, length // 2] = PAD
    ids[1, length // 3 : length // 3 + 2] = PAD
    return ids


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"num_return_sequences": 2,
                                                             "num_beams": 2}], ids=str)  # fmt: skip
@torch.no_grad()
def test_a_prompt_that_holds_the_pad_token_is_the_bases(options):
    """Within the budget; with a mask and without; the prompt is given back as it was."""
    base, model = base_model(), new_model(window=60)
    ids = with_gaps(20)
    for extra in ({}, {"attention_mask": ids.ne(PAD).long()}):
        expected = base.generate(ids, max_new_tokens=9, **options, **extra)
        assert torch.equal(model.generate(ids, max_new_tokens=9, **options, **extra), expected)
        assert torch.equal(model.generate(input_ids=ids, max_new_tokens=9, **options, **extra),
                           expected)  # fmt: skip


@torch.no_grad()
def test_a_long_prompt_that_holds_the_pad_token_is_that_without_it():
    model, ids = shared_model(), with_gaps(70)
    got = model.generate(ids, max_new_tokens=9, prefill_chunk_size=16)
    assert torch.equal(got[:, :70], ids)
    for row, prompt in zip(got, ids):
        alone = prompt[prompt != PAD][None]
        assert torch.equal(row[70:], model.generate(alone, max_new_tokens=9)[0, alone.shape[1] :])


@torch.no_grad()
def test_tokens_that_are_no_padding_stay():
    """A mask of ones says so, and so does a pad token that ends texts."""
    base, model, ids = base_model(), new_model(window=60), with_gaps(20)
    for extra in ({"attention_mask": torch.ones_like(ids)}, {"eos_token_id": PAD}):
        expected = base.generate(ids, max_new_tokens=5, **extra)
        assert torch.equal(model.generate(ids, max_new_tokens=5, **extra), expected)


@pytest.mark.parametrize("settings", [{}, {"full_attention_layers": (1,)}], ids=str)
def test_a_fork_after_gradients(settings):
    model, ids, more = new_model(**settings), random_ids(40), random_ids(9, seed=3)
    cache = ahn.AHNCache(model.config)
    model(ids, past_key_values=cache, use_cache=True).logits.sum().backward()
    fork = cache.fork()
    assert fork.get_seq_length() == 40
    assert torch.equal(prefill(model, more, fork)[0], prefill(model, more, cache.fork())[0])
    with torch.no_grad():
        expected = one_shot(model, torch.cat([ids, more], 1))[:, -1]
    assert_close(prefill(model, more, cache)[0], expected, 1e-5)


def test_detach_after_resizing_keeps_the_size(tmp_path):
    model, config = new_model(), None
    config = model.config
    model.resize_token_embeddings(128, mean_resizing=False)
    model.config.pad_token_id = 5
    ahn.detach(model)
    assert type(model.config) is not type(config)
    assert (model.config.vocab_size, model.config.pad_token_id) == (128, 5)
    assert all(m.config is model.config for m in model.modules() if hasattr(m, "config"))
    model.save_pretrained(tmp_path)
    assert len(AutoModelForCausalLM.from_pretrained(tmp_path).model.embed_tokens.weight) == 128


def test_detach_gives_back_the_very_config():
    base = base_model()
    config = base.config
    assert ahn.detach(ahn.attach(base, ahn.AHNConfig(window=16))).config is config


@torch.no_grad()
def test_attention_takes_positional_arguments_in_the_order_of_transformers(monkeypatch):
    """As packages pass them that bring decoders of their own."""
    model, ids = shared_model(), random_ids(60)
    expected = one_shot(model, ids)

    def positional(module, query, key, value, mask, dropout=0.0, scaling=None, **kwargs):
        is_causal = kwargs.pop("is_causal", None)
        return ahn_attention(module, query, key, value, mask, dropout, scaling, is_causal, **kwargs)

    monkeypatch.setitem(AttentionInterface._global_mapping, NAME, positional)
    assert torch.equal(one_shot(model, ids), expected)


@torch.no_grad()
def test_self_attention_may_be_called_with_positional_arguments(monkeypatch):
    """A cache among them counts."""
    model, ids = new_model(), random_ids(60)
    expected = prefill(model, ids, prefill_chunk_size=16)[0]
    layer = type(model.model.layers[0])
    own = layer.forward

    def forward(self, hidden_states, attention_mask=None, position_ids=None, cache=None, **kwargs):
        name = "cache" if "cache" in type(self.self_attn).forward.__code__.co_varnames else None
        cache = cache if name else kwargs.pop("past_key_values", cache)
        residual = hidden_states
        hidden_states = self.input_layernorm(hidden_states)
        rope = kwargs.pop("position_embeddings")
        out, _ = self.self_attn(hidden_states, rope, attention_mask, cache, **kwargs)
        hidden_states = residual + out
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))

    monkeypatch.setattr(layer, "forward", forward)
    assert own is not layer.forward
    assert_close(prefill(model, ids, prefill_chunk_size=16)[0], expected, 1e-6)


@pytest.mark.parametrize("make", [new_model, lambda: new_model(use_q_proj=True, use_router=True),
                                  lambda: slot_model(dtype=torch.float32)])  # fmt: skip
def test_quantisation_leaves_the_memory_alone(make, tmp_path):
    """By the names that all of transformers' quantisers ask for."""
    make().save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    kept = HfQuantizer.get_modules_to_not_convert(model, None, model._keep_in_fp32_modules)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name != "lm_head":
            assert should_convert_module(name, kept) == (".ahn" not in name), name
    half = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float16)
    dtypes = {x.dtype for name, x in half.named_parameters() if ".ahn.fn." in name}
    assert dtypes <= {torch.float16}
