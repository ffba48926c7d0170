"""The comparisons of `test_vllm_engine` see these faults; see `.ci/vllm`."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm")

from dataclasses import replace

from vllm.v1.core.single_type_kv_cache_manager import SlidingWindowManager
from vllm_engines import (
    BUDGET,
    TOLERANCE,
    answers,
    embedded_folder,
    engine,
    largest_difference,
    metrics,
    prompts,
    token_ids,
)

from ahn.serving import reference
from ahn.serving.vllm.sink_window import SinkWindowManager
from ahn.serving.vllm.window import WindowCache

SEEN = 10 * TOLERANCE
CHUNK = 149  # three of them end before the last token of a page of 64


def window_of_one_token_less(monkeypatch):
    right = WindowCache.get_kv_cache_spec

    def wrong(self, vllm_config):
        spec = right(self, vllm_config)
        return replace(spec, sliding_window=spec.sliding_window - 1)

    monkeypatch.setattr(WindowCache, "get_kv_cache_spec", wrong)


def freed_sinks(monkeypatch):
    monkeypatch.delattr(SinkWindowManager, "remove_skipped_blocks")


def a_state_not_zeroed(monkeypatch):
    monkeypatch.setattr(reference, "_state_of", lambda layer, x: layer.states[x.state])


def stock_prefix_lookup(monkeypatch):
    monkeypatch.delattr(SinkWindowManager, "find_longest_cache_hit")
    assert SinkWindowManager.find_longest_cache_hit.__func__ is (
        SlidingWindowManager.find_longest_cache_hit.__func__
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return embedded_folder(tmp_path_factory.mktemp("folders") / "model", "GatedDeltaNet")


def freed_too_early_or_used_again(folder) -> float:
    """A chunk that begins with the last token of a page takes the pages that it has just freed.

    The second request takes those of the first, its state among them.
    """
    asked = prompts([700, 500])
    with engine(folder, max_num_batched_tokens=CHUNK) as llm:
        got = [answers(llm, [prompt], new=4)[0] for prompt in asked]
    return largest_difference(folder, asked, got)


@pytest.mark.parametrize("fault", [window_of_one_token_less, freed_sinks, a_state_not_zeroed])
def test_pages_and_states(folder, monkeypatch, fault):
    fault(monkeypatch)
    assert freed_too_early_or_used_again(folder) > SEEN


def test_pages_and_states_without_a_fault(folder):
    assert freed_too_early_or_used_again(folder) < TOLERANCE


def test_in_the_prefix_cache(folder, monkeypatch):
    stock_prefix_lookup(monkeypatch)
    asked = [token_ids()[:n] for n in (1300, 1153)]
    with engine(folder, enable_prefix_caching=True) as llm:
        answers(llm, [[*token_ids()[:1152], 7]], new=1)
        got = answers(llm, asked, new=4)
        assert metrics(llm)["vllm:prefix_cache_hits"] > 2 * BUDGET
    assert largest_difference(folder, asked, got) > SEEN
