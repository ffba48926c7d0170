"""`ahn serve`: check a merged folder, say what a request costs, and start a server."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from ahn.cli import options
from ahn.cli.output import examples

if TYPE_CHECKING:
    from ahn.config import AHNConfig
    from ahn.serving.servers import Server

Folder = Annotated[Path, Argument(metavar="PATH", help="A folder of `ahn merge`.")]
Engine = Annotated[
    str,
    Option(
        help="vllm (many requests at once), transformers (one after another), or auto: vLLM where "
        "it is installed."
    ),
]
Host = Annotated[str, Option(help="Address to listen on; 0.0.0.0 is all.")]
Port = Annotated[int, options.at_least(1, "Port to listen on.")]
MaxModelLen = Annotated[
    int | None,
    options.at_least(
        1,
        "Tokens of the longest text, prompt and answer; left out, what the base was trained on. "
        "vLLM alone.",
    ),
]
CacheGiB = Annotated[
    float | None,
    Option(
        parser=options.not_negative,
        metavar="X",
        help="GiB for the caches of all requests; left out, what vLLM takes. vLLM alone.",
    ),
]
Others = Annotated[
    list[str] | None,
    Argument(metavar="-- OPTION", help="After --: further options of the engine's own."),
]


def serve(
    path: Folder,
    others: Others = None,
    engine: Engine = "auto",
    host: Host = "127.0.0.1",
    port: Port = 8000,
    max_model_len: MaxModelLen = None,
    cache_gib: CacheGiB = None,
    dtype: options.Dtype = "auto",
) -> None:
    """Serve a merged folder by OpenAI's API, with vLLM or with transformers.

    Folder and memory are checked first. What a request costs is said before the engine starts: the
    same bytes for any length, so that it is known how many fit at once.
    """
    from ahn.serving import servers
    from ahn.serving.folders import checked_folder

    server = servers.Server(path, host, port, dtype, max_model_len, cache_gib, tuple(others or ()))
    config, settings = checked_folder(path)
    name = servers.chosen_engine(engine)
    words = servers.command(name, server)
    said = [f"{path}: window {settings.window}, {settings.num_sinks} sinks; {name}"]
    if name == servers.VLLM:
        said.append(_cost(config, settings, server))
    print(*said, sep="\n", file=sys.stderr)
    servers.become(words)


def _cost(config: Any, settings: AHNConfig, server: Server) -> str:
    """What a request holds, and how many fit; ValueError for what vLLM cannot do."""
    from ahn.checkpoint.weights import Weights
    from ahn.serving.limits import check_served
    from ahn.serving.requests import engine_cache_bytes, request_cost
    from ahn.serving.servers import GIB

    check_served(config)
    cost = request_cost(config, settings, _bytes_of(config, server.dtype))
    length = server.max_model_len or config.max_position_embeddings
    size, given = cost.of_length(length), server.cache_gib
    free = engine_cache_bytes(Weights.of(server.folder)) if given is None else int(given * GIB)
    if size > free:
        option = "memory" if given is None else "--cache-gib"
        raise ValueError(
            f"{option}: expected {size / GIB:.3g} GiB for the caches of one request, "
            f"got {free / GIB:.3g}"
        )
    return (
        f"a request holds {size / 2**20:.1f} MiB while it is answered: {free // size} at once in "
        f"{free / GIB:.1f} GiB on one device"
    )


def _bytes_of(config: Any, dtype: str) -> int:
    """Bytes of a number as the engine will hold it."""
    import torch

    own = config.dtype if dtype == "auto" else getattr(torch, dtype)
    return 2 if own is None else own.itemsize


COMMANDS = {
    serve: examples(
        "ahn serve merged",
        "ahn serve merged --cache-gib 8 --max-model-len 1000000",
        "ahn serve merged --engine vllm -- --tensor-parallel-size 2",
    )
}
