"""The recipe of memories for SmolLM2: on folders of text, half of which asks for facts.

`python -m ahn.embedded.distill_smollm2 --texts FOLDER ... --out DIR [--cell CELL]`: shares of
layers and heads, scores from later use, KL through the choice. What comes of it is measured by
`benchmarks/chat_recall.py`.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from ahn.checkpoint import from_pretrained, load_tokenizer, save_pretrained
from ahn.checkpoint.named_models import SMOLLM2
from ahn.config import AHNConfig
from ahn.embedded.distill_slots import print_every
from ahn.embedded.train_base import environment
from ahn.evaluation.texts import named_texts
from ahn.io.files import write_json
from ahn.modeling import attach, detach
from ahn.training import distill, memory_parameters
from ahn.training.batch import Batch
from ahn.training.data.fact_rows import FactRows
from ahn.training.distiller import only_trainable
from ahn.training.losses import IGNORE
from ahn.training.slots import find_shares


@dataclass(frozen=True)
class Settings:
    """How a memory for SmolLM2 is distilled.

    Attributes:
        cell: beside the slots; None: slots alone.
        length, rows: tokens of a row and rows of a batch.
        shares_rows: of the texts on which shares are found.
        facts: share of the rows that ask for facts.
    """

    cell: str | None = None
    window: int = 256
    num_sinks: int = 4
    slots: int = 512
    slot_bits: int = 4
    steps: int = 240
    length: int = 8192
    rows: int = 2
    shares_rows: tuple[int, int] = (4096, 4)
    facts: float = 0.5
    score_share: float = 0.4
    learning_rate: float = 3e-3
    map_rate: float = 0.1
    seed: int = 0


def train_memory(texts: Sequence[str], settings: Settings, out: Path, device: str) -> Any:
    """Distil one memory into `out`; returns what its `training.json` holds."""
    torch.manual_seed(settings.seed)
    tokenizer = load_tokenizer(SMOLLM2)
    model: Any = from_pretrained(SMOLLM2, dtype="float32").eval()
    model.to(device)
    config = AHNConfig(
        memory=settings.cell,
        window=settings.window,
        num_sinks=settings.num_sinks,
        slots=settings.slots,
        slot_bits=settings.slot_bits,
    )
    attach(model, config)
    started = time.perf_counter()
    length, number = settings.shares_rows
    asking = replace(settings, facts=1.0, length=length, rows=1)
    batches = _batches(tokenizer, texts, asking)
    with only_trainable(model, ()):
        found = find_shares(
            model,
            [_moved(next(batches), device) for _ in range(number)],
            window=settings.window,
            num_sinks=settings.num_sinks,
            report=lambda line: print(line, flush=True),
        )
    attach(detach(model), replace(config, slot_shares=found.shares))
    losses = distill(
        model.eval(),
        _batches(tokenizer, texts, settings),
        total_steps=settings.steps,
        learning_rate=settings.learning_rate,
        map_rate=settings.map_rate,
        autocast=torch.bfloat16 if device == "cuda" else None,
        score_share=settings.score_share,
        on_step=print_every(20),
    )
    save_pretrained(model, out)
    result = {
        "settings": asdict(settings),
        "texts": [name for name, _ in named_texts(texts)],
        "parameters": sum(p.numel() for p in memory_parameters(model).values()),
        "shares_kl": [list(entry) for entry in found.log],
        "losses": [round(loss, 4) for loss in losses[::20]],
        "seconds": round(time.perf_counter() - started, 1),
        **environment(device),
    }
    write_json(out / "training.json", result)
    return result


def _batches(tokenizer: Any, texts: Sequence[str], settings: Settings) -> Iterator[Batch]:
    """Batches of rows in random order, padded on the right; each pass asks for other facts."""
    for index in count():
        seed = settings.seed + index
        maker = FactRows(tokenizer, settings.length, settings.facts, ("en",), seed)
        rows = [row for _, text in named_texts(texts) for row in maker.rows(text)]
        random.Random(seed).shuffle(rows)
        for first in range(0, len(rows) - settings.rows + 1, settings.rows):
            ids, labels = zip(*rows[first : first + settings.rows])
            yield Batch(_padded(ids, 0), _padded(labels, IGNORE))


def _padded(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    return pad_sequence([torch.tensor(row) for row in rows], True, value)


def _moved(batch: Batch, device: str) -> Batch:
    return Batch(*(None if x is None else x.to(device) for x in batch))  # type: ignore[arg-type]


def main() -> None:
    """Command line: distil one memory for SmolLM2."""
    defaults = Settings()
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--texts", nargs="+", required=True, help="files or folders of text")
    parser.add_argument("--out", type=Path, required=True, help="folder of the memory")
    parser.add_argument("--cell", help="a cell beside the slots; default: none")
    for name in ("window", "slots", "slot_bits", "steps", "length", "rows", "facts", "score_share",
                 "learning_rate", "seed"):  # fmt: skip
        value = getattr(defaults, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    given = vars(parser.parse_args())
    texts, out = given.pop("texts"), given.pop("out")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")
    result = train_memory(texts, replace(defaults, **given), out, device)
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
