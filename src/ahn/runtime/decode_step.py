"""One decoding step of one new token a row, replayed as a CUDA graph where it can be."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from ahn.hf.attached_state import attached_state
from ahn.hf.hooks import PROMPT
from ahn.layer.cache import AHNCache
from ahn.runtime.fill_cache import fill_cache
from ahn.runtime.fused_decoder import FusedDecoder, why_not_fused_step

STEPS = ("auto", "eager", "graph", "fused", "compile")
READ = ("input_ids", "attention_mask", "position_ids", "past_key_values")  # by early chunks
MOVING_ROPE = ("dynamic", "longrope")  # frequencies that the host recomputes as the text grows


class Step:
    """Reads one new token of every row and gives the logits of the next.

    A graph is captured once for a cache, at its second step, and replayed from then on: no
    Python, no launches one by one, no host synchronisation. It reads and writes the cache's own
    tensors. Whatever else the cache went through in between is noticed.

    Args:
        model: an attached model.
        cache: one that has read its prompt, and every row of it has begun.
        how: `eager`; `graph`, of the model's own forward; `fused`, a graph of a `FusedDecoder`;
            `compile`, a graph of what torch.compile made of the forward; `auto` takes the fused
            one where it can run, else a graph where one can be captured.

    Raises:
        ValueError: `how` is none of these, or asks for what cannot be had.
    """

    def __init__(self, model: PreTrainedModel, cache: AHNCache, how: str = "auto") -> None:
        if how not in STEPS:
            raise ValueError(f"step: expected one of {', '.join(STEPS)}, got {how!r}")
        self.model, self.cache = model, cache
        how = _settled(how, model, cache)
        self.use_graph = how != "eager"
        # Not bound to the step: in such a circle its cache and graph would wait for a collection.
        self._run: Callable[[Step], Tensor] = Step._forward
        if how == "fused":
            self._run = Step._fused
            self.decoder = FusedDecoder(model, cache, attached_state(model).mode)
        elif how == "compile":
            self._run = torch.compile(Step._forward, fullgraph=True, dynamic=False)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.held: list[Tensor] = []  # what the last step wrote, by which the graph knows its own
        self.seen = -1

    @torch.no_grad()
    def __call__(self, token: Tensor) -> Tensor:
        """Logits `[B, vocabulary]` after `token` `[B]`; the next step may overwrite them."""
        if not self.use_graph:
            return self._eager(token)
        if not self._continues():
            self._begin(token)
        elif self.graph is None:
            self._capture()
        self.token.copy_(token[:, None])
        if self.graph is None:
            self.logits = self._run(self)
            self.held = _tensors(self.cache)
        else:
            self.graph.replay()
        self.cache.advance()
        self.seen = self.cache.get_seq_length()
        return self.logits

    def _eager(self, token: Tensor) -> Tensor:
        position = self._position(token)[:, None]
        return self.model(
            input_ids=token[:, None],
            position_ids=position,
            past_key_values=self.cache,
            use_cache=True,
        ).logits[:, -1]

    def _position(self, token: Tensor) -> Tensor:
        """Real tokens read before, `[B]`."""
        layer = self.cache.memory_layers[0]
        position = torch.full_like(token, layer.seen)
        return position if layer.padding is None else position - layer.padding.to(token.device)

    def _forward(self) -> Tensor:
        """The step itself, on tensors at fixed addresses."""
        output = self.model(
            input_ids=self.token,
            past_key_values=self.cache,
            use_cache=True,
            ahn_position=self.position,
        )
        self.position.add_(1)
        return output.logits[:, -1]

    def _fused(self) -> Tensor:
        """The same without the model's modules."""
        return self.decoder(self.token[:, 0], self.position)

    def _continues(self) -> bool:
        """Whether the cache is as the last step left it."""
        tensors = _tensors(self.cache)
        same = len(tensors) == len(self.held) and all(a is b for a, b in zip(tensors, self.held))
        return same and self.seen == self.cache.get_seq_length()

    def _begin(self, token: Tensor) -> None:
        """Inputs of a first step, run as it is: it also warms up what no capture may contain."""
        self.position, self.token = self._position(token), token[:, None].clone()
        self.graph = None

    def _capture(self) -> None:
        graph = torch.cuda.CUDAGraph()
        with _no_collection(), torch.cuda.graph(graph):
            self.logits = self._run(self)
        self.graph = graph


class GenerateStep:
    """What `generate` calls for every forward: steps of one token go through a `Step`."""

    def __init__(self, model: PreTrainedModel, compile_config: Any = None) -> None:
        self.model, self.how = model, "auto" if compile_config is None else "compile"
        self.step: Step | None = None

    def __call__(self, **inputs: Any) -> Any:
        cache, prompt = inputs["past_key_values"], inputs.pop(PROMPT, 0)
        if _is_early_chunk(inputs, prompt):
            fill_cache(self.model, **{name: inputs[name] for name in READ if name in inputs})
            return CausalLMOutputWithPast(past_key_values=cache)
        if not _is_plain_step(inputs):
            return self.model(**inputs)
        if self.step is None:
            self.step = Step(self.model, cache, self.how)
        if not self.step.use_graph:
            return self.model(**inputs)
        logits = self.step(inputs["input_ids"][:, 0])
        return CausalLMOutputWithPast(logits=logits[:, None], past_key_values=cache)


@contextmanager
def _no_collection() -> Iterator[None]:
    """No garbage is collected meanwhile: to free another graph would end a capture."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _is_plain_step(inputs: dict[str, Any]) -> bool:
    """Whether a forward of `generate` reads one token a row and wants logits alone."""
    ids, cache = inputs.get("input_ids"), inputs["past_key_values"]
    one = ids is not None and ids.shape[1] == 1
    return one and cache.get_seq_length() > 0 and not _wants_more(inputs)


def _is_early_chunk(inputs: dict[str, Any], prompt: int) -> bool:
    """Whether a forward of `generate` ends before a prompt of so many tokens does."""
    ids, cache = inputs.get("input_ids"), inputs["past_key_values"]
    early = ids is not None and cache.get_seq_length() + ids.shape[1] < prompt
    return early and not _wants_more(inputs)


def _wants_more(inputs: dict[str, Any]) -> bool:
    return any(inputs.get(name) for name in ("output_attentions", "output_hidden_states"))


def _tensors(cache: AHNCache) -> list[Tensor]:
    """What a step of the cache reads and writes."""
    return [tensor for layer in cache.memory_layers for tensor in layer.tensors().values()]


def _settled(how: str, model: Any, cache: AHNCache) -> str:
    """`eager`, `graph`, `fused` or `compile`; ValueError where what was asked for cannot be had."""
    if how == "eager":
        return how
    reason = why_no_graph(model, cache)
    if reason is None and how in ("auto", "fused"):
        reason = why_not_fused_step(model)
        if how == "auto":
            return "fused" if reason is None else "graph"
    if reason is None:
        return how
    if how != "auto":
        raise ValueError(f"step={how!r}: expected {reason}")
    return "eager"


def why_no_graph(model: Any, cache: AHNCache) -> str | None:
    """What a step would need to be captured; None where it can be."""
    layer = cache.memory_layers[0]
    devices = {parameter.device for parameter in model.parameters()}
    if len(devices) > 1 or next(iter(devices)).type != "cuda":
        return f"all weights on one CUDA device, got {', '.join(sorted(map(str, devices)))}"
    if len(cache.memory_layers) < len(cache.layers):
        return "a memory in every layer: those with full attention grow"
    if not layer.seen or layer.seen < layer.max_padding:
        return "a prompt read before, of which every row has begun"
    text = model.config.get_text_config(decoder=True)
    rope = getattr(text, "rope_parameters", None) or {}
    if rope.get("rope_type") in MOVING_ROPE:
        return f"rotary positions that do not change as the text grows, got {rope['rope_type']}"
    if not (mode := attached_state(model).mode).decodes_in_place:
        return f"the memory, or sinks and window, got {mode}"
    return None
