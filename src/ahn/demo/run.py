"""Measure every way of looking back: facts found, text predicted, bytes held, time taken."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ahn import embedded
from ahn.config import AHNConfig
from ahn.demo.documents import Document, evaluation_documents, training_batches
from ahn.demo.facts import Haystack, facts_found, haystacks
from ahn.demo.result import FULL, SAME_BYTES, WINDOW, DemoResult, Measured, Training, summarise
from ahn.evaluation import CHUNK, cache_bytes, new_cache, stream_losses
from ahn.hf.attached_state import attached_state
from ahn.io.progress import Report
from ahn.modeling import attach, disabled, memory_off
from ahn.training import distill

MEMORIES = ("GatedDeltaNet", "DeltaNet", "Slots", "GatedDeltaNet-Slots")  # those that ship
SLOTS = "Slots"  # what a larger window of the same bytes is compared with
FRESH_CELL = "GatedDeltaNet"
HAYSTACK = 8192  # tokens of a long text with hidden facts
TRAINING_LENGTH = 2048  # tokens of a distillation step


@dataclass(frozen=True)
class DemoSettings:
    """What `ahn demo` is asked to do.

    Attributes:
        text: a UTF-8 file to read; None reads held-out modules of the standard library.
        tokens: the most tokens of plain text to read in each mode.
        haystacks: long texts with hidden facts to read in each mode; 0 asks for none.
        steps: of the live distillation; 0 leaves it out.
        seed: of the facts, of the fresh memory and of the text it is trained on.

    Raises:
        ValueError: a value is out of range.
    """

    text: Path | None = None
    tokens: int = 8192
    haystacks: int = 2
    steps: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("tokens", 1), ("haystacks", 0), ("steps", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(self, name)}")


@dataclass(frozen=True)
class _Texts:
    """What every way of looking back reads, and who is told how far it has come."""

    documents: Sequence[Document]
    hays: Sequence[Haystack]
    report: Report


def run_demo(settings: DemoSettings, report: Report) -> DemoResult:
    """Facts found, and bits per byte beyond the budget, of every way to look back.

    On text and in forms of questions that no memory has been trained on.

    Raises:
        ValueError: the text is not UTF-8, or too short to go beyond the budget.
        OSError: the text cannot be read.
    """
    started = time.perf_counter()
    torch.manual_seed(settings.seed)
    model, tokenizer = embedded.load(SLOTS)
    config, context = attached_state(model).config, model.config.max_position_embeddings
    limits = {"context": context, "budget": config.budget}
    documents = evaluation_documents(settings.text, tokenizer, tokens=settings.tokens, **limits)
    hays = haystacks(
        tokenizer,
        "\n".join(str(tokenizer.decode(document.ids[0, 1:])) for document in documents),
        length=min(HAYSTACK, context),
        budget=config.budget,
        count=settings.haystacks,
        seed=settings.seed,
    )
    texts = _Texts(documents, hays, report)
    measurements = _exact(model, config, texts)
    for name in MEMORIES:
        if name not in measurements:
            model, _ = embedded.load(name, window=config.window, num_sinks=config.num_sinks)
            measurements[name] = _measure(model, texts, name)
    training = None
    if settings.steps:
        model, training = _distilled(config, tokenizer, settings, report)
        measurements[training.row] = _measure(model, texts, training.row)
    order = [FULL, WINDOW, SAME_BYTES, *MEMORIES, *([training.row] if training else [])]
    return summarise(
        {name: measurements[name] for name in order},
        documents,
        config,
        training,
        seed=settings.seed,
        seconds=time.perf_counter() - started,
    )


def _exact(model: PreTrainedModel, config: AHNConfig, texts: _Texts) -> dict[str, Measured]:
    """What keeps pairs exactly: full attention, windows of two sizes, and slots between them."""
    found = {}
    with disabled(model):
        found[FULL] = _measure(model, texts, FULL)
    with memory_off(model):
        found[WINDOW] = _measure(model, texts, WINDOW)
    found[SLOTS] = _measure(model, texts, SLOTS)
    small, large = (found[name].cache_sizes[-1][1] for name in (WINDOW, SLOTS))
    window = config.window + (large - small) * config.budget // small
    base, _ = embedded.load()
    model = attach(base, AHNConfig(FRESH_CELL, window=window, num_sinks=config.num_sinks))
    with memory_off(model):
        found[SAME_BYTES] = _measure(model, texts, SAME_BYTES)
    return found


def _measure(model: PreTrainedModel, texts: _Texts, name: str) -> Measured:
    """One pass over every text, each with an empty cache."""
    for _ in stream_losses(model, texts.documents[0].first(CHUNK).ids):
        pass  # the first forward of a model is slow and not timed
    asked: list[bool] = []
    for index, hay in enumerate(texts.hays):
        texts.report(f"asking: {name}", index, len(texts.hays))
        asked += facts_found(model, hay)
    longest = max(texts.documents, key=len)
    total, done, seconds = sum(map(len, texts.documents)), 0, 0.0
    losses, sizes = [], [(0, 0)]
    for document in texts.documents:
        cache, parts = new_cache(model), []
        started = time.perf_counter()
        for part in stream_losses(model, document.ids, cache=cache):
            parts.append(part)
            seconds += time.perf_counter() - started
            length = cache.get_seq_length()
            if document is longest:
                sizes.append((length, cache_bytes(cache)))
            texts.report(f"reading: {name}", done + length, total)
            started = time.perf_counter()
        losses.append(torch.cat(parts).cpu())
        done += len(document)
    return Measured(losses, sizes, total / seconds, asked)


def _distilled(
    config: AHNConfig, tokenizer: PreTrainedTokenizerBase, settings: DemoSettings, report: Report
) -> tuple[PreTrainedModel, Training]:
    """A memory trained from nothing on the training text, and what that took."""
    stage, steps = f"distilling a fresh {FRESH_CELL}", settings.steps
    report(stage, 0, steps)
    model, _ = embedded.load()
    attach(model, AHNConfig(FRESH_CELL, window=config.window, num_sinks=config.num_sinks))
    length = max(TRAINING_LENGTH, 2 * config.budget)
    started = time.perf_counter()
    losses = distill(
        model,
        training_batches(tokenizer, length, settings.seed, evaluated=settings.text),
        total_steps=steps,
        on_step=lambda step, loss: report(stage, step, steps, f"KL {loss:.3f}"),
    )
    seconds = time.perf_counter() - started
    row = f"fresh, {steps} steps"
    return model, Training(row, steps, steps * length, round(seconds, 1), losses)
