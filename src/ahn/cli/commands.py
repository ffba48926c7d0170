"""The command line: parses, calls, prints."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from ahn.cli import ask, bench, chat, checkpoints, evaluate, offline, options, plan, serve, train
from ahn.cli.errors import OneLineErrors
from ahn.cli.output import Json, check_target, examples, print_json
from ahn.startup import INTERRUPTED, started_as_program
from ahn.versions import warn_of_untried_versions

# Spellings of the original code, read at the command line and nowhere else.
LEGACY = {"sliding-window": "window", "num-attn-sinks": "num-sinks"}

# Read by transformers and huggingface_hub when a command imports them.
QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_VERBOSITY": "error",
    "TRANSFORMERS_VERBOSITY": "error",
}

HELP = ["-h", "--help"]

app = typer.Typer(
    name="ahn",
    cls=OneLineErrors,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="A bounded memory for long context, for any Hugging Face decoder.",
    context_settings={
        "token_normalize_func": lambda name: LEGACY.get(name, name),
        "help_option_names": HELP,
    },
    epilog=examples(
        "ahn demo",
        "ahn generate --model embedded --prompt 'def read(path):'",
        "ahn COMMAND --help",
    ),
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
    if started_as_program():  # elsewhere `import ahn` has done it
        warn_of_untried_versions()


@app.command(epilog=examples("ahn demo", "ahn demo --text book.txt --steps 0 --json"))
def demo(
    text: options.Text = None,
    tokens: options.Tokens = 8192,
    haystacks: options.Haystacks = 2,
    steps: options.Steps = 16,
    png: options.Png = Path("ahn-demo.png"),
    seed: options.DemoSeed = 0,
    as_json: Json = False,
) -> None:
    """Show what a bounded memory recalls and recovers, in about three minutes on two cores.

    Facts are hidden in long texts and asked for at their ends. Then bits per byte of plain text
    beyond the budget. With full attention, the window alone, a larger window of as many bytes as
    the slots, each memory shipped with the package, and one distilled while you watch. --json, or
    a pipe, gives all figures as one line of JSON.
    """
    from rich.console import Console

    from ahn.demo import DemoSettings, print_result, run_demo
    from ahn.io.progress import progress
    from ahn.plots import demo_figure

    check_target("--png", png)
    with progress("") as report:
        result = run_demo(DemoSettings(text, tokens, haystacks, steps, seed), report)
    demo_figure(result.to_dict(), png)
    if not as_json:
        print_result(result, Console())
        print(f"The picture is in {png}.")
    print_json(result.to_dict(), as_json)


@app.command(
    epilog=examples(
        "ahn generate --model embedded --prompt 'def read(path):'",
        "cat book.txt | ahn generate --model BASE --memory MEMORY -",
        "ahn generate --model BASE --file book.txt --memory MEMORY --temperature 0.7 --seed 1",
        "ahn generate --engine vllm --model merged --prompts prompts.jsonl > answers.jsonl",
    )
)
def generate(
    model: options.Model,
    source: options.Source = None,
    prompt: options.Prompt = None,
    file: options.File = None,
    prompts: options.Prompts = None,
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
    engine: options.Engine = offline.TRANSFORMERS,
) -> None:
    """Continue a prompt from exactly one of --prompt, --file and - (standard input), or --prompts.

    A prompt from a file or standard input is read in chunks: memory use does not depend on its
    length, and its tokens are those of the uncut text.
    """
    of_transformers = {
        "--memory": memory,
        "--window": window,
        "--num-sinks": num_sinks,
        "--prefill-chunk-size": prefill_chunk_size,
        "--device": device,
        "--liger": liger,
    }
    if offline.is_vllm(engine, of_transformers):
        sampling = offline.Sampling(max_new_tokens, temperature, top_k, top_p, seed)
        with _prompt(source, prompt, file, prompts) as texts:
            if prompts is None:
                offline.print_answer(model, texts, sampling, dtype)
            else:
                offline.print_answers(model, prompts, sampling, dtype)
        return
    if prompts is not None:
        raise ValueError(f"--prompts: expected --engine vllm to go with it, got {engine}")
    import torch

    from ahn.cli.answer import Answering, ModelChoice, answer, load

    answering = Answering(max_new_tokens, prefill_chunk_size, temperature, top_k, top_p)
    with _prompt(source, prompt, file) as texts:
        loaded = load(ModelChoice(model, memory, window, num_sinks, dtype, device, liger))
        if seed is not None:
            torch.manual_seed(seed)
        size = None if file is None else file.stat().st_size
        answer(loaded, texts, answering, size)


app.command(epilog=ask.EXAMPLES)(ask.ask)
app.command(epilog=chat.EXAMPLES)(chat.chat)
app.command(epilog=plan.EXAMPLES)(plan.plan)
for _command, _epilog in (checkpoints.COMMANDS | serve.COMMANDS).items():
    app.command(epilog=_epilog)(_command)
app.add_typer(bench.app)
for _name, (_function, _epilog) in evaluate.COMMANDS.items():
    app.command(_name, epilog=_epilog)(_function)
app.command(context_settings=train.SETTINGS)(train.train)


@contextmanager
def _prompt(
    source: str | None, prompt: str | None, file: Path | None, prompts: Path | None = None
) -> Iterator[Iterator[str]]:
    """The prompt in chunks of text, from the one place it was given in; none of `prompts`."""
    from ahn.io.text import text_chunks

    if source not in (None, "-"):
        raise ValueError(f"command line: expected - for standard input, got {source!r}")
    given = sum(x is not None for x in (source, prompt, file, prompts))
    if given != 1:
        raise ValueError(f"prompt: expected exactly one of --prompt, --file and -, got {given}")
    if prompts is not None:
        yield iter(())
    elif prompt is not None:
        yield iter([prompt])
    elif file is not None:
        with file.open("rb") as opened:
            yield text_chunks(opened, str(file))
    else:
        yield text_chunks(sys.stdin.buffer, "standard input")
