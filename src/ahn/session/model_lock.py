"""One forward of a model at a time, where sessions run in threads."""

from __future__ import annotations

from threading import Lock, RLock
from typing import Any
from weakref import WeakKeyDictionary

_locks: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
_making = Lock()


def lock_of(model: Any) -> Any:
    """The lock of a model: while a step is captured as a CUDA graph, no other may run."""
    with _making:
        return _locks.setdefault(model, RLock())
