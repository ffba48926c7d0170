"""The recipe of the shipped memories with slots, on text that asks for facts.

`python -m ahn.embedded.distill_slots --out DIR [--cell CELL] [--base DIR] [--corpus FILE]`: shares
of layers and heads, scores from later use, KL through the choice, rates that recall in long rows;
evaluation. `--memory DIR` begins with the rates. The forms of facts that tests ask in are not among
those it trains on.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from ahn.checkpoint import from_pretrained, save_pretrained
from ahn.config import AHNConfig
from ahn.embedded import BASE
from ahn.embedded.base_rows import RowMaker, batches, fact_bank
from ahn.embedded.corpus import Corpus, build_corpus, read_corpus
from ahn.embedded.distill_memories import token_stream
from ahn.embedded.evaluate_recall import line_ends
from ahn.embedded.evaluate_slots import MEASURED, measure
from ahn.embedded.recall_rates import lower_rates, recall_rows
from ahn.embedded.train_base import environment
from ahn.facts import FactMaker, forms_of, words_of
from ahn.facts.forms import CODE
from ahn.facts.words import TEST_WORDS
from ahn.io.files import write_json
from ahn.modeling import attach, detach
from ahn.training import distill, memory_parameters
from ahn.training.batch import Batch
from ahn.training.distiller import only_trainable
from ahn.training.slots import Shares, find_shares


@dataclass(frozen=True)
class Settings:
    """How a memory with slots is distilled; window and slots are those it ships with.

    Attributes:
        cell: beside the slots; None: slots alone.
        rows: tokens of a row and rows of a batch, of every step but each `long_every`-th.
        long_rows: of those.
        shares_rows: of the texts on which shares are found.
        rates_rows: of those on which rates are lowered after training.
        lengths: tokens of the held-out documents' beginnings on which the gap is measured.
    """

    cell: str | None = None
    window: int = 256
    num_sinks: int = 4
    slots: int = 768
    slot_bits: int = 4
    steps: int = 260
    rows: tuple[int, int] = (8192, 2)
    long_rows: tuple[int, int] = (32768, 1)
    long_every: int = 8
    shares_rows: tuple[int, int] = (4096, 8)
    rates_rows: tuple[int, int] = (32768, 4)
    facts_share: float = 0.5
    facts: int = 4000
    score_share: float = 0.5
    learning_rate: float = 3e-3
    map_rate: float = 0.1
    lengths: tuple[int, ...] = (2048, 8192, 32768)
    seed: int = 0

    def shapes(self) -> list[tuple[int, int]]:
        """Tokens of a row and rows of each step's batch; longer ones now and then."""
        last = self.long_every - 1
        return [
            self.long_rows if step % self.long_every == last else self.rows
            for step in range(self.steps)
        ]


def train_slots(
    base: Path, corpus: Corpus, settings: Settings, out: Path, device: str
) -> dict[str, Any]:
    """Distil one memory into `out`, evaluate it on held-out text, write both."""
    torch.manual_seed(settings.seed)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.to(device)
    config = AHNConfig(
        memory=settings.cell,
        window=settings.window,
        num_sinks=settings.num_sinks,
        slots=settings.slots,
        slot_bits=settings.slot_bits,
    )
    attach(model, config)
    maker = row_maker(base, corpus, tokenizer, settings)
    started = time.perf_counter()
    shares = _shares(model, maker, settings)
    attach(detach(model), replace(config, slot_shares=shares.shares))
    losses = distill(
        model.eval(),
        _rows(maker, settings),
        total_steps=settings.steps,
        learning_rate=settings.learning_rate,
        map_rate=settings.map_rate,
        autocast=torch.bfloat16 if device == "cuda" else None,
        score_share=settings.score_share,
        on_step=print_every(20),
    )
    result: dict[str, Any] = {
        "settings": asdict(settings),
        "parameters": sum(p.numel() for p in memory_parameters(model).values()),
        "shares": shares.shares,
        "shares_kl": [list(entry) for entry in shares.log],
        "losses": [round(loss, 4) for loss in losses[::20]],
        "seconds": round(time.perf_counter() - started, 1),
        **environment(device),
    }
    return finish(model, tokenizer, maker, corpus, settings, result, out)


def lower_trained(
    base: Path, memory: Path, corpus: Corpus, rates_rows: tuple[int, int], out: Path, device: str
) -> dict[str, Any]:
    """Begin with a distilled memory: lower its rates into `out`, evaluate it, write both.

    All other settings are those that it was distilled with.
    """
    model: Any = from_pretrained(str(base), str(memory), dtype=torch.float32)
    model.to(device).eval()
    tokenizer = AutoTokenizer.from_pretrained(base)
    result = json.loads((memory / "training.json").read_text())
    given: dict[str, Any] = {
        name: tuple(x) if isinstance(x, list) else x for name, x in result["settings"].items()
    }
    settings = replace(Settings(**given), rates_rows=rates_rows)
    maker = row_maker(base, corpus, tokenizer, settings)
    return finish(model, tokenizer, maker, corpus, settings, result, out)


def finish(
    model: PreTrainedModel,
    tokenizer: Any,
    maker: RowMaker,
    corpus: Corpus,
    settings: Settings,
    result: dict[str, Any],
    out: Path,
) -> dict[str, Any]:
    """Lower the rates of a distilled memory, save it and measure it."""
    rows = recall_rows(maker, *settings.rates_rows, settings.seed)
    result["rates"] = lower_rates(model, rows, near=MEASURED.near, report=print)
    result["rates_on"] = environment(model.device.type)
    save_pretrained(model, out)
    print(f"saved in {out}", flush=True)
    result |= {"settings": asdict(settings), "measured": {}}
    for name, figures in measure(model, tokenizer, corpus, settings.lengths):
        print(name, json.dumps(figures), flush=True)
        result["measured"][name] = figures
        write_json(out / "training.json", result)
    return result


def row_maker(base: Path, corpus: Corpus, tokenizer: Any, settings: Settings) -> RowMaker:
    """Rows of the training text with facts in forms that no test asks in."""
    encoder = Tokenizer.from_file(str(base / "tokenizer.json"))
    words = words_of((text for _, text in corpus.training), without=frozenset(TEST_WORDS))
    facts = FactMaker(forms_of([CODE]), words, lambda text: encoder.encode(text).ids)
    stream = token_stream(corpus.training, tokenizer)
    bank = fact_bank(facts, settings.facts, settings.seed)
    return RowMaker(stream, line_ends(tokenizer), bank, settings.facts_share, 1.0)


def _shares(model: PreTrainedModel, maker: RowMaker, settings: Settings) -> Shares:
    length, rows = settings.shares_rows
    ids, _ = replace(maker, share=1.0).batch(f"shares/{settings.seed}", length, rows)
    texts = [Batch(row[None, :length].to(model.device)) for row in ids]
    with only_trainable(model, ()):
        return find_shares(
            model, texts, window=settings.window, num_sinks=settings.num_sinks, report=print
        )


def _rows(maker: RowMaker, settings: Settings) -> Iterator[Tensor]:
    for ids, _ in batches(maker, settings.shapes(), settings.seed):
        yield ids[:, :-1]


def print_every(count: int) -> Callable[[int, float], None]:
    """Print the loss and the time of each `count`-th step, and of the first."""
    started = time.perf_counter()

    def report(step: int, loss: float) -> None:
        if step % count == 0 or step == 1:
            print(f"step {step} loss {loss:.4f} {time.perf_counter() - started:.0f} s", flush=True)

    return report


def main() -> None:
    """Command line: distil one memory with slots."""
    defaults = Settings()
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--base", type=Path, default=BASE, help="base model; default: shipped")
    parser.add_argument("--corpus", type=Path, help="corpus file; default: this interpreter's")
    parser.add_argument("--memory", type=Path, help="a distilled memory whose rates are lowered")
    parser.add_argument(
        "--rates-rows", type=int, nargs=2, metavar=("TOKENS", "ROWS"), default=defaults.rates_rows,
        help="in which facts are found as rates are lowered after training",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, help="folder of the memory")
    parser.add_argument("--cell", help="a cell beside the slots; default: none")
    for name in ("window", "slots", "slot_bits", "steps", "score_share", "learning_rate", "seed"):
        value = getattr(defaults, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    given = vars(parser.parse_args())
    base, memory, file, out = (given.pop(x) for x in ("base", "memory", "corpus", "out"))
    corpus = read_corpus(file) if file else build_corpus()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")
    settings = replace(defaults, **{**given, "rates_rows": tuple(given["rates_rows"])})
    if memory is None:
        train_slots(base, corpus, settings, out, device)
    else:
        lower_trained(base, memory, corpus, settings.rates_rows, out, device)


if __name__ == "__main__":
    main()
