"""The demo's facts: where they are hidden, how they are asked for, when they count as found."""

from __future__ import annotations

import pytest
import torch

import ahn
import standin
from ahn.demo.documents import evaluation_documents
from ahn.demo.facts import facts_found, haystacks


def made(seed):
    """Three haystacks of held-out text, as long as the stand-in's context."""
    tokenizer, length = standin.tokenizer(), standin.CONTEXT
    limits = {"context": length, "budget": standin.BUDGET}
    documents = evaluation_documents(None, tokenizer, tokens=500, **limits)
    text = "\n".join(tokenizer.decode(x.ids[0, 1:]) for x in documents)
    return haystacks(tokenizer, text, length=length, budget=standin.BUDGET, count=3, seed=seed)


@pytest.fixture
def hays(monkeypatch):
    standin.use(monkeypatch)
    return made(seed=0)


def test_each_value_is_said_once_before_it_is_asked_for_and_beyond_the_budget(hays):
    for hay in hays:
        ids, decode = hay.ids[0], standin.tokenizer().decode
        assert len(hay.values) == len({decode(ids[x]) for x in hay.values}) == 2
        asked = min(x.start for x in hay.values)
        for value in hay.values:
            said = decode(ids[value])
            text = decode(ids[: value.start])
            assert said.startswith(" ") and text.count(said) == 1
            before = next(n for n in range(len(ids)) if said in decode(ids[:n]))
            assert before + standin.BUDGET < asked


def test_haystacks_differ_and_are_made_again_by_their_seed(hays):
    assert len({tuple(hay.ids[0].tolist()) for hay in hays}) == 3
    again, other = made(seed=0), made(seed=1)
    assert all(torch.equal(x.ids, y.ids) for x, y in zip(hays, again))
    assert not any(torch.equal(x.ids, y.ids) for x, y in zip(hays, other))


@pytest.mark.parametrize("off", [False, True])
def test_a_fact_is_found_where_all_its_tokens_are_the_likeliest(hays, off):
    model, _ = standin.load("Slots")
    hay = hays[0]
    with ahn.memory_off(model) if off else torch.no_grad():
        with torch.no_grad():
            likeliest = model(hay.ids, use_cache=False).logits[0].argmax(-1)
        # A random model finds nothing: what it would say is put where it is asked.
        expected = [
            bool((likeliest[x.start - 1 : x.stop - 1] == hay.ids[0, x]).all()) for x in hay.values
        ]
        assert facts_found(model, hay) == expected
        wanted = slice(hay.values[-1].start, hay.values[-1].start + 1)
        hay.ids[0, wanted] = likeliest[wanted.start - 1]
        assert facts_found(model, type(hay)(hay.ids, [wanted])) == [True]
        hay.ids[0, wanted] = (likeliest[wanted.start - 1] + 1) % standin.VOCABULARY
        assert facts_found(model, type(hay)(hay.ids, [wanted])) == [False]
