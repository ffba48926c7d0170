"""The recipe's last stage: rates that are low enough to recall in rows as long as there are.

Training weighs text against facts by the likelihood of all tokens, where recent ones count most,
and on rows that nearly fit into the slots. So the rates that it learns forget facts in longer rows.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ahn.embedded.base_rows import RowMaker
from ahn.embedded.evaluate_recall import answer_scores, row_with_facts
from ahn.facts import Answer
from ahn.memory import Slots

Row = tuple[Tensor, list[Answer]]  # tokens `[T]`, and where its facts are asked for

FACTORS = (1.0, 0.5, 0.25, 0.125)  # the first leaves a rate as it is
LEAST_SHARE = 0.05  # of all slots; heads with fewer keep their rates
SLACK = 0.02  # of the facts; that many more found do not pay for a lower rate
FACTS = 64  # of a row


def recall_rows(maker: RowMaker, length: int, count: int, seed: int) -> list[Row]:
    """Rows of `length` tokens of training text; `FACTS` facts are asked for at their end.

    Raises ValueError where the facts leave no room for text.
    """
    rng, rows = random.Random(f"rates/{seed}"), []
    for _ in range(count):
        facts = [fact for fact, _ in rng.sample(maker.bank, FACTS)]
        facts = list({fact.key: fact for fact in facts}.values())
        rows.append(row_with_facts(maker.stream, facts, length, maker.line_ends, rng))
    return rows


@torch.no_grad()
def lower_rates(
    model: PreTrainedModel,
    rows: Sequence[Row],
    *,
    near: int,
    report: Callable[[str], None] = lambda line: None,
) -> list[dict[str, Any]]:
    """Scale the rates of the heads with most slots in place, one after the other.

    Each takes the largest factor of `FACTORS` that finds nearly as many facts as the best one.

    Args:
        rows: with facts in forms that no test asks in.
        near: tokens; facts closer than that are not counted.

    Returns:
        Of each of those heads its layer, its number, its factor, and the share found by factor.
    """
    log: list[dict[str, Any]] = []
    now = found_share(model, rows, near)
    for layer, slots, head in _largest_heads(model):
        trained, found = slots.rate[head].item(), {FACTORS[0]: now}
        for factor in FACTORS[1:]:
            slots.rate[head] = factor * trained
            found[factor] = found_share(model, rows, near)
        best = max(found.values())
        chosen = next(x for x in FACTORS if found[x] >= best - SLACK)
        now = found[chosen]
        slots.rate[head] = chosen * trained
        log.append({"layer": layer, "head": head, "factor": chosen, "found": list(found.values())})
        report(f"layer {layer}, head {head}: rate x {chosen:g}, found {found[chosen]:.3f}")
    return log


def found_share(model: PreTrainedModel, rows: Sequence[Row], near: int) -> float:
    """The share of the rows' facts that are found, those nearer than `near` tokens aside."""
    found: list[bool] = []
    for ids, answers in rows:
        far = [x for x in answers if x.distance >= near]
        found += [is_found for is_found, _ in answer_scores(model, ids, far)]
    return sum(found) / len(found)


def _largest_heads(model: PreTrainedModel) -> Iterator[tuple[int, Slots, int]]:
    """Layer, its slots and key head, those with most slots first."""
    layers: Any = model.get_decoder().layers
    all_slots = [(i, x) for i, y in enumerate(layers) for x in y.modules() if isinstance(x, Slots)]
    total = sum(sum(slots.sizes) for _, slots in all_slots)
    heads = [
        (size / total, -layer, -head, slots)
        for layer, slots in all_slots
        for head, size in enumerate(slots.sizes)
    ]
    for share, layer, head, slots in sorted(heads, key=lambda x: x[:3], reverse=True):
        if share >= LEAST_SHARE:
            yield -layer, slots, -head
