"""The lm-eval model `ahn` gives lm-eval's `hf` numbers within the budget, in bounded memory."""

from __future__ import annotations

import random

import pytest
import torch
from asked import LONG, SHORT, TOLERANCE, UNTIL, assert_same, hf, lm, requests, scores

import standin
from ahn.evaluation.lm import METHODS
from ahn.evaluation.lm.sequences import like_length_batches, plan_sequences
from ahn.evaluation.streaming import CHUNK, stream_losses
from ahn.hf.cache_argument import CACHE


@pytest.mark.parametrize("method", ["ahn", "window", "full"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_within_the_budget_it_is_hf(method, batch_size):
    model, _ = standin.load("GatedDeltaNet", window=64)
    ours, theirs = lm(method, model=model, batch_size=batch_size), hf()
    pairs = [(text, more) for text in ["", *SHORT] for more in ("x", " return y")]
    assert_same(scores(ours, pairs), scores(theirs, pairs))
    texts = requests(*[(text,) for text in SHORT])
    rolling = ours.loglikelihood_rolling(texts, disable_tqdm=True)
    assert rolling == pytest.approx(theirs.loglikelihood_rolling(texts), **TOLERANCE)
    prompts = requests(*[(text, UNTIL) for text in SHORT])
    assert ours.generate_until(prompts, True) == theirs.generate_until(prompts, True)


def test_full_attention_is_hf_at_any_length():
    ours, theirs = lm("full", prefill_chunk_size=7), hf()
    assert_same(scores(ours), scores(theirs))
    assert_same(scores(lm("full", model=standin.base())), scores(theirs))
    prompts = requests((LONG, UNTIL), (LONG[:99], UNTIL))
    assert ours.generate_until(prompts, True) == theirs.generate_until(prompts, True)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_chunks_and_batches_agree(method):
    expected = scores(lm(method))
    for options in ({"prefill_chunk_size": 5}, {"batch_size": 4}):
        assert_same(scores(lm(method, **options)), expected)


def test_methods_differ_beyond_the_budget_alone():
    found = {method: scores(lm(method)) for method in METHODS}
    for one, other in [("ahn", "window"), ("ahn", "full"), ("ahn", "ahn-shuffled")]:
        assert found[one][0][0] != pytest.approx(found[other][0][0], abs=1e-3)
    assert len({round(found[method][3][0], 4) for method in METHODS}) == 1  # "a b" is short


@pytest.mark.parametrize("method", ["ahn", "window", "full"])
def test_rolling_is_the_stream_of_losses(method):
    model = standin.load("GatedDeltaNet")[0]
    ids = torch.tensor([[0, *standin.tokenizer()(LONG)["input_ids"]]])
    with METHODS[method].context(model):
        nats = torch.cat(list(stream_losses(model, ids))).double().sum().item()
    for batch_size in (1, 2):
        ours = lm(method, model=model, batch_size=batch_size)
        found = ours.loglikelihood_rolling(requests((LONG,), (LONG[:80],), ("",)), True)
        assert found[0] == pytest.approx(-nats, **TOLERANCE) and found[2] == 0


@pytest.mark.parametrize("method", ["ahn", "window"])
def test_batched_generation_is_that_of_each_prompt_alone(method):
    model = standin.load("GatedDeltaNet")[0]
    prompts = requests(*[(LONG[:n], UNTIL) for n in (300, 180, 40)])
    alone = [lm(method, model=model).generate_until([each], True)[0] for each in prompts]
    batched = lm(method, model=model, batch_size=3, prefill_chunk_size=11)
    assert batched.generate_until(prompts, True) == alone


def covered(sequence, pairs):
    """The requests of a sequence; each must be run exactly as it was asked."""
    for span in sequence.spans:
        context, continuation = pairs[span.request]
        assert span.first == len(context) - 1 and list(span.targets) == continuation
        assert (*context, *continuation[:-1]) == sequence.inputs[: span.last]
    for branch in sequence.branches:
        context, continuation = pairs[branch.span.request]
        assert branch.span.first == len(context) - 1 and list(branch.span.targets) == continuation
        trunk = sequence.inputs[: branch.span.first]
        assert len(trunk) == branch.span.first
        assert (*context, *continuation[:-1]) == (*trunk, *branch.inputs)
    return [s.request for s in sequence.spans] + [b.span.request for b in sequence.branches]


def test_shared_texts_are_read_once():
    text = [1, 2, 3, 3, 3, 3, 3]
    pairs = [(text, [4]), (text, [5]), (text[:3], [3, 4]), ([1, 9], [2]), ([1], [2])]
    pairs += [(text, [7, 7, 7]), (text, [8, 7]), ([*text, 5, 5], [9, 9])]
    sequences = plan_sequences(pairs)
    assert sorted(sequence.inputs for sequence in sequences) == [(*text, 5, 5, 9), (1, 9)]
    assert sorted(i for each in sequences for i in covered(each, pairs)) == list(range(8))


def test_any_requests_are_covered_once():
    chance = random.Random(0)
    for _ in range(300):
        lengths = [
            (chance.randint(1, 7), chance.randint(1, 4)) for _ in range(chance.randint(1, 9))
        ]
        pairs = [tuple(chance.choices([1, 2], k=n) for n in pair) for pair in lengths]
        found = [i for sequence in plan_sequences(pairs) for i in covered(sequence, pairs)]
        assert sorted(found) == list(range(len(pairs)))


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_choices_of_several_tokens_read_their_context_once(method):
    choices = [" values if", " value", " first", "x y z", " return [value for", " values if value"]
    pairs = [(text, choice) for text in (LONG, LONG[:230]) for choice in choices]
    ours, lengths = lm(method), []
    hook = ours.model.get_decoder().register_forward_hook(
        lambda *call: lengths.append(call[2][0].shape[1])
    )
    together = scores(ours, pairs)
    hook.remove()
    once = len(standin.tokenizer()(LONG)["input_ids"])
    assert sum(lengths) < 1.6 * once
    assert_same(together, [scores(ours, [pair])[0] for pair in pairs])


def test_batches_are_of_like_length():
    sequences = plan_sequences(
        [([i] * n, [1]) for i, n in enumerate((100, 90, 60, 49, 9, 8, 7), 2)]
    )
    sizes = [[len(sequence) for sequence in batch] for batch in like_length_batches(sequences, 3)]
    assert sizes == [[100, 90, 60], [49], [9, 8, 7]]


def test_no_logits_but_of_what_is_scored():
    model, shapes = standin.load("GatedDeltaNet")[0], []
    model.lm_head.register_forward_hook(lambda *call: shapes.append(call[2].shape[:2]))
    ours = lm(model=model, batch_size=2, prefill_chunk_size=50)
    ours._loglikelihood_tokens([(None, [5] * 400, [7] * 3), (None, [6] * 390, [8] * 5)], True)
    assert shapes == [(2, 5)]
    shapes.clear()
    ours._loglikelihood_tokens([(None, [5], [7] * 3 * CHUNK)], True)
    assert max(n for _, n in shapes) == 50 and sum(n for _, n in shapes) == 3 * CHUNK


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["loglikelihood", "generate_until"])
def test_what_is_held_does_not_grow_with_length(kind, monkeypatch):
    """Every tensor a forward is given or makes is as small for a text ten times as long."""
    model, largest = standin.load("GatedDeltaNet")[0], []

    def note(_, arguments, keywords, output):
        cache = keywords[CACHE]
        largest.append((cache.nbytes, output[0].numel()))

    decoder = model.get_decoder()
    decoder.register_forward_hook(note, with_kwargs=True)
    ours = lm(model=model, prefill_chunk_size=32)
    peaks = []
    for length in (20, 200):
        text = (standin.PARAGRAPH * length)[: 75 * length]
        argument = " x" if kind == "loglikelihood" else UNTIL
        getattr(ours, kind)(requests((text, argument)), disable_tqdm=True)
        peaks.append([max(column) for column in zip(*largest)])
        largest.clear()
    assert peaks[0] == peaks[1]
