"""Measure every way of looking back on held-out text, and a memory distilled on the spot."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ahn import embedded
from ahn.config import AHNConfig
from ahn.demo.documents import Document, evaluation_documents, training_batches
from ahn.demo.result import FULL, WINDOW, DemoResult, Measured, Training, summarise
from ahn.evaluation import CHUNK, cache_bytes, new_cache, stream_losses
from ahn.hf.attached_state import attached_state
from ahn.modeling import attach, disabled, memory_off
from ahn.training import distill

CELLS = ("GatedDeltaNet", "DeltaNet", "Mamba2")
FRESH_CELL = "GatedDeltaNet"
TRAINING_LENGTH = 2048  # tokens of a distillation step


class Report(Protocol):
    """Told about the progress of a stage, in tokens or steps."""

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None: ...


@dataclass(frozen=True)
class DemoSettings:
    """What `ahn demo` is asked to do.

    Attributes:
        text: a UTF-8 file to read; None reads held-out modules of the standard library.
        tokens: the most tokens to read in each mode.
        steps: of the live distillation; 0 leaves it out.
        seed: of the fresh memory and of the text it is trained on.

    Raises:
        ValueError: a value is out of range.
    """

    text: Path | None = None
    tokens: int = 16384
    steps: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise ValueError(f"tokens: expected at least 1, got {self.tokens}")
        if self.steps < 0:
            raise ValueError(f"steps: expected at least 0, got {self.steps}")


def run_demo(settings: DemoSettings, report: Report) -> DemoResult:
    """Bits per byte beyond the budget of every way to look back, on text none has been trained on.

    Raises:
        ValueError: the text is not UTF-8, or too short to go beyond the budget.
        OSError: the text cannot be read.
    """
    started = time.perf_counter()
    torch.manual_seed(settings.seed)
    model, tokenizer = embedded.load(CELLS[0])
    config = attached_state(model).config
    documents = evaluation_documents(
        settings.text,
        tokenizer,
        context=model.config.max_position_embeddings,
        tokens=settings.tokens,
        budget=config.budget,
    )
    measurements = {}
    with disabled(model):
        measurements[FULL] = _measure(model, documents, FULL, report)
    with memory_off(model):
        measurements[WINDOW] = _measure(model, documents, WINDOW, report)
    for cell in CELLS:
        model, _ = embedded.load(cell, window=config.window, num_sinks=config.num_sinks)
        measurements[cell] = _measure(model, documents, cell, report)
    training = None
    if settings.steps:
        model, training = _distilled(config, tokenizer, settings, report)
        measurements[training.row] = _measure(model, documents, training.row, report)
    seconds = time.perf_counter() - started
    return summarise(measurements, documents, config, training, seed=settings.seed, seconds=seconds)


def _measure(
    model: PreTrainedModel, documents: Sequence[Document], name: str, report: Report
) -> Measured:
    """One pass over every document, each with an empty cache."""
    for _ in stream_losses(model, documents[0].first(CHUNK).ids):
        pass  # the first forward of a model is slow and not timed
    longest = max(documents, key=len)
    total, done, seconds = sum(map(len, documents)), 0, 0.0
    losses, sizes = [], [(0, 0)]
    for document in documents:
        cache, parts = new_cache(model), []
        started = time.perf_counter()
        for part in stream_losses(model, document.ids, cache=cache):
            parts.append(part)
            seconds += time.perf_counter() - started
            length = cache.get_seq_length()
            if document is longest:
                sizes.append((length, cache_bytes(cache)))
            report(f"reading: {name}", done + length, total)
            started = time.perf_counter()
        losses.append(torch.cat(parts).cpu())
        done += len(document)
    return Measured(losses, sizes, total / seconds)


def _distilled(
    config: AHNConfig, tokenizer: PreTrainedTokenizerBase, settings: DemoSettings, report: Report
) -> tuple[PreTrainedModel, Training]:
    """A memory trained from nothing on the training text, and what that took."""
    stage, steps = f"distilling a fresh {FRESH_CELL}", settings.steps
    report(stage, 0, steps)
    model, _ = embedded.load()
    attach(model, AHNConfig.from_dict({**config.to_dict(), "memory": FRESH_CELL}))
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
