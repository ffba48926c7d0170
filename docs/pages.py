"""Pages of the site that are no files of `docs/`, and links that lead out of it."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
MOVED = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
REFERENCE = {
    "Models and memories": (
        "ahn.AHNConfig", "ahn.from_pretrained", "ahn.attach", "ahn.detach", "ahn.disabled",
        "ahn.memory_off", "ahn.save_pretrained", "ahn.use_liger", "ahn.UnsupportedModel",
    ),
    "Sessions": (
        "ahn.Session", "ahn.session.Document", "ahn.session.PrefixCache",
        "ahn.session.SessionFolder", "ahn.session.ask_together",
    ),
    "Caches and generation": (
        "ahn.AHNCache", "ahn.generation.prefill", "ahn.generation.stream",
        "ahn.generation.save_session", "ahn.generation.load_session",
        "ahn.runtime.decode_step.DecodeStep",
    ),
    "Checkpoints": ("ahn.checkpoint",),
    "Planning": ("ahn.planning",),
    "Training": ("ahn.training",),
    "Memories": ("ahn.memory",),
}  # fmt: skip


def on_files(files: Any, config: Any) -> Any:
    """Add the documents of the repository's root, and the reference."""
    for source, name in MOVED.items():
        files.append(File.generated(config, name, content=(ROOT / source).read_text()))
    files.append(File.generated(config, "reference.md", content=_reference()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links as the site has them; of one that leads to no page the words stay."""
    sources = {name: source for source, name in MOVED.items()}
    path = page.file.src_uri
    folder = "" if path in sources else "docs"

    def rewritten(match: re.Match[str]) -> str:
        is_image, words, target = match.groups()
        place, hash_, anchor = target.partition("#")
        if "://" in target or not place:
            return match[0]
        place = posixpath.normpath(posixpath.join(folder, place))
        if place in MOVED:
            return f"[{words}]({MOVED[place]}{hash_}{anchor})"
        if place.startswith("docs/"):
            return f"{is_image}[{words}]({place.removeprefix('docs/')}{hash_}{anchor})"
        return words

    return LINK.sub(rewritten, markdown)


def _reference() -> str:
    """One page of what can be imported, from the docstrings."""
    lines = ["# Reference", ""]
    for title, names in REFERENCE.items():
        lines += [f"## {title}", "", *(f"::: {name}\n" for name in names)]
    return "\n".join(lines)
