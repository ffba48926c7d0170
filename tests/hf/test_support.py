"""Models that cannot take a memory are refused by reason; others of the family's shape work."""

from __future__ import annotations

import pytest
import torch
import transformers
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention

import ahn
from ahn.hf.cache_argument import CACHE, IS_RENAMED
from ahn.hf.support import UnsupportedModel
from tiny_models import (
    COMMON,
    WINDOW,
    assert_close,
    base_model,
    one_shot,
    pieces,
    random_ids,
    read,
    wake,
)

SETTINGS = ahn.AHNConfig(window=WINDOW, num_sinks=4)
T5 = {"vocab_size": 97, "d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 1, "num_heads": 4}
MLA = {
    "q_lora_rank": None,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    "moe_intermediate_size": 32,
    "n_routed_experts": 2,
    "num_experts_per_tok": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 2,
}
REFUSED = {  # model class: config values, reason
    "MistralForCausalLM": (
        {"sliding_window": 16},
        "window .* num_sinks of at most the model's own sliding_window=16, got 20",
    ),
    "RecurrentGemmaForCausalLM": ({}, "a layer with full attention|layers with self_attn"),
    "FalconH1ForCausalLM": (
        {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16},
        "bounded ones, got hybrid|got FalconH1DecoderLayer with mamba",
    ),
    "T5ForConditionalGeneration": (T5, "a decoder-only model, got an encoder-decoder"),
    "Gemma3nForCausalLM": (
        {"num_kv_shared_layers": 1, "layer_types": ["full_attention"] * 2, "head_dim": 16},
        "keys and values of each layer's own, got num_kv_shared_layers=1",
    ),
    "JambaForCausalLM": (
        {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2},
        "recurrences that go on from a cache in chunks, got JambaMambaMixer|common caches",
    ),
    "DeepseekV2ForCausalLM": (MLA, "multi-head latent attention"),
    "DeepseekV3ForCausalLM": (MLA, "multi-head latent attention"),
    "Gemma2ForCausalLM": ({"head_dim": 16}, "plain softmax attention, got attn_logit_softcapping"),
    "GPT2LMHeadModel": ({}, "a decoder that holds its layers in `layers`, got GPT2Model"),
    "MambaForCausalLM": ({}, "expected"),
    "FalconForCausalLM": ({"alibi": True}, "expected"),
    "NemotronForCausalLM": ({}, "expected"),  # its layers pass no keywords on to self_attn
    "DogeForCausalLM": ({}, "expected"),  # its attention makes a mask of its own of the mask
    "DiffLlamaForCausalLM": ({}, "expected"),  # its attention is the difference of two
}
SUPPORTED = {  # one line for each further family that is known to work
    "Olmo2ForCausalLM": {},
    "GraniteForCausalLM": {"attention_multiplier": 0.3, "residual_multiplier": 0.5},
}


def build(name: str, values: dict):
    model_class = getattr(transformers, name)
    torch.manual_seed(0)
    model = model_class(model_class.config_class(**{**COMMON, **values})).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "proj" in key and parameter.ndim == 2:
                parameter.mul_(6)
    return model


@pytest.mark.parametrize("name", [name for name in REFUSED if hasattr(transformers, name)])
def test_refused_by_reason(name):
    values, reason = REFUSED[name]
    model = build(name, values)
    before = list(model.state_dict())
    with pytest.raises(UnsupportedModel, match=reason) as error:
        ahn.attach(model, SETTINGS)
    assert str(error.value).startswith(f"{name}: expected ")
    assert "\n" not in str(error.value)
    assert list(model.state_dict()) == before


def test_what_is_no_transformers_model_is_refused():
    with pytest.raises(ValueError, match="attach: expected a transformers model, got Linear"):
        ahn.attach(torch.nn.Linear(2, 2), SETTINGS)


class OldAttention(Qwen2Attention):
    def forward(self, hidden_states, past_key_values=None, **kwargs):
        return super().forward(hidden_states, **kwargs)


class NewAttention(Qwen2Attention):
    def forward(self, hidden_states, cache=None, **kwargs):
        return super().forward(hidden_states, **kwargs)


def test_a_module_of_a_transformers_with_the_other_name_of_the_cache_is_refused():
    """Its decoder would give it a cache that it never looks at."""
    other, same = (OldAttention, NewAttention) if IS_RENAMED else (NewAttention, OldAttention)
    model = base_model()
    model.model.layers[1].self_attn.__class__ = same
    ahn.detach(ahn.attach(model, SETTINGS))
    model.model.layers[1].self_attn.__class__ = other
    with pytest.raises(UnsupportedModel, match=f"{other.__name__}.forward to call its .* {CACHE}$"):
        ahn.attach(model, SETTINGS)


@pytest.mark.parametrize(
    ("layers", "reason"),
    [((0, 5), r"full_attention_layers below 2, got \[5\]"), ((0, 1), "got all of them")],
)
def test_layers_that_do_not_fit_are_refused(layers, reason):
    with pytest.raises(UnsupportedModel, match=reason):
        ahn.attach(base_model(), ahn.AHNConfig(full_attention_layers=layers))


@pytest.mark.parametrize("name", SUPPORTED)
@pytest.mark.parametrize("use_q_proj", [False, True])
@torch.no_grad()
def test_other_families_of_that_shape_keep_the_laws(name, use_q_proj):
    base, model = build(name, SUPPORTED[name]).double(), build(name, SUPPORTED[name]).double()
    settings = ahn.AHNConfig(window=WINDOW, num_sinks=4, use_q_proj=use_q_proj)
    wake(ahn.attach(model, settings))
    ids = random_ids(100, batch=2)
    assert torch.equal(model(ids[:, :20]).logits, base(ids[:, :20]).logits)
    expected = one_shot(model, ids)
    assert (expected - base(ids).logits)[:, 20:].abs().amax(-1).min() > 1e-6
    for chunks in ([100], pieces(100, 7), [60, *[1] * 40]):
        assert_close(read(model, ids, chunks), expected, 1e-12)
    assert type(model).__name__ == f"AHN{name}"
    assert type(ahn.detach(model)).__name__ == name
    assert torch.equal(one_shot(model, ids), one_shot(base, ids))
