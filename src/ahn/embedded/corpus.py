"""The text of the embedded model: Python's standard library, cut into training and held-out parts.

`python -m ahn.embedded.corpus --out FILE` writes both parts of the running interpreter's library
into one compressed file, for machines whose own library is incomplete.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
import platform
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

Document = tuple[str, str]
"""A name (path below the standard library, or a held-out module) and its text."""

HELD_OUT = (
    "argparse",
    "asyncio",
    "email",
    "http",
    "statistics",
    "subprocess",
    "tarfile",
    "typing",
)
"""Modules and packages that are never trained on, nor are their tests."""

# Fixtures of the held-out modules' tests whose names do not begin like the module's.
_HELD_OUT_FIXTURES = ("ann_module", "mod_generics_cache", "typed_dict_helper")
_SKIPPED_FOLDERS = frozenset({"site-packages", "dist-packages", "__pycache__", "pydoc_data"})
_SKIPPED_PREFIXES = ("_sysconfigdata", "_sysconfig_vars", "lib2to3/tests/data/", "config-")
# Names the program that wrote the character tables of `encodings`.
_GENERATED_MARK = "gencodec.py"
_SHINGLE_LINES = 6
_MAX_SHARED = 0.05


@dataclass(frozen=True)
class Corpus:
    """Training and held-out documents of one interpreter's standard library."""

    python: str
    training: tuple[Document, ...]
    held_out: tuple[Document, ...]


def build_corpus() -> Corpus:
    """Both parts of the running interpreter's standard library."""
    return Corpus(
        python=platform.python_version(),
        training=tuple(training_documents()),
        held_out=tuple(held_out_documents()),
    )


def held_out_documents() -> list[Document]:
    """One document per module of `HELD_OUT`, in that order: its files, sorted by path, joined.

    Tests are left out, so the text is the same where the `test` package is not installed.

    Raises:
        ValueError: the interpreter has no source of a module.
    """
    return [(module, "\n".join(_module_texts(module))) for module in HELD_OUT]


def training_documents() -> list[Document]:
    """Every other source file, the files of one package and its tests following each other.

    Left out: `HELD_OUT` with tests and fixtures, files that share more than 5 % of their six-line
    passages with those, character tables, second copies of a file, and what is not UTF-8.
    """
    files = [(path, text) for path, text in _library_files() if not _is_generated(text)]
    held_out = _passages(text for path, text in files if is_held_out(path))
    seen: set[str] = set()
    documents = []
    for path, text in files:
        digest = hashlib.sha256(text.encode()).hexdigest()
        copied = digest in seen or _shared_fraction(text, held_out) > _MAX_SHARED
        if text.strip() and not is_held_out(path) and not copied:
            seen.add(digest)
            documents.append((path, text))
    return sorted(documents, key=lambda document: _order(document[0]))


def topic(path: str) -> str:
    """The package or module that a file belongs to or tests: `json` for `test/test_json/…`."""
    parts = [_stem(part) for part in PurePosixPath(path).parts]
    if parts[0] == "test" and len(parts) > 1:
        parts = parts[1:]
    return parts[0] or "init"


def is_held_out(path: str) -> bool:
    """Whether any part of a path below the library names a held-out module, its test or fixture."""
    stems = [_stem(part) for part in PurePosixPath(path).parts]
    return any(stem.startswith((*HELD_OUT, *_HELD_OUT_FIXTURES)) for stem in stems)


def write_corpus(corpus: Corpus, path: Path) -> None:
    """Write a corpus as xz-compressed JSON, through a temporary name."""
    content = {
        "python": corpus.python,
        "training": corpus.training,
        "held_out": corpus.held_out,
    }
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(lzma.compress(json.dumps(content).encode(), preset=6))
    temporary.replace(path)


def read_corpus(path: Path) -> Corpus:
    """Read what `write_corpus` wrote."""
    content = json.loads(lzma.decompress(path.read_bytes()))
    return Corpus(
        python=content["python"],
        training=tuple((name, text) for name, text in content["training"]),
        held_out=tuple((name, text) for name, text in content["held_out"]),
    )


def _library() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _library_files() -> Iterator[Document]:
    """Path below the library, with forward slashes, and text of every readable source file."""
    library = _library()
    for path in sorted(library.rglob("*.py")):
        name = path.relative_to(library).as_posix()
        skipped = _SKIPPED_FOLDERS.intersection(PurePosixPath(name).parts)
        if skipped or name.startswith(_SKIPPED_PREFIXES):
            continue
        text = _read(path)
        if text is not None:
            yield name, text


def _module_texts(module: str) -> list[str]:
    library = _library()
    single = library / f"{module}.py"
    paths = [single] if single.exists() else sorted((library / module).rglob("*.py"))
    texts = [text for path in paths if (text := _read(path))]
    if not texts:
        raise ValueError(f"{module}: expected its source below {library}, got none")
    return texts


def _read(path: Path) -> str | None:
    """The text with `\\n` line ends; None where it is not UTF-8 or holds a NUL."""
    try:
        text = path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError):
        return None
    return None if "\0" in text else text


def _stem(part: str) -> str:
    stem = part.removesuffix(".py").lower().lstrip("_")
    return stem.removeprefix("test_").removeprefix("tests_").lstrip("_")


def _order(path: str) -> tuple[str, bool, str]:
    return topic(path), path.startswith("test/"), path


def _is_generated(text: str) -> bool:
    return _GENERATED_MARK in text[:1000]


def _shingles(text: str) -> list[int]:
    lines = [line.strip() for line in text.splitlines() if len(line.strip()) > 8]
    spans = range(len(lines) - _SHINGLE_LINES + 1)
    return [hash(tuple(lines[i : i + _SHINGLE_LINES])) for i in spans]


def _passages(texts: Iterable[str]) -> set[int]:
    return {shingle for text in texts for shingle in _shingles(text)}


def _shared_fraction(text: str, passages: set[int]) -> float:
    shingles = _shingles(text)
    return sum(s in passages for s in shingles) / len(shingles) if shingles else 0.0


def main() -> None:
    """Command line: write the corpus of the running interpreter."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True, help="file to write (xz)")
    arguments = parser.parse_args()
    corpus = build_corpus()
    write_corpus(corpus, arguments.out)
    for part, documents in (("training", corpus.training), ("held out", corpus.held_out)):
        size = sum(len(text.encode()) for _, text in documents)
        print(f"{part}: {len(documents)} documents, {size / 1e6:.1f} MB, Python {corpus.python}")


if __name__ == "__main__":
    main()
