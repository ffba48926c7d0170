"""The demo's figures, worked out again from plain forwards, on a tiny stand-in model."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from itertools import islice, pairwise

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console

import ahn
import standin
from ahn.demo import DemoSettings, print_result, run_demo, summarise
from ahn.demo.documents import evaluation_documents, training_batches
from ahn.demo.result import FULL, SAME_BYTES, WINDOW, Measured
from ahn.demo.run import MEMORIES, SLOTS
from ahn.demo.show import verdict

TOKENS, STEPS = 500, 3
FRESH = f"fresh, {STEPS} steps"


@pytest.fixture(scope="module")
def run():
    """One run, and what it reported."""
    reported = []
    with pytest.MonkeyPatch.context() as patch:
        standin.use(patch)
        result = run_demo(
            DemoSettings(tokens=TOKENS, steps=STEPS), lambda *report: reported.append(report)
        )
    return result, reported


def documents():
    with pytest.MonkeyPatch.context() as patch:
        standin.use(patch)
        return evaluation_documents(
            None,
            standin.tokenizer(),
            context=standin.CONTEXT,
            tokens=TOKENS,
            budget=standin.BUDGET,
        )


@torch.no_grad()
def rate(model) -> float:
    """Bits per byte beyond the budget by one forward of each document."""
    nats, size = 0.0, 0
    for document in documents():
        logits = model(document.ids, use_cache=False).logits[0].double()
        first = standin.BUDGET
        losses = F.cross_entropy(logits[first - 1 : -1], document.ids[0, first:], reduction="sum")
        nats += losses.item()
        size += document.lengths[first:].sum().item()
    return nats / math.log(2) / size


def test_rates_are_those_of_plain_forwards(run):
    result, _ = run
    model, _ = standin.load("GatedDeltaNet")
    with ahn.memory_off(model):
        assert result.row(WINDOW).bits_per_byte == pytest.approx(rate(model), rel=1e-5)
    assert result.row(FULL).bits_per_byte == pytest.approx(rate(standin.base()), rel=1e-5)
    for name in MEMORIES:
        model, _ = standin.load(name)
        assert result.row(name).bits_per_byte == pytest.approx(rate(model), rel=1e-5)
    assert len({row.bits_per_byte for row in result.rows}) == len(result.rows) == 8


def test_shares_follow_from_the_rates():
    nats = {FULL: 1.0, WINDOW: 2.0, "good": 1.25, "bad": 2.5}

    def recovered(nats):
        measurements = {
            name: Measured([torch.full((len(d) - 1,), x) for d in documents()], [(0, 0), (9, 9)], 1)
            for name, x in nats.items()
        }
        config = ahn.AHNConfig(window=standin.WINDOW, num_sinks=standin.SINKS)
        return summarise(measurements, documents(), config, None, seed=0, seconds=1.0)

    result = recovered(nats)
    assert {r.name: r.recovered for r in result.rows} == pytest.approx(
        {FULL: 1, WINDOW: 0, "good": 0.75, "bad": -0.5}
    )
    counted = [len(d) - standin.BUDGET for d in documents()]
    bits = sum(counted) / math.log(2) / result.bytes_beyond_budget
    assert result.row(FULL).bits_per_byte == pytest.approx(bits)
    without_gap = recovered({**nats, FULL: 2.0})
    assert {row.recovered for row in without_gap.rows} == {None}
    assert "no gap" in verdict(without_gap)[0]


def test_bytes_are_bounded_but_for_full_attention(run):
    result, _ = run
    config = standin.base().config
    per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    longest = max(document["tokens"] for document in result.documents)
    assert result.row(FULL).cache_bytes == longest * per_token
    assert result.row(WINDOW).cache_bytes == standin.BUDGET * per_token
    slots, same = result.row(SLOTS).cache_bytes, result.row(SAME_BYTES).cache_bytes
    assert slots - per_token < same <= slots
    for name, points in result.held_by_length.items():
        assert points[0] == (0, 0) and points[-1] == (longest, result.row(name).cache_bytes)


def test_the_fresh_memory_is_trained_and_read(run):
    result, reported = run
    assert len(result.training.losses) == STEPS and result.training.row == FRESH
    assert result.row(FRESH).bits_per_byte != result.row(WINDOW).bits_per_byte
    stage = "distilling a fresh GatedDeltaNet"
    steps = [report[1:3] for report in reported if report[0] == stage]
    assert steps == [(step, STEPS) for step in range(STEPS + 1)]


def test_reports_reach_their_totals(run):
    result, reported = run
    total = sum(document["tokens"] for document in result.documents)
    last = {stage: (done, most) for stage, done, most, *_ in reported}
    assert all(last[f"reading: {row.name}"] == (total, total) for row in result.rows)


def test_documents_are_counted_to_the_byte(run):
    result, _ = run
    read = documents()
    assert [d["tokens"] for d in result.documents] == [len(d) for d in read]
    for entry, document in zip(result.documents, read):
        text = standin.tokenizer().decode(document.ids[0, 1:], skip_special_tokens=False)
        assert document.ids[0, 0] == standin.tokenizer().eos_token_id
        assert standin.BUDGET < len(document) <= standin.CONTEXT
        whole = text.strip("\ufffd")  # a document may begin or end within a character
        assert whole in standin.TEXTS[document.name]
        assert 0 <= entry["bytes"] - len(whole.encode()) <= 6
    assert result.bytes_beyond_budget == sum(d["beyond_budget"] for d in result.documents)
    assert TOKENS - standin.BUDGET <= sum(map(len, read)) <= TOKENS


def test_curves_have_a_value_at_every_position(run):
    result, _ = run
    assert set(result.bits_per_byte_by_position) == {row.name for row in result.rows}
    for curve in result.bits_per_byte_by_position.values():
        assert len(curve) == len(result.positions) <= 64
        assert all(0 < value < 20 for value in curve)
    curves = result.bits_per_byte_by_position
    assert curves[FULL][0] == curves[WINDOW][0] and curves[FULL][-1] != curves[WINDOW][-1]


def test_the_table_says_what_the_json_says(run):
    result, _ = run
    console = Console(file=io.StringIO(), width=120)
    print_result(result, console)
    printed = console.file.getvalue()
    values = json.loads(json.dumps(result.to_dict()))
    for row in values["rows"]:
        line = next(line for line in printed.splitlines() if f"│ {row['name']} " in line)
        assert f"{row['bits_per_byte']:.4f}" in line
        assert f"{row['cache_bytes'] / 2**20:.2f}" in line


def test_what_does_not_help_is_said(run):
    result, _ = run
    rates = {FULL: 1.0, WINDOW: 2.0, "DeltaNet": 2.5, FRESH: 2.25}
    rows = [
        dataclasses.replace(
            row, found=len(row.name), bits_per_byte=rates.get(row.name, 1.5), recovered=0.5
        )
        for row in result.rows
    ]
    lines = verdict(dataclasses.replace(result, rows=rows))
    assert [line for line in lines if "does not beat" in line] == [
        "DeltaNet does not beat the window alone on this text.",
        f"{FRESH} does not beat the window alone on this text.",
    ]
    assert "lost 0.2500 bits per byte" in lines[-1]
    assert lines[0] == (
        f"Of {result.facts} facts that have left the window, full attention finds 14, the window "
        f"alone 14, {SAME_BYTES} {len(SAME_BYTES)}."
    )


def test_without_steps_there_is_no_fresh_row(monkeypatch):
    standin.use(monkeypatch)
    result = run_demo(DemoSettings(tokens=60, haystacks=0, steps=0), lambda *report: None)
    assert result.facts == 0 and not any("facts" in line for line in verdict(result))
    assert result.training is None and [row.name for row in result.rows][-1] == MEMORIES[-1]
    assert not any("fresh" in line for line in verdict(result))


def test_a_file_is_cut_into_documents_of_the_context(tmp_path):
    path = tmp_path / "long.txt"
    path.write_text(standin.TEXTS["beta"] * 20, encoding="utf-8")
    read = evaluation_documents(
        path, standin.tokenizer(), context=50, tokens=175, budget=standin.BUDGET
    )
    assert [len(document) for document in read] == [50, 50, 50, 25]
    text = b"".join(
        standin.tokenizer().decode(d.ids[0, 1:]).rstrip("\ufffd").encode() for d in read[:1]
    )
    assert path.read_bytes().startswith(text)


@pytest.mark.parametrize(
    ("data", "tokens", "message"),
    [
        (b"short", 100, "expected a text of more than 20 tokens, got less"),
        (b"", 100, "expected a text of more than 20 tokens, got less"),
        (b"\xff" * 900, 100, "expected UTF-8 text, got the byte 0xff"),
        (b"x" * 900, 20, "tokens: expected more than the budget of 20, got 20"),
    ],
)
def test_a_text_that_cannot_be_measured_is_refused(tmp_path, data, tokens, message):
    path = tmp_path / "text"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message):
        evaluation_documents(
            path, standin.tokenizer(), context=64, tokens=tokens, budget=standin.BUDGET
        )


@pytest.mark.parametrize("settings", [{"tokens": 0}, {"haystacks": -1}, {"steps": -1}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match="expected at least"):
        DemoSettings(**settings)


def test_training_text_is_training_text_alone(monkeypatch, tmp_path):
    standin.use(monkeypatch)
    texts = [text for _, text in standin.TRAINING]

    def stretches(evaluated):
        rows = list(islice(training_batches(standin.tokenizer(), 64, 0, evaluated=evaluated), 60))
        assert all(row.shape == (1, 64) for row in rows)
        ids = torch.cat(rows, 1)[0].tolist()
        end = standin.tokenizer().eos_token_id
        starts = [i for i, token in enumerate(ids) if token == end] + [len(ids)]
        return [standin.tokenizer().decode(ids[a + 1 : b]) for a, b in pairwise(starts)]

    found = stretches(None)
    assert all(any(part in text for text in texts) for part in found)
    assert {part in texts[0] for part in found} == {True, False}
    copy = tmp_path / "copy.py"
    copy.write_text(texts[1])
    assert all(part in texts[0] for part in stretches(copy))
