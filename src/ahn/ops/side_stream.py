"""Kernels on a second CUDA stream, so that they run at the same time as those of the main one.

This is for kernels that use few of the GPU's multiprocessors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch


@contextmanager
def side_stream(device: torch.device) -> Iterator[Callable[[], None]]:
    """Launch the kernels of the block on a side stream; yields a function that waits for them.

    Call that function before anything uses their results or overwrites their inputs, and keep the
    inputs alive until then. On a CPU, with gradients, and while a graph is captured or compiled,
    the block runs on the current stream and the function does nothing.
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
    """The side stream of a device. It has priority over the main stream, since its work is short.

    The allocator gives memory freed on a stream to that stream alone, and all work of the side
    stream first waits for the main one. So nothing that the main stream still reads is overwritten.
    """
    return torch.cuda.Stream(device, priority=-1)
