"""The module that is trained: a frozen model with its memory; its forward returns the losses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ahn.hf.attached_state import attached_state
from ahn.layer.modes import MEMORY, WINDOW, mode_named
from ahn.modeling.saving import is_memory
from ahn.training.batch import Batch, TokenCounts, loss_tokens
from ahn.training.distillation import distillation
from ahn.training.losses import IGNORE, Loss, LossOutput, head_losses, weighted_losses
from ahn.training.slots import SCORES, score_losses
from ahn.training.zero3 import unsharded_head

# The options of `activation_checkpointing_enable` that ask for what `two_streams` does anyway.
_CHECKPOINTING = {"use_reentrant": False, "every_n_layers": 1, "offload": False}


class Distiller(nn.Module):
    """A frozen model with its memory, whose forward computes the losses of a batch.

    Wrap this module, not the model, in DDP, FSDP2 or DeepSpeed: a training step is one call of its
    forward. The base stays in evaluation mode, so that teacher and student differ in what they
    attend to and in nothing else.

    Args:
        model: with a memory attached; the parameters of its base no longer require gradients.
        losses: with their weights, by name, see `weighted_losses`; None is KL alone.
        checkpointing: see `two_streams`.

    Raises ValueError where nothing is attached.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        losses: Mapping[str, Loss] | None = None,
        checkpointing: bool = True,
    ) -> None:
        super().__init__()
        trained = {id(parameter) for parameter in memory_parameters(model).values()}
        for parameter in model.parameters():
            parameter.requires_grad_(id(parameter) in trained)
        self.model = model.eval()
        self.losses = weighted_losses({"kl": 1.0}) if losses is None else dict(losses)
        self.checkpointing = checkpointing

    @property
    def config(self) -> Any:
        """The model's configuration, for Trainer and accelerate."""
        return self.model.config

    @property
    def _no_split_modules(self) -> Any:
        return self.model._no_split_modules  # what FSDP2 wraps

    def tie_weights(self) -> None:
        """Tie the model's weights; accelerate calls this after it has moved them."""
        self.model.tie_weights()

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Load a state dict. Checkpoints hold the memory alone; the base then stays as it is."""
        base = {name: x for name, x in self.state_dict().items() if not is_memory(name)}
        if not any(name in base for name in state_dict):
            state_dict = {**base, **state_dict}
        return super().load_state_dict(state_dict, *args, **kwargs)

    def train(self, mode: bool = True) -> Distiller:
        """Set the mode of this module; the model stays in evaluation mode."""
        self.training = mode
        return self

    def activation_checkpointing_enable(self, **options: Any) -> None:
        """Recompute layers in the backward pass, as transformers' models do when asked.

        `two_streams` does the recomputing, so options of other ways to do it are refused.

        Raises ValueError for such an option.
        """
        inner = options.get("activation_checkpointing_kwargs") or {}
        requested = {**options, **inner}
        requested.pop("activation_checkpointing_kwargs", None)
        for name, value in requested.items():
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
        counts: TokenCounts | None = None,
        mode: str = MEMORY.name,
    ) -> LossOutput:
        """Losses of a batch, see `distillation`.

        In mode `window` the cross-entropy alone, in `scores` that of `score_losses`.
        """
        batch = Batch(input_ids, labels, position_ids)
        if mode == SCORES:
            loss = score_losses(self.model, batch, window=window, num_sinks=num_sinks)
            return LossOutput(loss, {})
        with unsharded_head(self.model):
            if mode_named(mode) is WINDOW:
                return window_losses(self.model, batch, window=window, num_sinks=num_sinks)
            return distillation(
                self.model,
                batch,
                window=window,
                num_sinks=num_sinks,
                losses=self.losses,
                counts=counts,
                checkpointing=self.checkpointing,
            )


@torch.no_grad()
def window_losses(
    model: PreTrainedModel, batch: Batch, *, window: int, num_sinks: int
) -> LossOutput:
    """Summed cross-entropy `ce` of the model without its memory: window and sinks alone."""
    targets = loss_tokens(batch, window + num_sinks).targets
    chosen = targets != IGNORE
    hidden = model.get_decoder()(
        input_ids=batch.input_ids,
        position_ids=batch.position_ids,
        ahn_mode=WINDOW,
        ahn_window=window,
        ahn_sinks=num_sinks,
        use_cache=False,
    ).last_hidden_state[chosen]
    output = head_losses(
        model.get_output_embeddings(),
        hidden,
        hidden,
        targets[chosen],
        kernels=attached_state(model).kernels,
    )
    return LossOutput(torch.zeros_like(output.loss), {"ce": output.sums["ce"]})


def memory_parameters(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by name."""
    attached_state(model)
    return {name: parameter for name, parameter in model.named_parameters() if is_memory(name)}


@contextmanager
def only_trainable(model: nn.Module, chosen: Iterable[nn.Parameter]) -> Iterator[None]:
    """Within the context only the chosen parameters require gradients."""
    trained = {id(parameter) for parameter in chosen}
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _ in before:
            parameter.requires_grad_(id(parameter) in trained)
        yield
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)
