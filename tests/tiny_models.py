"""Tiny random models, and the case lists that every law runs over.

A new cell inherits every law by its line in `CELLS`, a new family by its line in `FAMILIES`.
Tests of kernels, and of memories that were released or ship, run over `SHIPPED` instead.
"""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
import transformers
from torch import Tensor
from transformers import cache_utils

import ahn
from ahn.hf.cache_argument import CACHE

SHIPPED = ["GatedDeltaNet", "DeltaNet", "Mamba2"]  # the cells of released and shipped memories
CELLS = [*SHIPPED]
FAMILIES = {  # name of the model class and what its config needs beside COMMON
    "Qwen2": {},
    "Qwen3": {"head_dim": 24},
    "Llama": {},
    "Mistral": {"sliding_window": None},
}
# Families of which some layers stay as they are, and one whose own window the memory replaces.
OWN_WINDOW = 8  # of layers that slide by themselves, or attend within chunks
EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 1}
MIXED = {
    "Gemma3": {
        "layer_types": ["full_attention", "sliding_attention"],
        "sliding_window": OWN_WINDOW,
        "head_dim": 16,
    },
    "Qwen3Next": {
        "layer_types": ["linear_attention", "full_attention"],
        "num_experts": 0,
        "head_dim": 16,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
    },
    "GptOss": {
        "layer_types": ["sliding_attention", "full_attention"],
        "sliding_window": OWN_WINDOW,
        "head_dim": 16,
        **EXPERTS,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    },
    "GraniteMoeHybrid": {
        "layer_types": ["mamba", "attention"],
        "num_local_experts": 0,
        "shared_intermediate_size": 96,
        "mamba_n_heads": 8,
        "mamba_d_head": 16,
        "mamba_d_state": 16,
    },
    "Llama4": {
        "layer_types": ["chunked_attention", "full_attention"],
        "no_rope_layers": [1, 0],
        "attention_chunk_size": OWN_WINDOW,
        "head_dim": 16,
        "moe_layers": [],
        "intermediate_size_mlp": 96,
    },
    "Gemma4": {
        "layer_types": ["sliding_attention", "full_attention"],
        "sliding_window": OWN_WINDOW,
        "head_dim": 16,
        "global_head_dim": 32,
        "num_global_key_value_heads": 1,
        "attention_k_eq_v": True,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 97,
    },
    "Phi3": {"sliding_window": 24},
}
RECURRENT = {"Qwen3Next", "GraniteMoeHybrid"}  # of these
if not hasattr(cache_utils, "LinearAttentionLayer"):  # a transformers that refuses them
    MIXED = {family: values for family, values in MIXED.items() if family not in RECURRENT}
MIXED = {name: x for name, x in MIXED.items() if f"{name}ForCausalLM" in dir(transformers)}
MATRIX = [(family, cell) for family in FAMILIES for cell in CELLS]
# For laws that depend on family and cell apart: each of either once, not every pair.
PAIRS = [(family, CELLS[i % len(CELLS)]) for i, family in enumerate(FAMILIES)] + [
    (list(FAMILIES)[i % len(FAMILIES)], CELLS[i]) for i in range(len(FAMILIES), len(CELLS))
]
TRIOS = PAIRS[: len(CELLS)]  # each cell once
MIXED_PAIRS = [(family, CELLS[i % len(CELLS)]) for i, family in enumerate(MIXED)]
SHIPPED_PAIRS = [(family, SHIPPED[i % len(SHIPPED)]) for i, family in enumerate(FAMILIES)]
COMMON = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
WINDOW = 16
MEMORY_PARTS = (".ahn.", ".ahn_router.", ".ahn_slots.")

needs_recurrent = pytest.mark.skipif(
    not RECURRENT & set(MIXED), reason="this transformers' caches hold no recurrences"
)
over_matrix = pytest.mark.parametrize(("family", "cell"), MATRIX)
over_pairs = pytest.mark.parametrize(("family", "cell"), PAIRS)
over_trios = pytest.mark.parametrize(("family", "cell"), TRIOS)
over_mixed = pytest.mark.parametrize(("family", "cell"), MIXED_PAIRS)
over_cells = pytest.mark.parametrize("cell", CELLS)
over_shipped = pytest.mark.parametrize("cell", SHIPPED)
over_shipped_pairs = pytest.mark.parametrize(("family", "cell"), SHIPPED_PAIRS)


def base_model(family: str = "Qwen2", dtype=torch.float32, seed: int = 0, **overrides):
    """A new base model whose attention matters: with std 0.02 it would be all but uniform."""
    torch.manual_seed(seed)
    model_class = getattr(transformers, f"{family}ForCausalLM")
    own = FAMILIES.get(family) or MIXED.get(family) or {}
    model = model_class(model_class.config_class(**{**COMMON, **own, **overrides}))
    model = sharpen(model).eval().to(dtype)
    return exact_norms(model) if dtype == torch.float64 else model


@torch.no_grad()
def sharpen(model):
    """Give a new model weights that matter, in place: each of them shows if it is left out."""
    for name, parameter in model.named_parameters():
        parameter.nan_to_num_(0.0)  # what transformers has not written is NaN here
        if parameter.ndim == 1:  # norms and biases
            parameter.add_(0.2 * torch.randn_like(parameter))
        elif "proj" in name:
            parameter.mul_(6)
    return model


class ExactRMSNorm(torch.nn.Module):
    """RMSNorm in the dtype of its input."""

    def forward(self, hidden: Tensor) -> Tensor:
        variance = hidden.square().mean(-1, keepdim=True)
        return self.weight * hidden * torch.rsqrt(variance + self.variance_epsilon)


def exact_norms(model):
    """Transformers' own round to float32, where a difference of 1e-17 can become one of 1e-8."""
    for module in model.modules():
        if hasattr(module, "variance_epsilon"):
            module.__class__ = ExactRMSNorm
    return model


def new_model(
    family: str = "Qwen2",
    cell: str = "GatedDeltaNet",
    *,
    window: int = WINDOW,
    num_sinks: int = 4,
    dtype=torch.float32,
    overrides: tuple[tuple[str, object], ...] = (),
    **settings,
):
    """A new model with a memory that acts, for tests that change it."""
    model = base_model(family, dtype, **dict(overrides))
    config = ahn.AHNConfig(memory=cell, window=window, num_sinks=num_sinks, **settings)
    return wake(ahn.attach(model, config))


@cache
def shared_base(family: str = "Qwen2", dtype=torch.float32):
    """The base of `shared_model`; not to be changed."""
    return base_model(family, dtype)


@cache
def shared_model(family: str = "Qwen2", cell: str = "GatedDeltaNet", **options):
    """As `new_model`, made once; not to be changed."""
    return new_model(family, cell, **options)


@torch.no_grad()
def wake(model, seed: int = 1):
    """Random memory weights: what trained cells may hold, nothing at a value that hides a fault.

    The decay `A_log` goes from head to head from some hundred tokens to some few.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in memory_parameters(model).items():
        noise = torch.randn(parameter.shape, generator=generator).to(parameter)
        if name.endswith("A_log"):
            parameter.copy_(torch.linspace(-4, 1, len(parameter)) + 0.3 * noise)
        elif parameter.ndim == 1:
            parameter.add_(0.3 * noise)
        else:
            parameter.copy_((0.3 if parameter.ndim == 3 else 0.12) * noise)
    return model


def memory_parameters(model) -> dict[str, torch.nn.Parameter]:
    return {n: p for n, p in model.named_parameters() if any(part in n for part in MEMORY_PARTS)}


def random_ids(length: int, batch: int = 1, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, COMMON["vocab_size"], (batch, length), generator=generator)


def left_padded(lengths: tuple[int, ...], seed: int = 10) -> tuple[list[Tensor], Tensor, Tensor]:
    """Rows `[1, n]` of these lengths, and the batch of them: ids and mask `[B, longest]`."""
    longest = max(lengths)
    rows = [random_ids(n, seed=seed + i) for i, n in enumerate(lengths)]
    ids = torch.cat([torch.nn.functional.pad(row, (longest - row.shape[1], 0)) for row in rows])
    mask = torch.stack([(torch.arange(longest) >= longest - n).long() for n in lengths])
    return rows, ids, mask


def positions_of(mask: Tensor) -> Tensor:
    """`position_ids` of a left-padded batch, as `generate` makes them."""
    return (mask.cumsum(1) - 1).clamp(min=0)


def read(model, ids: Tensor, chunks, cache=None, mask: Tensor | None = None) -> Tensor:
    """Logits `[B, T, vocabulary]` of all tokens, read in chunks of these lengths with a cache."""
    cache = ahn.AHNCache(model.config) if cache is None else cache
    outputs, first = [], 0
    for length in chunks:
        last = first + length
        options = {}
        if mask is not None:
            options["attention_mask"] = mask[:, :last]
            options["position_ids"] = positions_of(mask)[:, first:last]
        output = model(ids[:, first:last], **{CACHE: cache}, use_cache=True, **options)
        outputs.append(output.logits)
        first = last
    assert first == ids.shape[1], f"chunks cover {first} of {ids.shape[1]} tokens"
    return torch.cat(outputs, 1)


def one_shot(model, ids: Tensor, **options) -> Tensor:
    """Logits of all tokens in one forward without a cache."""
    return model(ids, use_cache=False, **options).logits


def pieces(length: int, size: int) -> list[int]:
    """`length` as a list of chunks of `size`, the last one shorter."""
    return [min(size, length - first) for first in range(0, length, size)]


def assert_close(actual: Tensor, expected: Tensor, tolerance: float, what: str = "") -> None:
    """Largest difference within `tolerance` of the largest value (or of 1)."""
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    if not actual.numel():  # the gates of a cell without any
        return
    difference = (actual - expected).abs().max().item()
    allowed = tolerance * max(1.0, expected.abs().max().item())
    assert difference <= allowed, f"{what}: {difference:.2e} > {allowed:.2e}"


def duplicate(model):
    """A copy that a test may change."""
    return copy.deepcopy(model)
