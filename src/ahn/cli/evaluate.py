"""`ahn eval` and `ahn report`: run benchmarks with controls, and show what came of them."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from ahn.cli import options

Tasks = Annotated[
    list[str],
    Argument(
        metavar="TASK...",
        help="needle, ppl, lveval, longbench-6, longbench, infinitebench-qa, ruler, or any task, "
        "group or tag of lm-eval.",
    ),
]
Output = Annotated[Path, Option(help="Folder of the runs; one of the same command goes on.")]
Memories = Annotated[
    list[str] | None,
    Option(
        help=f"Folder or hub name of a memory; for {options.NAMES} also the cell of one of its "
        "own; repeatable."
    ),
]
Methods = Annotated[
    str,
    Option(
        help="With commas: ahn, full (attention), window (memory off), compressive-max and "
        "compressive-avg (what leaves the window, pooled 4 to 1), ahn-shuffled (a control: "
        "the memory's contents under shuffled addresses, for tasks that do not generate)."
    ),
]
BatchSize = Annotated[int, options.at_least(1, "Samples a batch.")]
ChunkSize = Annotated[int, options.at_least(1, "Tokens of a text in one forward.")]
MaxLength = Annotated[
    int | None,
    options.at_least(1, "Tokens; longer samples are skipped, counted and reported."),
]
Samples = Annotated[
    int | None,
    options.at_least(
        1,
        "The most of each task; of ruler and lveval of each length, of needle haystacks of "
        "each length, of ppl documents.",
    ),
]
Lengths = Annotated[
    Any,
    options.several(
        2, "Tokens, with commas: of needle, ruler, lveval (16384 is its 16k); ppl: the largest."
    ),
]
Depths = Annotated[
    Any,
    options.several(0, "Of needles: 0 first, 1 last.", kind=float),
]
Texts = Annotated[
    list[str] | None,
    Option(help="File or folder for needle and ppl, stdlib:MODULE or pg19; repeatable."),
]
Data = Annotated[
    Path | None,
    Option(help="Folder with the data sets' own files, NAME.jsonl or ruler's, instead of the hub."),
]
EvalSeed = Annotated[int, options.at_least(0, "Of all samples.")]
ChatTemplate = Annotated[bool, Option(help="Put prompts into the model's chat template.")]
Folders = Annotated[list[Path], Argument(metavar="DIR...", help="What `ahn eval` wrote.")]


def evaluate(
    tasks: Tasks,
    model: options.Model,
    output: Output,
    memory: Memories = None,
    methods: Methods = "ahn,window,full",
    window: options.Window = None,
    num_sinks: options.NumSinks = None,
    batch_size: BatchSize = 1,
    max_length: MaxLength = None,
    prefill_chunk_size: ChunkSize = 2048,
    samples: Samples = None,
    lengths: Lengths = None,
    depths: Depths = None,
    text: Texts = None,
    data: Data = None,
    seed: EvalSeed = 0,
    chat_template: ChatTemplate = False,
    dtype: options.Dtype = "auto",
    device: options.Device = None,
) -> None:
    """Run benchmarks on a model with every method; a killed run goes on where it stopped.

    Each run gets a folder below --output with settings, versions, seeds, samples and scores.
    Over several devices: accelerate launch -m ahn eval ... .
    """
    _prepare()
    from ahn.evaluation.runs import Grid, Suite, evaluate_grid

    texts = None if not text else tuple(text)
    suite = Suite(tuple(tasks), lengths, depths, samples, texts, data, seed)
    settings = {
        "batch_size": batch_size,
        "max_length": max_length,
        "prefill_chunk_size": prefill_chunk_size,
        "dtype": dtype,
        "device": device,
    }
    memories, names = tuple(memory or ()), tuple(methods.split(","))
    evaluate_grid(
        Grid(model, memories, names, window, num_sinks, settings, chat_template), suite, output
    )


def report(
    folders: Folders,
    output: Annotated[Path, Option(help="A new or empty folder for the report.")],
) -> None:
    """Compare finished runs with each other and with the paper: Markdown, JSON, PNG and SVG."""
    from ahn.evaluation.report import write_report

    written = write_report(folders, output)
    benchmarks = ", ".join(written["benchmarks"])
    print(f"{output / 'report.md'}: {len(written['runs'])} runs, {benchmarks}")


def _prepare() -> None:
    """Quiet what lm-eval says of itself; ValueError where it is not installed."""
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    try:
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise ValueError("ahn eval: expected pip install 'ahn[eval]', got no lm-eval") from error


COMMANDS: dict[str, Callable[..., None]] = {"eval": evaluate, "report": report}
