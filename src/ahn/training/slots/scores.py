"""Scores from largest later use: what full attention will give a token beyond the window.

One forward with full attention. In every layer with slots y_i,g is the most that a query
t >= i + window of the group's heads gives token i; the loss is the binary cross-entropy of
sigmoid(score) with y. The base has no gradient. The last eighth of a text is left out: its future
is short. Largest use, and not its sum: what is used a little by all is no fact.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from ahn.layer.base_attention import BaseAttention, Output
from ahn.layer.context import LayerContext
from ahn.layer.modes import FullAttention
from ahn.ops.layout import repeat_heads, without_autocast
from ahn.training.batch import Batch

SCORES = "scores"  # what a training step is asked for
SCORE_SHARE = 0.4  # of the steps of a training, the first ones
LEFT_OUT = 8  # one part in so many of a text, its end, has too short a future
QUERIES = 256  # of a block


class UseAttention(FullAttention):
    """Full attention that compares the scores of layers with slots with the later use of tokens."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []  # of each layer (and document): sum
        self.counts: list[int] = []  # the numbers that each is a sum over

    def __call__(
        self, base: BaseAttention, query: Tensor, key: Tensor, value: Tensor, context: LayerContext
    ) -> Output:
        """See `FullAttention`."""
        self._compare(base, query, key, context)
        return super().__call__(base, query, key, value, context)

    def splits_documents(self, base: BaseAttention) -> bool:
        """A document's tokens are used by none of another."""
        return True

    def document(self, base, query, key, value, context):
        """See `FullAttention`."""
        self._compare(base, query, key, context)
        return super().document(base, query, key, value, context)

    def _compare(
        self, base: BaseAttention, query: Tensor, key: Tensor, context: LayerContext
    ) -> None:
        slots, window = context.slots, context.forward.window
        length = key.shape[2]
        first, last = context.forward.num_sinks, length - window - length // LEFT_OUT
        if slots is None or last <= first:
            return
        use = largest_use(query, key, window, base.scaling)[..., first:last]
        with torch.enable_grad():
            score = slots.scores(context.hidden[:, first:last].detach())
            loss = F.binary_cross_entropy_with_logits(score, use.to(score.dtype), reduction="sum")
        self.losses.append(loss)
        self.counts.append(use.numel())


def score_losses(model: PreTrainedModel, batch: Batch, *, window: int, num_sinks: int) -> Tensor:
    """Mean binary cross-entropy of the scores of a batch: a scalar, with a gradient.

    Every trained parameter has a gradient, those of a cell one of zero. It is 0 where no text is
    longer than window and sinks.
    """
    mode = UseAttention()
    inputs = batch.decoder_inputs()
    with torch.no_grad():
        model.get_decoder()(
            **inputs, ahn_mode=mode, ahn_window=window, ahn_sinks=num_sinks, use_cache=False
        )
    nothing = sum(0.0 * x.sum() for x in model.parameters() if x.requires_grad)
    return sum(mode.losses, start=torch.as_tensor(nothing)) / max(1, sum(mode.counts))


@torch.no_grad()
@without_autocast
def largest_use(query: Tensor, key: Tensor, window: int, scale: float | None = None) -> Tensor:
    """The largest weight that full attention gives each key beyond the window, `[B, G, T]` float32.

    Over the queries t >= i + window and the heads of a key's group; 0 where there is none.

    Args:
        query: `[B, H, T, K]`; key: `[B, G, T, K]`.
        scale: factor on the scores; None is K^-1/2.
    """
    groups, length = key.shape[1], key.shape[2]
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    use = key.new_zeros(len(key), groups, length, dtype=torch.float32)
    place = torch.arange(length, device=key.device)
    for begin in range(0, length, QUERIES):
        end = min(length, begin + QUERIES)
        keys = repeat_heads(key[:, :, :end], query.shape[1], dim=1)
        scores = (query[:, :, begin:end] @ keys.mT).float() * scale
        reader = place[begin:end, None]
        weight = scores.masked_fill(place[:end] > reader, -torch.inf).softmax(-1)
        weight = weight.masked_fill(place[:end] > reader - window, 0.0)
        most = weight.unflatten(1, (groups, -1)).amax((2, 3))
        use[..., :end] = torch.maximum(use[..., :end], most)
    return use
