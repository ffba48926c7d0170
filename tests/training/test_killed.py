"""Law: a run that is killed and started again, however often, ends as the unbroken one."""

from __future__ import annotations

import multiprocessing
import random
import shutil
import signal
import time

from runs import prepared, same_weights, train

LONG = {"max_steps": 30, "save_steps": 1, "save_total_limit": 2, "logging_steps": 30}


def started(folder, out):
    """A run in a child, which goes on from what is there; a fork pays no imports."""
    child = multiprocessing.get_context("fork").Process(
        target=train, args=(folder, out), kwargs={"resume_from_checkpoint": "last", **LONG}
    )
    child.start()
    return child


def killed(folder, out, seconds):
    """Step of the last checkpoint of a run that is killed after so many seconds."""
    child = started(folder, out)
    child.join(seconds)
    child.kill()
    child.join()
    assert child.exitcode in (0, -signal.SIGKILL)
    return step_of(folder / out)


def finished(folder, out):
    """Seconds to the first checkpoint and to the end."""
    began, first, child = time.perf_counter(), None, started(folder, out)
    while child.is_alive():
        if first is None and step_of(folder / out):
            first = time.perf_counter() - began
        time.sleep(0.002)
    assert child.exitcode == 0
    return first, time.perf_counter() - began


def step_of(folder):
    return max((int(x.name.split("-")[1]) for x in folder.glob("checkpoint-*")), default=0)


def test_killed_at_twenty_moments(tmp_path):
    """Counted are those between the first checkpoint and the last, spread over the steps."""
    folder = prepared(tmp_path)
    first, whole = finished(folder, "never killed")
    generator, moments = random.Random(1), []
    while len(moments) < 20:
        step = killed(folder, "killed", first + (whole - first) * generator.uniform(0, 0.4))
        if 0 < step < LONG["max_steps"]:
            moments.append(step)
            continue
        if step:
            finished(folder, "killed")
            assert same_weights(folder / "killed", folder / "never killed")
        shutil.rmtree(folder / "killed", ignore_errors=True)
    assert len(set(moments)) > 5
    finished(folder, "killed")
    assert same_weights(folder / "killed", folder / "never killed")
    assert len(list((folder / "killed").glob("checkpoint-*"))) == 2
