"""`ahn generate`: load the model that was asked for and print its answer to a prompt."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, TextStreamer

from ahn import generation
from ahn.checkpoint import from_pretrained, has_memory, load_tokenizer
from ahn.checkpoint.named_models import default_memory, evaluation_dtype
from ahn.cli.errors import out_of_memory
from ahn.config import AHNConfig
from ahn.hf.attached_state import attached_state
from ahn.hf.liger import use_liger
from ahn.hf.vocabulary import check_token_ids
from ahn.io.progress import Report, progress
from ahn.io.text import TokenisedBytes, encode_chunks
from ahn.modeling import disabled, memory_off
from ahn.modeling.attached import AHNModelMixin
from ahn.runtime.free_memory import free_memory, largest_window

PIECE = 1024  # tokens of a prompt between two looks at how far it is read
NO_MEMORY = "none"  # the word for --memory that leaves a model without


@dataclass(frozen=True)
class ModelChoice:
    """Which model answers; see the help of `ahn generate`."""

    model: str
    memory: str | None
    window: int | None
    num_sinks: int | None
    dtype: str
    device: str | None
    liger: bool

    @property
    def memory_name(self) -> str | None:
        """The memory to attach: the one asked for, else that of a named model, else None."""
        name = default_memory(self.model) if self.memory is None else self.memory
        return None if name == NO_MEMORY else name


@dataclass(frozen=True)
class Answering:
    """How the answer is made; see `ahn.generation.stream`."""

    max_new_tokens: int
    prefill_chunk_size: int | None
    temperature: float
    top_k: int
    top_p: float


@dataclass(frozen=True)
class Loaded:
    """A model ready to answer, and the context it must answer in."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    context: AbstractContextManager[Any]


def load(choice: ModelChoice) -> Loaded:
    """The chosen model, tokenizer and mode.

    Raises ValueError where there is no such model or memory, or settings do not go together.
    """
    device, dtype = _device(choice.device), evaluation_dtype(choice.model, choice.dtype)
    is_plain = choice.memory_name is None and not _is_merged(choice.model)
    if is_plain and choice.window is None and choice.num_sinks is not None:
        raise ValueError("--num-sinks: expected --window or --memory to go with it, got neither")
    with _named(choice.model), _same_random_numbers():
        tokenizer = load_tokenizer(choice.model)
        model = from_pretrained(
            choice.model,
            choice.memory_name,
            window=choice.window,
            num_sinks=choice.num_sinks,
            new_memory=AHNConfig() if is_plain and choice.window is not None else None,
            dtype=dtype,
        )
    model = model.to(device)  # type: ignore[arg-type]
    if choice.liger:
        use_liger(model)
    leaves_memory_out = is_plain or choice.memory == NO_MEMORY
    return Loaded(model, tokenizer, _context(model, leaves_memory_out, choice.window))


@contextmanager
def _same_random_numbers() -> Iterator[None]:
    """Within the context a fresh memory is the same in every process, as kept sessions ask."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def _context(
    model: PreTrainedModel, leaves_memory_out: bool, window: int | None
) -> AbstractContextManager[Any]:
    """Where a model answers with its memory, its window alone, or full attention."""
    if not leaves_memory_out or not isinstance(model, AHNModelMixin):
        return nullcontext()
    return disabled(model) if window is None else memory_off(model)


def answer(
    loaded: Loaded, texts: Iterable[str], options: Answering, size: int | None = None
) -> None:
    """Print the answer to a prompt, given in chunks of text, word by word to stdout.

    With a window, memory use does not depend on the prompt's length. How far it is read is shown
    on stderr.

    Args:
        size: bytes of the whole prompt, where they are known: they say what is left.

    Raises ValueError where the prompt is empty or an option is out of range.
    """
    with loaded.context:
        if (
            not isinstance(loaded.model, AHNModelMixin)
            or not attached_state(loaded.model).mode.is_bounded
        ):
            ids = encode_chunks(loaded.tokenizer, texts)
            _answer_with_full_attention(loaded, torch.cat(list(ids), 1), options)
            return
        with _says_what_fits(loaded.model):
            _answer_with_memory(loaded, texts, options, size)


def _answer_with_memory(
    loaded: Loaded, texts: Iterable[str], options: Answering, size: int | None
) -> None:
    with progress() as report:
        tokens = generation.stream(
            loaded.model,
            _reported(loaded.tokenizer, texts, size, report),
            max_new_tokens=options.max_new_tokens,
            prefill_chunk_size=options.prefill_chunk_size,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
        )
        first = list(islice(tokens, 1))  # there once the prompt is read
    printer = TextStreamer(loaded.tokenizer, skip_special_tokens=True)
    for token in chain(first, tokens):
        printer.put(token.cpu())
    printer.end()


@contextmanager
def _says_what_fits(model: PreTrainedModel) -> Iterator[None]:
    """Memory that does not suffice within the context is a ValueError that names what would fit."""
    free = free_memory(model.device)
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        own, most = attached_state(model).config.window, None
        if free is not None:
            most = largest_window(model, free)
        smaller = most and most < own
        fits = f"--window {most} fits" if smaller else "a smaller --prefill-chunk-size may fit"
        if (message := out_of_memory(error, fits)) is None:
            raise
        raise ValueError(message) from error


def _reported(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], size: int | None, report: Report
) -> Iterator[torch.Tensor]:
    """Token ids `[1, n]` of a prompt in small pieces; what was asked for before has been read."""
    done, read = 0, TokenisedBytes()
    for ids in encode_chunks(tokenizer, read.passed(texts)):
        given = done + ids.shape[1]
        total = round(given * size / read.count) if size and read.count else None
        for piece in ids.split(PIECE, dim=1):
            report("reading", done, total)
            yield piece
            done += piece.shape[1]


def _answer_with_full_attention(loaded: Loaded, ids: torch.Tensor, options: Answering) -> None:
    """transformers' `generate`, with a cache that grows."""
    model: Any = loaded.model
    sampling: dict[str, Any] = {"do_sample": False}
    if options.temperature:
        names = ("temperature", "top_k", "top_p")
        sampling = {"do_sample": True, **{name: getattr(options, name) for name in names}}
    check_token_ids(int(ids.max()), model)
    ends = model.generation_config.eos_token_id
    model.generate(
        ids.to(model.device),
        attention_mask=torch.ones_like(ids).to(model.device),
        streamer=TextStreamer(loaded.tokenizer, skip_prompt=True, skip_special_tokens=True),
        generation_config=GenerationConfig(
            max_new_tokens=options.max_new_tokens,
            prefill_chunk_size=options.prefill_chunk_size,
            repetition_penalty=1.0,  # else the model's own settings would fill it in
            eos_token_id=ends,
            pad_token_id=ends[0] if isinstance(ends, list) else ends,
            **sampling,
        ),
    )


def _is_merged(model: str) -> bool:
    """Whether the model brings a memory with it; raises ValueError where there is no such model."""
    folder = Path(model)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ValueError(f"--model: expected a folder with config.json, got {model!r}")
    with _named(model):
        return has_memory(model)


@contextmanager
def _named(model: str) -> Iterator[None]:
    """What transformers says where it finds no model, in one line."""
    try:
        yield
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"--model: expected a folder or a name on the hub, got {model!r}: {reason}"
        ) from error


def _device(name: str | None) -> torch.device:
    """The named device; by default the GPU, if there is one."""
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device: expected one that PyTorch can use, got {name!r}") from error
