"""Commands as tests call them."""

from __future__ import annotations

from typer.testing import CliRunner

import standin
from ahn.cli import app

PROMPT = standin.PARAGRAPH


def call(*arguments, **options):
    return CliRunner().invoke(app, [str(x) for x in arguments], **options)


def generated(*arguments, **options):
    """The answer of `ahn generate`, which must succeed without a word on stderr."""
    result = call("generate", "--max-new-tokens", 12, *arguments, **options)
    assert result.exit_code == 0 and not result.stderr, (result.stderr, result.exception)
    return result.stdout


def error(*arguments, **options):
    """The one line of a command that must fail with 2 and print nothing else."""
    result = call(*arguments, **options)
    assert result.exit_code == 2 and not result.stdout, result.output
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    return result.stderr
