"""Named data sets become one data set of token rows: read, tokenize, filter, mix, pack."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from transformers import PreTrainedTokenizerBase

from ahn.facts import found_facts
from ahn.facts.forms import LANGUAGES
from ahn.training.data.fact_rows import FactRows
from ahn.training.data.sources import Source, find_sources
from ahn.training.data.tally import Sorter, StreamTally, Tally, is_kept, log_tally
from ahn.training.data.tokens import Encoder, training_template

LOOKED_AT, LONGEST = 16, 200_000  # texts of a source in which facts are sought; characters of each


@dataclass
class DataArguments:
    """The data sets, and how they become rows of tokens."""

    _argument_group_name = "data"  # of the options in --help
    dataset: str = field(
        default="",
        metadata={
            "help": "Comma-separated: files or folders of JSON, JSONL, Parquet or text, names on "
            "the hub, or names in dataset_info.json."
        },
    )
    eval_dataset: str | None = field(
        default=None,
        metadata={"help": "As dataset; measures the gap that the memory recovers."},
    )
    dataset_dir: str = field(
        default="data", metadata={"help": "Folder of LLaMA-Factory's dataset_info.json."}
    )
    template: str | None = field(
        default=None,
        metadata={
            "help": "Chat template: a file, or a name such as qwen, qwen3, llama2, llama3, mistral "
            "or one of TRL's; default: the tokenizer's."
        },
    )
    text_column: str = field(default="text", metadata={"help": "Column of plain text."})
    cutoff_len: int = field(
        default=24576,
        metadata={
            "help": "Maximum tokens of a row: of a longer conversation the prompt is shortened."
        },
    )
    filter_len: int = field(
        default=288, metadata={"help": "Drop documents of this many tokens or fewer."}
    )
    max_samples: int | None = field(
        default=None, metadata={"help": "Maximum samples of each data set."}
    )
    interleave_probs: str | None = field(
        default=None,
        metadata={"help": "Comma-separated shares of the data sets; default: all samples of all."},
    )
    facts: float | None = field(
        default=None,
        metadata={
            "help": "Share of the rows of plain text that ask for facts in them; default: half "
            "where slots are trained, else none."
        },
    )
    facts_languages: str = field(
        default=",".join(LANGUAGES),
        metadata={"help": "Comma-separated languages in which facts are made and asked for."},
    )
    packing: bool = field(
        default=False,
        metadata={"help": "Several documents in a row; none attends to or remembers another."},
    )
    streaming: bool = field(default=False, metadata={"help": "Read while training."})
    preprocessing_num_workers: int | None = field(
        default=None, metadata={"help": "Processes that tokenize."}
    )
    overwrite_cache: bool = field(
        default=False, metadata={"help": "Tokenize anew what an earlier run has tokenized."}
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
    min_length: int = 0,
    seed: int = 0,
    on_tally: Callable[[Tally | StreamTally], None] = log_tally,
) -> Any:
    """Build the data set to train on from the named data sets.

    Its columns are `input_ids` and `labels`, and `seq_lengths` where rows are packed. Documents
    that cannot train anything are dropped and counted: those that are empty, too short or have no
    labelled token.

    Args:
        names: separated by commas.
        min_length: minimum tokens of a document; `filter_len` may ask for more.
        seed: of the order in which several data sets are interleaved.
        on_tally: gets the counts of each source; those of a stream grow while it is read.

    Returns:
        A `datasets.Dataset`, or an `IterableDataset` where `streaming` is on.

    Raises:
        ValueError: a source is unknown, unreadable, empty, or has nothing left after filtering; a
            sample is not what its format says, named by its number.
    """
    template = training_template(tokenizer, arguments.template)
    facts = _fact_rows(arguments, tokenizer, seed)
    min_length = max(arguments.filter_len + 1, min_length)
    parts = []
    for source in find_sources(names, arguments.dataset_dir):
        encoder = Encoder(
            tokenizer, source, template, arguments.cutoff_len, arguments.text_column, facts
        )
        parts.append(_documents(source, Sorter(encoder, min_length), arguments, on_tally))
    dataset = _interleave(parts, arguments.interleave_probs, seed)
    return _pack(dataset, arguments) if arguments.packing else dataset


def _fact_rows(
    arguments: DataArguments, tokenizer: PreTrainedTokenizerBase, seed: int
) -> FactRows | None:
    if not arguments.facts:
        return None
    languages = tuple(filter(None, map(str.strip, arguments.facts_languages.split(","))))
    return FactRows(tokenizer, arguments.cutoff_len, arguments.facts, languages, seed)


def _documents(
    source: Source,
    sorter: Sorter,
    arguments: DataArguments,
    on_tally: Callable[[Tally | StreamTally], None],
) -> Any:
    """Tokenized documents of one source that are long enough and labelled."""
    samples = source.load(arguments.streaming)
    if arguments.max_samples is not None:
        samples = samples.take(arguments.max_samples)
    if sorter.encoder.facts is not None:
        _warn_without_facts(source, sorter.encoder, samples)
    documents = samples.map(
        sorter,
        with_indices=True,
        batched=True,
        batch_size=64,
        remove_columns=samples.column_names,
        features=sorter.features(),
        **_map_options(arguments, f"Tokenizing {source.name}"),
    )
    tally: Tally | StreamTally
    if arguments.streaming:
        tally = StreamTally(source.name)
        kept = documents.filter(tally.counted, input_columns=tally.COLUMNS)
    else:
        tally = Tally.of(source.name, documents)
        options = _map_options(arguments, f"Filtering {source.name}")
        kept = documents.filter(is_kept, input_columns="fate", **options)
    kept = kept.remove_columns(tally.COLUMNS)
    if next(iter(kept), None) is None:
        raise ValueError(_nothing_left(source, documents, sorter.min_length))
    if isinstance(tally, StreamTally):
        tally.reset()  # what was looked at will be read again
    on_tally(tally)
    return kept


def _warn_without_facts(source: Source, encoder: Encoder, samples: Any) -> None:
    """Say that the first texts of a source hold no fact of their own."""
    texts = [encoder.text_of(row) for row in islice(iter(samples), LOOKED_AT)]
    if not any(text and found_facts(text[:LONGEST]) for text in texts):
        warnings.warn(
            f"{source.name}: expected texts with facts (keys with values, definitions, numbers, "
            "names), got none: only made-up facts are asked for",
            stacklevel=2,
        )


def _nothing_left(source: Source, documents: Any, min_length: int) -> str:
    """The message where every document of a source is dropped."""
    lengths = [len(row["input_ids"]) for row in documents]
    if max(lengths, default=0) >= min_length:
        return f"{source.name}: expected labelled tokens, got {len(lengths)} documents without any"
    return (
        f"{source.name}: expected a document of at least {min_length} tokens, got {len(lengths)} "
        f"documents of at most {max(lengths, default=0)} (--filter_len and the least budget set it)"
    )


def _interleave(parts: list[Any], shares: str | None, seed: int) -> Any:
    """One data set drawn from several by their shares; without shares they are concatenated."""
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


def _pack(dataset: Any, arguments: DataArguments) -> Any:
    from trl.data_utils import pack_dataset

    options = _map_options(arguments, "Packing")
    return pack_dataset(dataset, arguments.cutoff_len, "bfd", options).with_format(None)


def _map_options(arguments: DataArguments, description: str) -> dict[str, Any]:
    """Options of `Dataset.map` and `filter`; those of a streamed data set take none of them."""
    if arguments.streaming:
        return {}
    return {
        "num_proc": arguments.preprocessing_num_workers,
        "desc": description,
        "load_from_cache_file": not arguments.overwrite_cache,
    }
