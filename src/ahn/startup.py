"""What `import ahn` does at once, and what only when a name is first used."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

PROGRAMS = ("ahn", "ahn.exe")  # file names of the installed command
INTERRUPTED = 130  # exit status of a program that Ctrl-C ended, as in a shell
RUN_MODULE = "-m"  # also what `sys.argv[0]` is while Python looks for the module to run


def lazy_names(
    package: str, names: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package that imports each name on first use (PEP 562).

    Args:
        package: the package's `__name__`.
        names: module that defines each name. A submodule is its own: `{"cost": "ahn.cost"}`.
    """

    def get(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = import_module(names[name])
        value = module if module.__name__ == f"{package}.{name}" else getattr(module, name)
        setattr(sys.modules[package], name, value)  # from now on a plain attribute
        return value

    def listed() -> list[str]:
        return sorted({*vars(sys.modules[package]), *names})

    return get, listed


def started_as_program() -> bool:
    """Whether this process was started as `ahn ...`, `python -m ahn ...` or `python -m ahn.x ...`.

    Such a program imports what it needs by itself, so `ahn --help` need not wait for transformers.
    Where this cannot be told, the answer is no.
    """
    program = sys.argv[0] if getattr(sys, "argv", None) else ""
    if program != RUN_MODULE:
        return Path(program).name in PROGRAMS
    words = sys.orig_argv
    module = words[words.index(RUN_MODULE) + 1] if RUN_MODULE in words[:-1] else ""
    return module.partition(".")[0] == __name__.partition(".")[0]


def end_quietly_on_interrupt() -> None:
    """Ctrl-C while this program is still importing ends it with 130 and says nothing."""
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        if issubclass(kind, KeyboardInterrupt):
            os._exit(INTERRUPTED)
        before(kind, error, trace)

    sys.excepthook = hook
