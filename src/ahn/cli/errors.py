"""What a user sees when something is wrong: one line, and an exit code that says what kind."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterable
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from ahn.startup import INTERRUPTED

USER_ERROR = 2
_NO_MEMORY = re.compile("not enough memory|[Cc]an't allocate memory|CUDA out of memory")
# Typer brings its own click since 0.20: its usage error is reached through a public subclass.
UsageError: Any = typer.BadParameter.__base__
# How click says what this package says as "expected ..., got ...".
_PHRASES = (
    (r"Invalid value for '(\S+)': (.+)", r"\1: \2"),
    (r"No such option: (\S+).*", r"command line: expected an option of --help, got \1"),
    (r"No such command (\S+)\..*", r"command line: expected a command of --help, got \1"),
    (r"Missing (?:option|argument) '(\S+)'\.", r"\1: expected a value, got none"),
    (r"Option '(\S+)' requires an argument\.", r"\1: expected a value, got none"),
    (r"Missing command\.", "command line: expected a command of --help, got none"),
    (r"Got unexpected extra argument\S* \((.+)\)", r"command line: expected no more, got '\1'"),
)


class OneLineErrors(TyperGroup):
    """A command group that ends with 2 and one line on stderr where the user can do better.

    Those are usage errors, ValueError, OSError and memory that does not suffice; Ctrl-C ends with
    130 and says nothing. Any other exception is a fault of the package and keeps its traceback.
    """

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Run a command line and exit."""
        kwargs["standalone_mode"] = False
        try:
            code = super().main(*args, **kwargs)
        except UsageError as error:
            _fail(_in_our_words(error.format_message()) + _suggestion(error))
        except OSError as error:
            what = f"{error.filename}: " if error.filename else ""
            _fail(f"{what}expected a file that can be used, got: {error.strerror or error}")
        except ValueError as error:
            _fail(str(error))
        except (MemoryError, RuntimeError) as error:
            if (message := out_of_memory(error)) is None:
                raise
            _fail(message)
        except typer.Abort:  # what older typers make of Ctrl-C
            sys.exit(INTERRUPTED)
        sys.exit(code or 0)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A word in brackets for what is likely a slip of the pen, or nothing."""
    close = difflib.get_close_matches(word, list(known), 1)
    return f" (did you mean {close[0]}?)" if close else ""


def _suggestion(error: Any) -> str:
    """Suggest known options or commands that resemble an unknown one."""
    if error.ctx is None:
        return ""
    if (option := getattr(error, "option_name", None)) and "No such option" in str(error):
        return did_you_mean(option, [x for p in error.ctx.command.params for x in p.opts])
    if word := re.match(r"No such command '(\S+)'", error.format_message()):
        return did_you_mean(word[1], getattr(error.ctx.command, "commands", ()))
    return ""


SMALLER = (
    "a smaller window, chunk, batch or dtype (--window, --prefill-chunk-size, --batch-size, "
    "--dtype) or a smaller model fits"
)


def out_of_memory(error: BaseException, fits: str = SMALLER) -> str | None:
    """The message for an out-of-memory error; None for any other error.

    Args:
        fits: what would fit.
    """
    text = str(error)
    is_gpu = type(error).__name__ == "OutOfMemoryError"
    if not (is_gpu or isinstance(error, MemoryError) or _NO_MEMORY.search(text)):
        return None
    wanted = re.search(r"allocate ([\d.]+ \w+)", text)
    size = wanted[1] if wanted else "more"
    return f"memory: expected {size} free on the {'GPU' if is_gpu else 'CPU'}, got less; {fits}"


def _fail(message: str) -> NoReturn:
    print("error:", " ".join(message.split()), file=sys.stderr)
    sys.exit(USER_ERROR)


def _in_our_words(message: str) -> str:
    for pattern, phrase in _PHRASES:
        if match := re.fullmatch(pattern, message, re.DOTALL):
            return match.expand(phrase)
    return message
