"""What memories with slots find and what of text they recover, beside other ways to look back."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ahn.config import AHNConfig
from ahn.embedded.corpus import Corpus
from ahn.embedded.evaluate_recall import RecallMeasurement, found_by_length
from ahn.evaluation.controls import newest_slots, random_slots
from ahn.evaluation.streaming import token_losses
from ahn.modeling import attach, detach, disabled, memory_off

MEASURED = RecallMeasurement(haystacks=(8, 8, 8))
CHUNK = 2048  # tokens of a forward while text is measured


def measure(
    model: PreTrainedModel,
    tokenizer: Any,
    corpus: Corpus,
    lengths: Sequence[int],
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Facts found and nats per token of text, by length, one way to look back after the other.

    `newest` keeps the newest tokens in the same slots, `random` any; `wider` is a window longer by
    the number of slots in every layer.
    """
    own = AHNConfig.from_dict(model.config.ahn_config)
    wide = AHNConfig(window=own.window + own.slots, num_sinks=own.num_sinks)
    wider = attach(detach(copy.deepcopy(model)), wide)
    ways: dict[str, tuple[PreTrainedModel, AbstractContextManager[Any]]] = {
        "full": (model, disabled(model)),
        "window": (model, memory_off(model)),
        "memory": (model, nullcontext()),
        "newest": (model, newest_slots(model)),
        "wider": (wider, memory_off(wider)),
        "random": (model, random_slots(model)),
    }
    texts = [
        torch.tensor([tokenizer(text)["input_ids"]])[:, : max(lengths)]
        for _, text in corpus.held_out
    ]
    nats: dict[str, dict[str, float]] = {}
    for name, (looking, context) in ways.items():
        with context:
            found = found_by_length(looking, tokenizer, corpus.held_out, MEASURED)
            nats[name] = _nats(looking, texts, lengths, own.window + own.num_sinks)
        yield name, {"found": found, "nats": nats[name], "gap": _gap(nats, name)}


def _gap(nats: dict[str, dict[str, float]], name: str) -> dict[str, float]:
    """The share of what the window loses that a way to look back recovers; empty before it."""
    if "window" not in nats:
        return {}
    full, window, own = nats["full"], nats["window"], nats[name]
    return {n: (window[n] - own[n]) / (window[n] - full[n]) for n in own}


def _nats(
    model: PreTrainedModel, texts: Sequence[Tensor], lengths: Sequence[int], budget: int
) -> dict[str, float]:
    """Mean nats of the tokens beyond the budget of the texts' first tokens, by their number."""
    losses = [token_losses(model, ids, prefill_chunk_size=CHUNK) for ids in texts]
    return {
        str(n): torch.cat([x[budget - 1 : n - 1] for x in losses]).mean().item() for n in lengths
    }
