"""Law: a run that is killed and started again, however often, ends as the unbroken one."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time

import pytest
from runs import prepared, same_weights, train

from children import started

KILLS = int(os.environ.get("AHN_KILLS", "6"))
LONG = {"max_steps": 30, "save_steps": 1, "save_total_limit": 2, "logging_steps": 30}


def run_in_child(folder, out):
    """A run in a child, which goes on from what is there."""
    return started(train, folder, out, resume_from_checkpoint="last", **LONG)


def killed(folder, out, step, seconds):
    """Step of the last checkpoint of a run that is killed so long after that of a step."""
    child = run_in_child(folder, out)
    while child.is_alive() and step_of(folder / out) < step:
        time.sleep(0.002)
    child.join(seconds)
    child.kill()
    child.join()
    assert child.exitcode in (0, -signal.SIGKILL)
    return step_of(folder / out)


def finished(folder, out):
    """Seconds from the first checkpoint to the end of a run."""
    began, child = None, run_in_child(folder, out)
    while child.is_alive():
        if began is None and step_of(folder / out):
            began = time.perf_counter()
        time.sleep(0.002)
    assert child.exitcode == 0
    return time.perf_counter() - began


def step_of(folder):
    return max((int(x.name.split("-")[1]) for x in folder.glob("checkpoint-*")), default=0)


@pytest.mark.slow
def test_killed_at_any_moment(tmp_path):
    """Between the first checkpoint and the last; what ended before its kill begins anew."""
    folder = prepared(tmp_path)
    last = LONG["max_steps"]
    a_step = finished(folder, "never killed") / last
    generator, moments, step = random.Random(1), [], 0
    while len(moments) < KILLS:
        wanted = step + generator.randint(1, 12)
        step = killed(folder, "killed", wanted, a_step * generator.uniform(0, 2))
        if step < last:
            moments.append(step)
            continue
        assert same_weights(folder / "killed", folder / "never killed")
        shutil.rmtree(folder / "killed")
        step = 0
    finished(folder, "killed")
    assert same_weights(folder / "killed", folder / "never killed")
    assert len(list((folder / "killed").glob("checkpoint-*"))) == 2
