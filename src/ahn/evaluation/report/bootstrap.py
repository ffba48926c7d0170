"""Confidence intervals by resampling texts, within each length where it has two or more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ahn.evaluation.report.runs import Sample

DRAWS, SEED, LEVEL = 2000, 0, 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval, and from how many samples; one text has no interval."""

    value: float
    low: float | None
    high: float | None
    samples: int


class Resampled:
    """A metric of one run, and the same under resampling; equal texts give equal draws.

    Samples of one text (needles of a haystack, stretches of a document) are drawn together.
    """

    def __init__(self, samples: Sequence[Sample], metric: str) -> None:
        scored = [sample for sample in samples if metric in sample.values]
        self.count = len(scored)
        sums: dict[tuple[str, str], np.ndarray] = {}
        for sample in scored:
            text = sample.stratum, sample.cluster
            sums[text] = sums.get(text, np.zeros(2)) + np.array(sample.values[metric])
        self.texts = sorted(sums)
        total = sum((sums[text] for text in self.texts), np.zeros(2))
        self.value = float(total[0] / total[1]) if self.count else float("nan")
        draws = np.zeros((DRAWS, 2))
        for texts in _strata(self.texts):
            rows = np.stack([sums[text] for text in texts])
            draws += rows[_picks(len(rows))].sum(1)
        self.draws = draws[:, 0] / draws[:, 1] if len(sums) > 1 else None

    def estimate(self) -> Estimate:
        """The mean with its interval."""
        return _estimate(self.value, self.draws, self.count)

    def minus(self, other: Resampled) -> Estimate | None:
        """The difference, text by text; None where the runs did not score the same texts."""
        if self.texts != other.texts or not self.count:
            return None
        paired = self.draws is not None and other.draws is not None
        draws = self.draws - other.draws if paired else None  # type: ignore[operator]
        return _estimate(self.value - other.value, draws, self.count)


def gap_recovered(
    full: Resampled, window: Resampled, run: Resampled, *, lower_is_better: bool
) -> Estimate | None:
    """Share of what the window loses against full attention that a run gets back.

    None where the texts differ, or full attention is not better beyond doubt.
    """
    gap = full.minus(window)
    if gap is None or run.texts != full.texts or gap.low is None or gap.high is None:
        return None
    if (gap.high >= 0) if lower_is_better else (gap.low <= 0):
        return None
    assert full.draws is not None and window.draws is not None and run.draws is not None
    value = (run.value - window.value) / (full.value - window.value)
    with np.errstate(divide="ignore", invalid="ignore"):
        draws = (run.draws - window.draws) / (full.draws - window.draws)
    return _estimate(value, draws[np.isfinite(draws)], run.count)


def estimates(samples: Mapping[str, Sequence[Sample]], metric: str) -> dict[str, Estimate]:
    """The metric of several sets of samples, of those that have any."""
    resampled = {name: Resampled(each, metric) for name, each in samples.items()}
    return {name: each.estimate() for name, each in resampled.items() if each.count}


def _strata(texts: Sequence[tuple[str, str]]) -> list[list[tuple[str, str]]]:
    """Texts by stratum, or all together where a stratum has one alone."""
    strata: dict[str, list[tuple[str, str]]] = {}
    for text in texts:
        strata.setdefault(text[0], []).append(text)
    alone = any(len(each) < 2 for each in strata.values())
    return [list(texts)] if alone and texts else list(strata.values())


def _picks(count: int) -> np.ndarray:
    """`[DRAWS, count]` indices below `count`, the same for every run."""
    return np.random.default_rng(SEED).integers(0, count, (DRAWS, count))


def _estimate(value: float, draws: np.ndarray | None, count: int) -> Estimate:
    if draws is None:
        return Estimate(value, None, None, count)
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high), count)
