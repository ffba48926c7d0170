"""Where samples come from: files, the hub, and LLaMA-Factory's list of data sets."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ahn.io.checksum import read_json
from ahn.io.text import UTF8
from ahn.training.data.messages import without_nulls

REGISTRY = "dataset_info.json"
CARD = "README.md"  # of a data set on the hub
LOADERS = {  # builder of `datasets` by file extension
    ".json": "json",
    ".jsonl": "json",
    ".parquet": "parquet",
    ".txt": "text",
    ".md": "text",
    ".py": "text",
}
FORMATTINGS = ("alpaca", "sharegpt", "openai", "chatqa")
HUB_KEYS = ("hf_hub_url", "file_name")
OTHER_HUBS = ("ms_hub_url", "om_hub_url")  # allowed next to hf_hub_url, and ignored
COLUMNS = {"prompt", "query", "response", "history", "system", "messages", "tools"}
TAGS = {
    *("role_tag", "content_tag", "user_tag", "assistant_tag"),
    *("observation_tag", "function_tag", "system_tag"),
}
OPTIONS = {"formatting", "columns", "tags", "subset", "split", "folder", "num_samples"}
KEYS = {*HUB_KEYS, *OTHER_HUBS, *OPTIONS}


@dataclass(frozen=True)
class Source:
    """One data set: where it is and what its columns mean.

    Attributes:
        name: as the user gave it, for messages.
        path: a local file or folder, or a name on the hub.
        options: of `datasets.load_dataset`.
        formatting: one of `FORMATTINGS`; None infers it from the columns.
        columns: the data set's names for LLaMA-Factory's columns; empty for those they have there.
            A prompt without a response is plain text.
        tags: the data set's names for the keys and roles of messages, where they differ.
        num_samples: maximum samples to load; None loads all.
    """

    name: str
    path: str
    options: dict[str, Any] = field(default_factory=dict)
    formatting: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    num_samples: int | None = None

    def load(self, streaming: bool = False) -> Any:
        """Load the samples, a `datasets.Dataset` or an `IterableDataset`.

        Raises ValueError naming the source where it cannot be loaded or is empty.
        """
        files = _files(Path(self.path))
        if files is None and Path(self.path).suffix in LOADERS:  # not a name on the hub
            raise ValueError(f"{self.name}: expected samples, got no file {self.path}")
        try:
            samples = self._load(files, streaming)
            if next(iter(samples), None) is None:
                raise ValueError("no samples")
        except Exception as error:  # the readers' exceptions have no common base class
            cause = error.__cause__ or error
            message = " ".join(str(cause).split()) or type(cause).__name__  # on one line
            raise ValueError(f"{self.name}: expected samples, got: {message}") from error
        if self.num_samples is None:
            return samples
        return samples.take(self.num_samples)

    def _load(self, files: list[Path] | None, streaming: bool) -> Any:
        import datasets

        options = {"split": "train", **self.options, "streaming": streaming}
        if files is None:
            return datasets.load_dataset(self.path, **options)
        nonempty = [file for file in files if file.stat().st_size]  # readers fail on empty files
        if files and not nonempty:
            raise ValueError("no samples")
        loader = _loader(nonempty)
        if loader == "text":
            options |= {"sample_by": "document", "encoding": UTF8}
        return datasets.load_dataset(loader, data_files=list(map(str, nonempty)), **options)


def find_sources(names: str, folder: str) -> list[Source]:
    """The sources of a comma-separated list of paths, names in the registry, or hub names.

    Args:
        folder: of the registry `dataset_info.json`, which need not exist.

    Raises:
        ValueError: no name, or a malformed entry of the registry.
    """
    registry = Path(folder) / REGISTRY
    entries = read_json(registry) if registry.is_file() else {}
    sources = []
    for name in filter(None, map(str.strip, names.split(","))):
        if name in entries:
            sources.append(_registered(name, entries[name], Path(folder)))
        elif Path(name).exists() or "/" in name.strip("./") or not entries:
            sources.append(Source(name, name))
        else:
            raise ValueError(f"dataset: expected a path or one of {sorted(entries)}, got {name!r}")
    if not sources:
        raise ValueError("dataset: expected at least one name, got none")
    return sources


def _registered(name: str, entry: dict[str, Any], folder: Path) -> Source:
    """A source from its entry in LLaMA-Factory's registry."""
    entry = {k: v for k, v in without_nulls(entry).items() if v is not False}  # as if not there
    _check_entry(name, entry)
    kind = next(key for key in HUB_KEYS if key in entry)
    options = {
        "name": entry.get("subset"),
        "split": entry.get("split"),
        "data_dir": entry.get("folder"),
    }
    return Source(
        name=name,
        path=entry[kind] if kind == "hf_hub_url" else str(folder / entry[kind]),
        options={key: value for key, value in options.items() if value is not None},
        formatting=entry.get("formatting", FORMATTINGS[0]),
        columns=entry.get("columns", {}),
        tags=entry.get("tags", {}),
        num_samples=entry.get("num_samples"),
    )


def _check_entry(name: str, entry: dict[str, Any]) -> None:
    """Refuse an entry with keys that would have no effect."""
    columns, tags = entry.get("columns", {}), entry.get("tags", {})
    checks = (("keys", entry, KEYS), ("columns", columns, COLUMNS), ("tags", tags, TAGS))
    for part, got, known in checks:
        if unknown := sorted(set(got) - known):
            raise ValueError(
                f"{REGISTRY}: {name}: expected {part} among {sorted(known)}, got {unknown}"
            )
    if not any(key in entry for key in HUB_KEYS):
        raise ValueError(f"{REGISTRY}: {name}: expected one of {HUB_KEYS}, got {sorted(entry)}")
    if (formatting := entry.get("formatting", FORMATTINGS[0])) not in FORMATTINGS:
        raise ValueError(
            f"{REGISTRY}: {name}: expected a formatting of {', '.join(FORMATTINGS)}, got "
            f"{formatting!r}"
        )


def _files(path: Path) -> list[Path] | None:
    """Data files of a local path; None where `datasets` has to find them.

    That is a name on the hub, or a folder laid out as there: a card and data files, of which the
    card names configurations and splits.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        return None
    files = sorted(file for file in path.rglob("*") if file.suffix in LOADERS)
    if path / CARD in files and len({LOADERS[file.suffix] for file in files}) > 1:
        return None
    return files


def _loader(files: list[Path]) -> str:
    kinds = {LOADERS.get(file.suffix) for file in files}
    if len(kinds) != 1 or None in kinds:
        endings = sorted({file.suffix for file in files})
        raise ValueError(f"files of one kind among {sorted(LOADERS)}, got {endings}")
    return str(kinds.pop())
