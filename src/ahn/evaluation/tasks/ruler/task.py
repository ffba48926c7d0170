"""RULER (arXiv 2404.06654) as lm-eval makes it, with as many samples as asked, also offline.

A question with several answers counts as answered by any of them, as in the benchmark.

lm-eval makes 500 samples of every length and fetches essays and questions from the net. With a
folder of data they come from files in RULER's own names and format: `PaulGrahamEssays.json`,
`squad.json`, `hotpotqa.json`, and `nltk_data`, with which essays are split into sentences.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import datasets
import nltk

from ahn.io.text import read_text

# Needles in noise or among needles: they need no essays and no questions from the hub.
LOCAL = ("niah_single_1", "niah_multikey_2", "niah_multikey_3")
BEGINNINGS = ("niah_", "ruler")  # of its tasks' names
# What lm-eval's modules make samples with, each taking `num_samples`.
MAKERS = ("generate_samples", "sys_word_pair_random", "sys_kwext", "sys_vartrack_w_noise_random")
ESSAYS, QUESTIONS = "PaulGrahamEssays.json", {"read_squad": "squad.json",
                                              "read_hotpotqa": "hotpotqa.json"}  # fmt: skip
LEAST = 4096  # tokens: RULER's shortest
ANY_OF = ("ruler_qa_squad", "ruler_qa_hotpot")  # the benchmark asks for one of the answers
ENDLESS = ("ruler_vt", "ruler_cwe", "ruler_fwe")  # lm-eval seeks shorter samples without end
Make = Callable[..., dict[str, datasets.Dataset]]


def adjusted(
    config: dict[str, Any], samples: int | None = None, data: Path | None = None
) -> dict[str, Any]:
    """lm-eval's configuration of a task, with at most so many samples of each length."""
    least = LEAST if config["task"] in ENDLESS else 1
    make = partial(dataset, config["custom_dataset"], samples=samples, folder=data, least=least)
    changed: dict[str, Any] = {"custom_dataset": make}
    if config["task"] in ANY_OF:
        changed["process_results"] = partial(any_of, config["process_results"])
    return {**config, **changed}


def any_of(
    share_of: Callable[..., dict[str, float]], doc: dict[str, Any], results: list[str]
) -> dict[str, float]:
    """1 where an answer is found, by `share_of`, lm-eval's score: the share of answers found."""
    found = share_of(doc, results)
    length = str(doc["max_length"])
    return {**found, length: float(found[length] > 0)}


def dataset(
    make: Make, *, samples: int | None, folder: Path | None, least: int = 1, **options: Any
) -> dict[str, datasets.Dataset]:
    """What lm-eval's `make` makes.

    Raises ValueError where a length is below `least`, or a file is missing from the folder or not
    in RULER's format.
    """
    short = [length for length in options.get("max_seq_lengths", ()) if length < least]
    if short:
        raise ValueError(f"lengths: expected at least {least} tokens, got {short[0]}")
    known: dict[str, Any] = make.__globals__
    changed: dict[str, Any] = {}
    if samples is not None:
        changed = {name: partial(_fewer, known[name], samples) for name in MAKERS if name in known}
    if folder is not None:
        changed |= _from_folder(known, folder)
    with patch.dict(known, changed):
        return make(**options)


def prepare(data: Path | None) -> None:
    """Let nltk look into the folder: lm-eval asks for its data as soon as a task is loaded."""
    if data is not None and (path := str(data / "nltk_data")) not in nltk.data.path:
        nltk.data.path.insert(0, path)


def _fewer(make: Callable[..., Any], samples: int, *args: Any, **options: Any) -> Any:
    """Never more than asked for: an example for the prompt is one sample."""
    return make(*args, **{**options, "num_samples": min(samples, options.get("num_samples", 500))})


def _from_folder(known: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The functions that would fetch, each reading a file instead; without what they remember."""
    changed: dict[str, Any] = {}
    if "get_haystack" in known:
        changed["get_haystack"] = partial(_haystack, known["get_haystack"], folder)
    for name, file in QUESTIONS.items():
        if name in known:
            changed[name] = partial(_questions, known, known[name].__wrapped__, folder / file)
    return changed


def _haystack(get: Callable[..., Any], folder: Path, type_haystack: str) -> Any:
    if type_haystack != "essay":
        return get(type_haystack=type_haystack)
    text = _json(folder / ESSAYS)
    if not isinstance(text, dict) or not str(text.get("text", "")).strip():
        raise ValueError(f"{folder / ESSAYS}: expected RULER's essays as text, got none")
    return text["text"].split()


def _questions(known: dict[str, Any], load: Callable[..., Any], file: Path) -> Any:
    with patch.dict(known, download_json=lambda _: _json(file)):
        return load()


def _json(file: Path) -> Any:
    if not file.is_file():
        raise ValueError(f"{file}: expected a file of RULER, got none")
    try:
        return json.loads(read_text(file))
    except ValueError as error:
        raise ValueError(f"{file}: expected JSON, got: {error}") from error
