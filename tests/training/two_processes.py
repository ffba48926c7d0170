"""What each of several gloo processes does; `python -m torch.distributed.run` starts it.

FSDP2 as accelerate applies it: three steps, save, load, save. Then runs under DDP and FSDP2, as
`ahn train`.
On CPU accelerate would quietly give DDP in place of FSDP2, so its sharding is called by name.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import accelerate
import torch
import torch.distributed as dist
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from runs import train

from ahn.training import Distiller, memory_state, weighted_losses
from ahn.training.batch import Batch, loss_tokens
from ahn.training.process_group import leave_group
from ahn.training.trainer import DistillTrainer
from tiny_models import new_model, random_ids

SIZES = {"window": 16, "num_sinks": 4}
STEPS, ROWS, LENGTH = 3, 4, 80


def steps(distiller, rank: int, processes: int) -> list[float]:
    """Losses of some steps on this process's share of the same rows."""
    optimizer = torch.optim.AdamW([p for p in distiller.parameters() if p.requires_grad], lr=1e-2)
    found = []
    for step in range(STEPS):
        ids = random_ids(LENGTH, ROWS, seed=step)
        labels = ids.clone()
        labels[: ROWS // 2, 40:] = -100  # so that ranks count differently
        counts = loss_tokens(Batch(ids, labels), 20).counts()
        part = slice(rank, None, processes)
        loss = distiller(ids[part], labels[part], counts=counts, **SIZES).loss * processes
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        whole = loss.detach().clone()
        if processes > 1:
            dist.all_reduce(whole)
        found.append(whole.item() / processes)
    return found


def distiller_of(tied: bool) -> Distiller:
    model = new_model(overrides=(("tie_word_embeddings", tied),))
    return Distiller(model, losses=weighted_losses({"kl": 1.0, "ce": 0.5, "distill": 0.5}))


def sharded(folder: Path) -> None:
    accelerator, report = Accelerator(cpu=True), {}
    for tied in (False, True):
        distiller = shard(accelerator, distiller_of(tied))
        kinds = {type(p).__name__ for p in distiller.parameters()}
        losses = steps(distiller, accelerator.process_index, accelerator.num_processes)
        out = folder / f"sharded-{tied}"
        memory_state.save(distiller.model, out, writes=accelerator.is_main_process)
        accelerator.wait_for_everyone()
        again = shard(accelerator, distiller_of(tied))
        memory_state.load(again.model, out)
        memory_state.save(again.model, folder / f"again-{tied}", writes=accelerator.is_main_process)
        report[str(tied)] = {"losses": losses, "kinds": sorted(kinds)}
    if accelerator.is_main_process:
        (folder / "sharded.json").write_text(json.dumps(report))


def shard(accelerator: Accelerator, distiller: Distiller):
    accelerator.state.fsdp_plugin = plugin()
    return fsdp2_prepare_model(accelerator, distiller)


def plugin() -> FullyShardedDataParallelPlugin:
    return FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        reshard_after_forward=True,
        cpu_ram_efficient_loading=False,
    )


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    sharded(folder)
    options = {"per_device_train_batch_size": 1, "eval_dataset": str(folder / "data.jsonl")}
    train(folder, "two", **options)
    uneven_run(folder)
    sharded_runs(folder, options)
    leave_group()


def uneven_run(folder: Path) -> None:
    """A run whose processes read texts of different lengths, and the budgets that each draws."""
    samples, drawn = DistillTrainer.get_batch_samples, []

    def noting(self, *args):
        batches, rest = samples(self, *args)
        drawn.extend([batch["input_ids"].shape[1], *batch["budget"]] for batch in batches)
        return batches, rest

    DistillTrainer.get_batch_samples = noting
    settings = {"cutoff_len": 4096, "filter_len": 0, "sliding_window_type": "random"}
    steps = {"max_steps": 4, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 1}
    train(folder, "uneven", dataset=str(folder / "uneven.jsonl"), **settings, **steps)
    DistillTrainer.get_batch_samples = samples
    (folder / f"drawn-{dist.get_rank()}.json").write_text(json.dumps(drawn))


def sharded_runs(folder: Path, options: dict) -> None:
    """A run under FSDP2, and two that go on from its first checkpoint and from its last.

    accelerate's state is made to say what it would with GPUs.
    """
    AcceleratorState._reset_state(reset_partial_state=False)
    init, samples, kinds = AcceleratorState.__init__, DistillTrainer.get_batch_samples, set()

    def as_on_gpus(self, *args, **kwargs) -> None:
        init(self, *args, **kwargs)
        if "fsdp_plugin" not in vars(self):
            self.fsdp_plugin, self.distributed_type = plugin(), DistributedType.FSDP

    def noting(self, *args):
        kinds.update(type(p).__name__ for p in self.model.parameters())
        return samples(self, *args)

    AcceleratorState.__init__, DistillTrainer.get_batch_samples = as_on_gpus, noting
    train(folder, "fsdp2", **options)
    for name, again in (("checkpoint-3", "resumed"), ("checkpoint-8", "late")):
        if accelerate.PartialState().is_main_process:
            shutil.copytree(folder / "fsdp2" / name, folder / again / name)
        accelerate.PartialState().wait_for_everyone()
        train(folder, again, **options, resume_from_checkpoint="last")
    (folder / "kinds.json").write_text(json.dumps(sorted(kinds)))


if __name__ == "__main__":
    main()
