"""`ahn eval` and `ahn report`: run benchmarks with controls, and show what came of them."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from ahn.cli import offline, options
from ahn.cli.output import Json, check_folder, examples

Tasks = Annotated[
    list[str],
    Argument(
        metavar="TASK...",
        help="needle, recall, recall-chat, ppl, lveval, longbench-6, longbench, infinitebench-qa, "
        "ruler, ruler-local, or any task, group or tag of lm-eval.",
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
METHODS, CHUNK_SIZE = "ahn,window,full", 2048  # left out
Methods = Annotated[
    str | None,
    Option(
        help=f"With commas, {METHODS} left out: ahn, full (attention), window (memory off), "
        "compressive-max and compressive-avg (what leaves the window, pooled 4 to 1). Controls: "
        "ahn-shuffled (states under shuffled addresses) and ahn-no-state; of exact slots "
        "ahn-newest and ahn-random (other choices of the same bytes), ahn-exchanged (keys with "
        "others' values) and ahn-no-slots. Controls are for tasks that do not generate, the two "
        "other choices apart."
    ),
]
BatchSize = Annotated[
    Any,
    Option(
        parser=options.rows,
        metavar="N",
        help="Samples a batch, 1 left out, or auto: what fits. vLLM finds it by itself.",
    ),
]
ChunkSize = Annotated[
    int | None,
    options.at_least(1, f"Tokens of a text in one forward; left out, {CHUNK_SIZE}."),
]
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
    methods: Methods = None,
    window: options.Window = None,
    num_sinks: options.NumSinks = None,
    batch_size: BatchSize = None,
    max_length: MaxLength = None,
    prefill_chunk_size: ChunkSize = None,
    samples: Samples = None,
    lengths: Lengths = None,
    depths: Depths = None,
    text: Texts = None,
    data: Data = None,
    seed: EvalSeed = 0,
    chat_template: ChatTemplate = False,
    dtype: options.Dtype = "auto",
    device: options.Device = None,
    as_json: Json = False,
    engine: options.Engine = offline.TRANSFORMERS,
) -> None:
    """Run benchmarks on a model with every method; a killed run goes on where it stopped.

    Each run gets a folder below --output with settings, versions, seeds, samples and scores.
    Over several devices: accelerate launch -m ahn eval ... .
    """
    check_folder("--output", output)
    of_transformers = {
        "--memory": memory,
        "--window": window,
        "--num-sinks": num_sinks,
        "--batch-size": batch_size,
        "--prefill-chunk-size": prefill_chunk_size,
        "--device": device,
    }
    settings: dict[str, Any] = {"max_length": max_length, "dtype": dtype}
    if offline.is_vllm(engine, of_transformers):
        names = _of_vllm(methods)
    else:
        names = tuple((methods or METHODS).split(","))
        settings["batch_size"] = 1 if batch_size is None else batch_size
        settings["prefill_chunk_size"] = prefill_chunk_size or CHUNK_SIZE
        settings["device"] = device
    _prepare()
    from ahn.evaluation.runs import Grid, Suite, evaluate_grid

    texts = None if not text else tuple(text)
    suite = Suite(tuple(tasks), lengths, depths, samples, texts, data, seed)
    memories = tuple(memory or ())
    grid = Grid(model, memories, names, window, num_sinks, settings, chat_template, engine)
    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        folders = evaluate_grid(grid, suite, output)
    if as_json:
        print(json.dumps({each.path.name: each.results()["tasks"] for each in folders}))


def _of_vllm(methods: str | None) -> tuple[str, ...]:
    """The one method that a merged folder has in vLLM; ValueError where others are asked for."""
    if methods not in (None, "ahn"):
        raise ValueError(f"--methods: expected ahn with --engine {offline.VLLM}, got {methods}")
    return ("ahn",)


def report(
    folders: Folders,
    output: Annotated[Path, Option(help="A new or empty folder for the report.")],
) -> None:
    """Compare finished runs with each other and with the paper: Markdown, JSON, PNG and SVG."""
    check_folder("--output", output)
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


COMMANDS: dict[str, tuple[Callable[..., None], str]] = {
    "eval": (
        evaluate,
        examples(
            "ahn eval needle ppl --model embedded --memory DeltaNet --output runs",
            "ahn eval needle ppl --engine vllm --model merged --output runs",
            "ahn eval ruler --model BASE --memory MEMORY --lengths 4096,8192 --output runs",
        ),
    ),
    "report": (report, examples("ahn report runs --output report")),
}
