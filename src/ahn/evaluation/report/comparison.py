"""Everything a report says, from finished runs, ready for JSON."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from ahn.evaluation.evidence import ABSENT, EVICTED, SINKS, WINDOW, place
from ahn.evaluation.report.bootstrap import DRAWS, LEVEL, Resampled, estimates, gap_recovered
from ahn.evaluation.report.runs import Run, Sample

FULL, CONTROL = "full", "window"
PLACES = (SINKS, WINDOW, EVICTED, ABSENT)
NEEDLE, PPL = "ahn_needle", "ahn_ppl"
LOWER_IS_BETTER = ("nats", "nats_per_token", "bits_per_byte")
NEEDLE_METRICS = ("acc", "recall", "nats")
PAPER = json.loads((Path(__file__).parent / "paper.json").read_text())
# The paper's benchmarks: our tasks by the beginning of their names, the metric, and to percent.
COMPARED = {
    "lveval": ("ahn_lveval_", "128k", 1, 11),
    "infinitebench-qa": ("infinitebench_longbook_qa_en", "score", 100, 1),
    "longbench-6": ("longbench_", "score", 100, 6),
}
SIX = ("dureader", "hotpotqa", "musique", "narrativeqa", "qmsum", "triviaqa")


def findings(runs: Sequence[Run]) -> dict[str, Any]:
    """All tables and curves of a report."""
    return {
        "runs": [_about(run) for run in runs],
        "bootstrap": {"draws": DRAWS, "level": LEVEL},
        "benchmarks": {task: _benchmark(runs, task) for task in _tasks(runs)},
        "evidence": {t: split for t in _tasks(runs) if (split := _evidence(runs, t))},
        "needles": _needles(runs),
        "positions": _all_positions([run for run in runs if PPL in run.samples]),
        "readings": {run.name: _readings(run) for run in runs if run.readings},
        "paper": _paper(runs),
    }


def _tasks(runs: Iterable[Run]) -> list[str]:
    return sorted({task for run in runs for task in run.samples})


def _about(run: Run) -> dict[str, Any]:
    names = ("seconds", "peak_resident_bytes", "device", "processes", "ahn_config")
    return {"name": run.name, **run.asked, **{name: run.results[name] for name in names}}


def _benchmark(runs: Sequence[Run], task: str) -> dict[str, Any]:
    """Every metric of a task: each run, its difference to the control, the gap it recovers."""
    having = {run.name: run for run in runs if task in run.samples}
    metrics = sorted({m for run in having.values() for s in run.samples[task] for m in s.values})
    return {
        "skipped": {n: sum(s.is_skipped for s in r.samples[task]) for n, r in having.items()},
        "empty": {n: sum(s.is_empty for s in r.samples[task]) for n, r in having.items()},
        "wording": sorted(
            {str(s.doc["wording"]) for r in having.values() for s in r.samples[task]
             if "wording" in s.doc}
        ),
        "metrics": {metric: _metric(having, task, metric) for metric in metrics},
    }  # fmt: skip


def _metric(runs: Mapping[str, Run], task: str, metric: str) -> dict[str, Any]:
    drawn = {name: Resampled(run.samples[task], metric) for name, run in runs.items()}
    rows = {}
    for name, each in drawn.items():
        if not each.count:
            continue
        row: dict[str, Any] = asdict(each.estimate())
        if CONTROL in drawn and name != CONTROL:
            difference = each.minus(drawn[CONTROL])
            row["minus_window"] = difference and asdict(difference)
            if FULL in drawn and name != FULL:
                gap = gap_recovered(
                    drawn[FULL], drawn[CONTROL], each, lower_is_better=metric in LOWER_IS_BETTER
                )
                row["gap_recovered"] = gap and asdict(gap)
        rows[name] = row
    return rows


def _evidence(runs: Sequence[Run], task: str) -> dict[str, Any] | None:
    """Scores by where the evidence stood, by the window and sinks of the runs that have any.

    Runs without (full attention of a plain base) are split as the first that has.
    """
    limits = next((run.limits for run in runs if run.limits), None)
    having = [run for run in runs if task in run.samples]
    if limits is None or not any(s.evidence for run in having for s in run.samples[task]):
        return None
    kinds = {s.evidence["kind"] for run in having for s in run.samples[task] if s.evidence}
    split: dict[str, Any] = {"kind": sorted(kinds), "window": limits[0], "num_sinks": limits[1]}
    split["metrics"] = defaultdict(dict)
    for run in having:
        groups: dict[str, list[Sample]] = defaultdict(list)
        for sample in run.samples[task]:
            if sample.evidence:
                groups[place(sample.evidence, *(run.limits or limits))].append(sample)
        for metric in sorted({m for s in run.samples[task] for m in s.values}):
            by_place = estimates({p: groups[p] for p in PLACES if p in groups}, metric)
            split["metrics"][metric][run.name] = {p: asdict(e) for p, e in by_place.items()}
    return split


def _needles(runs: Sequence[Run]) -> dict[str, Any]:
    """Means of each metric and run: rows of length, depth, value, number."""
    maps: dict[str, Any] = {metric: {} for metric in NEEDLE_METRICS}
    for run in runs:
        for metric in NEEDLE_METRICS:
            cells: dict[tuple[int, float], list[float]] = defaultdict(list)
            for sample in run.samples.get(NEEDLE, ()):
                if metric in sample.values:
                    key = sample.doc["length"], sample.doc["depth"]
                    cells[key].append(sample.values[metric][0])
            if cells:
                maps[metric][run.name] = [
                    [*key, fmean(x), len(x)] for key, x in sorted(cells.items())
                ]
    return {metric: rows for metric, rows in maps.items() if rows}


def _all_positions(runs: Sequence[Run]) -> dict[str, Any]:
    """Loss by position of every run, and its difference to full attention where that was run."""
    full = next((run for run in runs if run.asked["method"] == FULL), None)
    beside = {} if full is None else _by_place(full.samples[PPL])
    return {run.name: _positions(_by_place(run.samples[PPL]), beside) for run in runs}


def _by_place(samples: Iterable[Sample]) -> dict[int, list[Sample]]:
    """Stretches of all documents with about the same place, by its number."""
    groups: dict[int, list[Sample]] = defaultdict(list)
    counted: dict[str, int] = defaultdict(int)
    for sample in samples:
        number = counted[sample.cluster]
        counted[sample.cluster] += 1
        if sample.values:
            groups[number].append(sample)
    return groups


def _positions(
    groups: Mapping[int, list[Sample]], full: Mapping[int, list[Sample]]
) -> list[dict[str, Any]]:
    """Loss by position over all documents, in order."""
    rows = []
    for number, group in sorted(groups.items()):
        row: dict[str, Any] = {
            "first": fmean(s.doc["first"] for s in group),
            "last": fmean(s.doc["last"] for s in group),
            "documents": len(group),
        }
        for metric in ("nats_per_token", "bits_per_byte"):
            costs, sizes = zip(*(s.values[metric] for s in group))
            row[metric] = sum(costs) / sum(sizes)
        if number in full:
            one, other = (Resampled(x, "nats_per_token") for x in (group, full[number]))
            difference = one.minus(other)
            row["minus_full"] = difference and asdict(difference)
        rows.append(row)
    return rows


def _readings(run: Run) -> list[dict[str, Any]]:
    """Mean time and largest cache by length, of batches of one text."""
    groups: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for reading in run.readings:
        if reading["rows"] == 1:
            groups[1 << (reading["tokens"] - 1).bit_length()].append(reading)
    rows = []
    for length, group in sorted(groups.items()):
        row = {"up_to": length, "readings": len(group)}
        row["tokens_per_second"] = round(
            sum(r["tokens"] for r in group) / max(1e-9, sum(r["seconds"] for r in group)), 1
        )
        for name in ("cache_bytes", "peak_bytes"):
            if any(name in r for r in group):
                row[name] = max(r.get(name, 0) for r in group)
        rows.append(row)
    return rows


def _paper(runs: Sequence[Run]) -> dict[str, Any]:
    """The paper's tables beside our means, in percent, for benchmarks that were run in full."""
    benchmarks = {}
    for name, (begin, metric, factor, count) in COMPARED.items():
        rows = {}
        for run in runs:
            values = list(_means(run, begin, metric, only=SIX if name == "longbench-6" else None))
            if len(values) == count:
                rows[run.name] = factor * fmean(values)
        if rows:
            benchmarks[name] = {**PAPER["benchmarks"][name], "ours": rows}
    if not benchmarks:
        return {}
    return {"source": PAPER["source"], "models": PAPER["models"], "benchmarks": benchmarks}


def _means(run: Run, begin: str, metric: str, only: Sequence[str] | None) -> Iterator[float]:
    for task, samples in run.samples.items():
        wanted = only is None or task.removeprefix(begin) in only
        if task.startswith(begin) and wanted and (each := Resampled(samples, metric)).count:
            yield each.value
