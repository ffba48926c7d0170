"""What the embedded base model makes of held-out text, and how much of it is due to context.

Two measurements, on every held-out module by itself. Every row that is scored begins with
`<|endoftext|>`, as in training, which is not counted as context and never scored.

Bits per byte at N tokens of context, full attention: rows of N tokens that advance by N / 2; of a
row the last N / 2 tokens are scored, of the first row all. So every token beyond the first N / 2
is scored once, with at least N / 2 and at most N - 1 tokens of context. Compared with `xz -9` of
the same text.

Nats per token by position: rows of `row` tokens that do not overlap (the shorter rest of a module
is left out), scored with full attention and with a mask that leaves each query the sinks (the
first tokens of the row, `<|endoftext|>` among them) and the window (the last tokens, itself
included). Position p means p tokens of the module before the token in its row.

`python -m ahn.embedded.evaluate_base --model DIR [--corpus FILE] --out FILE` writes the result.
"""

from __future__ import annotations

import argparse
import json
import lzma
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerBase as TokenizerBase

from ahn.embedded.corpus import Document, held_out_documents, read_corpus
from ahn.io.files import written_whole

_TOKENS_PER_BATCH = {"cuda": 65_536, "cpu": 8192}


@dataclass(frozen=True)
class Measurement:
    """Lengths in tokens: contexts of the bits per byte, windows and buckets of the positions."""

    contexts: tuple[int, ...] = (256, 4096, 8192)
    windows: tuple[int, ...] = (256, 512)
    num_sinks: int = 4
    row: int = 8192
    buckets: tuple[int, ...] = (0, 256, 512, 1024, 2048, 4096, 8192)


def evaluate(
    model: PreTrainedModel,
    tokenizer: TokenizerBase,
    documents: Sequence[Document],
    measurement: Measurement = Measurement(),
) -> dict[str, Any]:
    """Both measurements of this module, ready for JSON; bfloat16 autocast on a GPU.

    Raises:
        ValueError: no document is as long as a row.
    """
    model.eval()
    encoded = {name: _encode(tokenizer, text) for name, text in documents}
    modules = {
        name: _measure_document(model, encoded[name], text, measurement) for name, text in documents
    }
    return {
        "documents": list(encoded),
        **_total(modules.values()),
        **_measure_positions(model, list(encoded.values()), measurement),
        "modules": modules,
        "measurement": asdict(measurement),
    }


def full_rows(encoded: Iterable[Tensor], length: int, end_of_text: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets `[R, length]` of the rows of tokens that do not overlap, rests left out.

    Raises:
        ValueError: no text has `length` tokens.
    """
    targets = torch.cat([ids[: len(ids) // length * length] for ids in encoded]).view(-1, length)
    if not len(targets):
        raise ValueError(f"documents: expected one of {length} tokens or more, got shorter ones")
    return _shifted(targets, end_of_text), targets


def position_losses(
    model: PreTrainedModel, inputs: Tensor, targets: Tensor, mask: Tensor | None
) -> Tensor:
    """Nats per token at each position, `[T]` float64, the mean over rows `[R, T]`."""
    size = max(1, _TOKENS_PER_BATCH[model.device.type] // inputs.shape[1])
    batches = zip(inputs.split(size), targets.split(size))
    sums = [_losses(model, a, b, mask).double().sum(0) for a, b in batches]
    return torch.stack(sums).sum(0).cpu() / len(inputs)


def sink_window_mask(length: int, window: int, num_sinks: int, device: torch.device) -> Tensor:
    """`[1, 1, T, T]` bool, true where a query sees a key: a sink, or in its window."""
    query = torch.arange(length, device=device)[:, None]
    key = torch.arange(length, device=device)[None, :]
    seen = (key <= query) & ((key > query - window) | (key < num_sinks))
    return seen[None, None]


@torch.no_grad()
def _losses(model: PreTrainedModel, inputs: Tensor, targets: Tensor, mask: Tensor | None) -> Tensor:
    """Nats of each target, `[B, T]` float32."""
    device = model.device
    # A mapping is taken as the finished masks; None in it is plain causal attention.
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        logits = model(
            input_ids=inputs.to(device), attention_mask={"full_attention": mask}, use_cache=False
        ).logits
    return torch.nn.functional.cross_entropy(
        logits.float().transpose(1, 2), targets.to(device), reduction="none"
    )


def _measure_document(
    model: PreTrainedModel, ids: Tensor, text: str, measurement: Measurement
) -> dict[str, Any]:
    size = len(text.encode())
    packed = len(lzma.compress(text.encode(), preset=9))
    bits = {
        str(context): _strided_nats(model, ids, context) / math.log(2) / size
        for context in measurement.contexts
    }
    return {
        "bytes": size,
        "tokens": len(ids),
        "xz_9_bits_per_byte": 8 * packed / size,
        "bits_per_byte": bits,
    }


def _strided_nats(model: PreTrainedModel, ids: Tensor, context: int) -> float:
    """Nats of all tokens of a text, each with `context / 2` to `context - 1` tokens before it."""
    stride = context // 2
    begins = range(0, max(1, len(ids) - stride), stride)
    end = model.config.eos_token_id
    targets = torch.full((len(begins), context), end)
    scored = torch.zeros(len(begins), context, dtype=torch.bool)
    for row, begin in enumerate(begins):
        row_ids = ids[begin : begin + context]
        targets[row, : len(row_ids)] = row_ids
        scored[row, stride if row else 0 : len(row_ids)] = True
    inputs = _shifted(targets, end)
    size = max(1, _TOKENS_PER_BATCH[model.device.type] // context)
    batches = zip(inputs.split(size), targets.split(size), scored.split(size))
    nats = [_losses(model, a, b, None)[c.to(model.device)].double().sum() for a, b, c in batches]
    return float(sum(nats))


def _measure_positions(
    model: PreTrainedModel, encoded: Sequence[Tensor], measurement: Measurement
) -> dict[str, Any]:
    inputs, targets = full_rows(encoded, measurement.row, model.config.eos_token_id)
    masks: dict[str, Tensor | None] = {"full": None}
    for window in measurement.windows:
        masks[f"window_{window}"] = sink_window_mask(
            measurement.row, window, measurement.num_sinks, model.device
        )
    nats = {
        name: _by_bucket(position_losses(model, inputs, targets, mask), measurement.buckets)
        for name, mask in masks.items()
    }
    return {"rows": len(inputs), "nats_by_position": nats}


def _by_bucket(losses: Tensor, buckets: Sequence[int]) -> dict[str, float]:
    return {f"{a}-{b}": float(losses[a:b].mean()) for a, b in pairwise(buckets)}


def _total(modules: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The same of all modules together, each byte weighing the same."""
    rows = list(modules)
    size = sum(row["bytes"] for row in rows)

    def mean(values: Iterable[float]) -> float:
        return sum(v * row["bytes"] for v, row in zip(values, rows)) / size

    contexts = rows[0]["bits_per_byte"]
    return {
        "bytes": size,
        "tokens": sum(row["tokens"] for row in rows),
        "xz_9_bits_per_byte": mean(row["xz_9_bits_per_byte"] for row in rows),
        "bits_per_byte": {c: mean(row["bits_per_byte"][c] for row in rows) for c in contexts},
    }


def _encode(tokenizer: TokenizerBase, text: str) -> Tensor:
    return torch.tensor(tokenizer(text, verbose=False)["input_ids"])


def _shifted(targets: Tensor, end_of_text: int) -> Tensor:
    inputs = targets.roll(1, dims=1)
    inputs[:, 0] = end_of_text
    return inputs


def main() -> None:
    """Command line: measure a saved model on held-out modules."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of model and tokenizer")
    parser.add_argument("--corpus", type=Path, help="corpus file; else this interpreter's library")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    documents = read_corpus(arguments.corpus).held_out if arguments.corpus else held_out_documents()
    model: Any = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
    result = evaluate(model.to(device), AutoTokenizer.from_pretrained(arguments.model), documents)
    with written_whole(arguments.out) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["nats_by_position"], indent=1))


if __name__ == "__main__":
    main()
