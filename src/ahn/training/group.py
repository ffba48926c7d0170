"""The end of a group of processes that trained together."""

from __future__ import annotations

from accelerate import PartialState


def leave_group() -> None:
    """Take down the process group of this process, which is about to end; no group is fine.

    A thread of gloo may still have to free a tensor, for which it takes Python's lock; a process
    that ends meanwhile aborts (pytorch/pytorch#190489). While this one waits for the others, the
    thread gets it.
    """
    state = PartialState()
    state.wait_for_everyone()
    state.destroy_process_group()
