"""A grid of runs: every method on every memory, one after the other, each resumable."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

from ahn.checkpoint.hub import memory_folder
from ahn.checkpoint.named_models import resolve
from ahn.evaluation.lm import AHNLM, METHODS
from ahn.evaluation.lm.methods import method_named
from ahn.evaluation.runs.execute import run_tasks
from ahn.evaluation.runs.record import RunFolder, fingerprint, versions
from ahn.evaluation.runs.suite import LoadedTasks, Suite, load_tasks


@dataclass(frozen=True)
class Grid:
    """The model, memories and methods of an evaluation.

    Attributes:
        model: folder or hub name of a base or merged model, or one of
            `ahn.checkpoint.NAMED_MODELS`.
        memories: folders or names of memories for it; empty for a model that has its own or none.
        methods: names of `METHODS`.
        window, num_sinks: win over the memories' own.
        options: further arguments of `AHNLM` (`batch_size`, `max_length`, `dtype`, ...).
        chat_template: whether prompts go through the model's chat template.
        engine: `transformers`, or `vllm` for a merged folder and the method `ahn`, whose options
            are those of `AHNVLLM`.
    """

    model: str
    memories: tuple[str, ...]
    methods: tuple[str, ...]
    window: int | None
    num_sinks: int | None
    options: dict[str, Any]
    chat_template: bool = False
    engine: str = "transformers"

    def runs(self) -> Iterator[tuple[str, str | None, str]]:
        """Name, memory and method of each run, those of one memory together.

        A method that needs no memory runs once, with the first memory attached.
        """
        for index, memory in enumerate(self.memories or (None,)):
            for method in self.methods:
                if METHODS[method].needs_memory:
                    yield f"{method}-{Path(memory).name}" if memory else method, memory, method
                elif index == 0:
                    yield method, memory, method


def evaluate_grid(grid: Grid, suite: Suite, output: Path) -> list[RunFolder]:
    """Do all runs of a grid that are not done yet, each in a folder of `output`.

    Raises ValueError where an option is wrong or a folder holds a run that asked something else.
    """
    for method in grid.methods:
        method_named(method)
    runs = list(grid.runs())
    names = [name for name, _, _ in runs]
    if len(set(names)) < len(names):
        raise ValueError(f"memories: expected ones of different names, got {grid.memories}")
    for given in grid.memories:
        memory_folder(_resolved(grid, given), None, {})
    base = str(resolve(grid.model)[0])
    folders = [RunFolder(output / name) for name in names]
    tasks: LoadedTasks | None = None
    lm: Any = None
    for number, ((name, memory, method), folder) in enumerate(zip(runs, folders), start=1):
        identity = _identity(grid, suite, memory, method)
        folder.claim(identity, write=False)
        if folder.is_done:
            print(f"run {number} of {len(runs)}: {name} is done", flush=True)
            continue
        tasks = tasks or load_tasks(suite, base)
        if lm is None or lm.memory != _resolved(grid, memory):
            lm = _load(grid, memory, method)
        lm.look_back(method)
        folder.claim(identity, write=lm.rank == 0)
        if lm.rank == 0:
            print(f"run {number} of {len(runs)}: {name}", flush=True)
        started = time.perf_counter()
        run_tasks(lm, tasks, folder, chat_template=grid.chat_template, seed=suite.seed)
        if lm.rank == 0:
            print(f"{folder.path}: {time.perf_counter() - started:.0f} s", flush=True)
            for line in folder.scores():
                print(f"  {line}", flush=True)
    return folders


def _load(grid: Grid, memory: str | None, method: str) -> Any:
    if grid.engine == "vllm":
        try:
            from ahn.evaluation.lm.vllm_model import AHNVLLM
        except PackageNotFoundError as error:  # lm-eval asks for the version under this name
            raise ValueError(f"engine: expected a package named vllm, got none: {error}") from error
        return AHNVLLM(grid.model, **grid.options)
    return AHNLM(
        grid.model,
        memory=memory,
        method=method,
        window=grid.window,
        num_sinks=grid.num_sinks,
        **grid.options,
    )


def _resolved(grid: Grid, memory: str | None) -> Any:
    return resolve(grid.model, memory)[1]


def _identity(grid: Grid, suite: Suite, memory: str | None, method: str) -> dict[str, Any]:
    """Everything that the answers of a run depend on."""
    asked = {**asdict(suite), "data": suite.data and str(suite.data)}
    resolved = _resolved(grid, memory)
    return {
        "model": grid.model,
        "memory": memory,
        "memory_sha256": fingerprint(None if resolved is None else str(resolved)),
        "method": method,
        "window": grid.window,
        "num_sinks": grid.num_sinks,
        "options": grid.options,
        "chat_template": grid.chat_template,
        "suite": asked,
        "versions": versions(),
        **_engine(grid),
    }


def _engine(grid: Grid) -> dict[str, str]:
    """The engine and its version; nothing of `transformers`, which has a version already."""
    if grid.engine != "vllm":
        return {}
    import vllm

    return {"engine": f"vllm {vllm.__version__}"}
