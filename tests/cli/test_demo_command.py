"""`ahn demo`: a table, one line of JSON and a picture of the same figures, or nothing at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import ahn
import standin
from commands import call, error


def test_demo_prints_a_table_and_json_and_draws_the_same(monkeypatch, tmp_path):
    standin.use(monkeypatch)
    drawn = []
    monkeypatch.setattr("ahn.plots.demo_figure", lambda result, path: drawn.append((result, path)))
    result = call("demo", "--tokens", 300, "--steps", 2, "--png", tmp_path / "demo.png")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    values = json.loads(lines[-1])
    rows = {row["name"]: row for row in values["rows"]}
    assert len(rows) == 8 and values["environment"]["ahn"] == ahn.__version__
    for name, row in rows.items():
        line = next(line for line in lines if f"│ {name} " in line)
        assert f"{row['bits_per_byte']:.4f}" in line
    assert json.loads(json.dumps(drawn[0][0])) == values and drawn[0][1] == tmp_path / "demo.png"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text", "missing"], "missing: expected a file that can be used"),
        (["--text", "short"], "short: expected a text of more than 20 tokens, got less"),
        (["--text", "latin1"], "latin1: expected UTF-8 text, got the byte 0xfc"),
        (["--tokens", "20"], "tokens: expected more than the budget of 20, got 20"),
        (["--haystacks", "-1"], "--haystacks: expected an integer >= 0, got '-1'"),
        (["--steps", "-1"], "--steps: expected an integer >= 0, got '-1'"),
        (["--png", "no/such.png"], "--png: expected a file in a folder that can be written"),
    ],
)
def test_a_demo_that_cannot_run_writes_nothing(monkeypatch, tmp_path, arguments, message):
    standin.use(monkeypatch)
    monkeypatch.chdir(tmp_path)
    Path("latin1").write_bytes("Grüße".encode("latin1"))
    Path("short").write_text("short")
    assert message in error("demo", *arguments)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latin1", "short"]


def test_an_interrupted_demo_writes_nothing(monkeypatch, tmp_path):
    standin.use(monkeypatch)
    monkeypatch.chdir(tmp_path)

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("ahn.demo.run.distill", interrupted)
    result = call("demo", "--tokens", 100)
    assert result.exit_code == 130
    assert not result.stdout and not list(tmp_path.iterdir())
