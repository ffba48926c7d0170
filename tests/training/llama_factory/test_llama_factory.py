"""Token ids and labels equal LLaMA-Factory's, or the difference is listed with its reason.

Runs where the package `llamafactory` is installed (`.ci/llama_factory` does it) and is skipped
elsewhere.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("llamafactory", reason="llamafactory is not installed, see .ci/llama_factory")

from conversations import FORMATS, samples
from theirs import Theirs
from tokenizers_here import SPECIAL, tokenizer_for

from ahn.training.data.sources import Source
from ahn.training.data.tokens import Encoder, training_template

DIFFERENCES = json.loads((Path(__file__).parent / "differences.json").read_text())
COUNT = 300
LIMITS = 4096, 48  # tokens: all fits, and most does not


def listed(template, formatting):
    """Kinds of samples that are known to differ."""
    found = set()
    for each in DIFFERENCES:
        is_here = each["format"] in ("*", formatting)
        if is_here and template in each.get("templates", [template]):
            found |= set(each["kinds"])
    return found


def ours(encoder, row):
    """Ids and labels, or nothing where the sample is dropped or refused."""
    try:
        documents = encoder.documents(row)
    except ValueError:
        return None
    return documents[0] if documents else None


@pytest.mark.parametrize("formatting", FORMATS)
@pytest.mark.parametrize("template", SPECIAL)
@pytest.mark.parametrize("limit", LIMITS)
def test_ids_and_labels_are_llama_factorys(template, formatting, limit):
    entry = FORMATS[formatting]
    made = samples(formatting, COUNT)
    columns = {column for _, row in made for column in row}
    source = Source("x", "x", {}, entry.get("formatting", "alpaca"), entry["columns"],
                    entry.get("tags", {}))  # fmt: skip
    tokenizer = tokenizer_for(template)
    encoder = Encoder(tokenizer, source, training_template(tokenizer, template), limit)
    theirs = Theirs(tokenizer_for(template), template, entry, limit)
    differing, kinds = set(), set()
    for kind, row in made:
        kinds.add(kind)
        row = {column: row.get(column) for column in columns}  # as Arrow gives it
        if ours(encoder, row) != theirs(row):
            differing.add(kind)
    allowed = listed(template, formatting) & kinds
    assert differing <= allowed
    if limit == max(LIMITS):
        assert differing == allowed, "a listed difference is none"
