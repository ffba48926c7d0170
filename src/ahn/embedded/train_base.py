"""The recipe of the embedded base model, as one command.

`python -m ahn.embedded.train_base --out DIR [--corpus FILE]`: corpus, tokenizer, training on text
and on facts that are asked for, evaluation. About seven minutes on one H200. The folder is whole
at all times: what a run has reached so far is saved there again and again.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from ahn.embedded.base_rows import RowMaker, batches, fact_bank
from ahn.embedded.base_training import Optimization, train
from ahn.embedded.copies import encode_copies
from ahn.embedded.corpus import Corpus, Document, build_corpus, read_corpus
from ahn.embedded.evaluate_base import evaluate
from ahn.embedded.evaluate_recall import RecallMeasurement, evaluate_recall, line_ends
from ahn.embedded.tokenizer import check_lossless, save_tokenizer, train_tokenizer
from ahn.facts import FORMS, FactMaker, words_of
from ahn.facts.forms import CODE
from ahn.facts.words import TEST_WORDS
from ahn.io.files import write_json

WATCHED = RecallMeasurement(haystacks=(4, 2, 1))  # during the training


@dataclass(frozen=True)
class Settings(Optimization):
    """Everything that decides the result; the corpus aside."""

    vocab_size: int = 4096
    hidden_size: int = 256
    intermediate_size: int = 832
    num_layers: int = 8
    num_heads: int = 4
    num_key_value_heads: int = 2
    context: int = 32768
    rope_theta: float = 1_000_000.0
    copies: int = 16  # of the training text, all but the first with exchanged words
    exchanged_share: float = 0.5
    rows: tuple[tuple[int, int], ...] = ((8192, 8), (32768, 2))  # tokens of a row, rows of a batch
    long_from: float = 0.25  # share of the steps after which longer rows take their turn
    facts_share: float = 0.4  # of the rows
    facts: int = 8000
    answer_weight: float = 4.0
    seed: int = 0

    def shapes(self) -> list[tuple[int, int]]:
        """Tokens of a row and rows of each step's batch."""
        first = round(self.long_from * self.steps)
        return [
            self.rows[0 if step < first else step % len(self.rows)] for step in range(self.steps)
        ]


def make_model(settings: Settings) -> Qwen3ForCausalLM:
    """A freshly initialised model; token 0 ends a text."""
    config = Qwen3Config(
        vocab_size=settings.vocab_size,
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        num_hidden_layers=settings.num_layers,
        num_attention_heads=settings.num_heads,
        num_key_value_heads=settings.num_key_value_heads,
        head_dim=settings.hidden_size // settings.num_heads,
        max_position_embeddings=settings.context,
        rope_parameters={"rope_type": "default", "rope_theta": settings.rope_theta},
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    return Qwen3ForCausalLM(config)


def run(
    corpus: Corpus,
    settings: Settings,
    out: Path,
    device: str,
    workers: int,
    start: Path | None = None,
) -> dict[str, Any]:
    """The whole recipe; writes the model folder and `training.json` in it.

    Args:
        start: folder of a model to train further, with its tokenizer; None starts from nothing.
    """
    torch.manual_seed(settings.seed)
    out.mkdir(parents=True, exist_ok=True)
    encoder = _encoder(corpus, settings, start)
    check_lossless(encoder, (text for _, text in corpus.training + corpus.held_out))
    save_tokenizer(encoder, out, settings.context)
    tokenizer = AutoTokenizer.from_pretrained(out)
    stream = encode_copies(
        corpus.training, encoder, copies=settings.copies, share=settings.exchanged_share,
        seed=settings.seed, workers=workers,
    )  # fmt: skip
    print(f"{len(stream)} tokens in {settings.copies} copies", flush=True)
    model = _model(settings, start)
    watch = Watch(model, tokenizer, corpus.held_out, out)
    maker = row_maker(corpus, stream, encoder, tokenizer, settings)
    rows = batches(maker, settings.shapes(), settings.seed)
    began = time.perf_counter()
    curves = train(model, rows, settings, device, watch)
    seconds = time.perf_counter() - began
    _save(model, out)
    # Read back, since casting a whole model also rounds its rotary frequencies.
    saved: Any = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    result = {
        "settings": asdict(settings),
        "started_from": start and start.name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens_per_copy": len(stream) // settings.copies,
        "corpus_python": corpus.python,
        "text_every_20_steps": curves.text,
        "answers_every_20_steps": curves.answers,
        "watched": watch.log,
        "seconds": round(seconds, 1),
        "recall": evaluate_recall(saved.to(device), tokenizer, corpus.held_out),
        "held_out": evaluate(saved, tokenizer, corpus.held_out),
        **environment(device),
    }
    write_json(out / "training.json", result)
    return result


@dataclass(frozen=True)
class Watch:
    """Measures recall and text during the training, prints them and saves the model so far."""

    model: Qwen3ForCausalLM
    tokenizer: Any
    documents: tuple[Document, ...]
    folder: Path
    log: list[dict[str, Any]] = field(default_factory=list)

    def __call__(self, step: int) -> None:
        measured = evaluate_recall(self.model, self.tokenizer, self.documents, WATCHED)
        self.log.append({"step": step, "found": measured["found"], "nats": measured["nats"]})
        print(json.dumps(self.log[-1]), flush=True)
        _save(self.model, self.folder)


def environment(device: str) -> dict[str, str]:
    """On what a recipe ran."""
    return {
        "hardware": torch.cuda.get_device_name() if device == "cuda" else platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def row_maker(
    corpus: Corpus, stream: Tensor, encoder: Tokenizer, tokenizer: Any, settings: Settings
) -> RowMaker:
    """Rows of the stream with facts in all forms of source text, of words no test asks for."""
    words = words_of((text for _, text in corpus.training), without=frozenset(TEST_WORDS))
    forms = [form for form in FORMS if form.language == CODE]
    bank = fact_bank(
        FactMaker(forms, words, lambda text: encoder.encode(text).ids),
        settings.facts,
        settings.seed,
    )
    ends = line_ends(tokenizer)
    return RowMaker(stream, ends, bank, settings.facts_share, settings.answer_weight)


def _encoder(corpus: Corpus, settings: Settings, start: Path | None) -> Tokenizer:
    if start is not None:
        return Tokenizer.from_file(str(start / "tokenizer.json"))
    return train_tokenizer((text for _, text in corpus.training), settings.vocab_size)


def _model(settings: Settings, start: Path | None) -> Qwen3ForCausalLM:
    if start is None:
        return make_model(settings)
    model: Any = Qwen3ForCausalLM.from_pretrained(start, dtype=torch.float32)
    model.config.max_position_embeddings = settings.context
    return model


def _save(model: Qwen3ForCausalLM, folder: Path) -> None:
    half: Any = copy.deepcopy(model)
    half.to(torch.bfloat16).save_pretrained(folder)


def main() -> None:
    """Command line: run the recipe."""
    defaults = Settings()
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the model")
    parser.add_argument("--corpus", type=Path, help="corpus file; default: this interpreter's")
    parser.add_argument("--start", type=Path, help="folder of a model to train further")
    parser.add_argument("--workers", type=int, default=16, help="processes that encode the text")
    for name in ("steps", "learning_rate", "weight_decay", "copies", "long_from", "facts_share",
                 "warmup_steps", "seed"):  # fmt: skip
        value = getattr(defaults, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    parser.add_argument("--seconds", type=float, help="end the schedule after so many")
    given = vars(parser.parse_args())
    out, start, workers, file = (given.pop(x) for x in ("out", "start", "workers", "corpus"))
    corpus = read_corpus(file) if file else build_corpus()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    result = run(corpus, replace(defaults, **given), out, device, workers, start)
    print(json.dumps(result["recall"]))
    print(json.dumps(result["held_out"]["bits_per_byte"]))


if __name__ == "__main__":
    main()
