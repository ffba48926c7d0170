"""A million tokens through the embedded model on a CPU: bytes, resident memory and speed are flat.

`python benchmarks/stream_million.py [--tokens N] [--memory CELL]`
"""

from __future__ import annotations

import argparse
import io
import itertools
import resource
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from statistics import median

import psutil
import torch
from torch import Tensor

import ahn
from ahn import embedded
from ahn.embedded.corpus import held_out_documents, training_documents
from ahn.io.text import encode_chunks, text_chunks
from report import write_result

BLOCK = 10_000  # tokens between two measurements
PAIRS = 15  # blocks read early and late, in turns


@dataclass
class Sample:
    """State after `tokens` tokens; the speed is that of the last block."""

    tokens: int
    cache_bytes: int
    resident_mib: float
    peak_resident_mib: float  # of the process so far
    tokens_per_second: float


def text_blocks(tokenizer, total: int) -> Iterator[Tensor]:
    """Pieces `[1, BLOCK]` of the standard library's source, again from the start when it ends."""
    held = torch.empty(1, 0, dtype=torch.long)
    made = 0
    documents = itertools.cycle([*held_out_documents(), *training_documents()])
    pieces = (io.BytesIO(text.encode()) for _, text in documents)
    texts = (piece for file in pieces for piece in text_chunks(file, "text"))
    for ids in encode_chunks(tokenizer, texts):
        held = torch.cat([held, ids], 1)
        while held.shape[1] >= BLOCK:
            yield held[:, :BLOCK]
            held, made = held[:, BLOCK:], made + BLOCK
            if made >= total:
                return


def read(model, block: Tensor, cache: ahn.AHNCache, chunk: int) -> float:
    """Read a block; tokens per second."""
    start = time.perf_counter()
    ahn.generation.prefill(model, block, cache, prefill_chunk_size=chunk)
    return block.shape[1] / (time.perf_counter() - start)


def measure(memory: str, total: int, chunk: int) -> tuple[list[Sample], list[tuple[float, float]]]:
    """Read `total` tokens, with a sample every `BLOCK`; then pairs of speeds, early and late.

    The pairs are of a cache as it was after the first block and of the one that has read it all,
    block by block in turns: a machine that others share is not equally fast for minutes.
    """
    model, tokenizer = embedded.load(memory)
    process, cache, samples = psutil.Process(), ahn.AHNCache(model.config), []
    blocks = text_blocks(tokenizer, total + PAIRS * BLOCK)
    for block in itertools.islice(blocks, total // BLOCK):
        speed = read(model, block, cache, chunk)
        resident = process.memory_info().rss / 2**20
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        figures = (round(resident, 1), round(peak, 1), round(speed, 1))
        samples.append(Sample(cache.get_seq_length(), cache.nbytes, *figures))
        if len(samples) == 1:
            early = cache.fork()
        if len(samples) in (1, 10) or len(samples) % 20 == 0:
            print(samples[-1], flush=True)
    pairs = [tuple(read(model, block, each, chunk) for each in (early, cache)) for block in blocks]
    return samples, pairs


def main() -> None:
    """Measure, and write `results/stream_million.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--memory", default="GatedDeltaNet")
    parser.add_argument("--chunk", type=int, default=1024)
    arguments = parser.parse_args()
    samples, pairs = measure(arguments.memory, arguments.tokens, arguments.chunk)
    marks = [s for s in samples if s.tokens in (BLOCK, 10 * BLOCK, arguments.tokens)]
    early, late = (median(speeds) for speeds in zip(*pairs))
    result = {
        "memory": arguments.memory,
        "chunk": arguments.chunk,
        "marks": [asdict(sample) for sample in marks],
        "cache_bytes_equal": len({sample.cache_bytes for sample in samples}) == 1,
        "resident_growth": max(s.resident_mib for s in samples) / samples[0].resident_mib - 1,
        "peak_growth": samples[-1].peak_resident_mib / samples[0].peak_resident_mib - 1,
        "tokens_per_second_early": early,
        "tokens_per_second_late": late,
        "speed_late_over_early": median(late / early for early, late in pairs),
    }
    write_result("stream_million", result)


if __name__ == "__main__":
    main()
