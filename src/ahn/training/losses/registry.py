"""The losses by name. A new loss is one function and one registration.

    @register_loss("reverse_kl", on="logits")
    def reverse_kl(student, teacher):
        student, teacher = student.log_softmax(-1), teacher.log_softmax(-1)
        return (student.exp() * (student - teacher)).sum(-1)

`ahn train --loss_type kl+reverse_kl` then trains with it and logs it under its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from typing import NamedTuple

from torch import Tensor

IGNORE = -100  # label of a token without a loss, as everywhere in transformers
LOGITS, TARGETS, LAYERS = KINDS = ("logits", "targets", "layers")
ENTRY_POINT_GROUP = "ahn.losses"
RESERVED = ("loss", "memory_ce", "teacher_ce")  # names that a run logs other numbers under

LossFunction = Callable[..., Tensor]


@dataclass(frozen=True)
class Loss:
    """A loss and its weight.

    Attributes:
        on: what the function gets, and which tokens the loss is averaged over.
            `logits`: `function(student, teacher)` on logits `[N, V]`, float32 or float64, of the
            labelled tokens beyond the budget.
            `targets`: `function(student, teacher, targets)` on logits `[N, V]` and next tokens
            `[N]`, of the tokens beyond the budget whose next token is labelled.
            `layers`: `function(student, teacher)` on the hidden states `[N, D]` after each
            decoder layer, of the tokens of `logits`. The loss is the mean over the layers.
        function: returns one value a token, `[N]`. None for the two losses that
            `ahn.ops.logit_losses` computes in one pass.
        weight: of the mean in the loss that is minimised. At 0 the loss is only reported.
    """

    on: str
    function: LossFunction | None
    weight: float = 1.0

    def total(self, *inputs: Tensor) -> Tensor:
        """The function's values summed over the tokens: a scalar.

        Raises ValueError where the function does not return one value a token.
        """
        assert self.function is not None, "computed by ahn.ops.logit_losses"
        values = self.function(*inputs)
        if values.shape != inputs[0].shape[:1]:
            raise ValueError(
                f"loss {getattr(self.function, '__name__', self.function)}: expected one value for "
                f"each of {len(inputs[0])} tokens, got shape {tuple(values.shape)}"
            )
        return values.sum()


class LossOutput(NamedTuple):
    """What a forward of the distillation returns; every value is a scalar, in nats.

    Attributes:
        loss: to minimise; it alone carries a gradient.
        sums: of each reported loss by name, summed over its tokens and not weighted.
    """

    loss: Tensor
    sums: dict[str, Tensor]


# `ahn.ops.logit_losses` sums these in this order. All three are reported in every run; the
# teacher's cross-entropy has no gradient, so it cannot be trained on.
FUSED = {"kl": LOGITS, "ce": TARGETS, "teacher_ce": TARGETS}
_LOSSES = {"kl": Loss(LOGITS, None), "ce": Loss(TARGETS, None)}


def register_loss(name: str, *, on: str) -> Callable[[LossFunction], LossFunction]:
    """Function decorator: make a loss known by a name.

    Packages can also name theirs under the entry point group `ahn.losses`.

    Args:
        on: `logits`, `targets` or `layers`, see `Loss`.

    Raises:
        ValueError: an unknown kind, or a name that is taken.
    """
    if on not in KINDS:
        raise ValueError(f"register_loss: expected on={' or '.join(KINDS)}, got {on!r}")
    if name in _LOSSES or name in RESERVED:
        raise ValueError(f"register_loss: expected an unused name, got {name!r}")

    def register(function: LossFunction) -> LossFunction:
        _LOSSES[name] = Loss(on, function)
        return function

    return register


def loss_by_name(name: str) -> Loss:
    """The registered loss, with weight 1; raises ValueError that lists the known ones."""
    if name not in _LOSSES:
        for entry in entry_points(group=ENTRY_POINT_GROUP, name=name):
            entry.load()  # its module registers it
    if name not in _LOSSES:
        raise ValueError(f"loss: expected one of {', '.join(registered_losses())}, got {name!r}")
    return _LOSSES[name]


def registered_losses() -> list[str]:
    """Names of all losses: the registered ones, then those of installed entry points."""
    return list(dict.fromkeys([*_LOSSES, *entry_points(group=ENTRY_POINT_GROUP).names]))


def weighted_losses(weights: Mapping[str, float]) -> dict[str, Loss]:
    """Registered losses with these weights, by name. Raises as `loss_by_name`."""
    return {name: replace(loss_by_name(name), weight=x) for name, x in weights.items()}


def averaged_over(losses: Mapping[str, Loss]) -> dict[str, str]:
    """The kind, hence the tokens of the mean, of everything that is reported, by name."""
    return {**FUSED, **{name: loss.on for name, loss in losses.items()}}
