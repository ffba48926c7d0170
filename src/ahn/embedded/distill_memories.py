"""The recipe of the shipped memories: each cell distilled on the base model's training text.

`python -m ahn.embedded.distill_memories --out DIR [--base DIR] [--corpus FILE]`
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from ahn.checkpoint import save_pretrained
from ahn.config import AHNConfig
from ahn.embedded import BASE
from ahn.embedded.corpus import Corpus, Document, build_corpus, read_corpus
from ahn.evaluation.streaming import token_losses
from ahn.io.files import written_whole
from ahn.modeling import attach, disabled, memory_off
from ahn.training import distill, memory_parameters


@dataclass(frozen=True)
class Settings:
    """How a memory is distilled; the window is the one it ships with."""

    cell: str
    window: int = 256
    num_sinks: int = 4
    steps: int = 180
    batch_size: int = 4
    length: int = 8192
    learning_rate: float = 1e-2
    map_rate: float = 0.1
    seed: int = 0


def token_stream(documents: tuple[Document, ...], tokenizer) -> Tensor:
    """All documents in order, each followed by the end-of-text token: `[N]`."""
    end = tokenizer.eos_token_id
    ids: list[int] = []
    for encoded in tokenizer([text for _, text in documents])["input_ids"]:
        ids += [*encoded, end]
    return torch.tensor(ids)


def random_crops(stream: Tensor, settings: Settings) -> Iterator[Tensor]:
    """Endless batches `[batch_size, length]` cut anywhere from the stream."""
    generator = torch.Generator().manual_seed(settings.seed)
    if len(stream) <= settings.length:
        raise ValueError(f"text: expected more than {settings.length} tokens, got {len(stream)}")
    while True:
        starts = torch.randint(
            len(stream) - settings.length, (settings.batch_size,), generator=generator
        )
        yield torch.stack([stream[start : start + settings.length] for start in starts.tolist()])


def losses_beyond(model: PreTrainedModel, documents: list[Tensor], budget: int) -> dict[str, float]:
    """Mean nats per token beyond the budget: full attention, window alone, with the memory."""
    means: dict[str, float] = {}
    for mode in ("full", "window", "memory"):
        totals = []
        for ids in documents:
            if mode == "full":
                with disabled(model):
                    losses = token_losses(model, ids)
            elif mode == "window":
                with memory_off(model):
                    losses = token_losses(model, ids)
            else:
                losses = token_losses(model, ids)
            totals.append(losses[budget - 1 :])
        means[mode] = torch.cat(totals).mean().item()
    gap = means["window"] - means["full"]
    means["recovered"] = (means["window"] - means["memory"]) / gap
    return means


def train_memory(
    base: Path, corpus: Corpus, settings: Settings, out: Path, device: str
) -> dict[str, object]:
    """Distil one memory into `out`, evaluate it on held-out text, write both."""
    torch.manual_seed(settings.seed)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.to(device)
    config = AHNConfig(memory=settings.cell, window=settings.window, num_sinks=settings.num_sinks)
    attach(model, config, kernels="torch")
    started = time.perf_counter()
    losses = distill(
        model.train(),
        random_crops(token_stream(corpus.training, tokenizer), settings),
        total_steps=settings.steps,
        learning_rate=settings.learning_rate,
        map_rate=settings.map_rate,
        autocast=torch.bfloat16 if device == "cuda" else None,
        on_step=_print_every(50, settings),
    )
    seconds = time.perf_counter() - started
    model.eval()
    save_pretrained(model, out)
    documents = [
        torch.tensor([tokenizer(text)["input_ids"][: settings.length]], device=device)
        for _, text in corpus.held_out
    ]
    result = {
        "settings": asdict(settings),
        "parameters": sum(p.numel() for p in memory_parameters(model).values()),
        "held_out_nats_beyond_budget": losses_beyond(model, documents, config.budget),
        "seconds": round(seconds, 1),
        "losses": [round(loss, 4) for loss in losses[::20]],
        "torch": torch.__version__,
        "python": platform.python_version(),
        "hardware": torch.cuda.get_device_name() if device == "cuda" else platform.machine(),
    }
    with written_whole(out / "training.json") as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")
    return result


def _print_every(count: int, settings: Settings):
    started = time.perf_counter()

    def report(step: int, loss: float) -> None:
        if step % count == 0 or step == 1:
            seconds = time.perf_counter() - started
            print(f"{settings.cell} step {step} loss {loss:.4f} {seconds:.0f} s", flush=True)

    return report


def main() -> None:
    """Command line: distil the memories of the given cells."""
    defaults = Settings(cell="")
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--base", type=Path, default=BASE, help="base model; default: shipped")
    parser.add_argument("--corpus", type=Path, help="corpus file; default: this interpreter's")
    parser.add_argument("--out", type=Path, required=True, help="folder with one folder per cell")
    parser.add_argument("--cells", nargs="+", default=["GatedDeltaNet", "DeltaNet", "Mamba2"])
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--learning-rate", type=float, default=defaults.learning_rate)
    parser.add_argument("--map-rate", type=float, default=defaults.map_rate)
    parser.add_argument("--window", type=int, default=defaults.window)
    parser.add_argument("--batch-size", type=int, default=defaults.batch_size)
    parser.add_argument("--length", type=int, default=defaults.length)
    arguments = parser.parse_args()
    corpus = read_corpus(arguments.corpus) if arguments.corpus else build_corpus()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")
    for cell in arguments.cells:
        settings = Settings(
            cell=cell,
            window=arguments.window,
            steps=arguments.steps,
            batch_size=arguments.batch_size,
            length=arguments.length,
            learning_rate=arguments.learning_rate,
            map_rate=arguments.map_rate,
        )
        result = train_memory(arguments.base, corpus, settings, arguments.out / cell, device)
        print(cell, json.dumps(result["held_out_nats_beyond_budget"]), flush=True)


if __name__ == "__main__":
    main()
