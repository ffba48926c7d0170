"""CONTRIBUTING.md, "Add a serving engine": its loop answers each request as if it were alone."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import pytest
import torch

import ahn
from ahn.generation import prefill, stream
from ahn.runtime.decode_step import DecodeStep
from tiny_models import over_trios, random_ids, shared_model


@dataclass
class Request:
    ids: torch.Tensor  # [1, T]
    max_new_tokens: int
    tokens: list[int] = field(default_factory=list)


class Engine:
    """Continuous batching: requests enter the running batch and leave it between two steps."""

    def __init__(self, model, max_batch):
        self.model, self.max_batch = model, max_batch
        self.waiting, self.running, self.cache = deque(), [], None

    def step(self):
        """Give every running request one token; return the requests that are finished."""
        if self.running:
            last = torch.tensor([request.tokens[-1] for request in self.running])
            self._append(self.decode(last.to(self.model.device)))
        self._admit()
        return self._retire()

    def _append(self, logits):
        for request, token in zip(self.running, logits.argmax(-1).tolist()):
            request.tokens.append(token)

    def _admit(self):
        """Prefill waiting requests and put their caches into the batch, one row each."""
        caches = [] if self.cache is None else [self.cache]
        while self.waiting and len(self.running) < self.max_batch:
            request = self.waiting.popleft()
            logits, cache = prefill(self.model, request.ids)
            request.tokens.append(logits.argmax(-1).item())
            self.running.append(request)
            caches.append(cache)
        if caches and self.cache is not caches[-1]:
            self.cache = ahn.AHNCache.join(caches)
            self.decode = DecodeStep(self.model, self.cache)

    def _retire(self):
        """Take the rows of finished requests out of the cache."""
        done = [len(request.tokens) >= request.max_new_tokens for request in self.running]
        finished = [request for request, is_done in zip(self.running, done) if is_done]
        self.running = [request for request, is_done in zip(self.running, done) if not is_done]
        if finished and self.running:
            rows = [row for row, is_done in enumerate(done) if not is_done]
            self.cache.batch_select_indices(torch.tensor(rows))
        if not self.running:
            self.cache = None
        return finished


PROMPTS = (70, 3, 33, 21, 120, 16)  # tokens, within the budget of 20 and beyond it
ANSWERS = (9, 30, 1, 25, 12, 40)


def alone(model, request):
    answer = stream(model, request.ids, max_new_tokens=request.max_new_tokens)
    return torch.cat(list(answer)).tolist()


@pytest.mark.slow
@over_trios
@pytest.mark.parametrize("max_batch", [1, 3, 6])
def test_answers_are_those_of_each_request_alone(family, cell, max_batch):
    model = shared_model(family, cell, dtype=torch.float64)
    sizes = zip(PROMPTS, ANSWERS)
    requests = [Request(random_ids(n, seed=n), answer) for n, answer in sizes]
    engine, arriving, finished, batches = Engine(model, max_batch), deque(requests), [], set()
    for _ in range(200):
        if arriving:  # one at a time, while others are being answered
            engine.waiting.append(arriving.popleft())
        finished += engine.step()
        batches.add(len(engine.running))
    assert sorted(map(id, finished)) == sorted(map(id, requests))
    assert max(batches) == min(max_batch, 5) and engine.cache is None
    for request in requests:
        assert request.tokens == alone(model, request)


@torch.no_grad()
def test_a_row_costs_the_same_whatever_it_has_read():
    model = shared_model()
    engine, sizes = Engine(model, 2), []
    for length in (30, 300):
        engine.waiting.append(Request(random_ids(length), 50))
        engine.step()
        sizes.append(engine.cache.nbytes)
    padding = engine.cache.memory_layers[0].padding.nbytes * len(engine.cache.layers)
    assert sizes[1] - padding == 2 * sizes[0]
