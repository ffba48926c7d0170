"""A run on disk: one folder with what was asked, the answers so far, and, once done, the scores."""

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
LONGEST = 2000  # characters of a document's value that are kept in a sample's record


@dataclass(frozen=True)
class RunFolder:
    """Where a run is kept.

    `run.json` says what was asked, `responses_rank*.db` holds lm-eval's answers as they come,
    `readings.jsonl` time and bytes of each reading, and in the end `samples/TASK.jsonl` what became
    of each sample and `results.json` the scores.
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
        """Whether the scores are there."""
        return (self.path / "results.json").is_file()

    def claim(self, identity: Mapping[str, Any], write: bool = True) -> None:
        """Begin the run, or go on with one that asks the same.

        Raises ValueError that names what differs.
        """
        file = self.path / "run.json"
        wanted = json.loads(json.dumps(identity))
        if file.is_file():
            found = read_json(file)
            differing = [k for k in {**wanted, **found} if wanted.get(k) != found.get(k)]
            for key in differing:
                raise ValueError(
                    f"{self.path}: expected a run with {key} {wanted.get(key)}, got one with "
                    f"{found.get(key)}: give another --output"
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

    def scores(self) -> Iterator[str]:
        """A line of each task: metrics, samples, how many were skipped or answered by nothing."""
        for task, found in read_json(self.path / "results.json")["tasks"].items():
            metrics = ", ".join(f"{name} {value:.4g}" for name, value in found["metrics"].items())
            counts = [f"{found['samples']} samples"]
            counts += [f"{found['skipped']} skipped as too long"] if found["skipped"] else []
            counts += [f"{found['empty']} answered by nothing"] if found["empty"] else []
            yield f"{task}: {metrics or 'no score'} ({', '.join(counts)})"

    def note_reading(self, reading: Mapping[str, Any]) -> None:
        """Append what one reading took."""
        with self.readings.open("a") as file:
            file.write(json.dumps(reading) + "\n")


def versions() -> dict[str, str]:
    """Of Python and the packages that answers depend on."""
    return {"python": platform.python_version()} | {p: metadata.version(p) for p in PACKAGES}


def fingerprint(folder: str | None) -> str | None:
    """SHA-256 of the files of a memory's folder; of a name on the hub the name."""
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
    """The same with long texts replaced by their hash and length."""
    if isinstance(value, str) and len(value) > LONGEST:
        digest = hashlib.sha256(value.encode()).hexdigest()
        return {"sha256": digest, "characters": len(value)}
    if isinstance(value, Mapping):
        return {key: shortened(each) for key, each in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [shortened(each) for each in value]
    return value
