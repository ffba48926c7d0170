"""A report as Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ahn.evaluation.evidence import ABSENT, EVICTED, SINKS, WINDOW

KIB = 1024
COUNTED = {
    "skipped": "Samples skipped as longer than max_length, in no score",
    "empty": "Answers of nothing but white space, scored as they are",
}


def markdown(report: Mapping[str, Any], figures: Sequence[str] = ()) -> str:
    """All tables, and links to the figures."""
    parts = [
        ["# Evaluation", ""],
        _runs(report["runs"]),
        *(_benchmark(task, each, report) for task, each in report["benchmarks"].items()),
        _positions(report["positions"]),
        _readings(report["readings"]),
        _paper(report["paper"]),
        [line for figure in figures for line in (f"![{figure}]({figure})", "")],
    ]
    return "\n".join(line for part in parts for line in part)


def _runs(runs: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    rows = []
    for run in runs:
        settings = run["ahn_config"] or {}
        limits = f"{settings['num_sinks']} + {settings['window']}" if settings else "none"
        rows.append([run["name"], run["model"], run["method"], limits, run["suite"]["seed"],
                     run["device"], f"{run['seconds']:.0f}"])  # fmt: skip
    yield from _table(
        ["run", "model", "method", "sinks + window", "seed", "device", "seconds"], rows
    )
    versions = next(iter(runs))["versions"]
    yield "Versions of the first run: " + ", ".join(f"{k} {v}" for k, v in versions.items()) + "."
    yield ""


def _benchmark(task: str, each: Mapping[str, Any], report: Mapping[str, Any]) -> Iterator[str]:
    yield f"## {task}"
    yield ""
    for kind, what in COUNTED.items():
        counts = ", ".join(f"{n} by {name}" for name, n in each[kind].items() if n)
        if counts:
            yield f"{what}: {counts}."
            yield ""
    if each["wording"]:
        yield f"Wording of the prompts: {', '.join(each['wording'])}."
        yield ""
    level = round(100 * report["bootstrap"]["level"])
    for metric, rows in each["metrics"].items():
        yield f"`{metric}` ({level} % intervals by bootstrap over texts):"
        yield ""
        lines = [
            [name, _interval(row), _interval(row.get("minus_window")),
             _interval(row.get("gap_recovered"), 100, " %"), row["samples"]]
            for name, row in rows.items()
        ]  # fmt: skip
        yield from _table(["run", "mean", "less the window's", "gap recovered", "samples"], lines)
    if task in report["evidence"]:
        yield from _evidence(report["evidence"][task])


def _evidence(split: Mapping[str, Any]) -> Iterator[str]:
    """Scores by where the evidence stood, in the sense of `ahn.evaluation.evidence`."""
    places = (SINKS, WINDOW, EVICTED, ABSENT)
    for metric, runs in split["metrics"].items():
        yield (
            f"`{metric}` by where the evidence stood ({', '.join(split['kind'])}; "
            f"{split['num_sinks']} sinks, a window of {split['window']}):"
        )
        yield ""
        rows = [
            [name, *(_with_count(by_place.get(place)) for place in places)]
            for name, by_place in runs.items()
        ]
        yield from _table(["run", *places], rows)


def _positions(positions: Mapping[str, Any]) -> Iterator[str]:
    if not positions:
        return
    yield "## Loss by position"
    yield ""
    yield "Nats per token between these positions:"
    yield ""
    longest = max(positions.values(), key=len)
    header = ["run", *(f"{row['first']:.0f}-{row['last']:.0f}" for row in longest)]
    rows = [[n, *(f"{row['nats_per_token']:.3f}" for row in r)] for n, r in positions.items()]
    yield from _table(header, rows)


def _readings(readings: Mapping[str, Any]) -> Iterator[str]:
    if not readings:
        return
    yield "## Time and memory by length"
    yield ""
    yield "Texts read one at a time: tokens per second, and KiB of the cache (or peak) at the end."
    yield ""
    lengths = sorted({row["up_to"] for rows in readings.values() for row in rows})
    table = []
    for name, rows in readings.items():
        by_length = {row["up_to"]: row for row in rows}
        table.append([name, *(_reading(by_length.get(length)) for length in lengths)])
    yield from _table(["run", *(f"to {length}" for length in lengths)], table)


def _reading(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return ""
    size = row.get("cache_bytes") or row.get("peak_bytes")
    return f"{row['tokens_per_second']:.0f}" + (f"; {size / KIB:,.0f}" if size else "")


def _paper(paper: Mapping[str, Any]) -> Iterator[str]:
    if not paper:
        return
    yield "## Against the paper"
    yield ""
    yield f"The paper's numbers: {paper['source']}."
    yield ""
    for each in paper["benchmarks"].values():
        yield f"{each['what']}:"
        yield ""
        rows = [[f"paper: {name}", *values] for name, values in each["rows"].items()]
        rows += [[name, f"{value:.2f}", "", ""] for name, value in each["ours"].items()]
        yield from _table(["", *paper["models"]], rows)


def _interval(row: Mapping[str, Any] | None, factor: float = 1, unit: str = "") -> str:
    if row is None:
        return ""
    value, *ends = (row[key] and factor * row[key] for key in ("value", "low", "high"))
    interval = "one text" if None in ends else " to ".join(f"{end:.4g}" for end in ends)
    return f"{value:.4g}{unit} ({interval})"


def _with_count(row: Mapping[str, Any] | None) -> str:
    return "" if row is None else f"{row['value']:.4g} (n = {row['samples']})"


def _table(header: Sequence[Any], rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    for row in (header, ["---"] * len(header), *rows):
        yield "| " + " | ".join(map(str, row)) + " |"
    yield ""
