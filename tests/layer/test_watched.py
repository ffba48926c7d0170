"""Whatever runs beside a module's own forward is named, so that nothing computes past it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ahn.layer.watched import (
    ACCELERATE_HOOK,
    BACKWARD_HOOK,
    COMPILED_CALL,
    DISTRIBUTED_WRAPPER,
    FORWARD_HOOK,
    FORWARD_PRE_HOOK,
    REPLACED_FORWARD,
    watchers_of,
)


class Hook:
    def __call__(self, *arguments):
        return None


def offload(module):
    hooks = pytest.importorskip("accelerate.hooks")
    hooks.add_hook_to_module(module, hooks.ModelHook())


def wrap(module):
    module.__class__ = type("FSDPLinear", (nn.Linear,), {"__module__": "torch.distributed.fsdp"})


CASES = [
    (lambda module: module.register_forward_hook(Hook()), {FORWARD_HOOK}),
    (lambda module: module.register_forward_pre_hook(Hook()), {FORWARD_PRE_HOOK}),
    (lambda module: module.register_full_backward_hook(Hook()), {BACKWARD_HOOK}),
    (lambda module: module.register_full_backward_pre_hook(Hook()), {BACKWARD_HOOK}),
    (lambda module: setattr(module, "forward", module.forward), {REPLACED_FORWARD}),
    (lambda module: module.compile(backend="eager"), {COMPILED_CALL}),
    (offload, {ACCELERATE_HOOK, REPLACED_FORWARD}),
    (wrap, {DISTRIBUTED_WRAPPER}),
]


@pytest.mark.parametrize(("change", "expected"), CASES)
def test_all_that_watches_or_replaces_a_call_is_named(change, expected):
    module = nn.Linear(2, 2)
    assert watchers_of(module) == set()
    change(module)
    assert watchers_of(module) == expected


def test_hooks_of_the_callers_own_do_not_count():
    module = nn.Linear(2, 2)
    module.register_forward_pre_hook(Hook())
    assert watchers_of(module, own_hooks=(Hook,)) == set()
    module.register_forward_pre_hook(lambda *_: None)
    assert watchers_of(module, own_hooks=(Hook,)) == {FORWARD_PRE_HOOK}


def test_a_removed_hook_is_gone():
    module = nn.Linear(2, 2)
    module.register_forward_hook(Hook()).remove()
    assert watchers_of(module) == set()
    assert torch.equal(module(torch.zeros(1, 2))[0], module.bias)
