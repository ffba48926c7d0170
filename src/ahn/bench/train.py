"""Training: tokens per second, peak memory and share of the matmul rate of a step."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from statistics import median
from typing import Any

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from torch import Tensor

from ahn.bench.machine import median_seconds, peak_memory, synchronize
from ahn.bench.models import BenchModel
from ahn.bench.profile import kernel_times
from ahn.cost import train_flops
from ahn.io.progress import Report, counted
from ahn.modeling import disabled
from ahn.training import Distiller, memory_parameters
from ahn.training.fsdp2 import round_weights_alone
from ahn.training.losses import Loss

STRATEGIES = ("ddp", "fsdp2")
# The original code on one H200, shape of Qwen2.5-3B, window 2,048, no sinks, KL: from tokens of a
# step to measured tokens per second and peak GiB over the weights.
ORIGINAL = {24576: (9812, 56.0), 8192: (10555, 16.4)}
WARM_UP = 2


def accelerator(strategy: str, device: torch.device, dtype: torch.dtype) -> Accelerator:
    """An Accelerator of this process, or of all that torchrun or accelerate launched.

    Raises ValueError for a strategy that is unknown or cannot run on the device.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy: expected one of {', '.join(STRATEGIES)}, got {strategy!r}")
    options: dict[str, Any] = {"cpu": device.type == "cpu"}
    if strategy == "fsdp2":
        if device.type == "cpu":  # accelerate would run DDP instead, without a word
            raise ValueError("strategy fsdp2: expected GPUs, got a CPU")
        options["fsdp_plugin"] = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            reshard_after_forward=True,
            cpu_ram_efficient_loading=False,
        )
    names = {torch.bfloat16: "bf16", torch.float16: "fp16"}
    return round_weights_alone(Accelerator(mixed_precision=names.get(dtype, "no"), **options))


def bench_train(
    bench: BenchModel,
    accelerator: Accelerator,
    lengths: list[int],
    *,
    rows: int = 1,
    steps: int = 5,
    losses: Mapping[str, Loss] | None = None,
    ceilings: dict[str, float] | None = None,
    report: Report | None = None,
) -> list[dict[str, Any]]:
    """One row a length: median seconds of a step, tokens/s of all processes, peak, TFLOP/s.

    Two rows are added for comparison: the teacher's forward pass alone (full attention without
    gradients), and the original code, where it was measured at the same setting.

    Args:
        lengths: tokens of a process's step, as `rows` sequences of equal length.
        losses: with their weights; None is KL alone.
        report: told how many lengths are measured.

    Raises ValueError for sequences within the budget, which evict nothing.
    """
    _check_lengths(bench, lengths, rows)
    prepared = _prepared(bench, accelerator, losses)
    results = []
    for tokens in counted(lengths, "lengths", report):
        ids = _rows(bench, accelerator, tokens, rows)
        step = _step(bench, accelerator, *prepared, ids)
        row = _measured(accelerator, step, ids, steps)
        if "error" not in row:
            _add_costs(row, bench, ceilings or {})
        results += [row, *_teacher(bench, accelerator, ids), *_original(bench, row)]
    return results


def profile_train(
    bench: BenchModel, accelerator: Accelerator, tokens: int, rows: int = 1
) -> list[dict[str, Any]]:
    """One row a kernel of a step after a warm-up: its calls and milliseconds.

    Raises ValueError as `bench_train`, and without a GPU.
    """
    _check_lengths(bench, [tokens], rows)
    ids = _rows(bench, accelerator, tokens, rows)
    step = _step(bench, accelerator, *_prepared(bench, accelerator), ids)
    _seconds(accelerator, step, WARM_UP)
    return kernel_times(step, accelerator.device)


def _check_lengths(bench: BenchModel, lengths: list[int], rows: int) -> None:
    if min(lengths) // rows <= bench.settings.budget:
        raise ValueError(
            f"lengths: expected texts of more than the budget of {bench.settings.budget} tokens, "
            f"got {min(lengths) // rows}"
        )


def _prepared(
    bench: BenchModel, accelerator: Accelerator, losses: Mapping[str, Loss] | None = None
) -> tuple[Any, Any]:
    """The distiller and its optimiser, prepared by accelerate."""
    for parameter in memory_parameters(bench.model).values():
        parameter.data = parameter.data.float()  # as in a training run
    distiller = Distiller(bench.model, losses=losses)
    trained = [parameter for parameter in distiller.parameters() if parameter.requires_grad]
    return accelerator.prepare(distiller, torch.optim.AdamW(trained, lr=1e-5))


def _rows(bench: BenchModel, accelerator: Accelerator, tokens: int, rows: int) -> Tensor:
    generator = torch.Generator().manual_seed(accelerator.process_index)
    ids = torch.randint(bench.shape.vocabulary, (rows, tokens // rows), generator=generator)
    return ids.to(accelerator.device)


def _step(
    bench: BenchModel, accelerator: Accelerator, distiller: Any, optimizer: Any, ids: Tensor
) -> Callable[[], None]:
    budget = {"window": bench.settings.window, "num_sinks": bench.settings.num_sinks}

    def step() -> None:
        losses = distiller(ids, ids, **budget)
        accelerator.backward(losses.loss)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _measured(
    accelerator: Accelerator,
    step: Callable[[], None],
    ids: Tensor,
    steps: int,
) -> dict[str, Any]:
    device = accelerator.device
    row: dict[str, Any] = {
        "method": "ahn",
        "tokens": ids.numel(),
        "rows": len(ids),
        "processes": accelerator.num_processes,
    }
    gc.collect()
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    try:
        with peak_memory(device) as peak:
            row["warm_up_s"] = sum(_seconds(accelerator, step, WARM_UP))
            seconds = _seconds(accelerator, step, steps)
    except torch.OutOfMemoryError:
        return {**row, "error": "out of memory"}
    row["seconds"] = median(seconds)
    row["tokens_per_s"] = ids.numel() * accelerator.num_processes / row["seconds"]
    if peak:
        row["peak_over_weights_gib"] = (peak[0] - before) / 2**30
    return row


def _seconds(accelerator: Accelerator, step: Callable[[], None], count: int) -> list[float]:
    seconds = []
    for _ in range(count):
        accelerator.wait_for_everyone()
        synchronize(accelerator.device)
        start = time.perf_counter()
        step()
        synchronize(accelerator.device)
        seconds.append(time.perf_counter() - start)
    return seconds


def _add_costs(row: dict[str, Any], bench: BenchModel, ceilings: dict[str, float]) -> None:
    """Add TFLOP/s of a process, and their share of the matmul rate."""
    length = row["tokens"] // row["rows"]
    counted = max(0, length - bench.settings.budget)
    flops = row["rows"] * train_flops(bench.shape, length, bench.settings, counted)
    row["tflop_per_s"] = flops / row["seconds"] / 1e12
    if "matmul_tflop_per_s" in ceilings:
        row["share_of_matmul"] = row["tflop_per_s"] / ceilings["matmul_tflop_per_s"]


def _teacher(bench: BenchModel, accelerator: Accelerator, ids: Tensor) -> Iterator[dict[str, Any]]:
    """The teacher's forward pass; not of sharded weights, which only a step gathers."""
    if accelerator.distributed_type == "FSDP":
        return
    with torch.no_grad(), disabled(bench.model), accelerator.autocast():
        decoder = bench.model.get_decoder()
        seconds = median_seconds(
            lambda: decoder(input_ids=ids, use_cache=False), accelerator.device, repeats=3
        )
    speed = ids.numel() * accelerator.num_processes / seconds
    yield {
        "method": "teacher alone",
        "tokens": ids.numel(),
        "rows": len(ids),
        "processes": accelerator.num_processes,
        "seconds": seconds,
        "tokens_per_s": speed,
    }


def _original(bench: BenchModel, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The original code's row where it was measured at the same setting."""
    shape, settings = bench.shape, bench.settings
    sizes = (shape.layers, shape.hidden, settings.window, settings.num_sinks)
    is_single = row["rows"] == row["processes"] == 1
    if is_single and sizes == (36, 2048, 2048, 0) and row["tokens"] in ORIGINAL:
        speed, peak = ORIGINAL[row["tokens"]]
        yield {
            "method": "original code, one H200",
            "tokens": row["tokens"],
            "rows": 1,
            "processes": 1,
            "seconds": row["tokens"] / speed,
            "tokens_per_s": float(speed),
            "peak_over_weights_gib": peak,
        }
