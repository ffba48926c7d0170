"""One run: lm-eval's evaluation with its response cache, and the result of every sample."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Mapping
from statistics import fmean
from typing import Any

import torch
from lm_eval.api.model import CachingLM
from lm_eval.api.task import Task
from lm_eval.evaluator import evaluate

from ahn.evaluation.evidence import evidence_of
from ahn.evaluation.lm import SKIPPED, SKIPPED_SCORE
from ahn.evaluation.runs.record import RunFolder
from ahn.evaluation.runs.suite import LoadedTasks
from ahn.evaluation.seeds import seed_all

DESCRIBED = ("doc_id", "doc", "target", "resps", "filtered_resps", "doc_hash", "prompt_hash")


def run_tasks(
    lm: Any, loaded: LoadedTasks, folder: RunFolder, *, chat_template: bool, seed: int
) -> None:
    """Answer every sample that has no answer yet; the first process writes the scores.

    Args:
        lm: an `AHNLM` or an `AHNVLLM`.
    """
    seed_all(seed)
    started = time.perf_counter()
    lm.on_batch = folder.note_batch if lm.rank == 0 else None
    cached = CachingLM(lm, f"{folder.responses}_rank{lm.rank}.db")
    try:
        evaluated = evaluate(
            cached,
            {"tasks": loaded.tasks, "groups": {}, "group_map": {}},
            samples=_all_chosen(loaded),
            bootstrap_iters=0,
            apply_chat_template=chat_template,
            fewshot_as_multiturn=chat_template,
        )
    finally:
        cached.dbdict.close()
    if evaluated is None:
        return
    samples = {name: _described(lm, records) for name, records in evaluated["samples"].items()}
    results = {
        "tasks": {name: _summary(loaded.tasks[name], each) for name, each in samples.items()},
        "ahn_config": None if lm.settings is None else lm.settings.to_dict(),
        "seconds": round(time.perf_counter() - started, 2),
        "peak_resident_bytes": _peak_resident_bytes(),
        "device": _device_name(lm.device),
        "processes": lm.world_size,
    }
    folder.finish(results, samples)


def _all_chosen(loaded: LoadedTasks) -> dict[str, list[int]] | None:
    """lm-eval's `samples`: indices for every task; None means all samples of all tasks."""
    if not loaded.chosen:
        return None
    every = {name: list(range(len(task.eval_docs))) for name, task in loaded.tasks.items()}
    return {**every, **loaded.chosen}


def _described(lm: Any, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The record of each sample, in the data set's order: answer, scores and evidence."""
    described = []
    for record in sorted(records, key=lambda record: record["doc_id"]):
        prompt = record["arguments"][0][0]
        scores = {} if _is_skipped(record) else _scores(record)
        described.append(
            {name: record[name] for name in DESCRIBED}
            | {
                "skipped": _is_skipped(record),
                "empty": _is_empty(record),
                "scores": scores,
                "evidence": evidence_of(record["doc"], prompt, lm.tokenizer),
            }
        )
    return described


def _scores(record: Mapping[str, Any]) -> dict[str, Any]:
    """By metric; RULER says -1 for each length that a sample is not of."""
    scores = {metric: record[metric] for metric in record["metrics"]}
    return {metric: x for metric, x in scores.items() if not (metric.isdigit() and x == -1)}


def _is_skipped(record: Mapping[str, Any]) -> bool:
    answers = [answer for answers in record["resps"] for answer in answers]
    skipped = (SKIPPED, SKIPPED_SCORE, list(SKIPPED_SCORE), SKIPPED_SCORE[0])
    return any(answer in skipped for answer in answers)


def _is_empty(record: Mapping[str, Any]) -> bool:
    """Whether nothing but white space was generated: scored like any answer, and counted."""
    answers = [answer for answers in record["resps"] for answer in answers]
    return all(isinstance(answer, str) and not answer.strip() for answer in answers)


def _summary(task: Task, samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Each metric, and the numbers of samples, of skipped ones and of empty answers."""
    values: dict[str, list[Any]] = {}
    for sample in samples:
        for metric, value in sample["scores"].items():
            values.setdefault(metric, []).append(value)
    aggregations = task.aggregation()
    metrics = {
        metric: float(aggregations.get(metric, fmean)(each)) for metric, each in values.items()
    }
    return {
        "samples": len(samples),
        "skipped": sum(sample["skipped"] for sample in samples),
        "empty": sum(sample["empty"] for sample in samples),
        "metrics": {metric: x for metric, x in metrics.items() if math.isfinite(x)},
    }


def _peak_resident_bytes() -> int:
    """Of this process, on the host."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _device_name(device: Any) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
