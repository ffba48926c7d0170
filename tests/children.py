"""Processes of their own for tests that kill them, without the cost of imports.

They are forked from a server that has imported what they need and runs no other thread. A fork of
the test's own process could wait for ever for a lock that one of its threads held.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any

import torch

torch.set_num_threads(1)  # as in the tests themselves, see conftest.py
server = multiprocessing.get_context("forkserver")
server.set_forkserver_preload(["children", "ahn.training.run", "ahn.evaluation.runs", "datasets"])


def started(target: Callable[..., Any], *arguments: Any, **options: Any) -> BaseProcess:
    """A process that calls a function of a module; all of it is pickled."""
    child = server.Process(target=target, args=arguments, kwargs=options)
    child.start()
    return child
