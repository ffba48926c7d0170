"""Commands as tests call them."""

from __future__ import annotations

import inspect
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from typer.testing import CliRunner

import standin
from ahn.cli import app

PROMPT = standin.PARAGRAPH


# Before 8.2 click gives stdout and stderr as one unless told, and does not ask for the last of it.
APART = {"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner).parameters else {}


class Runner(CliRunner):
    """Stdout and stderr apart, and whole, with every click."""

    def __init__(self):
        super().__init__(**APART)

    @contextmanager
    def isolation(self, *arguments, **options):
        with super().isolation(*arguments, **options) as streams:
            sys.stderr.reconfigure(write_through=True)
            yield streams


def call(*arguments, **options):
    return Runner().invoke(app, [str(x) for x in arguments], **options)


def generated(*arguments, **options):
    """The answer of `ahn generate`, which must succeed without a word on stderr."""
    result = call("generate", "--max-new-tokens", 12, *arguments, **options)
    assert result.exit_code == 0 and not result.stderr, (result.stderr, result.exception)
    return result.stdout


def error(*arguments, **options):
    """The one line of a command that must fail with 2 and print nothing else."""
    result = call(*arguments, **options)
    assert result.exit_code == 2 and not result.stdout, (result.stdout, result.exception)
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    return result.stderr


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Within the context a file cannot grow beyond `size` bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
