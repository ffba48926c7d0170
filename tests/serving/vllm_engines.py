"""Merged folders, vLLM's engine over them in this process, and the Hugging Face path beside it."""

from __future__ import annotations

import argparse
import gc
import inspect
import os
from contextlib import contextmanager
from functools import cache
from pathlib import Path

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # where a test can look into it
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import ahn
from ahn.checkpoint import merge
from tiny_models import base_model, memory_parameters, wake

CELLS = ["GatedDeltaNet", "DeltaNet", "Mamba2"]
BUDGET = 260  # of the embedded memories
LENGTHS = [130, 259, 700, 1300, 2600, 262]  # 0.5 to 10 budgets
TOLERANCE = 1e-4  # of a log-probability, float32
OPTIONS = {
    "dtype": "float32",
    "max_model_len": 4096,
    "enforce_eager": True,
    "max_num_batched_tokens": 384,  # chunks longer than the window
    "max_num_seqs": 4,
    "enable_prefix_caching": False,
    "disable_log_stats": False,
    "kv_cache_memory_bytes": 2**29,
}
SOURCE = Path(ahn.__file__).parent


@cache
def token_ids() -> list[int]:
    """Code that is longer than any prompt, and changes with Python alone."""
    _, tokenizer = ahn.embedded.load()
    return tokenizer(inspect.getsource(argparse)).input_ids[:8192]


def prompts(lengths=LENGTHS) -> list[list[int]]:
    return [token_ids()[37 * i : 37 * i + n] for i, n in enumerate(lengths)]


def embedded_folder(folder: Path, cell: str, **settings) -> Path:
    """The embedded base with a shipped memory; a random one where none ships, or others are asked.

    Args:
        settings: of a random memory.
    """
    if not settings and (SOURCE / "embedded" / "memories" / cell).is_dir():
        merge("embedded", cell, folder)
        return folder
    model, tokenizer = ahn.embedded.load()
    settings = {"window": 256, "num_sinks": 4, **settings}
    model = awake(ahn.attach(model, ahn.AHNConfig(memory=cell, **settings)))
    return saved(model, folder, tokenizer)


@torch.no_grad()
def awake(model):
    """Random weights whose sums in float32 are as good as those of trained ones."""
    for name, parameter in memory_parameters(wake(model)).items():
        if name.endswith("o_proj.weight"):
            parameter.mul_(0.05)
    return model


def tiny_folder(folder: Path, family: str, cell: str, **options) -> Path:
    """A random model of a family, of heads that vLLM's own attention takes too."""
    options = {"head_dim": 32, "hidden_size": 128, "vocab_size": 512, **options}
    settings = options.pop("settings", {})
    base = base_model(family, **options)
    config = ahn.AHNConfig(memory=cell, window=40, num_sinks=4, **settings)
    return saved(awake(ahn.attach(base, config)), folder)


def saved(model, folder: Path, tokenizer=None) -> Path:
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder


@contextmanager
def engine(folder: Path, **options):
    """vLLM's `LLM`, ended afterwards."""
    from vllm import LLM

    if not any(folder.glob("tokenizer*")):
        options["skip_tokenizer_init"] = True
    llm = LLM(str(folder), **{**OPTIONS, **options})
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()


def sampling(new: int):
    from vllm import SamplingParams

    return SamplingParams(
        temperature=0, max_tokens=new, ignore_eos=True, logprobs=0, detokenize=False
    )


def answers(llm, prompts, new: int = 24, **options) -> list[tuple[list[int], list[float]]]:
    """Greedy tokens of each prompt, and their log-probabilities."""
    from vllm.inputs import TokensPrompt

    outputs = llm.generate(
        [TokensPrompt(prompt_token_ids=x) for x in prompts],
        sampling(new),
        use_tqdm=False,
        **options,
    )
    return [answer_of(output.outputs[0]) for output in outputs]


def answer_of(output) -> tuple[list[int], list[float]]:
    ids = list(output.token_ids)
    return ids, [output.logprobs[i][token].logprob for i, token in enumerate(ids)]


def metrics(llm) -> dict[str, float]:
    return {x.name: getattr(x, "value", None) for x in llm.get_metrics()}


@cache
def hugging_face(folder: Path):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def tokenizer_of(folder: Path):
    return AutoTokenizer.from_pretrained(folder)


@torch.no_grad()
def log_probabilities(folder: Path, prompt: list[int], answer: list[int]) -> list[float]:
    """What the Hugging Face path gives the answer's tokens, read at once."""
    ids, kept = torch.tensor([prompt + answer]), len(answer) + 1
    logits = hugging_face(folder)(ids, use_cache=False, logits_to_keep=kept).logits[0, :-1]
    return logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None])[:, 0].tolist()


def largest_difference(folder: Path, prompts, answers) -> float:
    """Of a log-probability from the Hugging Face path's; infinite where one is not a number."""
    worst = 0.0
    for prompt, (ids, got) in zip(prompts, answers):
        expected = log_probabilities(folder, prompt, ids)
        difference = (torch.tensor(got) - torch.tensor(expected)).abs().nan_to_num(torch.inf)
        worst = max(worst, difference.max().item())
    return worst


def memory_moves(folder: Path, prompt: list[int], answer: list[int]) -> float:
    """By how much the memory moves the answer's log-probabilities."""
    with ahn.memory_off(hugging_face(folder)):
        without = torch.tensor(log_probabilities(folder, prompt, answer))
    return (without - torch.tensor(log_probabilities(folder, prompt, answer))).abs().max().item()
