"""Whether the embedded base recalls: facts in held-out text, asked for at its end.

A row has 16 facts at equal depths, and ends by asking for all of them in random order; earlier
answers stay in the text. A fact counts as found where every token of its value is the likeliest.

`python -m ahn.embedded.evaluate_recall --model DIR [--corpus FILE] --out FILE` writes the result.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerBase as TokenizerBase

from ahn.embedded.corpus import Document, held_out_documents, read_corpus
from ahn.embedded.evaluate_base import position_losses
from ahn.facts import Answer, Event, Fact, FactMaker, Form, forms_of, weave
from ahn.facts.forms import CODE
from ahn.facts.words import words_of_tests
from ahn.io.files import write_json


@dataclass(frozen=True)
class RecallMeasurement:
    """Lengths in tokens; facts that are closer than `near` could be seen by a window alone."""

    lengths: tuple[int, ...] = (2048, 8192, 32768)
    haystacks: tuple[int, ...] = (16, 8, 4)
    facts: int = 16
    near: int = 260
    text: int = 8192
    seed: int = 0


def evaluate_recall(
    model: PreTrainedModel,
    tokenizer: TokenizerBase,
    documents: Sequence[Document],
    measurement: RecallMeasurement = RecallMeasurement(),
) -> dict[str, Any]:
    """Share of facts found by length and form, with full attention, and nats per token of text.

    Raises:
        ValueError: the documents are shorter than a row.
    """
    model.eval()
    encoded = _encoded(tokenizer, documents)
    return {
        "found": found_by_length(model, tokenizer, documents, measurement),
        "nats": text_nats(model, encoded, measurement),
        "measurement": asdict(measurement),
    }


def found_by_length(
    model: PreTrainedModel,
    tokenizer: TokenizerBase,
    documents: Sequence[Document],
    measurement: RecallMeasurement = RecallMeasurement(),
) -> dict[str, dict[str, dict[str, float]]]:
    """Share of facts found, their nats and number, by length and by whether their form was seen.

    A model with a memory looks back as the context it is called in says.
    """
    encoded = _encoded(tokenizer, documents)
    return {
        str(length): {
            kind: _recall(
                model,
                needle_rows(tokenizer, encoded, forms, length, count, measurement),
                measurement.near,
            )
            for kind, forms in form_groups().items()
        }
        for length, count in zip(measurement.lengths, measurement.haystacks)
    }


def form_groups() -> dict[str, tuple[Form, ...]]:
    """The forms that memories are trained on, and those that none has seen."""
    return {"seen": forms_of([CODE]), "unseen": forms_of([CODE], held_out=True)}


def text_nats(
    model: PreTrainedModel, encoded: Sequence[Tensor], measurement: RecallMeasurement
) -> float:
    """Mean nats per token of the documents' first `text` tokens, those of the near part aside."""
    size = min(measurement.text, *(len(ids) - 1 for ids in encoded))
    rows = torch.stack([ids[: size + 1] for ids in encoded])
    losses = position_losses(model, rows[:, :-1], rows[:, 1:], None)
    return float(losses[min(measurement.near - 1, size // 2) :].mean())


def needle_rows(
    tokenizer: TokenizerBase,
    encoded: Sequence[Tensor],
    forms: Sequence[Form],
    length: int,
    count: int,
    measurement: RecallMeasurement,
) -> list[tuple[Tensor, list[Answer]]]:
    """Rows of exactly `length` tokens, and where their facts are asked for."""
    text = torch.cat(list(encoded))
    ends = line_ends(tokenizer)
    maker = FactMaker(forms, words_of_tests(), partial(_encode, tokenizer))
    rows = []
    for index in range(count):
        rng = random.Random(f"{measurement.seed}/{length}/{forms[0].held_out}/{index}")
        rows.append(row_with_facts(
            text, distinct_facts(maker, measurement.facts, rng), length, ends, rng
        ))  # fmt: skip
    return rows


def row_with_facts(
    text: Tensor, facts: Sequence[Fact], length: int, ends: Tensor, rng: random.Random
) -> tuple[Tensor, list[Answer]]:
    """A row of exactly `length` tokens: a crop of a text `[N]` that states facts and asks for all.

    Raises:
        ValueError: the facts leave no room for text, or the text is too short.
    """
    size = length - sum(len(fact.stated.ids) + len(fact.asked.ids) for fact in facts)
    if not 0 < size <= len(text):
        raise ValueError(f"text: expected 1 to {len(text)} tokens beside facts, got {size}")
    begin = rng.randrange(len(text) - size + 1)
    hay = text[begin : begin + size].long()
    return weave(hay, _at_equal_depths(facts, hay, ends, rng))


def distinct_facts(maker: FactMaker, count: int, rng: random.Random) -> list[Fact]:
    """Facts that differ in their keys and in their values."""
    facts: list[Fact] = []
    taken: set[Any] = set()
    while len(facts) < count:
        fact = maker.fact(rng)
        new = {fact.key[1], tuple(fact.stated.value)}
        if not new & taken:
            facts.append(fact)
            taken |= new
    return facts


def line_ends(tokenizer: TokenizerBase) -> Tensor:
    """Which tokens of the vocabulary begin with a line end: `[vocabulary]` bool."""
    texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
    return torch.tensor([text.startswith("\n") for text in texts])


def _at_equal_depths(
    facts: Sequence[Fact], hay: Tensor, ends: Tensor, rng: random.Random
) -> list[Event]:
    """Facts stated at line ends of a text `[T]`, and all asked for behind it in random order."""
    places = ends[hay].nonzero()[:, 0]
    places = places if len(places) else torch.arange(len(hay))
    events = []
    for index, fact in enumerate(facts):
        depth = int((index + 0.5) / len(facts) * len(hay))
        events.append(Event(int(places[(places - depth).abs().argmin()]), False, fact))
    return events + [Event(len(hay), True, fact) for fact in rng.sample(facts, len(facts))]


def _recall(
    model: PreTrainedModel, rows: Sequence[tuple[Tensor, list[Answer]]], near: int
) -> dict[str, float]:
    scores: list[tuple[bool, float]] = []
    for ids, answers in rows:
        scores += answer_scores(model, ids, [x for x in answers if x.distance >= near])
    found, nats = zip(*scores)
    return {"found": sum(found) / len(scores), "nats": sum(nats) / len(scores), "of": len(scores)}


@torch.no_grad()
def answer_scores(
    model: PreTrainedModel, ids: Tensor, answers: Sequence[Answer]
) -> list[tuple[bool, float]]:
    """Of each answer of a row `[T]`: whether all its tokens are the likeliest, and its nats."""
    decoder: Any = model.get_decoder()
    ids, device = ids.to(model.device), model.device.type
    at = torch.cat([torch.arange(x.start, x.start + x.length) for x in answers]).to(ids.device)
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        hidden = decoder(input_ids=ids[None], use_cache=False).last_hidden_state[0]
        logits = model.get_output_embeddings()(hidden[at - 1]).float()
    right = logits.argmax(-1) == ids[at]
    nats = F.cross_entropy(logits, ids[at], reduction="none")
    sizes = [x.length for x in answers]
    return [
        (bool(a.all()), float(b.sum()))
        for a, b in zip(right.cpu().split(sizes), nats.cpu().split(sizes))
    ]


def _encoded(tokenizer: TokenizerBase, documents: Sequence[Document]) -> list[Tensor]:
    return [torch.tensor(tokenizer(text, verbose=False)["input_ids"]) for _, text in documents]


def _encode(tokenizer: TokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def main() -> None:
    """Command line: measure a saved model on held-out modules."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of model and tokenizer")
    parser.add_argument("--corpus", type=Path, help="corpus file; else this interpreter's library")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    documents = read_corpus(arguments.corpus).held_out if arguments.corpus else held_out_documents()
    model: Any = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    result = evaluate_recall(model.to(device), tokenizer, documents)
    write_json(arguments.out, result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
