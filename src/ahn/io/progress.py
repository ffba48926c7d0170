"""How far a command is: a bar on a terminal, a line now and then where output goes elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeVar

Item = TypeVar("Item")

QUIET, BETWEEN = 2.0, 10.0  # seconds before the first line off a terminal, and between two
REFRESHED = 5  # times a second, of a bar


class Report(Protocol):
    """Told how much of a stage is done; a total of None is unknown."""

    def __call__(self, stage: str, done: int, total: int | None, note: str = "") -> None: ...


def counted(items: Sequence[Item], stage: str, report: Report | None) -> Iterator[Item]:
    """The items one after another, each reported as it begins; `report` may be None."""
    for done, item in enumerate(items):
        if report is not None:
            report(stage, done, len(items))
        yield item
    if report is not None:
        report(stage, len(items), len(items))


@contextmanager
def under_way(stage: str, report: Report | None) -> Iterator[None]:
    """Within the context a stage that cannot be divided is under way; `report` may be None."""
    for _ in counted([None], stage, report):
        yield


class Sum:
    """Counts what several threads do together, and reports the sum; `report` may be None."""

    def __init__(self, stage: str, total: int, report: Report | None) -> None:
        self.stage, self.total, self.report = stage, total, report
        self.done, self.lock = 0, threading.Lock()

    def add(self, number: int) -> None:
        """So much more is done."""
        with self.lock:
            self.done += number
            if self.report is not None:
                self.report(self.stage, self.done, self.total)


@contextmanager
def progress(unit: str = "tokens") -> Iterator[Report]:
    """Show on stderr what is reported: how much is done, the rate and the time left.

    On a terminal the bars are gone when the block ends; elsewhere nothing is said in the first two
    seconds of a stage.
    """
    stages: dict[str, _Stage] = {}

    def stage_of(name: str) -> _Stage:
        return stages.setdefault(name, _Stage(name, unit))

    if not sys.stderr.isatty():

        def say(stage: str, done: int, total: int | None, note: str = "") -> None:
            known = stage_of(stage)
            if known.is_due():
                print(known.text(done, total, note), file=sys.stderr, flush=True)

        yield say
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TextColumn

    bars: dict[str, TaskID] = {}
    console = Console(stderr=True)
    columns = (BarColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=console, transient=True, refresh_per_second=REFRESHED) as shown:

        def show(stage: str, done: int, total: int | None, note: str = "") -> None:
            text = stage_of(stage).text(done, total, note)
            if stage not in bars:
                bars[stage] = shown.add_task(text, total=total)
            shown.update(bars[stage], completed=done, total=total, description=text)

        yield show


class _Stage:
    """When a stage began, and when it was last spoken of."""

    def __init__(self, name: str, unit: str) -> None:
        self.name, self.unit = name, unit
        self.began = time.monotonic()
        self.next = self.began + QUIET

    def is_due(self) -> bool:
        now = time.monotonic()
        if now < self.next:
            return False
        self.next = now + BETWEEN
        return True

    def text(self, done: int, total: int | None, note: str) -> str:
        """Such as `reading: 4,096 of 8,192 tokens, 2,048 tokens/s, 0:02 left`."""
        rate = done / max(time.monotonic() - self.began, 1e-9)
        of = "" if total is None else f" of {total:,}"
        parts = [f"{self.name}: {done:,}{of} {self.unit}".rstrip()]
        if done:
            parts.append(f"{rate:,.{0 if rate >= 10 else 2}f} {self.unit}/s")
            if total is not None:
                left = max(0, round((total - done) / rate))
                parts.append(f"{left // 60}:{left % 60:02} left")
        return ", ".join([*parts, *([note] if note else [])])
