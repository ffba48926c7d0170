"""What a user sees when something is wrong: one line, and an exit code that says what kind."""

from __future__ import annotations

import re
import sys
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

USER_ERROR, INTERRUPTED = 2, 130
# Typer brings its own click since 0.20: its usage error is reached through a public subclass.
UsageError: Any = typer.BadParameter.__base__
# How click says what this package says as "expected ..., got ...".
_PHRASES = (
    (r"Invalid value for '(\S+)': (.+)", r"\1: \2"),
    (r"No such option: (\S+).*", r"command line: expected an option of --help, got \1"),
    (r"No such command (\S+)\.", r"command line: expected a command of --help, got \1"),
    (r"Missing (?:option|argument) '(\S+)'\.", r"\1: expected a value, got none"),
    (r"Option '(\S+)' requires an argument\.", r"\1: expected a value, got none"),
    (r"Missing command\.", "command line: expected a command of --help, got none"),
    (r"Got unexpected extra argument\S* \((.+)\)", r"command line: expected no more, got '\1'"),
)


class OneLineErrors(TyperGroup):
    """A command group that ends with 2 and one line on stderr where the user can do better.

    Those are usage errors, ValueError and OSError; Ctrl-C ends with 130 and says nothing. Any
    other exception is a fault of the package and keeps its traceback.
    """

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Run a command line and exit."""
        kwargs["standalone_mode"] = False
        try:
            code = super().main(*args, **kwargs)
        except UsageError as error:
            _fail(_in_our_words(error.format_message()))
        except OSError as error:
            what = f"{error.filename}: " if error.filename else ""
            _fail(f"{what}expected a file that can be used, got: {error.strerror or error}")
        except ValueError as error:
            _fail(str(error))
        except typer.Abort:  # what older typers make of Ctrl-C
            sys.exit(INTERRUPTED)
        sys.exit(code or 0)


def _fail(message: str) -> NoReturn:
    print("error:", " ".join(message.split()), file=sys.stderr)
    sys.exit(USER_ERROR)


def _in_our_words(message: str) -> str:
    for pattern, phrase in _PHRASES:
        if match := re.fullmatch(pattern, message, re.DOTALL):
            return match.expand(phrase)
    return message
