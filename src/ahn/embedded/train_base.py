"""The recipe of the embedded base model, as one command.

`python -m ahn.embedded.train_base --out DIR [--corpus FILE]`: corpus, tokenizer, training,
evaluation. About five minutes on one H200.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from ahn.embedded.corpus import Corpus, Document, build_corpus, read_corpus
from ahn.embedded.evaluate_base import evaluate
from ahn.embedded.renaming import rare_words, rename
from ahn.embedded.tokenizer import (
    END_OF_TEXT,
    check_lossless,
    save_tokenizer,
    train_tokenizer,
)
from ahn.io.files import written_whole


@dataclass(frozen=True)
class Settings:
    """Everything that decides the result; the corpus aside."""

    vocab_size: int = 4096
    hidden_size: int = 256
    intermediate_size: int = 832
    num_layers: int = 8
    num_heads: int = 4
    num_key_value_heads: int = 2
    context: int = 8192
    rope_theta: float = 100_000.0
    copies: int = 16  # of the training text, all but the first with exchanged words
    exchanged_share: float = 0.5
    steps: int = 1400
    batch_size: int = 8
    learning_rate: float = 3e-3
    warmup_steps: int = 100
    weight_decay: float = 1.0  # high, as the text is read a dozen times
    seed: int = 0


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


def encode_copies(corpus: Corpus, tokenizer: Tokenizer, settings: Settings, workers: int) -> Tensor:
    """Token ids of all copies of the training text, one after the other: `[N]`, int32."""
    rare = rare_words(corpus.training)
    jobs = [
        (corpus.training, rare, settings.exchanged_share if copy else 0.0, copy, settings.seed)
        for copy in range(settings.copies)
    ]
    text = tokenizer.to_str()
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        parts = list(pool.map(_encode_copy, jobs, [text] * len(jobs)))
    return torch.cat([torch.frombuffer(part, dtype=torch.int32) for part in parts])


def _encode_copy(
    job: tuple[tuple[Document, ...], list[str], float, int, int], tokenizer: str
) -> bytearray:
    documents, rare, share, copy, seed = job
    if share:
        documents = tuple(rename(documents, rare, share, f"{seed}/{copy}"))
    encoder = Tokenizer.from_str(tokenizer)
    end = encoder.token_to_id(END_OF_TEXT)
    ids = torch.tensor(
        [i for _, text in documents for i in [*encoder.encode(text).ids, end]], dtype=torch.int32
    )
    return bytearray(ids.numpy().tobytes())


def train(model: Qwen3ForCausalLM, stream: Tensor, settings: Settings, device: str) -> list[float]:
    """Train on random crops of the stream; the mean loss of every 20 steps."""
    stream = stream.to(device)
    model.to(device).train()  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(
        _groups(model, settings.weight_decay), lr=settings.learning_rate, betas=(0.9, 0.95)
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: _rate(s, settings))
    step_loss = torch.compile(_loss) if device == "cuda" else _loss
    generator = torch.Generator(device).manual_seed(settings.seed)
    offsets = torch.arange(settings.context + 1, device=device)
    curve: list[float] = []
    recent = torch.zeros((), device=device)
    started = time.perf_counter()
    for step in range(1, settings.steps + 1):
        starts = torch.randint(
            len(stream) - settings.context,
            (settings.batch_size, 1),
            generator=generator,
            device=device,
        )
        ids = stream[starts + offsets].long()
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = step_loss(model, ids)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        recent += loss.detach()
        if step % 20 == 0 or step == settings.steps:
            curve.append(round(recent.item() / (step % 20 or 20), 4))
            recent.zero_()
            tokens = step * settings.batch_size * settings.context
            seconds = time.perf_counter() - started
            print(
                f"step {step} loss {curve[-1]:.4f} {seconds:.0f} s {tokens / seconds:.0f} tokens/s",
                flush=True,
            )
    return curve


def _loss(model: Qwen3ForCausalLM, ids: Tensor) -> Tensor:
    hidden = model.model(ids[:, :-1], use_cache=False).last_hidden_state
    return F.cross_entropy(model.lm_head(hidden).float().flatten(0, 1), ids[:, 1:].flatten())


def _groups(model: Qwen3ForCausalLM, weight_decay: float) -> list[dict[str, Any]]:
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    return [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]


def _rate(step: int, settings: Settings) -> float:
    """Linear warm-up, then a cosine to zero."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    share = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


def run(corpus: Corpus, settings: Settings, out: Path, device: str, workers: int) -> dict[str, Any]:
    """The whole recipe; writes the model folder and `training.json` in it."""
    torch.manual_seed(settings.seed)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer((text for _, text in corpus.training), settings.vocab_size)
    check_lossless(tokenizer, (text for _, text in corpus.training + corpus.held_out))
    save_tokenizer(tokenizer, out, settings.context)
    stream = encode_copies(corpus, tokenizer, settings, workers)
    print(f"{len(stream)} tokens in {settings.copies} copies", flush=True)
    model = make_model(settings)
    started = time.perf_counter()
    curve = train(model, stream, settings, device)
    seconds = time.perf_counter() - started
    half: Any = model
    half.to(torch.bfloat16).save_pretrained(out)
    # Read back, since casting a whole model also rounds its rotary frequencies.
    saved: Any = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    result = {
        "settings": asdict(settings),
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens_per_copy": len(stream) // settings.copies,
        "corpus_python": corpus.python,
        "loss_every_20_steps": curve,
        "seconds": round(seconds, 1),
        "held_out": evaluate(saved.to(device), AutoTokenizer.from_pretrained(out), corpus.held_out),
        "hardware": torch.cuda.get_device_name() if device == "cuda" else platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    with written_whole(out / "training.json") as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")
    return result


def main() -> None:
    """Command line: run the recipe."""
    defaults = Settings()
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the model")
    parser.add_argument("--corpus", type=Path, help="corpus file; default: this interpreter's")
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--learning-rate", type=float, default=defaults.learning_rate)
    parser.add_argument("--workers", type=int, default=16, help="processes that encode the text")
    arguments = parser.parse_args()
    corpus = read_corpus(arguments.corpus) if arguments.corpus else build_corpus()
    settings = Settings(steps=arguments.steps, learning_rate=arguments.learning_rate)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    result = run(corpus, settings, arguments.out, device, arguments.workers)
    print(json.dumps(result["held_out"]))


if __name__ == "__main__":
    main()
