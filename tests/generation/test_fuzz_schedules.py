"""Any schedule of what can be done to caches: each row goes on as if it had been read alone."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ahn
from ahn.generation import load_session, prefill, save_session
from ahn.runtime.decode_step import DecodeStep
from fuzz_cases import cases, outcome
from slot_models import slot_model
from tiny_models import TRIOS, WINDOW, assert_close, left_padded, one_shot, random_ids, shared_model

BUDGET = WINDOW + 4
MOST_ROWS, MOST_TOKENS = 4, 90
MODELS = [*TRIOS, ("Llama", "slots"), ("Qwen3", "mixed")]


@cache
def model_of(family, cell):
    if cell == "slots":
        return slot_model(family)
    settings = {"full_attention_layers": (1,)} if cell == "mixed" else {}
    cell = "GatedDeltaNet" if cell == "mixed" else cell
    return shared_model(family, cell, dtype=torch.float64, **settings)


def steps():
    size = st.integers(1, 30)
    return st.lists(
        st.one_of(
            st.tuples(st.just("read"), size, size),
            st.tuples(st.just("read"), size, size),
            st.tuples(st.just("decode"), st.integers(1, 4)),
            st.tuples(st.just("fork")),
            st.tuples(st.just("swap"), st.integers(0, 3)),
            st.tuples(st.just("join"), st.integers(0, 3)),
            st.tuples(st.just("choose"), st.lists(st.integers(0, 3), min_size=1, max_size=3)),
            st.tuples(st.just("repeat"), st.integers(1, 2)),
            st.tuples(st.just("crop"), st.integers(1, 12)),
            st.tuples(st.just("save")),
            st.tuples(st.just("new"), st.lists(st.integers(1, 30), min_size=1, max_size=3)),
        ),
        min_size=2,
        max_size=9,
    )


class Caches:
    """A cache with the texts of its rows, and others that were put aside."""

    def __init__(self, model, path):
        self.model, self.path, self.aside, self.count = model, path, [], 0
        self.new([7])

    def tokens(self, length):
        self.count += 1
        return random_ids(length, batch=len(self.texts), seed=self.count)

    def new(self, lengths):
        """Rows of these lengths, read as one batch with padding."""
        self.count += 1
        self.texts, ids, mask = left_padded(tuple(lengths), seed=100 * self.count)
        self.logits, self.cache = prefill(self.model, ids, attention_mask=mask)

    def read(self, length, size):
        length = min(length, MOST_TOKENS - max(x.shape[1] for x in self.texts))
        if length > 0:
            more = self.tokens(length)
            self.logits, _ = prefill(self.model, more, self.cache, prefill_chunk_size=size)
            self._took(more)

    def decode(self, number):
        step, more = DecodeStep(self.model, self.cache), self.tokens(number)
        for token in more.unbind(1):
            self.logits = step(token)
        self._took(more)

    def _took(self, more):
        self.texts = [torch.cat([x, y[None]], 1) for x, y in zip(self.texts, more)]

    def fork(self):
        self.aside.append((self.cache.fork(), list(self.texts)))

    def swap(self, index):
        if self.aside:
            index %= len(self.aside)
            self.aside[index], held = (self.cache, self.texts), self.aside[index]
            self.cache, self.texts = held
            self.logits = None

    def join(self, index):
        if self.aside:
            cache, texts = self.aside[index % len(self.aside)]
            if len(texts) + len(self.texts) <= MOST_ROWS:
                self.cache = ahn.AHNCache.join([self.cache, cache])
                self.texts, self.logits = [*self.texts, *texts], None

    def choose(self, rows):
        rows = [row % len(self.texts) for row in rows]
        self.cache.batch_select_indices(torch.tensor(rows))
        self.texts, self.logits = [self.texts[row] for row in rows], None

    def repeat(self, number):
        if number * len(self.texts) <= MOST_ROWS:
            self.cache.batch_repeat_interleave(number)
            self.texts = [x for x in self.texts for _ in range(number)]
            self.logits = None

    def crop(self, number):
        lengths = [x.shape[1] for x in self.texts]
        if min(lengths) <= number:
            return
        _, why = outcome(self.cache.crop, -number)
        assert bool(why) == (max(lengths) > BUDGET), (why, lengths)
        if not why:
            self.texts, self.logits = [x[:, :-number] for x in self.texts], None

    def save(self):
        save_session(self.cache, self.path)
        self.cache = load_session(self.path, self.model)

    def check(self):
        """What follows is what follows each text alone."""
        if self.logits is None:
            self.read(1, 1)
        for row, text in enumerate(self.texts if self.logits is not None else ()):
            expected = one_shot(self.model, text)[0, -1]
            assert_close(self.logits[row], expected, 1e-11, f"row {row} of {text.shape[1]} tokens")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("schedules") / "session"


@pytest.mark.parametrize(("family", "cell"), MODELS)
@given(schedule=steps())
@cases("a schedule", over=len(MODELS))
@torch.no_grad()
def test_any_schedule_gives_what_each_text_gives_alone(family, cell, path, schedule):
    caches = Caches(model_of(family, cell), path)
    for name, *arguments in schedule:
        getattr(caches, name)(*arguments)
        if name in ("read", "decode", "new"):
            caches.check()
    for index in range(len(caches.aside) + 1):
        caches.check()
        caches.swap(index)
