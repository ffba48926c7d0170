"""`ahn bench train`: a step of distillation."""

from __future__ import annotations

from typing import Annotated, Any

from typer import Option

from ahn.cli.bench import options
from ahn.cli.bench.result import report
from ahn.cli.bench.setup import Setup, placed
from ahn.cli.options import Device, Liger, at_least, several
from ahn.cli.output import Json, check_target
from ahn.io.progress import progress


def train(
    model: options.Model = "qwen2.5-3b",
    lengths: Annotated[Any, several(2, "Tokens of a step, with commas.")] = "24576",
    rows: Annotated[int, at_least(1, "Texts that the tokens are cut into.")] = 1,
    steps: Annotated[int, at_least(1, "Steps to time; their median counts.")] = 5,
    memory: options.Cell = "GatedDeltaNet",
    window: options.Window = 2048,
    num_sinks: options.Sinks = 0,
    kernels: Annotated[str, Option(help="Of all ops: auto, triton, fla or torch.")] = "auto",
    liger: Liger = False,
    strategy: Annotated[str, Option(help="Of several processes: ddp or fsdp2.")] = "ddp",
    profile: Annotated[
        bool, Option("--profile", help="Time of each kernel of a step of the first length instead.")
    ] = False,
    dtype: options.Dtype = "bfloat16",
    device: Device = None,
    out: options.Out = None,
    as_json: Json = False,
) -> None:
    """A step of distillation; under torchrun, of all processes together."""
    check_target("--out", out)
    from ahn.bench.train import accelerator, bench_train, profile_train

    runner = accelerator(strategy, *placed(device, dtype))
    setup = Setup(model, memory, window, num_sinks, dtype, str(runner.device), liger, kernels)
    known: dict[str, Any] = {"rows": rows, "steps": steps}
    with progress("lengths") as shown:
        report_to = shown if runner.is_main_process else None
        built, ceilings = setup.build(report_to)
        if profile:
            measured = profile_train(built, runner, next(iter(lengths)), rows)
        else:
            known |= {"ceilings": ceilings, "report": report_to}
            measured = bench_train(built, runner, list(lengths), **known)
    if runner.is_main_process:
        facts = {"strategy": strategy, "liger": liger, "kernels": kernels, **setup.facts(built)}
        report("train", measured, ceilings, out, facts, as_json)
    runner.end_training()
