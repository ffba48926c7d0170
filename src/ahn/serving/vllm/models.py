"""A memory for vLLM's own decoders: the class of a family, with its layers' attention exchanged."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.mamba.mamba_utils import MambaStateCopyFuncCalculator
from vllm.model_executor.models.interfaces import HasInnerState, IsHybrid
from vllm.model_executor.models.llama import LlamaForCausalLM
from vllm.model_executor.models.mistral import MistralForCausalLM
from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM
from vllm.model_executor.models.qwen3 import Qwen3ForCausalLM
from vllm.model_executor.models.qwen3_moe import Qwen3MoeForCausalLM
from vllm.model_executor.models.utils import PPMissingLayer

from ahn.config import AHNConfig
from ahn.memory import memory_by_name
from ahn.memory.cell import STATE
from ahn.modeling.auto_classes import CLASS_PREFIX
from ahn.serving.limits import settings_of
from ahn.serving.pages import Page, RowLayout
from ahn.serving.vllm.attention import AHNAttention, GivesHidden
from ahn.serving.vllm.memory import served_cell
from ahn.serving.vllm.window import WindowCache
from ahn.shapes import attention_sizes

UNREAD = ".ahn.fn.D"  # in released files of GatedDeltaNet; nothing reads it


def exchange_attention(model: Any, vllm_config: Any) -> None:
    """Give each layer with a memory its cell, its window and the attention over both."""
    settings = settings_of(vllm_config.model_config.hf_config)
    for index, layer in enumerate(model.layers):
        if not isinstance(layer, PPMissingLayer) and settings.has_memory(index):
            _exchange(layer, settings, vllm_config)


def _exchange(layer: Any, settings: AHNConfig, vllm_config: Any) -> None:
    """One layer. Parameters get the names that they have in a merged folder."""
    assert settings.memory is not None, "checked before the engine starts"
    config, dtype = vllm_config.model_config.hf_config, vllm_config.model_config.dtype
    attention = layer.self_attn
    sizes = (attention.num_heads, attention.num_kv_heads, attention.head_dim)  # of this process
    kind = memory_by_name(settings.memory)
    page = Page.of(kind, *sizes, dtype.itemsize)
    layout = RowLayout(*sizes, kind.num_gates)
    layers = vllm_config.compilation_config.static_forward_context
    own = attention.attn.layer_name
    del layers[own]
    prefix = own.removesuffix(".self_attn.attn")
    cell = served_cell(settings, config.hidden_size, *sizes, page, f"{prefix}.ahn.fn")
    window = WindowCache(
        layout, page, settings.window, settings.num_sinks, dtype, f"{prefix}.window"
    )
    layers[cell.prefix], layers[window.prefix] = cell, window
    layer.ahn = nn.Module()
    layer.ahn.fn = cell
    attention.attn = AHNAttention(window, cell, attention.scaling)
    name = CLASS_PREFIX + type(attention).__name__
    attention.__class__ = type(name, (GivesHidden, type(attention)), {})


class _Hybrid(HasInnerState, IsHybrid):
    """What vLLM asks of a model with states."""

    is_hybrid: ClassVar[Literal[True]] = True
    has_inner_state: ClassVar[Literal[True]] = True

    @classmethod
    def get_mamba_state_shape_from_config(cls, vllm_config: Any) -> tuple[tuple[int, ...], ...]:
        config = vllm_config.model_config.hf_config
        sizes = attention_sizes(config, 0)
        heads = sizes.heads // vllm_config.parallel_config.tensor_parallel_size
        kind = memory_by_name(str(settings_of(config).memory))
        return (kind.state_specs(heads, heads, sizes.head_dim)[STATE].shape,)

    @classmethod
    def get_mamba_state_dtype_from_config(cls, vllm_config: Any) -> tuple[torch.dtype, ...]:
        return (torch.float32,)

    @classmethod
    def get_mamba_state_copy_func(cls) -> Any:
        return MambaStateCopyFuncCalculator.linear_attention_state_copy_func()


def with_memory(base: type) -> type:
    """The class of a family with a memory; no forward of a family is written again."""

    class Attached(base, _Hybrid):
        def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
            super().__init__(vllm_config=vllm_config, prefix=prefix)
            exchange_attention(self.model, vllm_config)

        def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
            return super().load_weights(x for x in weights if not x[0].endswith(UNREAD))

    Attached.__name__ = Attached.__qualname__ = CLASS_PREFIX + base.__name__
    return Attached


AHNQwen2ForCausalLM = with_memory(Qwen2ForCausalLM)
AHNQwen3ForCausalLM = with_memory(Qwen3ForCausalLM)
AHNQwen3MoeForCausalLM = with_memory(Qwen3MoeForCausalLM)
AHNLlamaForCausalLM = with_memory(LlamaForCausalLM)


class AHNMistralForCausalLM(with_memory(MistralForCausalLM)):  # type: ignore[misc]
    """Its folder has Hugging Face's names, also where `norm` is a part of a memory's."""

    def maybe_remap_mistral(self, name: str, loaded_weight: Tensor) -> tuple[str, Tensor]:
        return name, loaded_weight
