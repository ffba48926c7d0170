"""What vLLM's configuration needs to be told of a model with a memory, and what is refused."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vllm.config import CompilationConfig
from vllm.logger import init_logger
from vllm.model_executor.models.config import HybridAttentionMambaModelConfig
from vllm.transformers_utils.model_arch_config_convertor import ModelArchConfigConvertorBase
from vllm.v1.kv_cache_spec_registry import KVCacheSpecRegistry

from ahn.checkpoint.weights import Weights
from ahn.serving.limits import check_served, most_positions
from ahn.serving.servers import check_vllm_version

OP = "vllm::ahn_attention"
logger = init_logger("vllm.ahn")


def register_cache() -> None:
    """Have vLLM know the cache of sinks and window.

    Its registry fills in vLLM's own caches only while it is empty, so they come first.
    """
    KVCacheSpecRegistry._ensure_registered()
    import ahn.serving.vllm.sink_window  # noqa: F401  registers itself


def split_graphs_at_the_op() -> None:
    """Piecewise compilation and CUDA graphs break at attention ops, and ours is one."""
    if OP not in CompilationConfig._attention_ops:
        CompilationConfig._attention_ops.append(OP)


class AnyLength(ModelArchConfigConvertorBase):
    """The base's positions are the default of `max_model_len`, and no bound of it.

    A bounded memory is made for texts beyond them. vLLM takes a `model_max_length` as the bound.
    """

    def derive_max_model_len_and_key(self) -> tuple[float, str | None]:
        self.hf_text_config.model_max_length = sys.maxsize
        return self.hf_text_config.max_position_embeddings, "max_position_embeddings"


class AHNModelConfig(HybridAttentionMambaModelConfig):
    """vLLM calls both functions before the engine starts; what they raise ends the start."""

    @staticmethod
    def verify_and_update_model_config(model_config: Any) -> None:
        """Check model and memory; raises ValueError that names what cannot be served."""
        check_vllm_version()
        text = model_config.hf_config
        settings = check_served(text)
        folder = Path(model_config.model)
        if folder.is_dir():
            Weights.of(folder).memory()  # damaged or not finite: refused
        # vLLM takes a model whose layers are all `full_attention` for one without a state.
        text.layer_types = ["hybrid"] * text.num_hidden_layers
        text.sliding_window = None  # the memory's window has taken its place
        _set_positions(text, model_config.max_model_len, settings.budget)

    @classmethod
    def verify_and_update_config(cls, vllm_config: Any) -> None:
        """Refuse what would take tokens back, keep them in another form, or was not compared."""
        super().verify_and_update_config(vllm_config)
        if vllm_config.speculative_config is not None:
            raise ValueError(
                "speculative_config: expected none, since a memory cannot take tokens back, got "
                f"{vllm_config.speculative_config.method}"
            )
        for name, usual, value in _settings(vllm_config):
            if value not in usual:
                raise ValueError(f"{name}: expected {usual[0]} beside a memory, got {value}")


def _settings(vllm_config: Any) -> Iterator[tuple[str, tuple[Any, ...], Any]]:
    """Name, the values that a memory has been run with, and the value of vLLM's settings."""
    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    dtype = str(model.dtype).removeprefix("torch.")
    yield "kv_cache_dtype", ("auto", dtype), vllm_config.cache_config.cache_dtype
    yield "quantization", (None,), model.quantization
    yield "enable_sleep_mode", (False,), model.enable_sleep_mode
    yield "decode_context_parallel_size", (1,), parallel.decode_context_parallel_size
    yield "prefill_context_parallel_size", (1,), parallel.prefill_context_parallel_size
    transfer = vllm_config.kv_transfer_config
    yield "kv_transfer_config", (None,), transfer and transfer.kv_connector


def _set_positions(text: Any, length: int, budget: int) -> None:
    """Have the rotary table reach as far as texts may: beyond its end vLLM would compute NaN."""
    most = most_positions(text)
    if most is not None and length > most:
        raise ValueError(f"max_model_len: expected at most {most} with YaRN, got {length}")
    del text.model_max_length
    if length > text.max_position_embeddings:
        logger.warning(
            "texts of %d tokens are longer than the %d positions that the base was trained on; "
            "with its memory it looks back %d tokens",
            length,
            text.max_position_embeddings,
            budget,
        )
        text.max_position_embeddings = length
