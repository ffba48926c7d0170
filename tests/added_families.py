"""Two families that `ahn.hf.families.FAMILIES` does not have: an entry adds each of them.

`SeedOss` is transformers' own. `Toy` is made here: Qwen3's formulas, every part by another name.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaModel, eager_attention_forward
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb as rotate_halves

from ahn.hf.cache_argument import cache_argument
from ahn.hf.families import FAMILIES, Family
from tiny_models import COMMON, base_model

TOY = Family(
    "toy",
    "Toy",
    modeling=__name__,
    input_norm="attention_norm",
    post_attention_norm="ffn_norm",
    norm_eps="eps",
    attention_maps=("wq", "wk", "wv", "o_proj"),
    qk_norms=("query_norm", "key_norm"),
    rope="rotate_halves",
    mlp="feed_forward",
    mlp_maps=("w1", "w3", "w2"),
)


class ToyConfig(LlamaConfig):
    model_type = "toy"


class ToyRMSNorm(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), 1e-6

    def forward(self, x):
        return nn.functional.rms_norm(x, self.weight.shape, self.weight, self.eps)


class ToyMLP(nn.Module):
    def __init__(self, config) -> None:
        super().__init__()
        self.config = config
        self.w1, self.w3 = (
            nn.Linear(config.hidden_size, config.intermediate_size, bias=False) for _ in range(2)
        )
        self.w2 = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x):
        return self.w2(nn.functional.silu(self.w1(x)) * self.w3(x))


class ToyAttention(nn.Module):
    def __init__(self, config, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer_idx, self.head_dim = config, layer_idx, config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling, self.is_causal = config.head_dim**-0.5, True
        heads, groups = (
            n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads)
        )
        self.wq = nn.Linear(config.hidden_size, heads)
        self.wk, self.wv = (nn.Linear(config.hidden_size, groups) for _ in range(2))
        self.o_proj = nn.Linear(heads, config.hidden_size, bias=False)
        self.query_norm, self.key_norm = (ToyRMSNorm(config.head_dim) for _ in range(2))

    def forward(self, hidden_states, position_embeddings, attention_mask, **kwargs):
        query, key, value = (
            linear(hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for linear in (self.wq, self.wk, self.wv)
        )
        query, key = self.query_norm(query), self.key_norm(key)
        query, key = rotate_halves(query, key, *position_embeddings)
        _, cache = cache_argument(kwargs)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        name = self.config._attn_implementation
        attend = ALL_ATTENTION_FUNCTIONS.get(name, eager_attention_forward)
        out, weights = attend(
            self, query, key, value, attention_mask, scaling=self.scaling, **kwargs
        )
        return self.o_proj(out.flatten(2)), weights


class ToyDecoderLayer(nn.Module):
    def __init__(self, config, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = ToyAttention(config, layer_idx)
        self.feed_forward = ToyMLP(config)
        self.attention_norm, self.ffn_norm = (ToyRMSNorm(config.hidden_size) for _ in range(2))

    def forward(self, hidden_states, **kwargs):
        x = hidden_states
        x = x + self.self_attn(hidden_states=self.attention_norm(x), **kwargs)[0]
        return x + self.feed_forward(self.ffn_norm(x))


class ToyModel(LlamaModel):
    def __init__(self, config) -> None:
        super().__init__(config)
        layers = (ToyDecoderLayer(config, index) for index in range(config.num_hidden_layers))
        self.layers, self.norm = nn.ModuleList(layers), ToyRMSNorm(config.hidden_size)
        self.post_init()


class ToyForCausalLM(LlamaForCausalLM):
    config_class = ToyConfig

    def __init__(self, config) -> None:
        super().__init__(config)
        self.model = ToyModel(config)
        self.post_init()


def _toy_base() -> ToyForCausalLM:
    torch.manual_seed(0)
    model = ToyForCausalLM(ToyConfig(**COMMON, head_dim=24)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:  # norms and biases, so that leaving one out shows
                parameter.add_(0.2 * torch.randn_like(parameter))
            elif "layers" in name:
                parameter.mul_(6)
    return model


def _seed_oss_base():
    """Without its dropout of residuals, which the other families do not have."""
    return base_model("SeedOss", head_dim=16, residual_dropout=0.0)


ADDED = {"SeedOss": (Family("seed_oss", "SeedOss"), _seed_oss_base), "Toy": (TOY, _toy_base)}


def added_base(name: str, monkeypatch):
    """A base model of a family, which is known while the test runs."""
    entry, build = ADDED[name]
    monkeypatch.setitem(FAMILIES, entry.model_type, entry)
    return build()
