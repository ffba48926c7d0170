"""`ahn generate --engine vllm`: answers to one prompt, or to a file of prompts at once."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ahn.serving.offline import Sampling

__all__ = ["TRANSFORMERS", "VLLM", "Sampling", "is_vllm", "print_answer", "print_answers"]

TRANSFORMERS, VLLM = "transformers", "vllm"


def is_vllm(engine: str, of_transformers: Mapping[str, Any]) -> bool:
    """Whether vLLM is asked for.

    Args:
        of_transformers: options of `transformers` alone, by their names on the command line.

    Raises:
        ValueError: there is no such engine, it takes no such option, or it is not installed.
    """
    if engine not in (TRANSFORMERS, VLLM):
        raise ValueError(f"--engine: expected {TRANSFORMERS} or {VLLM}, got {engine!r}")
    if engine == TRANSFORMERS:
        return False
    for option, value in of_transformers.items():
        if value not in (None, False):
            raise ValueError(f"{option}: expected --engine {TRANSFORMERS}, got {engine}")
    from ahn.serving.servers import chosen_engine

    chosen_engine(VLLM)
    return True


def print_answer(model: str, texts: Iterable[str], sampling: Sampling, dtype: str) -> None:
    """Print the answer to one prompt, given in chunks of text."""
    folder, tokenizer = _served(model)
    for _, text in _answers(folder, [_ids(tokenizer, texts)], sampling, dtype):
        print(text)


def print_answers(model: str, file: Path, sampling: Sampling, dtype: str) -> None:
    """Print a line of JSON for each prompt of a JSONL file, as soon as its answer is whole.

    So what was printed by a run that was killed is not lost.
    """
    prompts = _read(file)
    folder, tokenizer = _served(model)
    ids = [_ids(tokenizer, [prompt]) for prompt in prompts]
    for index, text in _answers(folder, ids, sampling, dtype):
        print(json.dumps({"index": index, "text": text}), flush=True)


def _served(model: str) -> tuple[Path, Any]:
    """Folder and tokenizer of a model that vLLM can serve; ValueError says why it cannot."""
    from ahn.checkpoint import load_tokenizer
    from ahn.serving.folders import checked_folder
    from ahn.serving.limits import check_served

    folder = Path(model)
    check_served(checked_folder(folder)[0])
    return folder, load_tokenizer(model)


def _ids(tokenizer: Any, texts: Iterable[str]) -> list[int]:
    from ahn.io.text import encode_chunks

    return [token for ids in encode_chunks(tokenizer, texts) for token in ids[0].tolist()]


def _answers(folder: Path, ids: list[list[int]], sampling: Sampling, dtype: str) -> Any:
    """As `ahn.serving.offline.answers`; says how many are done."""
    from ahn.io.progress import progress
    from ahn.serving.offline import answers

    with progress("answers") as report:
        for done, answer in enumerate(answers(folder, ids, sampling, dtype), start=1):
            yield answer
            report("answered", done, len(ids))


def _read(file: Path) -> list[str]:
    """The prompts of a JSONL file: `{"prompt": "..."}` or a string a line; none in blank ones."""
    from ahn.io.text import read_text

    prompts = []
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError:
            value = None
        prompt = value.get("prompt") if isinstance(value, dict) else value
        if not isinstance(prompt, str) or not prompt:
            raise ValueError(
                f"{file}, line {number}: expected a string or an object with a prompt, got "
                f"{line[:40]!r}"
            )
        prompts.append(prompt)
    if not prompts:
        raise ValueError(f"{file}: expected at least one prompt, got none")
    return prompts
