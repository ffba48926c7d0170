"""How long a user waits for answers about a text, from the first command to the second one.

`python benchmarks/first_answer.py BOOK [--tokens N] [--window N] [--model NAME]`: the beginning of
a UTF-8 file is read by `ahn ask`, asked about, kept, and asked about again by another process.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ahn.checkpoint import load_tokenizer
from report import write_result

QUESTIONS = ("Who tells this story?", "Where does it take place?")
LONGEST = 32  # tokens of an answer


def beginning(book: Path, model: str, tokens: int) -> str:
    """The first tokens of a text."""
    tokenizer = load_tokenizer(model)
    text = book.read_text(encoding="utf-8")[: 8 * tokens]
    return tokenizer.decode(tokenizer(text, verbose=False)["input_ids"][:tokens])


def asked(*arguments: object) -> dict[str, object]:
    """What a command says, and the seconds that it took from its start to its end."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "ahn", "ask", *map(str, arguments), "--json"]
    facts = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    return {**facts, "command_seconds": time.perf_counter() - began}


def main() -> None:
    """Measure, and write `results/first_answer.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("book", type=Path)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--tokens", type=int, default=30_000)
    parser.add_argument("--window", type=int, default=1024)
    arguments = parser.parse_args()
    text = beginning(arguments.book, arguments.model, arguments.tokens)
    with tempfile.TemporaryDirectory() as folder:
        file, kept = Path(folder, "book.txt"), Path(folder, "kept")
        file.write_text(text, encoding="utf-8")
        common = ["--model", arguments.model, "--window", arguments.window, "--session", kept]
        common += ["--max-new-tokens", LONGEST]
        first = asked(*common, "--file", file, "--question", QUESTIONS[0])
        later = asked(*common, "--question", QUESTIONS[0], "--question", QUESTIONS[1])
    assert first["answers"][0]["answer"] == later["answers"][0]["answer"]  # type: ignore[index]
    result = {
        "book": arguments.book.name,
        "text_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "window": arguments.window,
        "first": first,
        "from_the_session": later,
    }
    write_result("first_answer", result)


if __name__ == "__main__":
    main()
