"""Decoding steps of one new token a row, replayed as a CUDA graph where one can be captured."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ahn.hf.attached_state import attached_state
from ahn.hf.cache_argument import CACHE
from ahn.hf.fingerprint import claim_owner
from ahn.layer.cache import AHNCache
from ahn.runtime.free_memory import free_on_gpu
from ahn.runtime.fused_decoder import FusedDecoder, fused_unsupported_reason

STEPS = ("auto", "eager", "graph", "fused", "compile")


class DecodeStep:
    """Reads one new token of every row and gives the logits of the next.

    The first step of a cache runs as it is, the second is captured as a CUDA graph, and all
    further ones replay that: no Python, no single launches, no host synchronisation. The graph
    reads and writes the cache's own tensors. Where the cache has been read into or changed
    between two steps, the next one starts over.

    Args:
        model: an attached model.
        cache: it has read a prompt, of every row at least one token.
        how: `eager` calls the model; `graph` captures the model's own forward; `fused` captures a
            `FusedDecoder`; `compile` captures what torch.compile makes of the forward; `auto`
            takes the first of `fused`, `graph` and `eager` that can run.

    Raises:
        ValueError: `how` is none of these, or cannot run, or another model has written the cache;
            the message says why.
    """

    def __init__(self, model: PreTrainedModel, cache: AHNCache, how: str = "auto") -> None:
        decoder: Any = model.get_decoder()
        claim_owner("cache", cache, decoder, attached_state(model))
        how = _choose(how, model, cache)
        cache.leave_inference_mode()
        self.model, self.cache = model, cache
        self.use_graph, self.mode = how != "eager", attached_state(model).mode
        # A function of the class, not a bound method: such a reference cycle would keep the cache
        # and the graph alive until the next garbage collection.
        self._run: Callable[[DecodeStep], Tensor] = DecodeStep._forward
        if how == "fused":
            self._run = DecodeStep._fused
            self.decoder = FusedDecoder(model, cache, self.mode)
        elif how == "compile":
            self._run = torch.compile(DecodeStep._forward, fullgraph=True, dynamic=False)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.graph_tensors: list[Tensor] = []  # of the cache, that the graph reads and writes
        self.seen = -1  # tokens in the cache after the last step

    @torch.no_grad()
    def __call__(self, token: Tensor) -> Tensor:
        """Logits `[B, vocabulary]` after `token` `[B]`; the next step may overwrite them."""
        if not self.use_graph:
            return self._eager(token)
        if not self._is_continued():
            self._start(token)
        elif self.graph is None:
            self._capture()
        self.token.copy_(token[:, None])
        if self.graph is None:
            self.logits = self._run(self)
            self.graph_tensors = _cache_tensors(self.cache)
        else:
            self.graph.replay()
        self.cache.advance()
        self.seen = self.cache.get_seq_length()
        return self.logits

    def _eager(self, token: Tensor) -> Tensor:
        output = self.model(
            input_ids=token[:, None],
            position_ids=self.cache.memory_layers[0].rope_positions(1).to(token.device),
            **{CACHE: self.cache},
            use_cache=True,
        )
        return output.logits[:, -1]

    def _position(self) -> Tensor:
        """Position `[B or 1]` of the next token."""
        layer = self.cache.memory_layers[0]
        return layer.positions(layer.seen, 1)[:, 0]

    def _forward(self) -> Tensor:
        """Logits of one step by the model, on tensors at fixed addresses."""
        output = self.model(
            input_ids=self.token,
            **{CACHE: self.cache},
            use_cache=True,
            ahn_position=self.position,
            ahn_mode=self.mode,  # torch.compile cannot ask a context variable
        )
        self.position.add_(1)
        return output.logits[:, -1]

    def _fused(self) -> Tensor:
        """The same by the `FusedDecoder`."""
        return self.decoder(self.token[:, 0], self.position)

    def _is_continued(self) -> bool:
        """Whether the cache is as the last step left it."""
        now, then = _cache_tensors(self.cache), self.graph_tensors
        is_same = len(now) == len(then) and all(a is b for a, b in zip(now, then))
        return is_same and self.seen == self.cache.get_seq_length()

    def _start(self, token: Tensor) -> None:
        """Make the inputs of a first step.

        That runs without a graph, and so warms up what a capture must not contain: compilation
        and allocations.
        """
        self.cache.reserve()
        self.position, self.token = self._position(), token[:, None].clone()
        self.graph = None

    def _capture(self) -> None:
        graph = torch.cuda.CUDAGraph()
        with _no_garbage_collection(), torch.cuda.graph(graph):
            self.logits = self._run(self)
        self.graph = graph


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Collect nothing within the context: freeing another graph would break a capture."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _cache_tensors(cache: AHNCache) -> list[Tensor]:
    """What a step reads and writes."""
    return [tensor for layer in cache.memory_layers for tensor in layer.tensors().values()]


def _choose(how: str, model: Any, cache: AHNCache) -> str:
    """`eager`, `graph`, `fused` or `compile`; ValueError where the one asked for cannot run."""
    if how not in STEPS:
        raise ValueError(f"step: expected one of {', '.join(STEPS)}, got {how!r}")
    if how == "eager":
        return how
    no_graph = graph_unsupported_reason(model, cache)
    if how == "auto":
        if no_graph is not None:
            return "eager"
        return "graph" if fused_unsupported_reason(model) else "fused"
    reason = no_graph or (fused_unsupported_reason(model) if how == "fused" else None)
    if reason is not None:
        raise ValueError(f"step={how!r}: expected {reason}")
    return how


def graph_unsupported_reason(model: Any, cache: AHNCache) -> str | None:
    """What a step would need to be captured as a CUDA graph; None where it can be."""
    layer = cache.memory_layers[0]
    devices = {parameter.device for parameter in model.parameters()}
    if len(devices) > 1 or next(iter(devices)).type != "cuda":
        return f"all weights on one CUDA device, got {', '.join(sorted(map(str, devices)))}"
    if others := attached_state(model).other_types:
        return f"a memory in every layer, got layers of type {', '.join(sorted(others))} without"
    if not layer.seen or layer.seen < layer.max_padding:
        return "a prompt read before, of which every row has begun"
    if (needed := cache.reserve_bytes) and needed > (free := free_on_gpu(layer.device)):
        return f"{needed} bytes for all rows of the window, got {free} that are free"
    text = model.config.get_text_config(decoder=True)
    if getattr(text, "_experts_implementation", None) == "eager" and _has_experts(model):
        return "experts by grouped_mm or batched_mm, got eager (set_experts_implementation)"
    if not (mode := attached_state(model).mode).decodes_in_place:
        return f"the memory, or sinks and window, got {mode}"
    return None


def _has_experts(model: Any) -> bool:
    """Whether the model has transformers' experts: run eagerly, each one asks the host its turn."""
    return any(hasattr(module, "num_experts") for module in model.modules())
