"""LV-Eval (arXiv 2402.05136): 11 data sets in English and Chinese, each at 16k to 256k words.

The data are the benchmark's files `NAME_LENGTH.jsonl`, from a folder or the hub. The prompts are
worded anew; with the benchmark's own `config.py` beside the data they are the benchmark's. Each
sample says which (`wording`). As in the benchmark only the first answer counts.
"""

from __future__ import annotations

import ast
import json
import re
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets

from ahn.evaluation.tasks.lveval.metrics import METRICS
from ahn.io.text import UTF8, json_lines, read_text

HUB = "Infinigence/LVEval"
LENGTHS = {16384: "16k", 32768: "32k", 65536: "64k", 131072: "128k", 262144: "256k"}
COLUMNS = {"input": str, "context": str, "answers": list}
LANGUAGES = ("en", "zh")
OWN_WORDING, BENCHMARK_WORDING = "own", "the benchmark's"


def dataset(
    name: str,
    language: str,
    scored_by: str,
    lengths: Sequence[int] = tuple(LENGTHS),
    data: str | None = None,
    **_: Any,
) -> dict[str, datasets.Dataset]:
    """The samples of one data set.

    Args:
        name, language, scored_by: the data set, and the metric of `METRICS` it is scored by.
        lengths: keys of `LENGTHS`, the benchmark's nominal lengths in words.
        data: folder with the benchmark's files; None is the hub.

    Raises:
        ValueError: a file is missing or not in the benchmark's format.
    """
    wrong = [length for length in lengths if length not in LENGTHS]
    if wrong:
        raise ValueError(f"lengths: expected some of {', '.join(map(str, LENGTHS))}, got {wrong}")
    wording, prompt = _prompt(name, language, data)
    documents = []
    for length in lengths:
        for document in _documents(f"{name}_{LENGTHS[length]}", data):
            documents.append(
                {
                    "prompt": _filled(prompt, document),
                    "answers": document["answers"],
                    "answer_keywords": document.get("answer_keywords") or "",
                    "level": LENGTHS[length],
                    "scored_by": scored_by,
                    "wording": wording,
                }
            )
    return {"test": datasets.Dataset.from_list(documents)}


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """The score of one prediction, in percent as in the paper, also under its length."""
    metric = METRICS[doc["scored_by"]]
    score = 100 * metric(results[0], doc["answers"][0], doc["answer_keywords"])
    return {"score": score, doc["level"]: score}


def _prompt(name: str, language: str, data: str | None) -> tuple[str, str]:
    """Whose wording, and the prompt with `{context}` and `{input}`."""
    config = None if data is None else Path(data) / "config.py"
    if config is None or not config.is_file():
        prompt = Path(__file__).parent / f"prompt_{language}.txt"
        return OWN_WORDING, prompt.read_text(encoding="utf-8").removesuffix("\n")
    for node in ast.parse(read_text(config)).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "DATASET_PROMPT":
            return BENCHMARK_WORDING, ast.literal_eval(node.value)[name]
    raise ValueError(f"{config}: expected the benchmark's DATASET_PROMPT, got none")


def _filled(prompt: str, document: dict[str, Any]) -> str:
    """Braces in a document are its own."""
    return re.sub(r"\{(context|input)\}", lambda place: document[place[1]], prompt)


def _documents(stem: str, data: str | None) -> Iterator[dict[str, Any]]:
    name, lines = _lines(stem, data)
    count = 0
    for count, line in enumerate(lines, start=1):
        document = json.loads(line)
        for column, kind in COLUMNS.items():
            if not isinstance(document.get(column), kind) or not document[column]:
                raise ValueError(
                    f"{name}, line {count}: expected {column} as a non-empty {kind.__name__}, got "
                    f"columns {', '.join(document)}"
                )
        yield document
    if not count:
        raise ValueError(f"{name}: expected samples, got none")


def _lines(stem: str, data: str | None) -> tuple[str, list[str]]:
    if data is not None:
        path = Path(data) / f"{stem}.jsonl"
        if not path.is_file():
            raise ValueError(f"{path}: expected a file of LV-Eval, got none")
        return str(path), json_lines(read_text(path))
    from huggingface_hub import hf_hub_download

    archive = f"{stem.rsplit('_', 1)[0]}.zip"
    with zipfile.ZipFile(hf_hub_download(HUB, archive, repo_type="dataset")) as file:
        member = next((m for m in file.namelist() if Path(m).name == f"{stem}.jsonl"), None)
        if member is None:
            raise ValueError(f"{HUB}/{archive}: expected {stem}.jsonl in it, got none")
        return f"{HUB}/{stem}", json_lines(file.read(member).decode(UTF8))
