"""`ahn generate`: load what was asked for, read the prompt in pieces, print the answer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TextStreamer,
)

from ahn import embedded, generation
from ahn.checkpoint import from_pretrained, has_memory
from ahn.config import AHNConfig
from ahn.hf.attached_state import attached_state
from ahn.hf.liger import use_liger
from ahn.io.text import encode_pieces
from ahn.modeling import attach, disabled, memory_off
from ahn.modeling.attached import AHNModelMixin

NO_MEMORY = "none"  # the word for --memory that leaves a model without
DEFAULT_MEMORY = "GatedDeltaNet"  # of the embedded model
DTYPES = ("auto", "float32", "bfloat16", "float16")


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
        """Folder or cell of the memory; None for a model without."""
        default = DEFAULT_MEMORY if self.model == embedded.NAME else NO_MEMORY
        name = default if self.memory is None else self.memory
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
    loaded = _load(choice)
    if choice.liger:
        use_liger(loaded.model)
    return loaded


def _load(choice: ModelChoice) -> Loaded:
    device, limits = _device(choice.device), (choice.window, choice.num_sinks)
    load_one = _load_embedded if choice.model == embedded.NAME else _load_other
    if choice.memory_name is not None:
        model, tokenizer = load_one(choice, *limits)
        return Loaded(model.to(device).eval(), tokenizer, nullcontext())  # type: ignore[arg-type]
    if choice.model != embedded.NAME and _is_merged(choice):
        return _load_merged(choice, device)
    if choice.window is None and choice.num_sinks is not None:
        raise ValueError("--num-sinks: expected --window or --memory to go with it, got neither")
    model, tokenizer = load_one(choice, None, None)
    model = model.to(device).eval()  # type: ignore[arg-type]
    if choice.window is None:
        return Loaded(model, tokenizer, nullcontext())
    sinks = AHNConfig.num_sinks if choice.num_sinks is None else choice.num_sinks
    attach(model, AHNConfig(window=choice.window, num_sinks=sinks))
    return Loaded(model, tokenizer, memory_off(model))


def answer(loaded: Loaded, texts: Iterable[str], options: Answering) -> None:
    """Print the answer to a prompt, given in pieces, word by word to stdout.

    With a window, memory use does not depend on the prompt's length.

    Raises ValueError where the prompt is empty or an option is out of range.
    """
    ids = encode_pieces(loaded.tokenizer, texts)
    with loaded.context:
        if (
            not isinstance(loaded.model, AHNModelMixin)
            or not attached_state(loaded.model).mode.is_bounded
        ):
            _answer_with_full_attention(loaded, torch.cat(list(ids), 1), options)
            return
        printer = TextStreamer(loaded.tokenizer, skip_special_tokens=True)
        tokens = generation.stream(
            loaded.model,
            ids,
            max_new_tokens=options.max_new_tokens,
            chunk=options.prefill_chunk_size,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
        )
        for token in tokens:
            printer.put(token.cpu())
        printer.end()


def _answer_with_full_attention(loaded: Loaded, ids: torch.Tensor, options: Answering) -> None:
    """The base model's own generation, with its growing cache."""
    model: Any = loaded.model
    sampling: dict[str, Any] = {"do_sample": False}
    if options.temperature:
        names = ("temperature", "top_k", "top_p")
        sampling = {"do_sample": True, **{name: getattr(options, name) for name in names}}
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


def _load_embedded(
    choice: ModelChoice, window: int | None, num_sinks: int | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if choice.dtype not in ("auto", "float32"):
        raise ValueError(f"--dtype: expected float32 for the embedded model, got {choice.dtype!r}")
    name = choice.memory_name
    if name is not None and Path(name).is_dir():
        _, tokenizer = embedded.load()
        model = from_pretrained(
            embedded.BASE, name, window=window, num_sinks=num_sinks, dtype=torch.float32
        )
        return model, tokenizer
    return embedded.load(name, window=window, num_sinks=num_sinks)


def _load_merged(choice: ModelChoice, device: torch.device) -> Loaded:
    """A model that brings its memory; the word none leaves it off."""
    model, tokenizer = _load_other(choice, choice.window, choice.num_sinks)
    model = model.to(device).eval()  # type: ignore[arg-type]
    if choice.memory is None:
        return Loaded(model, tokenizer, nullcontext())
    without = disabled if choice.window is None else memory_off
    return Loaded(model, tokenizer, without(model))


def _is_merged(choice: ModelChoice) -> bool:
    """Whether the model brings a memory with it; raises ValueError where there is no such model."""
    folder = Path(choice.model)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ValueError(f"--model: expected a folder with config.json, got {choice.model!r}")
    with _named(choice.model):
        return has_memory(choice.model)


def _load_other(
    choice: ModelChoice, window: int | None, num_sinks: int | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if choice.dtype not in DTYPES:
        raise ValueError(f"--dtype: expected one of {', '.join(DTYPES)}, got {choice.dtype!r}")
    with _named(choice.model):
        tokenizer = AutoTokenizer.from_pretrained(choice.model)
        model = from_pretrained(
            choice.model,
            choice.memory_name,
            window=window,
            num_sinks=num_sinks,
            dtype=choice.dtype,
        )
    return model, tokenizer


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
