"""Shares: which layers and key heads look far, found by letting them, one after the other.

A student sees all tokens in a growing set of layers, and window and sinks elsewhere. The layer that
lowers KL(teacher || student) most is added, until 95 % of what the window loses is recovered. In
the layers taken, a key head's part is what the KL rises without it. Single layers do not show this:
a fact is carried by several together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ahn.hf.attached_state import attached_state
from ahn.hf.decoder_parts import decoder_layers
from ahn.layer.base_attention import BaseAttention, Output
from ahn.layer.context import LayerContext
from ahn.layer.modes import FULL, Mode, WindowAttention
from ahn.ops.slots import attend_until
from ahn.training.batch import Batch, loss_tokens
from ahn.training.losses import head_losses

ENOUGH = 0.95  # of the gap between window and full attention
SMALLEST = 0.25  # share of a layer or head that is taken, of the mean of those taken
Reduce = Callable[[Tensor], Tensor]
Report = Callable[[str], None]


@dataclass(frozen=True)
class Shares:
    """What each layer and key head is given of all slots.

    Attributes:
        shares: `[L][G]`, that sum to 1; 0 in layers that need none.
        log: KL of the window alone, and after each layer that was added, in nats a token.
    """

    shares: tuple[tuple[float, ...], ...]
    log: tuple[tuple[str, float], ...]


class FarAttention(WindowAttention):
    """Sinks and window, but for some key heads of some layers that see all tokens.

    Args:
        far: which key heads of a layer, by the layer's index.
    """

    name = "far"

    def __init__(self, far: Mapping[int, Sequence[bool]]) -> None:
        self.far = far

    def __call__(
        self, base: BaseAttention, query: Tensor, key: Tensor, value: Tensor, context: LayerContext
    ) -> Output:
        """See `WindowAttention`."""
        if base.module.layer_idx not in self.far:
            return super().__call__(base, query, key, value, context)
        return self._far(base, query, key, value, context), None

    def document(self, base, query, key, value, context):
        """See `WindowAttention`."""
        if base.module.layer_idx not in self.far:
            return super().document(base, query, key, value, context)
        return self._far(base, query, key, value, context)

    def _far(
        self, base: BaseAttention, query: Tensor, key: Tensor, value: Tensor, context: LayerContext
    ) -> Tensor:
        length, forward = key.shape[2], context.forward
        heads = torch.tensor(self.far[base.module.layer_idx], device=key.device)
        i = torch.arange(length, device=key.device)
        near = torch.where(i < forward.num_sinks, length, i + forward.window)
        end = torch.where(heads[:, None], length, near)[None]
        return attend_until(query, key, value, end, base.scaling).transpose(1, 2)


@torch.no_grad()
def find_shares(
    model: PreTrainedModel,
    batches: Iterable[Batch],
    *,
    window: int,
    num_sinks: int,
    reduce: Reduce = lambda x: x,
    report: Report = lambda line: None,
) -> Shares:
    """The shares of a model's layers and key heads, from some texts that ask for facts.

    Args:
        model: with any memory attached, whose parameters are not used; its head is frozen.
        batches: of texts longer than the budget, those of this process.
        reduce: sums a tensor over all processes.
        report: told each layer that is added, in a line.

    Raises:
        ValueError: full attention predicts no better than the window on these texts.
    """
    search = _Search.of(model, batches, window, num_sinks, reduce)
    layers, groups = len(decoder_layers(model)), _groups(model)
    candidates = [x for x in range(layers) if attached_state(model).config.has_memory(x)]
    whole = search.loss({})
    if not whole > 0:
        raise ValueError(
            f"slots: expected texts that full attention predicts better, got a gap of {whole:.3g}"
        )
    taken: dict[int, float] = {}
    log, loss = [("window", whole)], whole
    while loss > (1 - ENOUGH) * whole and len(taken) < len(candidates):
        tried = {
            layer: search.loss({x: [True] * groups for x in (*taken, layer)})
            for layer in candidates
            if layer not in taken
        }
        best = min(tried, key=lambda layer: tried[layer])
        taken[best], loss = max(0.0, loss - tried[best]), tried[best]
        log.append((f"layer {best}", loss))
        report(f"slots: layer {best}: KL {loss:.4f} of {whole:.4f}")
    by_layer = _floored(taken)
    rows = [[0.0] * groups for _ in range(layers)]
    for layer, share in by_layer.items():
        without = {g: search.without(taken, layer, g, groups) - loss for g in range(groups)}
        by_head = _floored({g: max(0.0, rise) for g, rise in without.items()})
        rows[layer] = [share * by_head[g] for g in range(groups)]
    return Shares(tuple(map(tuple, rows)), tuple(log))


@dataclass(frozen=True)
class _Search:
    """Mean KL of students that see all tokens in some heads.

    Attributes:
        teachers: of each batch, last hidden states `[N, D]` of the labelled tokens beyond the
            budget.
    """

    model: PreTrainedModel
    batches: list[Batch]
    teachers: list[Tensor]
    window: int
    num_sinks: int
    reduce: Reduce

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        batches: Iterable[Batch],
        window: int,
        num_sinks: int,
        reduce: Reduce,
    ) -> _Search:
        search = cls(model, list(batches), [], window, num_sinks, reduce)
        search.teachers.extend(search._hidden(batch, FULL) for batch in search.batches)
        return search

    def loss(self, far: Mapping[int, Sequence[bool]]) -> float:
        """KL(teacher || student) in nats a token, where the named heads see all tokens."""
        sums = torch.zeros(2, dtype=torch.float64, device=self.model.device)
        mode, kernels = FarAttention(far), attached_state(self.model).kernels
        for batch, teacher in zip(self.batches, self.teachers):
            student = self._hidden(batch, mode)
            head = self.model.get_output_embeddings()
            kl = head_losses(head, student, teacher, kernels=kernels).sums["kl"]
            sums += torch.stack([kl.double(), kl.new_tensor(len(teacher)).double()])
        kl_sum, count = self.reduce(sums).tolist()
        return kl_sum / max(1.0, count)

    def without(self, taken: Iterable[int], layer: int, head: int, groups: int) -> float:
        """The loss where one head of one of the layers taken sees its window alone."""
        far = {x: [not (x == layer and g == head) for g in range(groups)] for x in taken}
        return self.loss(far)

    def _hidden(self, batch: Batch, mode: Mode) -> Tensor:
        hidden = self.model.get_decoder()(
            **batch.decoder_inputs(),
            ahn_mode=mode,
            ahn_window=self.window,
            ahn_sinks=self.num_sinks,
            use_cache=False,
        ).last_hidden_state
        return hidden[loss_tokens(batch, self.window + self.num_sinks).labelled]


def _floored(gains: Mapping[int, float]) -> dict[int, float]:
    """Shares that sum to 1, in proportion to the gains, none far below the mean."""
    mean = sum(gains.values()) / len(gains) or 1.0
    raised = {x: max(gain, SMALLEST * mean) for x, gain in gains.items()}
    total = sum(raised.values())
    return {x: gain / total for x, gain in raised.items()}


def _groups(model: PreTrainedModel) -> int:
    text = model.config.get_text_config(decoder=True)
    return getattr(text, "num_key_value_heads", None) or text.num_attention_heads
