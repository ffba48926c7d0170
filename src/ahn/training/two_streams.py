"""One pass over the layers for teacher and student: each layer runs both streams.

Under sharding a layer's weights are gathered once for both, and only the student's input is kept
for the backward pass. Up to the budget both streams are equal and nothing that is trained has a
part in them: there the student goes by the teacher's keys, values and hidden states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from ahn.cost import Shape
from ahn.hf.hooks import CONTEXT
from ahn.hf.install import attached_state
from ahn.hf.support import decoder_layers
from ahn.layer.context import FULL, MEMORY, Prefix
from ahn.modeling.saving import is_memory
from ahn.ops.window_attention import SavedOutputs

SHARE_OF_FREE = 1 / 3  # of a GPU's memory; the layers' inputs, that are always kept, are as large
LSE_BYTES = 4  # a token and head

OnLayer = Callable[[Tensor, Tensor], Tensor]


@dataclass
class _Streams:
    """What passes between the layers of one forward beside the student's hidden states."""

    checkpointing: bool
    keeps_attention: bool
    on_layer: OnLayer | None
    last: int
    may_share: bool  # whether all layers have a memory, and nothing else is trained
    same: int = 0  # first tokens that both streams have in common
    teacher: Tensor | None = None
    layer_losses: list[Tensor] = field(default_factory=list)

    def layer(
        self, index: int, run: Callable[..., Tensor], hidden: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        """A layer's forward: both streams; the last one returns them as `[2 B, T, D]`.

        So the final norm, whatever its name in the family, acts on both.
        """
        step = kwargs[CONTEXT]
        if index == 0:
            self.teacher, self.same = hidden.detach(), self._in_common(hidden, kwargs)
            hidden = hidden[:, self.same :]
        step = replace(step, prefix=Prefix(self.same) if self.same else None)
        with torch.no_grad():
            full = {**kwargs, CONTEXT: replace(step, mode=FULL)}
            self.teacher = run(self.teacher, *args, **full)
        if self.keeps_attention:
            step = replace(step, kept=SavedOutputs())
            run = _counted(run, step.kept)
        kwargs = {**_beyond(kwargs, self.same), CONTEXT: step}
        # With trained cells the first layer's output has a gradient though its input has none.
        student = self._kept_small(partial(run, **kwargs), hidden, *args)
        if self.on_layer is not None:
            compare = partial(_compared, self.on_layer, self.same)
            self.layer_losses.append(self._kept_small(compare, student, self.teacher))
        if index < self.last:
            return student
        return torch.cat([self.teacher, _whole(self.same, student, self.teacher)])

    def _in_common(self, hidden: Tensor, kwargs: dict[str, Any]) -> int:
        """The budget, up to which nothing trained is read, where every row is one text."""
        step = kwargs[CONTEXT]
        one_text = step.segments is None and step.padding is None and step.mode == MEMORY
        known = "position_embeddings" in kwargs and not hidden.requires_grad
        shares = self.may_share and one_text and known and _may_share(hidden)
        return step.budget if shares and hidden.shape[1] > step.budget else 0

    def _kept_small(self, function: Callable[..., Tensor], *args: Any) -> Tensor:
        """Call it; where gradients are wanted, keep its inputs alone and compute it again."""
        if not self.checkpointing or not torch.is_grad_enabled():
            return function(*args)
        return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False)


def _whole(same: int, student: Tensor, teacher: Tensor) -> Tensor:
    """The student's stream `[B, T, D]`, from the teacher's first tokens on."""
    return torch.cat([teacher[:, :same], student], 1) if same else student


def _compared(on_layer: OnLayer, same: int, student: Tensor, teacher: Tensor) -> Tensor:
    return on_layer(_whole(same, student, teacher), teacher)


def _may_share(hidden: Tensor) -> bool:
    """On a CPU the student reads all tokens itself, so that runs there stay what they were."""
    return hidden.is_cuda


def _beyond(kwargs: dict[str, Any], first: int) -> dict[str, Any]:
    """A layer's keywords for the tokens from `first` on."""
    cos_sin, positions = kwargs.get("position_embeddings"), kwargs.get("position_ids")
    if first and cos_sin is not None:
        kwargs = {**kwargs, "position_embeddings": tuple(x[:, first:] for x in cos_sin)}
    if first and positions is not None:
        kwargs = {**kwargs, "position_ids": positions[:, first:]}
    return kwargs


def _counted(run: Callable[..., Tensor], kept: SavedOutputs) -> Callable[..., Tensor]:
    """The same function, that tells `kept` whenever it is called."""

    def counted(*args: Any, **kwargs: Any) -> Tensor:
        kept.start_run()
        return run(*args, **kwargs)

    return counted


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
        checkpointing: keep each layer's input alone, and where a GPU has room for it what its
            window attention gave, and compute the layer again in the backward pass.
        on_layer: called with the student's and the teacher's output of every layer; a scalar.

    Returns:
        Student, teacher (without gradient), and what `on_layer` returned for each layer.
    """
    layers = decoder_layers(model)
    keeps = checkpointing and torch.is_grad_enabled() and _has_room(model, inputs["input_ids"])
    trained = [name for name, x in layers.named_parameters() if x.requires_grad]
    may_share = not attached_state(model).config.full_attention_layers and all(
        map(is_memory, trained)
    )
    streams = _Streams(checkpointing, keeps, on_layer, len(layers) - 1, may_share)
    limits = {"ahn_window": window, "ahn_sinks": num_sinks}
    with ExitStack() as stack:
        for index, layer in enumerate(layers):
            stack.enter_context(_forward_of(layer, partial(streams.layer, index, layer.forward)))
        both = model.get_decoder()(**inputs, **limits, use_cache=False).last_hidden_state
    teacher, student = both.chunk(2)
    return student, teacher.detach(), streams.layer_losses


def _has_room(model: PreTrainedModel, ids: Tensor) -> bool:
    """Whether the device has room for the window attention of all layers, from now to their end."""
    if ids.device.type != "cuda":
        return False
    shape = Shape.of(model.config)
    per_token = shape.heads * (shape.head_dim * model.dtype.itemsize + LSE_BYTES)
    free = torch.cuda.mem_get_info(ids.device)[0]
    free += torch.cuda.memory_reserved(ids.device) - torch.cuda.memory_allocated(ids.device)
    return shape.layers * ids.numel() * per_token <= SHARE_OF_FREE * free


@contextmanager
def _forward_of(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Within the context a module's hooks surround `forward` in place of its own."""
    own = module.__dict__.get("forward")  # of a module that another library has wrapped
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own
