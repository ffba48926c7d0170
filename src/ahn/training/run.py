"""A training run from its arguments to the memory's folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, TrainerState, set_seed
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import get_last_checkpoint

from ahn.checkpoint import from_pretrained, load_tokenizer, merge
from ahn.hf.attached_state import attached_state
from ahn.hf.liger import use_liger
from ahn.io.files import write_json
from ahn.plots import training_figure
from ahn.training.arguments import DistillArguments, ModelArguments, RunArguments
from ahn.training.data import Collator, DataArguments, prepare
from ahn.training.distiller import Distiller, memory_parameters
from ahn.training.stop import StopOnSignal
from ahn.training.trainer import DistillTrainer
from ahn.training.zero3 import check_deepspeed, is_zero3

LAST = ("last", "true", "True")
RESULT, CURVE = "training.json", "training.png"


@dataclass(frozen=True)
class Outcome:
    """What a run ended with; `stopped` by SIGTERM before its end."""

    metrics: dict[str, float]
    stopped: bool


def run(
    model: ModelArguments, data: DataArguments, distill: DistillArguments, settings: RunArguments
) -> Outcome:
    """Train a memory and write its folder, `output_dir`, with log and curve.

    Raises:
        ValueError: an argument, the data, the base or a checkpoint cannot be used; the loss is
            not finite.
    """
    checkpoint = _checkpoint(settings)
    weights, sampler = distill.weights, distill.sampler(settings.seed)
    check_deepspeed(settings, packing=data.packing)
    if data.streaming and settings.max_steps <= 0:
        raise ValueError(
            f"max_steps: expected a number above 0 of a stream, got {settings.max_steps}"
        )
    tokenizer = load_tokenizer(model.model_name_or_path, trust_remote_code=model.trust_remote_code)
    with settings.main_process_first(desc="reading the data"):
        rows, held_out = _rows(data, tokenizer, sampler.shortest, settings)
    set_seed(settings.seed)
    attached = load_model(model)
    if settings.use_liger_kernel:
        use_liger(attached.to(settings.device))  # type: ignore[arg-type]
        settings.use_liger_kernel = False  # Trainer would look for a model where the distiller is
    budget = attached_state(attached).config.budget
    _check_evaluation(held_out, budget, all_beyond=is_zero3(settings))
    trainer = DistillTrainer(
        model=Distiller(
            attached, weights=weights, normalized=distill.normalize_distill, checkpointing=False
        ),
        sampler=sampler,
        map_rate=distill.map_rate,
        args=settings,
        train_dataset=rows,
        eval_dataset=held_out,
        data_collator=Collator(tokenizer.pad_token_id or 0),
        processing_class=tokenizer,
    )
    return _train(trainer, checkpoint, model.model_name_or_path, distill.save_ahn_only)


def load_model(arguments: ModelArguments) -> PreTrainedModel:
    """The base with a memory: fresh, or the one to go on from; its cells are in float32.

    Raises ValueError for a base that has one, an unknown cell, or a memory of another base.
    """
    model = from_pretrained(
        arguments.model_name_or_path,
        arguments.memory,
        window=arguments.window,
        num_sinks=arguments.num_sinks,
        kernels=arguments.kernels,
        new_memory=arguments.fresh(),
        dtype=arguments.dtype,
        trust_remote_code=arguments.trust_remote_code,
    )
    for parameter in memory_parameters(model).values():
        parameter.data = parameter.data.float()  # small, and steps of 1e-4 need it
    return model


def _rows(data: DataArguments, tokenizer: Any, shortest: int, run: RunArguments) -> tuple[Any, Any]:
    options = {"shortest": shortest, "seed": run.seed}
    rows = prepare(data.dataset, data, tokenizer, **options)
    if data.eval_dataset is None:
        return rows, None
    return rows, prepare(data.eval_dataset, data, tokenizer, **options)


def _train(
    trainer: DistillTrainer, checkpoint: str | None, base: str, save_ahn_only: bool
) -> Outcome:
    stop = StopOnSignal()
    trainer.add_callback(stop)
    with stop.listening():
        if checkpoint is not None and _complete(checkpoint, trainer):
            trainer.load_complete(checkpoint)
        else:
            trainer.train(resume_from_checkpoint=checkpoint)
    metrics = trainer.state.log_history[-1] if trainer.state.log_history else {}
    if stop.stopped:
        return Outcome(metrics, stopped=True)
    if trainer.eval_dataset is not None and not _evaluated(trainer):
        metrics = {**metrics, **trainer.evaluate()}
    trainer.save_model()
    if trainer.args.should_save:
        _report(trainer, base, save_ahn_only)
    return Outcome(metrics, stopped=False)


def _complete(checkpoint: str, trainer: DistillTrainer) -> bool:
    """Whether a checkpoint is the end of its run; Trainer would do a step more from there."""
    done, wanted = TrainerState.load_from_json(f"{checkpoint}/{TRAINER_STATE_NAME}"), trainer.args
    if wanted.max_steps > 0:
        return done.global_step >= wanted.max_steps
    longer = wanted.num_train_epochs > done.num_train_epochs
    return done.global_step >= done.max_steps and not longer


def _evaluated(trainer: DistillTrainer) -> bool:
    """Whether the memory as it is now has been evaluated."""
    done = [entry["step"] for entry in trainer.state.log_history if "eval_recovered" in entry]
    return bool(done) and done[-1] == trainer.state.global_step


def _check_evaluation(rows: Any, budget: int, *, all_beyond: bool) -> None:
    """Refuse before the training what could not be measured after it.

    Args:
        all_beyond: whether every document must be longer than the budget, as under ZeRO-3: one
            within it calls no memory, and the other processes would wait for that.
    """
    if rows is None:
        return
    lengths = (max(row.get("seq_lengths") or [len(row["input_ids"])]) for row in rows)
    if all_beyond:
        if (short := next((x for x in lengths if x <= budget), None)) is not None:
            raise ValueError(
                f"eval_dataset: expected documents longer than the budget of {budget} under ZeRO-3 "
                f"(--filter_len drops others), got one of {short} tokens"
            )
    elif not any(length > budget for length in lengths):
        raise ValueError(
            f"eval_dataset: expected a document longer than the budget of {budget} (--window and "
            "--num_sinks set it), got none"
        )


def _report(trainer: DistillTrainer, base: str, save_ahn_only: bool) -> None:
    folder = Path(trainer.args.output_dir or ".")
    history = trainer.state.log_history
    write_json(folder / RESULT, {"steps": trainer.state.global_step, "log": history})
    training_figure(history, folder / CURVE)
    if not save_ahn_only:
        merge(base, folder, folder / "merged")


def _checkpoint(run: RunArguments) -> str | None:
    """The checkpoint to go on from; raises where a new run would write into an old one's."""
    folder = Path(run.output_dir or ".")
    last = get_last_checkpoint(folder) if folder.is_dir() else None
    if run.resume_from_checkpoint in LAST:
        return last
    if run.resume_from_checkpoint:
        if not Path(run.resume_from_checkpoint).is_dir():
            raise ValueError(
                f"resume_from_checkpoint: expected a folder or last, got "
                f"{run.resume_from_checkpoint!r}"
            )
        return run.resume_from_checkpoint
    if last is not None:
        raise ValueError(
            f"output_dir: expected a folder without checkpoints, or --resume_from_checkpoint last, "
            f"got one with {Path(last).name}"
        )
    return None
