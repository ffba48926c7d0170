"""The module that is trained: a frozen model with its memory, whose forward gives the losses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ahn.hf.attached_state import attached_state
from ahn.layer.modes import MEMORY, WINDOW
from ahn.modeling.saving import is_memory
from ahn.training.distillation import Batch, Counts, Losses, counted, distillation
from ahn.training.losses import IGNORE, LossWeights, head_losses
from ahn.training.zero3 import plain_head

_CHECKPOINTING = {"use_reentrant": False, "every_n_layers": 1, "offload": False}


class Distiller(nn.Module):
    """Wrap this, not the model, in DDP, FSDP2 or DeepSpeed: all of a step is its one forward.

    The base is frozen and stays in evaluation mode, so that teacher and student differ in what
    they look at and in nothing else.

    Args:
        model: with a memory attached; its base's parameters lose their gradients.
        weights: of the losses; None is KL alone.
        normalized: see `layer_distance`.
        checkpointing: see `two_streams`.

    Raises ValueError where nothing is attached.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        weights: LossWeights | None = None,
        normalized: bool = False,
        checkpointing: bool = True,
    ) -> None:
        super().__init__()
        chosen = {id(parameter) for parameter in memory_parameters(model).values()}
        for parameter in model.parameters():
            parameter.requires_grad_(id(parameter) in chosen)
        self.model = model.eval()
        self.weights = weights or LossWeights()
        self.normalized, self.checkpointing = normalized, checkpointing

    @property
    def config(self) -> Any:
        """The model's, as Trainer and accelerate ask for it."""
        return self.model.config

    @property
    def _no_split_modules(self) -> Any:
        return self.model._no_split_modules  # what FSDP2 wraps

    def tie_weights(self) -> None:
        """As the model's; accelerate asks for it after it has moved the weights."""
        self.model.tie_weights()

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As every module's; without any of the base, as in checkpoints, the base stays."""
        base = {name: x for name, x in self.state_dict().items() if not is_memory(name)}
        if not any(name in base for name in state_dict):
            state_dict = {**base, **state_dict}
        return super().load_state_dict(state_dict, *args, **kwargs)

    def train(self, mode: bool = True) -> Distiller:
        """Set the mode of this module alone."""
        self.training = mode
        return self

    def activation_checkpointing_enable(self, **options: Any) -> None:
        """As transformers' models; the layers are recomputed by `two_streams` itself.

        Raises ValueError for an option other than those that change nothing.
        """
        inner = options.get("activation_checkpointing_kwargs") or {}
        wanted = {**options, **inner}
        wanted.pop("activation_checkpointing_kwargs", None)
        for name, value in wanted.items():
            if _CHECKPOINTING.get(name, object()) != value:
                raise ValueError(
                    f"activation_checkpointing_kwargs: expected none of {name}, got {value!r}"
                )
        self.checkpointing = True

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        window: int,
        num_sinks: int,
        counts: Counts | None = None,
        mode: str = MEMORY.name,
    ) -> Losses:
        """Losses of a batch, see `distillation`; of mode `window` the cross-entropy alone."""
        batch = Batch(input_ids, labels, position_ids)
        limits = {"window": window, "num_sinks": num_sinks}
        with plain_head(self.model):
            if mode == WINDOW.name:
                return window_losses(self.model, batch, **limits)
            return distillation(
                self.model,
                batch,
                window=window,
                num_sinks=num_sinks,
                weights=self.weights,
                counts=counts,
                normalized=self.normalized,
                checkpointing=self.checkpointing,
            )


@torch.no_grad()
def window_losses(model: PreTrainedModel, batch: Batch, *, window: int, num_sinks: int) -> Losses:
    """Summed cross-entropy of window and sinks alone, on the tokens that count; the rest is 0."""
    _, targets = counted(batch, window + num_sinks)
    chosen = targets != IGNORE
    hidden = model.get_decoder()(
        input_ids=batch.input_ids,
        position_ids=batch.position_ids,
        ahn_mode=WINDOW,
        ahn_window=window,
        ahn_sinks=num_sinks,
        use_cache=False,
    ).last_hidden_state[chosen]
    ce = head_losses(model.get_output_embeddings(), hidden, hidden, targets[chosen]).ce
    nothing = torch.zeros_like(ce)
    return Losses(nothing, nothing, ce, nothing, nothing)


def memory_parameters(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by name."""
    attached_state(model)
    return {name: parameter for name, parameter in model.named_parameters() if is_memory(name)}


@contextmanager
def only_trainable(model: nn.Module, chosen: Iterable[nn.Parameter]) -> Iterator[None]:
    """Gradients for the chosen parameters alone, as before afterwards."""
    wanted = {id(parameter) for parameter in chosen}
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _ in before:
            parameter.requires_grad_(id(parameter) in wanted)
        yield
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)
