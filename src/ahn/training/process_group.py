"""The process group of a distributed run, and how a process leaves it."""

from __future__ import annotations

from accelerate import PartialState


def leave_group() -> None:
    """Destroy this process's group before the process ends; does nothing without a group.

    A gloo thread may still have to free a tensor, for which it takes Python's lock (GIL); a
    process that ends in the meantime aborts (pytorch/pytorch#190489). Waiting for the other
    processes gives the thread its turn.
    """
    state = PartialState()
    state.wait_for_everyone()
    state.destroy_process_group()
