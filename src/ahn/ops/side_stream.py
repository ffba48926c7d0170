"""Work that a GPU does beside other work: kernels that fill few of its multiprocessors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch


@contextmanager
def side_stream(device: torch.device) -> Iterator[Callable[[], None]]:
    """What is launched within runs beside what follows, until the function it gives is called.

    Call it before anything looks at the results or overwrites what the work reads; what the work
    reads must live until then. Where it cannot be (on a CPU, with gradients, while a graph is
    captured or compiled) everything runs in its order.
    """
    if device.type != "cuda" or torch.is_grad_enabled() or _is_recorded():
        yield lambda: None
        return
    main, side = torch.cuda.current_stream(device), _side_stream(device)
    side.wait_stream(main)
    with torch.cuda.stream(side):
        yield lambda: main.wait_stream(side)


def _is_recorded() -> bool:
    return torch.compiler.is_compiling() or torch.cuda.is_current_stream_capturing()


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """One for each device, before the main one in line: what it does is short.

    The allocator gives what was freed on a stream to that stream alone, and all its work waits
    for the main one first: nothing that the main one still reads is ever written over.
    """
    return torch.cuda.Stream(device, priority=-1)
