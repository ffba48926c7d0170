"""The mode belongs to a thread or task, never to the model."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from threading import Barrier

import pytest
import torch

import ahn
from ahn.evaluation.streaming import new_cache
from ahn.hf import attached_state as attached_state_module
from ahn.hf.attached_state import attached_state
from ahn.hf.cache_argument import CACHE
from ahn.layer.modes import FULL, MEMORY, WINDOW
from ahn.modeling import compressive
from tiny_models import new_model, one_shot, random_ids, shared_model

MODES = {
    "full": ahn.disabled,
    "window": ahn.memory_off,
    "compressive-max": lambda model: compressive(model, "max"),
}

# Of each of four modes, in threads and in tasks: in CI's own job a thousand answers.
ROUNDS = max(12, int(os.environ.get("AHN_CASES", "0")) // 80)
LENGTH = 30  # beyond the budget


@torch.no_grad()
def expected_of_modes():
    model, ids = shared_model(), random_ids(LENGTH)
    expected = {"memory": one_shot(model, ids)}
    for name, context in MODES.items():
        with context(model):
            expected[name] = one_shot(model, ids)
    return expected


@torch.no_grad()
def test_threads_do_not_disturb_each_other():
    model, ids, expected = shared_model(), random_ids(LENGTH), expected_of_modes()
    barrier = Barrier(4)

    @torch.no_grad()
    def run(name):
        barrier.wait(60)  # all four are under way at once
        wrong = 0
        for _ in range(ROUNDS):
            if name == "memory":
                wrong += not torch.equal(one_shot(model, ids), expected[name])
                continue
            with MODES[name](model):
                wrong += not torch.equal(one_shot(model, ids), expected[name])
        return wrong

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(run, expected)) == 0
    assert attached_state(model).mode is MEMORY


@torch.no_grad()
def test_tasks_do_not_disturb_each_other():
    """They take turns within a context, and within a text that is read in chunks."""
    model, ids, expected = shared_model(), random_ids(LENGTH), expected_of_modes()
    chunks, first = random_ids(LENGTH, seed=3).split(LENGTH // 3, 1), attached_state(model).mode

    async def read(name):
        """The logits after a text, and what the mode gives for another in between."""
        cache = new_cache(model)
        for chunk in chunks:
            logits = model(chunk, **{CACHE: cache}, use_cache=True).logits[:, -1]
            await asyncio.sleep(0)
        return logits, torch.equal(one_shot(model, ids), expected[name])

    async def run(name, rounds):
        results = []
        with MODES[name](model) if name in MODES else nullcontext():
            for _ in range(rounds):
                await asyncio.sleep(0)
                results.append(await read(name))
            assert attached_state(model).mode.name == name
        assert attached_state(model).mode is first
        return results

    async def all_at_once():
        alone = {name: (await run(name, 1))[0][0] for name in expected}
        names = [*expected] * 2
        found = await asyncio.gather(*[run(name, ROUNDS // 2) for name in names])
        return [(logits, alone[name], is_right) for name, results in zip(names, found)
                for logits, is_right in results]  # fmt: skip

    found = asyncio.run(all_at_once())
    wrong = sum(not is_right or not torch.equal(*logits) for *logits, is_right in found)
    assert wrong == 0 and len(found) == 8 * (ROUNDS // 2)


def test_modes_nest_and_end_with_an_error():
    model, other = shared_model(), shared_model(window=24)
    with pytest.raises(KeyError), ahn.disabled(model):
        with ahn.memory_off(model):
            assert attached_state(model).mode is WINDOW
        assert (attached_state(model).mode, attached_state(other).mode) == (FULL, MEMORY)
        raise KeyError
    assert attached_state(model).mode is MEMORY


def test_a_copy_is_a_model_of_its_own():
    model = new_model()
    with ahn.disabled(model):
        assert attached_state(copy.deepcopy(model)).mode is MEMORY


def test_an_unknown_mode_is_refused_by_name():
    with pytest.raises(
        ValueError, match=r"mode: expected one of full, window, memory, .*got 'all'"
    ):
        shared_model()(random_ids(5), ahn_mode="all")


def test_generators_of_two_models_end_in_any_order():
    first, second = shared_model(), shared_model(window=24)

    def modes(model, number):
        with ahn.memory_off(model):
            for _ in range(number):
                yield attached_state(model).mode

    a, b = modes(first, 1), modes(second, 2)
    assert next(a) is next(b) is WINDOW
    assert list(a) == []
    assert list(b) == [WINDOW]
    with ahn.disabled(second):
        assert attached_state(first).mode is MEMORY


def test_a_generator_may_end_in_another_context():
    model = shared_model()

    def inside():
        with ahn.memory_off(model):
            yield

    generator = inside()
    next(generator)
    contextvars.copy_context().run(generator.close)
    with ahn.disabled(shared_model(window=24)):
        assert attached_state_module._num_active == 1
    assert attached_state_module._num_active == 0
