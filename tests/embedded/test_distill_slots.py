"""The recipe of memories with slots, at a size that takes seconds."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
from safetensors.torch import load_file

import ahn
from ahn.embedded import BASE, MEMORIES, distill_slots, evaluate_slots
from ahn.embedded.corpus import Corpus
from ahn.embedded.distill_slots import Settings, lower_trained, train_slots
from ahn.embedded.evaluate_recall import RecallMeasurement

TINY = replace(
    Settings(),
    window=32,
    slots=16,
    steps=3,
    rows=(256, 1),
    long_rows=(320, 1),
    long_every=2,
    shares_rows=(256, 1),
    rates_rows=(2048, 1),
    facts=70,
    lengths=(200, 256),
)
WORDS = ("river", "stone", "lamp", "garden", "clock", "bread", "horse", "ship", "cloud", "table")
LINES = [
    f"{a}er_{b} = {b}({i}, {i % 7})  # {a}{b[:3]} and {b}{a[:2]}\n"
    for i, (a, b) in enumerate((a, b) for a in WORDS for b in WORDS for _ in range(3))
]


@pytest.mark.slow
def test_it_writes_a_memory_with_its_figures(tmp_path, monkeypatch):
    measured = RecallMeasurement(lengths=(200,), haystacks=(1,), facts=2, near=16)
    for module in (distill_slots, evaluate_slots):
        monkeypatch.setattr(module, "MEASURED", measured)
    text = "".join(LINES)
    corpus = Corpus("3", (("a.py", text),), (("b.py", text[::-1]),))
    result = train_slots(BASE, corpus, replace(TINY, cell="DeltaNet"), tmp_path, "cpu")
    ways = {"full", "window", "memory", "newest", "wider", "random"}
    assert result["measured"].keys() == ways
    assert all(x["nats"].keys() == {"200", "256"} for x in result["measured"].values())
    assert result["measured"]["memory"]["gap"]["256"] < 1.5
    config = ahn.from_pretrained(BASE, tmp_path).config.ahn_config
    assert (config["memory"], config["slots"]) == ("DeltaNet", 16)
    assert [tuple(row) for row in config["slot_shares"]] == list(result["shares"])
    trained = load_file(tmp_path / "ahn_model.safetensors")
    assert any(x.abs().max() > 0 for name, x in trained.items() if ".ahn_slots.net.2." in name)
    again = lower_trained(BASE, tmp_path, corpus, (2048, 1), tmp_path / "again", "cpu")
    assert [x["found"][0] for x in again["rates"]][:1] == [max(result["rates"][-1]["found"])]
    assert again["losses"] == result["losses"]
    assert again["settings"] == result["settings"]


def test_longer_rows_come_now_and_then():
    assert TINY.shapes() == [(256, 1), (320, 1), (256, 1)]


@pytest.mark.parametrize(
    ("name", "settings"),
    [("Slots", Settings()), ("GatedDeltaNet-Slots", Settings(cell="GatedDeltaNet", slots=384))],
)
def test_the_defaults_are_those_that_made_what_ships(name, settings):
    found = json.loads((MEMORIES / name / "training.json").read_text())
    assert found["settings"] == json.loads(json.dumps(asdict(settings)))


def test_what_ships_finds_nearly_all_that_full_attention_finds():
    """In forms that it has not been trained on; the window finds nothing."""
    found = json.loads((MEMORIES / "Slots" / "training.json").read_text())["measured"]
    for length, least in (("2048", 0.95), ("8192", 0.95), ("32768", 0.9)):
        shares = {way: x["found"][length]["unseen"]["found"] for way, x in found.items()}
        assert shares["memory"] >= least * shares["full"] > 0.8 and shares["window"] == 0
        assert all(shares["memory"] > shares[way] for way in ("newest", "wider", "random")) or (
            length == "2048"
        )
    assert all(found["memory"]["gap"][n] > least for n, least in (("8192", 0.85), ("32768", 0.8)))
