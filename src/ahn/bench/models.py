"""Models to measure: of a named shape, of a config, or with trained weights."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DynamicCache,
    PreTrainedModel,
    Qwen2Config,
)

from ahn.checkpoint import from_pretrained
from ahn.checkpoint.named_models import NAMED_MODELS, evaluation_dtype, resolve
from ahn.config import AHNConfig
from ahn.cost import Shape
from ahn.hf.install import SLOTS
from ahn.hf.liger import use_liger, uses_liger
from ahn.layer.cache import AHNCache
from ahn.memory import GATES, Memory, Slots
from ahn.memory.slots import PLACE, SCORES
from ahn.modeling import attach, detach, disabled, memory_off
from ahn.modeling.attached import AHNModelMixin

METHODS = ("ahn", "window", "full")
# layers, hidden size, intermediate size, heads, key-value heads, vocabulary, tied embedding; those
# of Qwen2.5 are from the published config.json of each model.
SHAPES = {
    "qwen2.5-0.5b": (24, 896, 4864, 14, 2, 151936, True),
    "qwen2.5-1.5b": (28, 1536, 8960, 12, 2, 151936, True),
    "qwen2.5-3b": (36, 2048, 11008, 16, 2, 151936, True),
    "qwen2.5-7b": (28, 3584, 18944, 28, 4, 152064, False),
    "qwen2.5-14b": (48, 5120, 13824, 40, 8, 152064, False),
    "tiny": (2, 64, 128, 4, 2, 512, True),
}


@dataclass(frozen=True)
class BenchModel:
    """An attached model and what its cost depends on."""

    model: PreTrainedModel
    settings: AHNConfig
    shape: Shape
    weights_bytes: int

    @property
    def device(self) -> torch.device:
        return self.model.device

    def method(self, name: str) -> AbstractContextManager[Any]:
        """A context: the model with its memory, with window and sinks alone, or full attention."""
        off = {"window": memory_off, "full": disabled}.get(name)
        return nullcontext() if off is None else off(self.model)

    def cost_settings(self, method: str) -> AHNConfig | None:
        """The settings by which `ahn.cost` counts a method; None is full attention."""
        return None if method == "full" else self.settings

    @property
    def memory(self) -> Memory:
        """That of the last layer."""
        return self.model.get_decoder().layers[-1].ahn.fn


def check_name(name: str) -> None:
    """Raise ValueError where `build` knows no such model, before anything is measured."""
    known = (*SHAPES, *NAMED_MODELS)
    if name not in known and "/" not in name and not Path(name).exists():
        raise ValueError(
            f"--model: expected {', '.join(known)}, a config.json, a folder or a name on the hub "
            f"(user/name), got {name!r}"
        )


def build(
    name: str,
    settings: AHNConfig,
    device: torch.device,
    dtype: torch.dtype,
    liger: bool = False,
    kernels: str = "auto",
) -> BenchModel:
    """A model with a memory whose output is not zero.

    Args:
        name: one of `SHAPES` or a config.json, for random weights; or for trained ones a folder,
            a name on the hub or one of `ahn.checkpoint.NAMED_MODELS`.
        liger: whether to call `ahn.hf.use_liger`.
        kernels: see `ahn.attach`.

    Raises:
        ValueError: the name is none of these, or the model cannot have a memory.
    """
    if name in SHAPES or Path(name).is_file():
        config = config_of(name)
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    else:
        model = from_pretrained(name, dtype=evaluation_dtype(name, dtype))
        if isinstance(model, AHNModelMixin):
            detach(model)  # another memory takes the place of a merged one
        model.to(device)  # type: ignore[arg-type]
    weights = sum(x.nbytes for x in {p.data_ptr(): p for p in model.parameters()}.values())
    _attach(model.eval(), settings, kernels)
    if liger:
        use_liger(model)
    return BenchModel(model, settings, Shape.of(model.config), weights)


def with_window(bench: BenchModel, window: int) -> BenchModel:
    """The same model, in place, with a new memory and another window."""
    if window == bench.settings.window:
        return bench
    liger = uses_liger(bench.model)
    settings = replace(bench.settings, window=window)
    _attach(detach(bench.model), settings)
    if liger:
        use_liger(bench.model)
    return replace(bench, settings=settings)


@torch.no_grad()
def _attach(model: PreTrainedModel, settings: AHNConfig, kernels: str = "auto") -> None:
    """Attach a memory with random output weights: matmuls of zeros, as in a new one, run faster.

    Slots get random scores, else they would keep the newest tokens.
    """
    attach(model, settings, kernels=kernels)
    for key, parameter in model.named_parameters():
        if key.endswith((".ahn.fn.o_proj.weight", ".ahn_slots.net.2.weight")):
            parameter.normal_(std=0.02)


def config_of(name: str) -> Any:
    """The config of a name of `SHAPES`, a config.json, a folder, or a name as of a base."""
    if name not in SHAPES:
        return AutoConfig.from_pretrained(resolve(name)[0])
    layers, hidden, intermediate, heads, groups, vocabulary, tied = SHAPES[name]
    return Qwen2Config(
        num_hidden_layers=layers,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        max_position_embeddings=2**21,
    )


@contextmanager
def filled_cache(bench: BenchModel, method: str, batch: int, tokens: int) -> Iterator[Any]:
    """A cache as after `tokens` tokens, but of random numbers, which saves the prefill."""
    gc.collect()  # an earlier cache may wait to be freed
    shape = bench.shape
    cache: Any = AHNCache(bench.model.config) if method != "full" else DynamicCache()
    with torch.device(bench.device), torch.no_grad():
        for index in range(shape.layers):
            if method == "full":
                size = (batch, shape.groups, tokens, shape.head_dim)
                cache.update(*(torch.randn(size, dtype=bench.model.dtype) for _ in "kv"), index)
            else:
                _fill_layer(bench, index, cache.layers[index], batch, method, tokens)
    yield cache
    cache.reset()


def _fill_layer(
    bench: BenchModel, index: int, layer: Any, batch: int, method: str, tokens: int
) -> None:
    """Fill in place, since the largest batch leaves no room for a copy."""
    shape, dtype = bench.shape, bench.model.dtype
    token = torch.empty(batch, shape.groups, 1, shape.head_dim, dtype=dtype)
    layer.lazy_initialization(token, token)
    layer.reserve()
    layer.keys.normal_()
    layer.values.normal_()
    layer.seen = tokens
    if method != "ahn":
        return
    rows, decoder_layer = layer.keys.shape[2], bench.model.get_decoder().layers[index]
    if (cell := getattr(decoder_layer, "ahn", None)) is not None:
        gates = torch.randn(batch, shape.heads, rows, cell.fn.num_gates, dtype=dtype)
        layer.write_inputs[GATES] = gates
        layer.set_states(cell.fn.init_states(batch, layer.keys.device, dtype))
        for state in layer.states.values():
            state.normal_()
    if (slots := getattr(decoder_layer, SLOTS, None)) is not None:
        layer.write_inputs[SCORES] = torch.randn(batch, shape.groups, rows, 1)
        layer.set_states(_full_slots(slots, layer.keys))


def _full_slots(slots: Slots, keys: Tensor) -> dict[str, Tensor]:
    """The states of slots that are all filled, for keys `[B, G, N, K]`."""
    states = slots.init_states(keys)
    for state in states.values():
        if state.dtype.is_floating_point:
            state.uniform_(-1, 1)
        else:
            state.random_(256)
    states[PLACE][:] = torch.cat([torch.arange(1, size + 1) for size in slots.sizes])
    return states
