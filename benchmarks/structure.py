"""Counts what a reader of the source meets: rooms, imports, sizes, and how often a thing is told.

    python benchmarks/structure.py [--source src/ahn] [--out FILE.json]

Prints one JSON object. `git worktree add` brings an earlier commit to compare with.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

# A line counts once for each kind it matches; docstrings and comments are left out.
TOLD = {
    "tests a mode": re.compile(
        r"\bmode\b\)?\s*(==|!=|is\b|is not\b|in\b|not in\b)"
        r"|\bin POOLED\b|\.is_bounded\b|\.uses_memory\b|\.decodes_in_place\b"
    ),
    "asks whether Triton can run": re.compile(r"find_spec\(.triton.\)"),
    "says why something cannot run": re.compile(r"def \w*(why_not|why_no_|unsupported_reason)\w*"),
    "says embedded": re.compile(r"\b_?embedded\w*\b|\bEMBEDDED\w*\b", re.IGNORECASE),
    "converts an index to a position": re.compile(r"-\s*[\w.]*padding\b(?!\))|- padding\."),
}


def source_lines(text: str) -> list[str]:
    """The lines of a module without docstrings and comments."""
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            value = body[0].value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                for number in range(body[0].lineno - 1, body[0].end_lineno or 0):
                    lines[number] = ""
    return [line.split("  # ")[0] for line in lines if not line.strip().startswith("#")]


def function_sizes(tree: ast.AST) -> list[tuple[int, str]]:
    """Lines of each function, without decorators, signature and docstring."""
    sizes = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            size = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
            sizes.append((size, node.name))
    return sizes


def imports(tree: ast.AST, package: str, room: str) -> Counter[tuple[str, str]]:
    """Imports from one room of the package into another."""
    arrows: Counter[tuple[str, str]] = Counter()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{package}."):
            other = (node.module or "").split(".")[1]
            if other != room:
                arrows[room, other] += 1
    return arrows


def measure(source: Path) -> dict[str, Any]:
    """All counts of a package's source."""
    rooms: Counter[str] = Counter()
    arrows: Counter[tuple[str, str]] = Counter()
    told: dict[str, Counter[str]] = {kind: Counter() for kind in TOLD}
    functions: list[tuple[int, str]] = []
    for path in sorted(source.rglob("*.py")):
        text, name = path.read_text(), str(path.relative_to(source))
        room, tree = path.relative_to(source).with_suffix("").parts[0], ast.parse(text)
        rooms[room] += len(text.splitlines())
        arrows += imports(tree, source.name, room)
        functions += [(size, f"{name}:{function}") for size, function in function_sizes(tree)]
        for line in source_lines(text):
            for kind, pattern in TOLD.items():
                if pattern.search(line) and not (kind == "says embedded" and room == "embedded"):
                    told[kind][name] += 1
    sizes = sorted(size for size, _ in functions)
    return {
        "rooms": dict(sorted(rooms.items())),
        "imports between rooms": {f"{a} -> {b}": n for (a, b), n in sorted(arrows.items())},
        "files": sum(1 for _ in source.rglob("*.py")),
        "functions": {
            "number": len(sizes),
            "median": sizes[len(sizes) // 2],
            "90th percentile": sizes[int(len(sizes) * 0.9)],
            "longest": [f"{name} ({size})" for size, name in sorted(functions)[-3:]],
        },
        "places": {
            kind: {"lines": sum(count.values()), "files": len(count)}
            for kind, count in told.items()
        },
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, default=Path("src/ahn"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    text = json.dumps(measure(options.source), indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
