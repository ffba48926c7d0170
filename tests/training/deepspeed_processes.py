"""What each of two gloo processes does under DeepSpeed, started by torch.distributed.run.

By ZeRO-2 and by ZeRO-3: a whole run, one that goes on from its first checkpoint, and from its last.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import deepspeed
import deepspeed.comm.torch
import torch
from accelerate.state import AcceleratorState, PartialState
from runs import train

from ahn.training.process_group import leave_group
from ahn.training.trainer import DistillTrainer

RECIPES = Path(__file__).parents[2] / "recipes" / "accelerate"


def settings(stage: int) -> dict:
    """A recipe; of ZeRO-3 with no parameter too small to be sharded."""
    recipe = json.loads((RECIPES / f"zero{stage}.json").read_text())
    if stage == 3:
        recipe["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    return recipe


def runs(folder: Path, stage: int) -> None:
    """`zeroN`, and two more from what it left."""
    name, options = f"zero{stage}", {"per_device_train_batch_size": 1, "deepspeed": settings(stage)}
    options["eval_dataset"] = str(folder / "data.jsonl")
    train(folder, name, **options)
    for step, again in ((3, "resumed"), (8, "late")):
        if PartialState().is_main_process:
            checkpoint = f"checkpoint-{step}"
            shutil.copytree(folder / name / checkpoint, folder / f"{name}-{again}" / checkpoint)
        PartialState().wait_for_everyone()
        AcceleratorState._reset_state(reset_partial_state=False)
        train(folder, f"{name}-{again}", **options, resume_from_checkpoint="last")
    AcceleratorState._reset_state(reset_partial_state=False)


def noting_what_is_gathered() -> list[float]:
    """The largest share of the model that was whole at once, of every batch."""
    step, found = DistillTrainer.training_step, []

    def training_step(self, *args):
        parameters = [p for p in self.attached.parameters() if hasattr(p, "ds_id")]
        total, most = sum(p.ds_numel for p in parameters), 0

        def look(*_):
            nonlocal most
            most = max(most, sum(p.numel() for p in parameters))

        hooks = [x.register_forward_pre_hook(look) for x in self.attached.modules()]
        loss = step(self, *args)
        for hook in hooks:
            hook.remove()
        if total:
            found.append(most / total)
        return loss

    DistillTrainer.training_step = training_step
    return found


def main() -> None:
    torch.set_num_threads(1)
    # Shared memory between processes: a C++ extension that would be compiled for a minute.
    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # type: ignore[attr-defined]
    deepspeed.init_distributed("gloo", verbose=False)
    folder, shares = Path(sys.argv[1]), noting_what_is_gathered()
    for stage in (2, 3):
        runs(folder, stage)
    if PartialState().is_main_process:
        (folder / "shares.json").write_text(json.dumps(shares))
    leave_group()


if __name__ == "__main__":
    main()
