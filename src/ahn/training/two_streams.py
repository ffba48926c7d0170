"""One pass over the layers for teacher and student: each layer runs both streams.

Under sharding a layer's weights are gathered once for both, and only the student's input is saved
for the backward pass. Up to the budget both streams are equal, see `ahn.training.short_cut`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from ahn.cost import Shape
from ahn.hf.attached_state import attached_state
from ahn.hf.decoder_parts import decoder_layers
from ahn.hf.hooks import CONTEXT
from ahn.layer.context import ForwardContext
from ahn.layer.modes import MEMORY
from ahn.modeling.saving import is_memory
from ahn.ops.window_attention import SavedOutputs
from ahn.runtime.free_memory import free_on_gpu
from ahn.training.short_cut import Prefix, StudentAttention, TeacherAttention

SHARE_OF_FREE = 1 / 3  # of a GPU's memory; the layers' inputs, that are always saved, are as large
LSE_BYTES = 4  # a token and head

OnLayer = Callable[[Tensor, Tensor], Tensor]


@dataclass
class _Streams:
    """One forward of both streams: what passes between its layers.

    Attributes:
        saves_attention: whether the window's attention is saved for the backward pass.
        may_share: whether all layers have a memory, and nothing else is trained.
        shared: first tokens that both streams have in common.
    """

    checkpointing: bool
    saves_attention: bool
    on_layer: OnLayer | None
    num_layers: int
    may_share: bool
    shared: int = 0
    teacher: Tensor | None = None
    layer_losses: list[Tensor] = field(default_factory=list)

    def layer(
        self, index: int, run: Callable[..., Tensor], hidden: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        """A layer's forward: both streams; the last one returns them as `[2 B, T, D]`.

        So the final norm, whatever its name in the family, acts on both.
        """
        context: ForwardContext = kwargs[CONTEXT]
        if index == 0:
            self.teacher, self.shared = hidden.detach(), self._num_shared(hidden, kwargs)
            hidden = hidden[:, self.shared :]
        prefix = Prefix(self.shared)
        with torch.no_grad():
            full = {**kwargs, CONTEXT: replace(context, mode=TeacherAttention(prefix))}
            self.teacher = run(self.teacher, *args, **full)
        student = self._student(run, prefix, context, hidden, args, kwargs)
        if self.on_layer is not None:
            compare = partial(_compare, self.on_layer, self.shared)
            self.layer_losses.append(self._checkpointed(compare, student, self.teacher))
        if index < self.num_layers - 1:
            return student
        return torch.cat([self.teacher, _with_prefix(self.shared, student, self.teacher)])

    def _student(
        self,
        run: Callable[..., Tensor],
        prefix: Prefix,
        context: ForwardContext,
        hidden: Tensor,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Tensor:
        saved = SavedOutputs() if self.saves_attention else None
        if context.mode is MEMORY:
            context = replace(context, mode=StudentAttention(prefix, saved))
        kwargs = {**_from_token(kwargs, self.shared), CONTEXT: context}
        run = run if saved is None else _counted(run, saved)
        # With trained cells the first layer's output has a gradient though its input has none.
        return self._checkpointed(partial(run, **kwargs), hidden, *args)

    def _num_shared(self, hidden: Tensor, kwargs: dict[str, Any]) -> int:
        """The budget, up to which nothing trained is read, where every row is one text."""
        context: ForwardContext = kwargs[CONTEXT]
        one_text = context.segments is None and context.padding is None and context.mode is MEMORY
        known = "position_embeddings" in kwargs and not hidden.requires_grad
        shares = self.may_share and one_text and known and _may_share(hidden)
        return context.budget if shares and hidden.shape[1] > context.budget else 0

    def _checkpointed(self, function: Callable[..., Tensor], *args: Any) -> Tensor:
        """Call it; where gradients are wanted, save its inputs alone and compute it again."""
        if not self.checkpointing or not torch.is_grad_enabled():
            return function(*args)
        return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False)


_streams: ContextVar[_Streams | None] = ContextVar("ahn_two_streams", default=None)


class TwoStreamForward:
    """A decoder layer's forward, that runs both streams where `two_streams` is under way."""

    def __init__(self, layer: nn.Module, index: int) -> None:
        self.forward, self.index = layer.forward, index

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        streams = _streams.get()
        if streams is None:
            return self.forward(*args, **kwargs)
        return streams.layer(self.index, self.forward, *args, **kwargs)


@contextmanager
def two_stream_layers(model: PreTrainedModel) -> Iterator[None]:
    """Within the context the model's layers can run both streams; a training enters it once.

    The hooks of a layer (sharding, offloading) surround both streams.
    """
    layers = decoder_layers(model)
    before = [layer.__dict__.get("forward") for layer in layers]
    if isinstance(before[0], TwoStreamForward):
        yield
        return
    for index, layer in enumerate(layers):
        layer.forward = TwoStreamForward(layer, index)
    try:
        yield
    finally:
        for layer, own in zip(layers, before):
            del layer.forward
            if own is not None:  # of a module that another library has wrapped
                layer.forward = own


def two_streams(
    model: PreTrainedModel,
    inputs: dict[str, Any],
    *,
    window: int,
    num_sinks: int,
    checkpointing: bool = True,
    on_layer: OnLayer | None = None,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Last hidden states with the memory and with full attention, both `[B, T, D]`.

    Equal to two forwards of the decoder, the second without gradient. The base must not draw
    random numbers (dropout): keep it in evaluation mode.

    Args:
        model: with a memory attached.
        inputs: of the decoder: `input_ids` and `position_ids` (both `[B, T]`), ...
        window, num_sinks: of the student.
        checkpointing: save each layer's input alone, and where a GPU has room for it the
            attention of its window, and compute the layer again in the backward pass.
        on_layer: called with the student's and the teacher's output of every layer; a scalar.

    Returns:
        Student, teacher (without gradient), and what `on_layer` returned for each layer.
    """
    layers = decoder_layers(model)
    saves = checkpointing and torch.is_grad_enabled() and _has_room(model, inputs["input_ids"])
    trained = [name for name, x in layers.named_parameters() if x.requires_grad]
    every_layer = not attached_state(model).other_types
    may_share = every_layer and all(map(is_memory, trained))
    streams = _Streams(checkpointing, saves, on_layer, len(layers), may_share)
    budget = {"ahn_window": window, "ahn_sinks": num_sinks}
    with two_stream_layers(model):
        token = _streams.set(streams)
        try:
            both = model.get_decoder()(**inputs, **budget, use_cache=False).last_hidden_state
        finally:
            _streams.reset(token)
    teacher, student = both.chunk(2)
    return student, teacher.detach(), streams.layer_losses


def _with_prefix(shared: int, student: Tensor, teacher: Tensor) -> Tensor:
    """The student's stream `[B, T, D]`, from the teacher's first tokens on."""
    return torch.cat([teacher[:, :shared], student], 1) if shared else student


def _compare(on_layer: OnLayer, shared: int, student: Tensor, teacher: Tensor) -> Tensor:
    return on_layer(_with_prefix(shared, student, teacher), teacher)


def _may_share(hidden: Tensor) -> bool:
    """On a CPU the student reads all tokens itself, so that runs there stay what they were."""
    return hidden.is_cuda


def _from_token(kwargs: dict[str, Any], first: int) -> dict[str, Any]:
    """A layer's keywords for the tokens from `first` on."""
    cos_sin, positions = kwargs.get("position_embeddings"), kwargs.get("position_ids")
    if first and cos_sin is not None:
        kwargs = {**kwargs, "position_embeddings": tuple(x[:, first:] for x in cos_sin)}
    if first and positions is not None:
        kwargs = {**kwargs, "position_ids": positions[:, first:]}
    return kwargs


def _counted(run: Callable[..., Tensor], saved: SavedOutputs) -> Callable[..., Tensor]:
    """The same function, that tells `saved` whenever it is called."""

    def counted(*args: Any, **kwargs: Any) -> Tensor:
        saved.start_run()
        return run(*args, **kwargs)

    return counted


def _has_room(model: PreTrainedModel, ids: Tensor) -> bool:
    """Whether the device has room for the window attention of all layers, from now to their end."""
    if ids.device.type != "cuda":
        return False
    shape = Shape.of(model.config)
    per_token = shape.heads * (shape.head_dim * model.dtype.itemsize + LSE_BYTES)
    return shape.layers * ids.numel() * per_token <= SHARE_OF_FREE * free_on_gpu(ids.device)
