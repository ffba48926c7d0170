"""A package of somebody else's, as pip would install it: a module and its entry point."""

from __future__ import annotations

from pathlib import Path


def install(folder: Path, module: str, source: str, group: str, name: str) -> None:
    """Write the module and its metadata; `name` is what it registers."""
    (folder / f"{module}.py").write_text(source)
    metadata = folder / f"{module}-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Name: {module}\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text(f"[{group}]\n{name} = {module}:{name}\n")
