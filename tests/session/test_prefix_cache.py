"""Law: a text that begins as one before is not read again, and what follows is the same."""

from __future__ import annotations

import random

import pytest

import ahn
from ahn.session import PrefixCache
from ahn.session import reading as reading_module
from talks import CHUNK, TEXT, new_model, new_session, said

OTHER_END = TEXT[:500] + "But the end is another one, which was not read before." * 3


@pytest.fixture
def computed(monkeypatch):
    """How many tokens each forward of a reading has."""
    lengths, fill = [], reading_module.fill

    def counted(model, ids, cache):
        lengths.append(ids.shape[1])
        fill(model, ids, cache)

    monkeypatch.setattr(reading_module, "fill", counted)
    return lengths


@pytest.fixture(params=["memory", "disk"])
def prefixes(request, tmp_path):
    return PrefixCache(folder=None if request.param == "memory" else tmp_path)


def answers(session, text):
    session.read(text)
    first = said(session, max_new_tokens=3)
    session.read("Between.")
    return first, said(session, "And then?", max_new_tokens=3)


@pytest.mark.slow
def test_hit_is_miss(model, tokenizer, prefixes, computed):
    texts = (TEXT, TEXT, OTHER_END, TEXT + "More. " * 40, "Entirely other. " * 30)
    expected, missed = [], []
    for text in texts:
        computed.clear()
        expected.append(answers(new_session(model, tokenizer), text))
        missed.append(sum(computed))
    for number, text in enumerate(texts):
        computed.clear()
        assert answers(new_session(model, tokenizer, prefixes=prefixes), text) == expected[number]
        read = sum(computed)
        assert read == missed[number] if number in (0, 4) else read <= missed[number] - CHUNK
        assert read == 0 or number != 1


def test_other_processes_and_days_find_what_is_on_disk(model, tokenizer, tmp_path, computed):
    expected = answers(new_session(model, tokenizer, prefixes=PrefixCache(folder=tmp_path)), TEXT)
    computed.clear()
    again = new_session(model, tokenizer, prefixes=PrefixCache(folder=tmp_path))
    assert answers(again, TEXT) == expected and not computed


def test_another_model_or_mode_finds_nothing(model, tokenizer, prefixes, computed):
    new_session(model, tokenizer, prefixes=prefixes).read(TEXT)
    missed = sum(computed)
    others = (new_model("DeltaNet"), new_model(window=65))
    for other in others:
        computed.clear()
        new_session(other, tokenizer, prefixes=prefixes).read(TEXT)
        assert sum(computed) == missed
    computed.clear()
    with ahn.memory_off(model):
        new_session(model, tokenizer, prefixes=prefixes).read(TEXT)
    assert sum(computed) == missed


def test_what_is_kept_is_bounded_and_the_least_used_goes(model, tokenizer, tmp_path, computed):
    session = new_session(model, tokenizer)
    session.read(TEXT)
    for folder in (None, tmp_path):
        prefixes = PrefixCache(3 * session.nbytes, folder)
        new_session(model, tokenizer, prefixes=prefixes).read(TEXT)
        assert 0 < prefixes.nbytes <= prefixes.max_bytes and len(prefixes) <= 3
        computed.clear()
        new_session(model, tokenizer, prefixes=prefixes).read(TEXT)
        assert not computed  # the last states are enough
        new_session(model, tokenizer, prefixes=prefixes).read("Other. " * 150)
        assert len(prefixes) <= 3
        assert sum(computed) > 0
    files = sum(file.stat().st_size for file in tmp_path.iterdir())
    assert files < 3 * session.nbytes + 10**6
    assert not len(_filled(PrefixCache(session.nbytes - 1), model, tokenizer))


def _filled(prefixes, model, tokenizer):
    new_session(model, tokenizer, prefixes=prefixes).read(TEXT)
    return prefixes


def test_a_damaged_state_is_read_again_with_a_warning(model, tokenizer, tmp_path, computed):
    expected = answers(new_session(model, tokenizer), TEXT)
    _filled(PrefixCache(folder=tmp_path), model, tokenizer)
    chance = random.Random(1)
    for file in tmp_path.iterdir():
        data = bytearray(file.read_bytes())
        data[chance.randrange(len(data) // 2, len(data))] ^= 1
        file.write_bytes(data)
    computed.clear()
    session = new_session(model, tokenizer, prefixes=PrefixCache(folder=tmp_path))
    with pytest.warns(UserWarning, match="what it stood for is read again"):
        assert answers(session, TEXT) == expected
    assert computed


def test_foreign_files_are_left_alone(model, tokenizer, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "x.safetensors").write_text("none")
    _filled(PrefixCache(0, tmp_path), model, tokenizer)
    assert {x.name for x in tmp_path.iterdir()} == {"notes.txt", "x.safetensors"}
    with pytest.raises(ValueError, match="max_bytes: expected a number >= 0"):
        PrefixCache(-1)
