"""A million tokens through the embedded model on a CPU: bytes, resident memory and speed are flat.

`python benchmarks/stream_million.py [--tokens N] [--memory CELL]`
"""

from __future__ import annotations

import argparse
import itertools
import resource
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import psutil
import torch
from torch import Tensor

import ahn
from ahn import embedded
from ahn.embedded.corpus import held_out_documents, training_documents
from report import write_result

BLOCK = 10_000  # tokens between two measurements


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
    for _, text in itertools.cycle([*held_out_documents(), *training_documents()]):
        held = torch.cat([held, tokenizer(text, return_tensors="pt")["input_ids"]], 1)
        while held.shape[1] >= BLOCK:
            yield held[:, :BLOCK]
            held, made = held[:, BLOCK:], made + BLOCK
            if made >= total:
                return


def measure(memory: str, total: int, chunk: int) -> list[Sample]:
    """Read `total` tokens, with a sample every `BLOCK`."""
    model, tokenizer = embedded.load(memory)
    process, cache, samples = psutil.Process(), ahn.AHNCache(model.config), []
    for block in text_blocks(tokenizer, total):
        start = time.perf_counter()
        ahn.generation.prefill(model, block, cache, chunk=chunk)
        seconds = time.perf_counter() - start
        resident = process.memory_info().rss / 2**20
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        samples.append(
            Sample(
                cache.get_seq_length(),
                cache.nbytes,
                round(resident, 1),
                round(peak, 1),
                round(BLOCK / seconds, 1),
            )
        )
        if len(samples) in (1, 10) or len(samples) % 20 == 0:
            print(samples[-1], flush=True)
    return samples


def median_speed(samples: list[Sample]) -> float:
    """Median tokens/s of some blocks."""
    return sorted(sample.tokens_per_second for sample in samples)[len(samples) // 2]


def main() -> None:
    """Measure, and write `results/stream_million.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--memory", default="GatedDeltaNet")
    parser.add_argument("--chunk", type=int, default=1024)
    arguments = parser.parse_args()
    samples = measure(arguments.memory, arguments.tokens, arguments.chunk)
    part = max(1, len(samples) // 10)
    first, last = median_speed(samples[:part]), median_speed(samples[-part:])
    marks = [s for s in samples if s.tokens in (10_000, 100_000, arguments.tokens)]
    result = {
        "memory": arguments.memory,
        "chunk": arguments.chunk,
        "marks": [asdict(sample) for sample in marks],
        "cache_bytes_equal": len({sample.cache_bytes for sample in marks}) == 1,
        "resident_growth": max(s.resident_mib for s in samples) / samples[0].resident_mib - 1,
        "peak_growth": samples[-1].peak_resident_mib / samples[0].peak_resident_mib - 1,
        "tokens_per_second_first_tenth": first,
        "tokens_per_second_last_tenth": last,
        "speed_last_over_first": last / first,
    }
    write_result("stream_million", result)


if __name__ == "__main__":
    main()
