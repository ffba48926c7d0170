"""Servers of OpenAI's API for a merged folder: vLLM where it is installed, else transformers."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from ahn.versions import untried_versions

VLLM, TRANSFORMERS, AUTO = "vllm", "transformers", "auto"
GIB = 2**30


@dataclass(frozen=True)
class Server:
    """What is served, where, and how.

    Attributes:
        max_model_len: tokens of the longest text; None is what the base was trained on.
        cache_gib: of all requests' caches; None is what the engine takes.
        options: further words of the engine's own command line.
    """

    folder: Path
    host: str
    port: int
    dtype: str
    max_model_len: int | None = None
    cache_gib: float | None = None
    options: Sequence[str] = ()

    @property
    def _common(self) -> list[str]:
        return ["--host", self.host, "--port", str(self.port), "--dtype", self.dtype]

    def vllm(self) -> list[str]:
        """The command of vLLM's server."""
        # Not `vllm serve`: the build for a CPU cannot start it, for want of a package's metadata.
        words = ["-m", "vllm.entrypoints.openai.api_server", "--model", str(self.folder)]
        words += self._common
        if self.max_model_len is not None:
            words += ["--max-model-len", str(self.max_model_len)]
        if self.cache_gib is not None:
            words += ["--kv-cache-memory-bytes", str(int(self.cache_gib * GIB))]
        return [sys.executable, *words, *self.options]

    def transformers(self) -> list[str]:
        """The command of transformers' server, which answers one request after another.

        Raises ValueError for what it has no option for.
        """
        for name in ("max_model_len", "cache_gib"):
            if getattr(self, name) is not None:
                option = f"--{name.replace('_', '-')}"
                raise ValueError(f"{option}: expected vLLM to go with it, got transformers")
        words = ["-c", "from transformers.cli.transformers import main; main()", "serve"]
        words += [str(self.folder), *self._common, "--trust-remote-code"]
        return [sys.executable, *words, *self.options]


_COMMANDS: dict[str, Callable[[Server], list[str]]] = {
    VLLM: Server.vllm,
    TRANSFORMERS: Server.transformers,
}
_NEEDS = {VLLM: ("vllm", "pip install 'ahn[vllm]'")} | {
    TRANSFORMERS: ("uvicorn", "pip install 'transformers[serving]'")
}


def chosen_engine(name: str) -> str:
    """The engine of that name, or for `auto` the first of vLLM and transformers that is installed.

    Raises ValueError where there is none, or vLLM is of a version that was not tried.
    """
    if name not in (AUTO, *_COMMANDS):
        raise ValueError(f"--engine: expected auto, vllm or transformers, got {name!r}")
    wanted = list(_COMMANDS) if name == AUTO else [name]
    for engine in wanted:
        if find_spec(_NEEDS[engine][0]) is not None:
            if engine == VLLM:
                check_vllm_version()
            return engine
    installs = " or ".join(_NEEDS[engine][1] for engine in wanted)
    raise ValueError(f"--engine: expected {installs}, got none")


def check_vllm_version() -> None:
    """Raise ValueError for a vLLM whose caches this package's plug-in may not know."""
    for untried in untried_versions("ahn"):
        if untried.startswith(VLLM):
            raise ValueError(f"vllm: expected a version that was tested, got {untried}")


def command(engine: str, server: Server) -> list[str]:
    """The words that start a server; raises as its engine's command."""
    return _COMMANDS[engine](server)


def become(words: Sequence[str]) -> NoReturn:
    """Replace this process by the server, which then gets its signals itself."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(words[0], list(words))
