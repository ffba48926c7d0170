"""Finished runs of `ahn eval`, loaded from their folders."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ahn.io.checksum import read_json
from ahn.io.text import json_lines, read_text

Value = tuple[float, float]
"""Numerator and denominator: a mean is the sum of the first over the sum of the second."""


@dataclass(frozen=True)
class Sample:
    """One sample of one run.

    Attributes:
        stratum, cluster: samples of one text belong together, and texts of one length.
        values: of each metric.
    """

    index: int
    stratum: str
    cluster: str
    values: dict[str, Value]
    doc: dict[str, Any]
    evidence: dict[str, Any] | None
    is_skipped: bool
    is_empty: bool = False


@dataclass(frozen=True)
class Run:
    """One finished run."""

    name: str
    asked: dict[str, Any]
    results: dict[str, Any]
    samples: dict[str, list[Sample]]
    readings: list[dict[str, Any]]

    @property
    def limits(self) -> tuple[int, int] | None:
        """Window and sinks, of a model that has any."""
        settings = self.results["ahn_config"]
        return settings and (settings["window"], settings["num_sinks"])


def read_runs(folders: Iterable[Path]) -> list[Run]:
    """All finished runs in these folders, or one level below.

    Raises ValueError where there is none, or two are called the same.
    """
    runs: dict[str, Run] = {}
    for folder in folders:
        finished = [folder] if (folder / "run.json").is_file() else sorted(folder.glob("*/"))
        finished = [path for path in finished if (path / "results.json").is_file()]
        if not finished:
            raise ValueError(f"{folder}: expected runs that ahn eval has finished, got none")
        for path in finished:
            if path.name in runs:
                raise ValueError(f"{path}: expected runs of different names, got another of it")
            runs[path.name] = _read(path)
    return list(runs.values())


def _read(folder: Path) -> Run:
    samples = {}
    for path in sorted((folder / "samples").glob("*.jsonl")):
        lines = json_lines(read_text(path))
        samples[path.stem] = [_sample(json.loads(line)) for line in lines]
    readings = folder / "readings.jsonl"
    lines = json_lines(read_text(readings)) if readings.is_file() else []
    return Run(
        name=folder.name,
        asked=read_json(folder / "run.json"),
        results=read_json(folder / "results.json"),
        samples=samples,
        readings=[json.loads(line) for line in lines],
    )


def _sample(record: dict[str, Any]) -> Sample:
    doc = record["doc"]
    cluster = doc.get("haystack", doc.get("document", record["doc_id"]))
    return Sample(
        index=record["doc_id"],
        stratum=str(doc.get("level", doc.get("length", "") if "haystack" in doc else "")),
        cluster=str(cluster),
        values={name: v for name, x in record["scores"].items() if (v := _value(x))},
        doc=doc,
        evidence=record["evidence"],
        is_skipped=record["skipped"],
        is_empty=record["empty"],
    )


def _value(value: Any) -> Value | None:
    if isinstance(value, list):
        return (value[0], value[1]) if len(value) == 2 else None
    return (float(value), 1.0) if isinstance(value, (int, float)) else None
