"""The command line: parses, calls, prints."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from ahn.cli import bench, checkpoints, evaluate, options, train
from ahn.cli.errors import INTERRUPTED, OneLineErrors

# Spellings of the original code, read at the command line and nowhere else.
LEGACY = {"sliding-window": "window", "num-attn-sinks": "num-sinks"}

# Read by transformers and huggingface_hub when a command imports them.
QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_VERBOSITY": "error",
    "TRANSFORMERS_VERBOSITY": "error",
}

app = typer.Typer(
    name="ahn",
    cls=OneLineErrors,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="A bounded memory for long context, for any Hugging Face decoder.",
    context_settings={"token_normalize_func": lambda name: LEGACY.get(name, name)},
)


def main() -> None:
    """Entry point of the `ahn` command."""
    try:
        app(prog_name="ahn")
    except KeyboardInterrupt:  # outside of a command, which handles its own
        sys.exit(INTERRUPTED)


def _print_version(wanted: bool) -> None:
    if wanted:
        from ahn import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def _before_every_command(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """A bounded memory for long context, for any Hugging Face decoder."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"


@app.command()
def demo(
    text: options.Text = None,
    tokens: options.Tokens = 16384,
    steps: options.Steps = 32,
    png: options.Png = Path("ahn-demo.png"),
    seed: options.DemoSeed = 0,
) -> None:
    """Measure on real text what a bounded memory recovers, in about two minutes on two cores.

    Bits per byte beyond the budget with full attention, with the window alone, with each memory
    shipped with the package and with one distilled while you watch. The last line of the output
    is one JSON object with all figures.
    """
    from rich.console import Console

    from ahn.demo import DemoSettings, print_result, progress, run_demo
    from ahn.plots import demo_figure

    _check_target(png)
    with progress(Console(stderr=True)) as report:
        result = run_demo(DemoSettings(text, tokens, steps, seed), report)
    print_result(result, Console())
    demo_figure(result.to_dict(), png)
    print(f"The picture is in {png}.")
    print(json.dumps(result.to_dict()))


@app.command()
def generate(
    model: options.Model,
    source: options.Source = None,
    prompt: options.Prompt = None,
    file: options.File = None,
    memory: options.Memory = None,
    window: options.Window = None,
    num_sinks: options.NumSinks = None,
    prefill_chunk_size: options.PrefillChunkSize = None,
    max_new_tokens: options.MaxNewTokens = 128,
    temperature: options.Temperature = 0.0,
    top_k: options.TopK = 0,
    top_p: options.TopP = 1.0,
    seed: options.Seed = None,
    dtype: options.Dtype = "auto",
    device: options.Device = None,
    liger: options.Liger = False,
) -> None:
    """Continue a prompt from exactly one of --prompt, --file and - (standard input).

    A prompt from a file or standard input is cut at line ends into chunks of 64 KiB, and each
    chunk is tokenised by itself: memory use does not depend on the prompt's length, but tokens at
    those cuts can differ from those of the uncut text.
    """
    import torch

    from ahn.cli.answer import Answering, ModelChoice, answer, load

    answering = Answering(max_new_tokens, prefill_chunk_size, temperature, top_k, top_p)
    with _prompt(source, prompt, file) as texts:
        loaded = load(ModelChoice(model, memory, window, num_sinks, dtype, device, liger))
        if seed is not None:
            torch.manual_seed(seed)
        answer(loaded, texts, answering)


for _command in checkpoints.COMMANDS:
    app.command()(_command)
app.add_typer(bench.app)
for _name, _function in evaluate.COMMANDS.items():
    app.command(_name)(_function)
app.command(context_settings=train.SETTINGS)(train.train)


@contextmanager
def _prompt(source: str | None, prompt: str | None, file: Path | None) -> Iterator[Iterator[str]]:
    """The prompt in chunks of text, from the one place it was given in."""
    from ahn.io.text import text_chunks

    if source not in (None, "-"):
        raise ValueError(f"command line: expected - for standard input, got {source!r}")
    given = sum(x is not None for x in (source, prompt, file))
    if given != 1:
        raise ValueError(f"prompt: expected exactly one of --prompt, --file and -, got {given}")
    if prompt is not None:
        yield iter([prompt])
    elif file is not None:
        with file.open("rb") as opened:
            yield text_chunks(opened, str(file))
    else:
        yield text_chunks(sys.stdin.buffer, "standard input")


def _check_target(path: Path) -> None:
    """Refuse a picture that cannot be written before the minutes of measuring, not after."""
    folder = path.parent
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ValueError(f"--png: expected a file in a folder that can be written, got {path}")
