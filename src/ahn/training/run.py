"""A training run, from its arguments to the folder of the trained memory."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, TrainerState, set_seed
from transformers.trainer import TRAINER_STATE_NAME

from ahn.checkpoint import from_pretrained, load_tokenizer, merge
from ahn.hf.attached_state import attached_state
from ahn.hf.liger import use_liger
from ahn.io.files import write_json
from ahn.io.lock import only_user
from ahn.plots import training_figure
from ahn.training.arguments import DistillArguments, ModelArguments, RunArguments
from ahn.training.checkpoints import STAGING
from ahn.training.data import Collator, DataArguments, prepare
from ahn.training.data.tally import StreamTally, Tally, counts, log_tally
from ahn.training.distiller import Distiller, memory_parameters
from ahn.training.manifest import read_record, resumed_from
from ahn.training.run_record import check_same, record_of
from ahn.training.slots.setup import attach_shares
from ahn.training.stop import StopOnSignal
from ahn.training.trainer import DistillTrainer
from ahn.training.two_streams import two_stream_layers
from ahn.training.zero3 import check_deepspeed, is_zero3

FACTS = 0.5  # share of rows that ask for facts, where slots are trained
RESULT, CURVE = "training.json", "training.png"


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        metrics: the last logged numbers.
        stopped: whether SIGTERM ended it early.
    """

    metrics: dict[str, float]
    stopped: bool


def run(
    model: ModelArguments, data: DataArguments, distill: DistillArguments, settings: RunArguments
) -> Outcome:
    """Train a memory and write its folder, `output_dir`, with log and curve.

    Raises:
        ValueError: an argument, the data, the base or a checkpoint cannot be used, or the run is
            another than the one it would resume; another run uses the folder; the loss is not
            finite.
    """
    folder = Path(settings.output_dir or ".")
    with only_user(folder, "output_dir") if settings.should_save else nullcontext():
        if settings.should_save:
            shutil.rmtree(folder / STAGING, ignore_errors=True)  # of a run that was killed
        return _run(model, data, distill, settings)


def _run(
    model: ModelArguments, data: DataArguments, distill: DistillArguments, settings: RunArguments
) -> Outcome:
    """The run itself, which has the folder to itself."""
    checkpoint = resumed_from(Path(settings.output_dir or "."), settings.resume_from_checkpoint)
    losses, sampler = distill.losses, distill.sampler(settings.seed)
    check_deepspeed(settings, packing=data.packing)
    if data.streaming and settings.max_steps <= 0:
        raise ValueError(
            f"max_steps: expected a number above 0 of a stream, got {settings.max_steps}"
        )
    tokenizer = load_tokenizer(model.model_name_or_path, trust_remote_code=model.trust_remote_code)
    trains_slots = model.slots > 0 and model.memory is None
    if data.facts is None and trains_slots:
        data = replace(data, facts=FACTS)
    tallies: list[Tally | StreamTally] = []
    with settings.main_process_first(desc="reading the data"):
        datasets = _datasets(data, tokenizer, sampler.min_length, settings.seed, tallies.append)
    if settings.should_log and not data.streaming:
        for tally in tallies:
            log_tally(tally)
    set_seed(settings.seed)
    attached, collator = load_model(model), Collator(tokenizer.pad_token_id or 0)
    if trains_slots:
        train_rows = datasets["train_dataset"]
        attached = attach_shares(attached, model.slot_shares, train_rows, collator, settings)
    if settings.use_liger_kernel:
        use_liger(attached.to(settings.device))  # type: ignore[arg-type]
        settings.use_liger_kernel = False  # Trainer would apply it to the distiller
    budget = attached_state(attached).config.budget
    _check_evaluation(datasets["eval_dataset"], budget, all_beyond=is_zero3(settings))
    record = record_of(attached, datasets["train_dataset"], distill, settings)
    for tally in tallies:
        if isinstance(tally, StreamTally):
            tally.reset()  # what the record has read is read again
    if checkpoint is not None and settings.process_index == 0:
        check_same(read_record(Path(checkpoint)), record, checkpoint)
    trainer = DistillTrainer(
        model=Distiller(attached, losses=losses, checkpointing=False),
        sampler=sampler,
        map_rate=distill.map_rate,
        score_share=distill.score_share,
        record=record,
        args=settings,
        data_collator=collator,
        processing_class=tokenizer,
        **datasets,
    )
    with two_stream_layers(attached):
        outcome = _train(trainer, checkpoint)
    if trainer.args.should_save and not outcome.stopped:
        _write_report(trainer, model.model_name_or_path, distill, tallies)
    if settings.should_log and data.streaming:
        for tally in tallies:  # of what was read
            log_tally(tally)
    return outcome


def load_model(arguments: ModelArguments) -> PreTrainedModel:
    """The base with the memory to train, a new one or a saved one; its cells are in float32.

    Raises ValueError for an unknown cell, and as `ahn.from_pretrained`.
    """
    model = from_pretrained(
        arguments.model_name_or_path,
        arguments.memory,
        window=arguments.window,
        num_sinks=arguments.num_sinks,
        kernels=arguments.kernels,
        new_memory=arguments.new_memory(),
        dtype=arguments.dtype,
        trust_remote_code=arguments.trust_remote_code,
    )
    for parameter in memory_parameters(model).values():
        parameter.data = parameter.data.float()  # half precision would lose steps of 1e-4
    return model


def _datasets(
    data: DataArguments,
    tokenizer: Any,
    min_length: int,
    seed: int,
    on_tally: Callable[[Tally | StreamTally], None],
) -> dict[str, Any]:
    """Trainer's `train_dataset` and `eval_dataset`; the second is None where none is named."""
    options: dict[str, Any] = {"min_length": min_length, "seed": seed, "on_tally": on_tally}
    measured = replace(data, facts=0.0)  # the gap is that of the texts as they are
    names = {"train_dataset": (data.dataset, data), "eval_dataset": (data.eval_dataset, measured)}
    datasets: dict[str, Any] = {
        key: None if name is None else prepare(name, arguments, tokenizer, **options)
        for key, (name, arguments) in names.items()
    }
    if data.streaming:
        # One pass without an end: Trainer would resume a second pass at its beginning.
        datasets["train_dataset"] = datasets["train_dataset"].repeat(None)
    return datasets


def _train(trainer: DistillTrainer, checkpoint: str | None) -> Outcome:
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
    return Outcome(metrics, stopped=False)


def _complete(checkpoint: str, trainer: DistillTrainer) -> bool:
    """Whether the run ends at this checkpoint; Trainer would train one step more from it."""
    done, wanted = TrainerState.load_from_json(f"{checkpoint}/{TRAINER_STATE_NAME}"), trainer.args
    if wanted.max_steps > 0:
        return done.global_step >= wanted.max_steps
    longer = wanted.num_train_epochs > done.num_train_epochs
    return done.global_step >= done.max_steps and not longer


def _evaluated(trainer: DistillTrainer) -> bool:
    """Whether the memory of the current step has been evaluated."""
    steps = [entry["step"] for entry in trainer.state.log_history if "eval_recovered" in entry]
    return bool(steps) and steps[-1] == trainer.state.global_step


def _check_evaluation(dataset: Any, budget: int, *, all_beyond: bool) -> None:
    """Refuse, before the training, an evaluation data set that could not be measured after it.

    Args:
        all_beyond: whether every document must be longer than the budget. So it is under ZeRO-3: a
            process calls no memory for a shorter one, and the others wait for that call.
    """
    if dataset is None:
        return
    lengths = (max(row.get("seq_lengths") or [len(row["input_ids"])]) for row in dataset)
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


def _write_report(
    trainer: DistillTrainer, base: str, distill: DistillArguments, tallies: list[Any]
) -> None:
    folder = Path(trainer.args.output_dir or ".")
    history = trainer.state.log_history
    data = [counts(tally).to_dict() for tally in tallies]
    write_json(folder / RESULT, {"steps": trainer.state.global_step, "data": data, "log": history})
    if distill.plot_loss:
        training_figure(history, folder / CURVE)
    if not distill.save_ahn_only:
        merge(base, folder, folder / "merged")
