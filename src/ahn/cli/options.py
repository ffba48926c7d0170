"""The options of the commands: their types, ranges and help."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, BadParameter, Option

from ahn.checkpoint.named_models import NAMED_MODELS

NAMES = " or ".join(NAMED_MODELS)
DEFAULTS = ", ".join(
    f"{name}: {model.default_memory or 'none'}" for name, model in NAMED_MODELS.items()
)


def integer(minimum: int) -> Callable[[str], int]:
    """Parser of an integer >= `minimum`; raises BadParameter in this package's words."""

    def parse(value: str) -> int:
        try:
            number = int(value)
        except ValueError:
            number = minimum - 1
        if number < minimum:
            raise BadParameter(f"expected an integer >= {minimum}, got {value!r}")
        return number

    return parse


def rows(value: str) -> int | str:
    """An integer >= 1 or the word auto; raises BadParameter in this package's words."""
    return value if value == "auto" else integer(1)(value)


def numbers(kind: type, minimum: float) -> Callable[[str], Any]:
    """Parser of comma-separated numbers >= `minimum`."""

    def parse(value: str) -> Any:
        try:
            values = tuple(kind(part) for part in value.split(","))
        except ValueError:
            values = ()
        if not values or min(values) < minimum:
            raise BadParameter(f"expected numbers >= {minimum} with commas, got {value!r}")
        return values

    return parse


def at_least(minimum: int, help: str) -> Any:
    """Option of an integer >= `minimum`."""
    return Option(parser=integer(minimum), metavar="N", help=help)


def several(minimum: float, help: str, kind: type = int) -> Any:
    """Option of comma-separated numbers >= `minimum`."""
    metavar = "N,N" if kind is int else "X,X"
    return Option(parser=numbers(kind, minimum), metavar=metavar, help=help)


def share(value: str) -> float:
    """A number above 0 and at most 1; raises BadParameter in this package's words."""
    if not 0 < _number(value) <= 1:
        raise BadParameter(f"expected a number above 0 and at most 1, got {value!r}")
    return float(value)


def not_negative(value: str) -> float:
    """A finite number >= 0; raises BadParameter in this package's words."""
    if not 0 <= _number(value) < float("inf"):
        raise BadParameter(f"expected a number >= 0, got {value!r}")
    return float(value)


def _number(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        return float("nan")  # in no range


DTYPES = ("auto", "float32", "bfloat16", "float16")


def dtype_name(value: str) -> str:
    """One of `DTYPES`; raises BadParameter in this package's words."""
    if value not in DTYPES:
        raise BadParameter(f"expected one of {', '.join(DTYPES)}, got {value!r}")
    return value


Text = Annotated[
    Path | None, Option(help="UTF-8 file to read instead of held-out standard library modules.")
]
Tokens = Annotated[int, at_least(1, "The most tokens of plain text to read each way.")]
Haystacks = Annotated[
    int, at_least(0, "Long texts with hidden facts to read each way; 0 leaves them out.")
]
Steps = Annotated[
    int,
    at_least(0, "Steps of the live distillation; 0 leaves it out."),
]
Png = Annotated[Path, Option(help="Picture to write.")]
DemoSeed = Annotated[int, at_least(0, "Of the facts and the live distillation.")]

Model = Annotated[str, Option(help=f"Folder, name on the Hugging Face hub, or the word {NAMES}.")]
Source = Annotated[
    str | None, Argument(metavar="-", help="- reads the prompt from standard input.")
]
Prompt = Annotated[str | None, Option(help="The prompt itself.")]
File = Annotated[Path | None, Option(help="UTF-8 file with the prompt.")]
Prompts = Annotated[
    Path | None,
    Option(
        help="JSONL file of prompts, each a string or an object with a prompt, answered at once "
        "with a line of JSON each. With --engine vllm."
    ),
]
Engine = Annotated[
    str,
    Option(help="transformers, or vllm for folders of ahn merge: many prompts at once."),
]
Files = Annotated[
    list[Path] | None,
    Option(
        "--file",
        metavar="FILE",
        help="A text to read, several if given again: UTF-8, or by its name .pdf or .html.",
    ),
]
StandardInput = Annotated[
    str | None, Argument(metavar="-", help="- reads a text from standard input, after the files.")
]
Questions = Annotated[
    list[str] | None,
    Option(
        "--question",
        metavar="TEXT",
        help="What to ask, several if given again: each as if asked first.",
    ),
]
System = Annotated[str | None, Option(help="The system prompt.")]
Plain = Annotated[
    bool, Option("--plain", help="Use no chat template: what is asked continues the text.")
]
SessionFolderOption = Annotated[
    Path | None,
    Option(
        "--session",
        help="Folder that keeps what was read, so that it is read once; made where it is missing.",
    ),
]
Memory = Annotated[
    str | None,
    Option(
        help=f"Folder or hub name of a memory; for the model {NAMES} also the cell of one of its "
        f"own (default, {DEFAULTS}). A merged model has its own. The word none, the default of "
        "every other model, leaves it out."
    ),
]
Window = Annotated[
    int | None,
    at_least(
        1,
        "Tokens seen exactly; wins over the memory's own. A model without a memory sees "
        "window and sinks alone, or everything (full attention) where this is left out.",
    ),
]
NumSinks = Annotated[
    int | None,
    at_least(
        0, "First tokens always seen; wins over the memory's own, 128 where there is no memory."
    ),
]
PrefillChunkSize = Annotated[
    int | None,
    at_least(
        1,
        "Tokens of the prompt read at a time; left out, 2048 on a CPU, and on a GPU chosen by "
        "the memory that is free.",
    ),
]
MaxNewTokens = Annotated[int, at_least(1, "The longest answer.")]
Temperature = Annotated[
    float, Option(parser=not_negative, metavar="X", help="0 takes the likeliest token.")
]
TopK = Annotated[int, at_least(0, "Sample among this many tokens; 0: among all.")]
TopP = Annotated[
    float, Option(parser=share, metavar="X", help="Sample among this much probability; 1: all.")
]
Seed = Annotated[int | None, at_least(0, "Makes sampling repeatable.")]
Dtype = Annotated[
    str, Option(parser=dtype_name, help="auto (as saved), float32, bfloat16 or float16.")
]
Device = Annotated[str | None, Option(help="cpu, cuda, ...; left out, the GPU if there is one.")]
Liger = Annotated[
    bool,
    Option("--liger/--no-liger", help="Run the base's norms, RoPE and MLP by Liger-Kernel."),
]
