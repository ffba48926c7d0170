"""The tasks of an evaluation: named groups, task options, and data from the hub or a folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import lm_eval.tasks
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import Kind
from lm_eval.tasks._yaml_loader import load_yaml

from ahn.evaluation.seeds import seed_all
from ahn.evaluation.tasks import TASKS
from ahn.evaluation.tasks.infinitebench import task as infinitebench
from ahn.evaluation.tasks.longbench import task as longbench
from ahn.evaluation.tasks.recall.kinds import KINDS
from ahn.evaluation.tasks.ruler import task as ruler
from ahn.evaluation.texts import PG19

GROUPS = {
    "needle": ("ahn_needle",),
    "recall": tuple(f"ahn_recall_{kind}" for kind in KINDS),
    "recall-chat": tuple(f"ahn_recall_chat_{kind}" for kind in KINDS),
    "ppl": ("ahn_ppl",),
    "lveval": ("ahn_lveval",),
    # The paper's six: those of LongBench whose samples are longest on average.
    "longbench-6": tuple(
        f"longbench_{name}"
        for name in ("dureader", "hotpotqa", "musique", "narrativeqa", "qmsum", "triviaqa")
    ),
    "longbench": ("longbench",),
    "infinitebench-qa": ("infinitebench_longbook_qa_en",),
    "ruler": ("ruler",),
    "ruler-local": ruler.LOCAL,
}
# lm-eval's folders of those. The index of all its tasks takes many seconds to build.
FOLDERS = tuple(
    Path(lm_eval.tasks.__file__).parent / x for x in ("longbench", "infinitebench", "ruler")
)
OWN = "ahn_"  # beginning of the names of this package's tasks
MADE = ("ahn_needle", "ahn_recall", "ahn_ppl")  # tasks whose samples are made from texts
# Which tasks take which option, by the beginning of their names.
USERS = {
    "lengths": (*MADE, "ahn_lveval", *ruler.BEGINNINGS),
    "depths": ("ahn_needle", "ahn_recall"),
    "texts": MADE,
}
# What makes a benchmark's own scores of lm-eval's, by the beginning of its tasks' names.
ADJUSTED = {"longbench_": longbench.adjusted, infinitebench.QA: infinitebench.adjusted}
OFFICIAL = {"longbook_qa_en": "longbook_qa_eng"}  # splits that the benchmark calls otherwise
LENGTH_NAMES = ("level", "max_length")  # under which LV-Eval and RULER say what was asked
RENAMED = {"question": "input"}  # columns of lm-eval's copy of LongBench, and the benchmark's


@dataclass(frozen=True)
class Suite:
    """The tasks of an evaluation and their options.

    Attributes:
        names: groups of `GROUPS` or any of lm-eval's tasks, groups and tags.
        lengths: tokens of needles and RULER's samples; the largest is that of `ppl`; LV-Eval's.
        depths: of needles, between 0 and 1.
        samples: the most of each task; of RULER and LV-Eval samples, of needles haystacks, of each
            length; of ppl documents.
        texts: documents for needles and `ppl`.
        data: folder with `NAME.jsonl` of each data set, RULER's files or PG19; None is the hub.
        seed: of all random choices.
    """

    names: tuple[str, ...]
    lengths: tuple[int, ...] | None = None
    depths: tuple[float, ...] | None = None
    samples: int | None = None
    texts: tuple[str, ...] | None = None
    data: Path | None = None
    seed: int = 0

    def task_options(self, tokenizer: str) -> dict[str, Any]:
        """The options that tasks make their samples from."""
        options: dict[str, Any] = {"tokenizer": tokenizer, "seed": self.seed}
        if self.lengths is not None:
            options |= {"lengths": list(self.lengths), "length": max(self.lengths)}
            options["max_seq_lengths"] = list(self.lengths)
        if self.samples is not None:
            options |= {"haystacks": self.samples, "documents": self.samples}
        for name in ("depths", "texts"):
            if getattr(self, name) is not None:
                options[name] = list(getattr(self, name))
        if self.data is not None:
            options["data"] = str(self.data)
        return options


@dataclass
class LoadedTasks:
    """Tasks by name, and the indices of their samples where not all are wanted."""

    tasks: dict[str, Task]
    chosen: dict[str, list[int]] = field(default_factory=dict)


def load_tasks(suite: Suite, tokenizer: str) -> LoadedTasks:
    """Make or fetch the data of all tasks.

    Raises ValueError in one line where a task is unknown, an option has no task to go with, or
    data are missing or not in the benchmark's format.
    """
    manager = _manager(suite, tokenizer)
    names = [leaf for name in suite.names for leaf in _leaves(manager, name)]
    names = list(dict.fromkeys(names))
    _check_used(suite, names)
    ruler.prepare(suite.data)
    loaded = LoadedTasks({name: _load(manager, suite, name) for name in names})
    for name, task in loaded.tasks.items():
        if task.get_config("num_fewshot") is None:
            task.set_config("num_fewshot", 0)
        task.set_fewshot_seed(suite.seed)
        if suite.samples is not None and not name.startswith(MADE):
            loaded.chosen[name] = _first_of_each_length(task.eval_docs, suite.samples)
    return loaded


def _first_of_each_length(documents: Iterable[dict[str, Any]], count: int) -> list[int]:
    """Indices of the first `count` samples, of each length where a benchmark asks several."""
    by_length: dict[Any, list[int]] = {}
    for index, document in enumerate(documents):
        length = next((document[name] for name in LENGTH_NAMES if name in document), None)
        by_length.setdefault(length, []).append(index)
    return sorted(index for indices in by_length.values() for index in indices[:count])


def _manager(suite: Suite, tokenizer: str) -> TaskManager:
    """lm-eval's index, of all its tasks only where a name is in none of our folders."""
    options = suite.task_options(tokenizer)
    manager = TaskManager(
        include_path=[str(TASKS), *FOLDERS], include_defaults=False, metadata=options
    )
    if all(n in GROUPS or n in manager.task_index or n.startswith(OWN) for n in suite.names):
        return manager
    return TaskManager(include_path=str(TASKS), metadata=options)


def _leaves(manager: TaskManager, name: str) -> Iterator[str]:
    """The tasks below a group of ours, or a group or tag of lm-eval's."""
    if name in GROUPS and GROUPS[name] != (name,):
        for target in GROUPS[name]:
            yield from _leaves(manager, target)
        return
    entry = manager.task_index.get(name)
    if entry is None:
        raise ValueError(f"task: expected one of {', '.join(GROUPS)} or of lm-eval's, got {name!r}")
    if entry.kind == Kind.TAG:
        for task in sorted(entry.tags):
            yield from _leaves(manager, task)
    elif entry.kind == Kind.GROUP:
        assert entry.yaml_path is not None
        for child in load_yaml(entry.yaml_path, resolve_func=False)["task"]:
            yield from _leaves(manager, child if isinstance(child, str) else child["task"])
    else:
        yield name


def _check_used(suite: Suite, names: Iterable[str]) -> None:
    """Refuse an option that no task takes."""
    for option, users in USERS.items():
        if getattr(suite, option) is not None and not any(n.startswith(users) for n in names):
            raise ValueError(f"{option}: expected a task that takes it, got {', '.join(names)}")
    made = all(name.startswith(MADE) for name in names) and PG19 not in (suite.texts or ())
    if suite.data is not None and made:
        raise ValueError(f"data: expected a task that reads a data set, got {', '.join(names)}")


def _load(manager: TaskManager, suite: Suite, name: str) -> Task:
    try:
        seed_all(suite.seed)  # RULER draws from the random numbers that all libraries share
        return manager.load([_specification(manager, suite, name)])["tasks"][name]
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    except (OSError, LookupError, TypeError, jinja2.TemplateError, RuntimeError) as error:
        lines = str(error).strip().splitlines() or [""]
        raise ValueError(
            f"{name}: expected its data set, in the benchmark's format, on the hub or in --data, "
            f"got {type(error).__name__}: {lines[0]}"
        ) from error


def _specification(manager: TaskManager, suite: Suite, name: str) -> Any:
    """lm-eval's name of a task, or its configuration where that is to be changed."""
    path = manager.task_index[name].yaml_path
    if name.startswith(OWN) or path is None:
        return name
    if name.startswith(ruler.BEGINNINGS):
        return ruler.adjusted(load_yaml(path), suite.samples, suite.data)
    adjust = next((f for begin, f in ADJUSTED.items() if name.startswith(begin)), None)
    if suite.data is None and adjust is None:
        return name
    config = load_yaml(path)
    if suite.data is not None:
        config = _from_folder(config, suite.data)
    return config if adjust is None else adjust(config)


def _from_folder(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A task's configuration, its data a file of the folder."""
    split = config["test_split"]
    stems = [x for x in (config.get("dataset_name"), split, OFFICIAL.get(split)) if x]
    file = next((f for stem in stems if (f := folder / f"{stem}.jsonl").is_file()), None)
    if file is None:
        wanted = " or ".join(f"{stem}.jsonl" for stem in stems)
        raise ValueError(f"expected {wanted} in {folder}, got none")
    return config | {
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {split: str(file)}},
        "process_docs": _with_both_names,
    }


def _with_both_names(documents: Any) -> Any:
    """Columns under the names of the copy that lm-eval's prompts expect."""
    for ours, official in RENAMED.items():
        if ours not in documents.column_names and official in documents.column_names:
            documents = documents.add_column(ours, list(documents[official]))
    return documents
