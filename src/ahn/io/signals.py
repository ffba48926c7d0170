"""Signals that would end the process let a write clean up first."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


class _Ended(BaseException):
    """A signal has come; `number` is its own."""

    def __init__(self, number: int) -> None:
        self.number = number


@contextmanager
def cleaned_up_on_signals() -> Iterator[None]:
    """Within the context, `finally` clauses run before a signal of `ENDING` ends the process.

    The process still ends by that signal. Only where the signal would end it: a handler of somebody
    else stays. Python hears signals in the main thread alone; elsewhere nothing changes, and the
    next write sweeps.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours = [number for number in ENDING if signal.getsignal(number) is signal.SIG_DFL]
    ended = None
    try:
        for number in ours:
            signal.signal(number, _raise)
        yield
    except _Ended as error:
        if not ours:  # an outer context of this kind ends the process
            raise
        ended = error.number
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)
    if ended is not None:
        os.kill(os.getpid(), ended)


def _raise(number: int, _: Any) -> None:
    signal.signal(number, signal.SIG_IGN)  # one is enough: clean-up must not be cut short
    raise _Ended(number)
