"""Long local texts for tasks that need any, by name."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from ahn.checkpoint import load_tokenizer
from ahn.io.text import read_text

STDLIB = "stdlib:"  # a module or package of the running interpreter's library, its source
DEFAULT_TEXTS = ("stdlib:asyncio", "stdlib:email", "stdlib:http")
PG19 = "pg19"  # the test split of PG19, from the hub
PG19_DATA = ("emozilla/pg19", "test", "text")


def named_texts(names: Iterable[str], data: str | None = None) -> Iterator[tuple[str, str]]:
    """Name and text of each document, one after the other.

    Args:
        names: UTF-8 files, folders (their files, sorted), `stdlib:MODULE` or `pg19` (streamed).
        data: folder with `pg19`, the benchmark's text files; None is the hub.

    Raises:
        ValueError: there is no such text, or it is not UTF-8.
    """
    for name in names:
        if name == PG19 and data is None:
            yield from _pg19()
        elif name == PG19:
            yield from _books(Path(data, PG19))  # type: ignore[arg-type]
        elif name.startswith(STDLIB):
            module = name.removeprefix(STDLIB)
            yield module, "\n".join(map(_read, _module_files(module)))
        elif (path := Path(name)).is_dir():
            for file in sorted(x for x in path.rglob("*") if x.is_file()):
                yield str(file.relative_to(path)), _read(file)
        else:
            yield path.name, _read(path)


def task_tokenizer(
    tokenizer: str | None = None, pretrained: str | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer that a task measures lengths with, from the arguments of the model.

    Raises ValueError where neither names one, or it gives no offsets.
    """
    name = tokenizer or pretrained
    if not name:
        raise ValueError("tokenizer: expected --metadata tokenizer=NAME for this task, got none")
    loaded = load_tokenizer(name)
    if not loaded.is_fast:
        raise ValueError(f"tokenizer: expected a fast one (with offsets), got {name!r}")
    return loaded


def token_starts(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Where in the text each of its tokens begins, in characters; no special tokens."""
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return [start for start, _ in encoding["offset_mapping"]]


def _module_files(module: str) -> list[Path]:
    library = Path(sysconfig.get_path("stdlib"))
    single = library / f"{module}.py"
    paths = [single] if single.exists() else sorted((library / module).rglob("*.py"))
    if not paths:
        raise ValueError(f"{STDLIB}{module}: expected its source below {library}, got none")
    return paths


def _read(path: Path) -> str:
    try:
        return read_text(path)
    except OSError as error:
        raise ValueError(f"{path}: expected a text, got: {error.strerror}") from error


def _books(folder: Path) -> Iterator[tuple[str, str]]:
    """PG19's files, `NUMBER.txt`, of its test split or of a folder without splits."""
    split = folder / PG19_DATA[1]
    files = sorted((split if split.is_dir() else folder).glob("*.txt"))
    if not files:
        raise ValueError(f"{folder}: expected PG19's text files, got none")
    for file in files:
        yield f"{PG19}/{file.stem}", _read(file)


def _pg19() -> Iterator[tuple[str, str]]:
    from datasets import load_dataset

    path, split, column = PG19_DATA
    try:
        for index, row in enumerate(load_dataset(path, split=split, streaming=True)):
            yield f"{PG19}/{index}", row[column]
    except (OSError, KeyError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{PG19}: expected {path} on the hub, got: {reason}") from error
