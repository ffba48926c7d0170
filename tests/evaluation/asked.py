"""lm-eval models of the stand-in, and what they are asked."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
from lm_eval.models.huggingface import HFLM

import standin
from ahn.evaluation.lm import AHNLM, METHODS

SHORT = ["def f(x):", "class A:\n    x = 1", "import os", "for i in x:\n"]
LONG = standin.PARAGRAPH * 4
PAIRS = [(LONG, " return"), (LONG, " x"), (LONG[:200], "values if"), ("a b", " c"), ("", "def f")]
PAIRS += [(LONG[:150], LONG[150:300]), (LONG[:300], LONG[300:])]
UNTIL = {"until": ["\n\n"], "max_gen_toks": 9}
TOLERANCE = {"rel": 2e-5, "abs": 2e-4}


def requests(*arguments):
    return [SimpleNamespace(args=each, task_name=None) for each in arguments]


def lm(method="ahn", *, model=None, **options):
    model = _model_for(method) if model is None else model
    return AHNLM(model, method=method, tokenizer=copy.deepcopy(standin.tokenizer()), **options)


def _model_for(method):
    """The stand-in with a memory that the method takes: with slots where it asks for them."""
    slots = "-Slots" if method in METHODS and METHODS[method].needs_slots else ""
    return standin.load(f"GatedDeltaNet{slots}")[0]


def scores(model, pairs=PAIRS):
    return model.loglikelihood(requests(*pairs), disable_tqdm=True)


def assert_same(found, expected):
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert [x for x, _ in found] == pytest.approx([x for x, _ in expected], **TOLERANCE)


def hf(model=None):
    model = standin.base() if model is None else model
    return HFLM(model, tokenizer=copy.deepcopy(standin.tokenizer()), max_length=4096)
