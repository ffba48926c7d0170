"""A layer's cell in vLLM: this package's own, whose states vLLM keeps, one for each request."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from vllm.distributed import get_tensor_model_parallel_world_size, tensor_model_parallel_all_reduce
from vllm.model_executor.layers.mamba.abstract import MambaBase
from vllm.model_executor.model_loader.weight_utils import sharded_weight_loader
from vllm.model_executor.utils import set_weight_attrs
from vllm.v1.attention.backends.registry import MambaAttentionBackendEnum

from ahn.config import AHNConfig
from ahn.memory import memory_by_name
from ahn.memory.cell import STATE
from ahn.memory.parts import GatedRMSNorm
from ahn.ops.gated_norm import EPS
from ahn.ops.layout import compute_dtype
from ahn.serving.pages import Page


class StateOwner(MambaBase):
    """Mixed into a cell: its state is one page of vLLM's for each request."""

    mamba_type = MambaAttentionBackendEnum.LINEAR

    def get_kv_cache_spec(self, vllm_config: Any) -> Any:
        """vLLM's spec of a state, on pages as large as those of rows."""
        cell: Any = self
        spec = replace(super().get_kv_cache_spec(vllm_config), page_size_padded=cell.page.size)
        if vllm_config.cache_config.enable_prefix_caching:  # states are kept at the same places
            spec = replace(spec, block_size=cell.page.block)
        return spec

    def get_state_shape(self) -> tuple[tuple[int, ...], ...]:
        cell: Any = self
        sizes = (cell.num_heads, cell.num_key_value_heads, cell.head_dim)
        return (cell.state_specs(*sizes)[STATE].shape,)

    def get_state_dtype(self) -> tuple[torch.dtype, ...]:
        return (torch.float32,)


class NormOverAllHeads(GatedRMSNorm):
    """A norm over all heads where a process has some of them: its mean is that of all."""

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        dtype = compute_dtype(x)
        x = x.to(dtype) * torch.nn.functional.silu(gate.to(dtype))
        mean = tensor_model_parallel_all_reduce(x.square().mean(-1, keepdim=True))
        mean = mean / get_tensor_model_parallel_world_size()
        return x * torch.rsqrt(mean + EPS) * self.weight.to(dtype)


def served_cell(
    settings: AHNConfig,
    hidden_size: int,
    heads: int,
    groups: int,
    head_dim: int,
    page: Page,
    prefix: str,
) -> Any:
    """A cell of this process's heads, whose parameters load as their share.

    Args:
        heads, groups: of this process.
        prefix: the name it has among vLLM's layers.
    """
    assert settings.memory is not None, "checked before the engine starts"
    kind = memory_by_name(settings.memory)
    cell: Any = type(f"Served{kind.__name__}", (StateOwner, kind), {})(
        hidden_size, heads, head_dim, num_key_value_heads=groups
    )
    cell.page, cell.prefix, cell.kv_cache = page, prefix, (torch.empty(0),)
    cell.requires_grad_(False)
    shared = () if cell.gate_first else (f"{cell.norm_name}.weight",)  # of one head's size
    for name, parameter in cell.named_parameters():
        if name not in shared:
            set_weight_attrs(parameter, {"weight_loader": sharded_weight_loader(0)})
    if cell.gate_first and get_tensor_model_parallel_world_size() > 1:
        getattr(cell, cell.norm_name).__class__ = NormOverAllHeads
        cell.kernels = "torch"  # a kernel's mean would be that of this process's heads
    return cell
