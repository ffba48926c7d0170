"""From the names of data sets to rows of tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from ahn.training.data.sources import Source, find_sources
from ahn.training.data.tokens import Encoder, training_template
from ahn.training.losses import IGNORE


@dataclass
class DataArguments:
    """What to train on, and how it is cut into rows."""

    dataset: str = field(
        default="",
        metadata={
            "help": "Comma-separated: files or folders of JSON, JSONL, Parquet or text, names on "
            "the hub, or names in dataset_info.json."
        },
    )
    eval_dataset: str | None = field(
        default=None, metadata={"help": "As dataset; to measure the share of the gap recovered."}
    )
    dataset_dir: str = field(
        default="data", metadata={"help": "Folder of LLaMA-Factory's dataset_info.json."}
    )
    template: str | None = field(
        default=None,
        metadata={"help": "Chat template: a file or a name TRL knows; default: the tokenizer's."},
    )
    text_column: str = field(default="text", metadata={"help": "Column of plain text."})
    cutoff_len: int = field(default=24576, metadata={"help": "The most tokens of a row."})
    filter_len: int = field(
        default=288, metadata={"help": "Drop documents of so many tokens or fewer."}
    )
    max_samples: int | None = field(
        default=None, metadata={"help": "The most samples of each data set."}
    )
    interleave_probs: str | None = field(
        default=None,
        metadata={
            "help": "Comma-separated shares to draw from each data set; default: all of all."
        },
    )
    packing: bool = field(
        default=False,
        metadata={"help": "Several documents in a row; none sees or remembers another."},
    )
    streaming: bool = field(default=False, metadata={"help": "Read while training."})
    preprocessing_num_workers: int | None = field(
        default=None, metadata={"help": "Processes that tokenise."}
    )

    def __post_init__(self) -> None:
        if self.cutoff_len <= self.filter_len:
            raise ValueError(
                f"cutoff_len: expected more than filter_len={self.filter_len}, "
                f"got {self.cutoff_len}"
            )
        for name in ("max_samples", "preprocessing_num_workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected an integer >= 1, got {value}")


def prepare(
    names: str,
    arguments: DataArguments,
    tokenizer: PreTrainedTokenizerBase,
    *,
    shortest: int = 0,
    seed: int = 0,
) -> Any:
    """Rows `{"input_ids", "labels"}`, packed ones with `seq_lengths`, of the named data sets.

    Documents that could not train anything are left out: too short, or without a labelled token.

    Args:
        shortest: tokens a document needs at least, beside `filter_len`.
        seed: of the order in which several data sets are drawn.

    Returns:
        A `datasets.Dataset`, or an `IterableDataset` where `streaming` is on.

    Raises:
        ValueError: a source is unknown, unreadable, empty, or has nothing left after filtering.
    """
    template = training_template(tokenizer, arguments.template)
    least = max(arguments.filter_len + 1, shortest)
    parts = []
    for source in find_sources(names, arguments.dataset_dir):
        encoder = Encoder(tokenizer, source, template, arguments.cutoff_len, arguments.text_column)
        parts.append(_documents(source, encoder, arguments, least))
    rows = _mixed(parts, arguments.interleave_probs, seed)
    return _packed(rows, arguments) if arguments.packing else rows


def _documents(source: Source, encoder: Encoder, arguments: DataArguments, least: int) -> Any:
    """Tokenised documents of one source that are long enough and labelled."""
    from datasets import Features, List, Value

    samples = source.load(arguments.streaming)
    if arguments.max_samples is not None:
        samples = samples.take(arguments.max_samples)
    ids = List(Value("int32"))
    documents = samples.map(
        encoder,
        batched=True,
        batch_size=64,
        remove_columns=samples.column_names,
        features=Features(input_ids=ids, labels=ids),
        **_work(arguments, f"Tokenising {source.name}"),
    )
    kept = documents.filter(
        _useful, fn_kwargs={"least": least}, **_work(arguments, f"Filtering {source.name}")
    )
    if next(iter(kept), None) is None:
        raise ValueError(_nothing_left(source, documents, least))
    return kept


def _useful(row: dict[str, list[int]], least: int) -> bool:
    return len(row["input_ids"]) >= least and any(x != IGNORE for x in row["labels"])


def _nothing_left(source: Source, documents: Any, least: int) -> str:
    lengths = [len(row["input_ids"]) for row in documents]
    if max(lengths, default=0) >= least:
        return f"{source.name}: expected labelled tokens, got {len(lengths)} documents without any"
    return (
        f"{source.name}: expected a document of at least {least} tokens, got {len(lengths)} "
        f"documents of at most {max(lengths, default=0)} (--filter_len and the least budget set it)"
    )


def _mixed(parts: list[Any], shares: str | None, seed: int) -> Any:
    from datasets import concatenate_datasets, interleave_datasets

    if shares is None:
        return parts[0] if len(parts) == 1 else concatenate_datasets(parts)
    try:
        numbers = [float(share) for share in shares.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != len(parts) or min(numbers, default=0) <= 0:
        raise ValueError(f"interleave_probs: expected {len(parts)} numbers above 0, got {shares!r}")
    total = sum(numbers)
    return interleave_datasets(parts, probabilities=[x / total for x in numbers], seed=seed)


def _packed(rows: Any, arguments: DataArguments) -> Any:
    from trl.data_utils import pack_dataset

    work = _work(arguments, "Packing")
    return pack_dataset(rows, arguments.cutoff_len, "bfd", work).with_format(None)


def _work(arguments: DataArguments, what: str) -> dict[str, Any]:
    """Options of `map` and `filter` that a stream does not have."""
    if arguments.streaming:
        return {}
    return {"num_proc": arguments.preprocessing_num_workers, "desc": what}
