"""What became of the samples of a data set: kept, shortened, dropped and why."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch.utils.data import get_worker_info

from ahn.training.data.tokens import Document, Encoder

KEPT, SHORT, UNLABELLED, EMPTY = range(4)  # what becomes of a document
WORKERS = 256  # processes that may read a stream
NOTHING = Document([], [])
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sorter:
    """Columns of a batch of samples become columns of documents and of what becomes of them.

    Attributes:
        min_length: minimum tokens of a document that is kept.
    """

    encoder: Encoder
    min_length: int

    def __call__(
        self, rows: Mapping[str, list[Any]], indices: Iterable[int]
    ) -> dict[str, list[Any]]:
        columns: dict[str, list[Any]] = {name: [] for name in self.features()}
        for index, *cells in zip(indices, *rows.values()):
            sample = dict(zip(rows, cells))
            documents = self.encoder.encoded(sample, f"sample {index + 1}: ") or [NOTHING]
            for number, document in enumerate(documents):
                fate = self._fate(document)
                values = document.ids, document.labels, fate, document.cut, number == 0
                for column, value in zip(columns.values(), values, strict=True):
                    column.append(value)
        return columns

    @staticmethod
    def features() -> Any:
        """Names and types of the columns."""
        from datasets import Features, List, Value

        ids = List(Value("int32"))
        counted = {"fate": Value("int8"), "cut": Value("int32"), "is_first": Value("bool")}
        return Features(input_ids=ids, labels=ids, **counted)

    def _fate(self, document: Document) -> int:
        if not document.ids:
            return EMPTY
        if not document.is_labelled:
            return UNLABELLED
        return SHORT if len(document.ids) < self.min_length else KEPT


def is_kept(fate: int) -> bool:
    """Whether a document is trained on."""
    return fate == KEPT


@dataclass(frozen=True)
class Tally:
    """Counts of one data set.

    Attributes:
        samples, documents: read, and kept; a long text gives several documents.
        short, unlabelled, empty: documents that were dropped.
        shortened, tokens_cut: documents longer than `cutoff_len`, and what that cut off.
    """

    COLUMNS: ClassVar[list[str]] = ["fate", "cut", "is_first"]

    name: str
    samples: int
    documents: int
    short: int
    unlabelled: int
    empty: int
    shortened: int
    tokens_cut: int

    @classmethod
    def of(cls, name: str, documents: Any) -> Tally:
        """The counts of a data set with the columns of `Sorter`."""
        fates, cuts, firsts = (list(documents[column]) for column in cls.COLUMNS)
        number = Counter(fates)
        return cls(
            name,
            samples=sum(firsts),
            documents=number[KEPT],
            short=number[SHORT],
            unlabelled=number[UNLABELLED],
            empty=number[EMPTY],
            shortened=sum(cut > 0 for cut in cuts),
            tokens_cut=sum(cuts),
        )

    @property
    def is_lossless(self) -> bool:
        """Whether all that was read is trained on."""
        return not (self.short or self.unlabelled or self.empty or self.shortened)

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self)

    def __str__(self) -> str:
        parts = [f"{self.name}: {self.samples} samples, {self.documents} documents"]
        reasons = {
            "as too short": self.short,
            "without an answer to learn": self.unlabelled,
            "as empty": self.empty,
        }
        parts += [f"{count} dropped {reason}" for reason, count in reasons.items() if count]
        if self.shortened:
            parts.append(f"{self.shortened} shortened to cutoff_len ({self.tokens_cut} tokens cut)")
        return "; ".join(parts)


class StreamTally:
    """Counts of a stream that grow while it is read, by worker processes too.

    A pickled or copied one counts into the same memory.
    """

    COLUMNS: ClassVar[list[str]] = Tally.COLUMNS

    def __init__(self, name: str) -> None:
        self.name = name
        self._counts = torch.zeros(WORKERS + 1, 7, dtype=torch.int64).share_memory_()

    def __deepcopy__(self, memo: dict[int, Any]) -> StreamTally:
        return self

    def counted(self, fate: int, cut: int, is_first: bool) -> bool:
        """Count one document, and whether it is trained on."""
        worker = get_worker_info()
        fates = [fate == each for each in (KEPT, SHORT, UNLABELLED, EMPTY)]
        row = torch.tensor([is_first, *fates, cut > 0, cut])
        self._counts[0 if worker is None else worker.id + 1] += row
        return is_kept(fate)

    def reset(self) -> None:
        """Begin to count anew."""
        self._counts.zero_()

    @property
    def now(self) -> Tally:
        """The counts of what has been read so far."""
        return Tally(self.name, *self._counts.sum(0).tolist())


def counts(tally: Tally | StreamTally) -> Tally:
    """The counts of a data set; of a stream those so far."""
    return tally.now if isinstance(tally, StreamTally) else tally


def log_tally(tally: Tally | StreamTally) -> None:
    """Say what became of a data set; a warning where something was dropped or shortened."""
    now = counts(tally)
    if now.samples:
        log.log(logging.INFO if now.is_lossless else logging.WARNING, "%s", now)
