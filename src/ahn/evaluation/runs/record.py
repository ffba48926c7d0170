"""A run on disk: a folder with its settings, the answers so far and, at the end, the scores."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from ahn.io.checksum import read_json
from ahn.io.files import write_json, written_whole

PACKAGES = ("ahn", "torch", "transformers", "lm-eval", "datasets")
LONGEST = 2000  # characters of a document's value that a sample's record holds


@dataclass(frozen=True)
class RunFolder:
    """The files of a run.

    `run.json` holds the settings, `responses_rank*.db` lm-eval's answers as they come, and
    `readings.jsonl` time and bytes of each batch. At the end `samples/TASK.jsonl` holds a record of
    each sample and `results.json` the scores.
    """

    path: Path

    @property
    def responses(self) -> str:
        """lm-eval's response cache, without the rank's ending."""
        return str(self.path / "responses")

    @property
    def readings(self) -> Path:
        return self.path / "readings.jsonl"

    @property
    def is_done(self) -> bool:
        """Whether the scores are written."""
        return (self.path / "results.json").is_file()

    def claim(self, identity: Mapping[str, Any], write: bool = True) -> None:
        """Begin the run, or continue one with the same settings.

        Args:
            identity: the settings.
            write: whether to write them; only the first process does.

        Raises ValueError naming the first setting that differs.
        """
        file = self.path / "run.json"
        wanted = json.loads(json.dumps(identity))
        if file.is_file():
            recorded = read_json(file)
            differing = [k for k in {**wanted, **recorded} if wanted.get(k) != recorded.get(k)]
            for key in differing:
                raise ValueError(
                    f"{self.path}: expected a run with {key} {wanted.get(key)}, got one with "
                    f"{recorded.get(key)}: give another --output"
                )
        elif write:
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(file, wanted)

    def finish(self, results: Mapping[str, Any], samples: Mapping[str, list[Any]]) -> None:
        """Write samples, then scores."""
        folder = self.path / "samples"
        folder.mkdir(exist_ok=True)
        for task, records in samples.items():
            with written_whole(folder / f"{task}.jsonl") as temporary:
                lines = (json.dumps(shortened(record), default=str) for record in records)
                temporary.write_text("".join(line + "\n" for line in lines))
        write_json(self.path / "results.json", results)

    def results(self) -> dict[str, Any]:
        """The scores of a finished run."""
        return read_json(self.path / "results.json")

    def scores(self) -> Iterator[str]:
        """A line for each task: metrics, samples, skipped ones and empty answers."""
        for task, result in self.results()["tasks"].items():
            metrics = ", ".join(f"{name} {value:.4g}" for name, value in result["metrics"].items())
            counts = [f"{result['samples']} samples"]
            counts += [f"{result['skipped']} skipped as too long"] if result["skipped"] else []
            counts += [f"{result['empty']} answered by nothing"] if result["empty"] else []
            yield f"{task}: {metrics or 'no score'} ({', '.join(counts)})"

    def note_batch(self, cost: Mapping[str, Any]) -> None:
        """Append time and bytes of one batch."""
        with self.readings.open("a") as file:
            file.write(json.dumps(cost) + "\n")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that answers depend on."""
    return {"python": platform.python_version()} | {p: metadata.version(p) for p in PACKAGES}


def fingerprint(folder: str | None) -> str | None:
    """SHA-256 of the files in a memory's folder; a name on the hub stands for itself."""
    if folder is None or not Path(folder).is_dir():
        return folder
    digest = hashlib.sha256()
    for path in sorted(x for x in Path(folder).rglob("*") if x.is_file()):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest() if hasattr(
                hashlib, "file_digest") else hashlib.sha256(file.read()).digest())  # fmt: skip
    return digest.hexdigest()


def shortened(value: Any) -> Any:
    """The same value with every long text replaced by its hash and length."""
    if isinstance(value, str) and len(value) > LONGEST:
        digest = hashlib.sha256(value.encode()).hexdigest()
        return {"sha256": digest, "characters": len(value)}
    if isinstance(value, Mapping):
        return {key: shortened(each) for key, each in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [shortened(each) for each in value]
    return value
