"""What of a text is kept, with the words: in order, all of it accounted for, and bounded."""

from __future__ import annotations

import pytest

import talks
from ahn.session import Session, kept_text
from ahn.session.held import full_attention_nbytes, held
from ahn.session.transcript import UNKNOWN, Transcript
from talks import TEXT, said


@pytest.fixture
def watched(model, tokenizer):
    """A session with a transcript that has read nothing."""
    session = talks.new_session(model, tokenizer)
    session.transcript = Transcript()
    return session


def texts(session, *kinds):
    return "".join(x.text for x in kept_text.kept_text(session) if x.kind in kinds)


def ids_of(session):
    return session.transcript.ids(0, session.tokens)


def test_a_short_text_is_given_whole(watched):
    watched.read("A short text.")
    said(watched, "Why?", max_new_tokens=4)
    stretches = kept_text.kept_text(watched)
    assert {x.kind for x in stretches} == {"sink", "window"}
    assert sum(x.tokens for x in stretches) == watched.state.tokens
    whole = watched.tokenizer.decode(ids_of(watched), skip_special_tokens=True)
    assert whole.startswith("".join(x.text for x in stretches)) and "A short text." in whole


def test_stretches_are_what_is_held_and_in_order(watched):
    watched.read(TEXT)
    exact, place = held(watched.state), 0
    begin, end = exact.window
    for each in kept_text.kept_text(watched):
        places = range(place, place + each.tokens)
        kinds = {"sink": range(exact.sinks), "window": range(begin, end), "slot": exact.slots}
        if each.kind in kinds:
            assert all(x in kinds[each.kind] for x in places)
        else:
            assert not any(x in held_places for held_places in kinds.values() for x in places)
        if each.kind == "slot":
            assert {exact.slots[x] / exact.heads for x in places} == {each.share}
        place += each.tokens
    assert place == watched.state.tokens and exact.slots
    window = watched.tokenizer.decode(ids_of(watched)[begin:end], skip_special_tokens=True)
    assert texts(watched, "window") == window and TEXT[-40:].strip() in window


def test_it_does_not_grow_with_the_text(watched):
    sizes = []
    for _ in range(4):
        watched.read(TEXT * 2)
        given = [x for x in kept_text.kept_text(watched) if x.kind != "omitted"]
        sizes.append(sum(x.tokens for x in given))
    most = held(watched.state)
    bound = 4 + talks.WINDOW + len(most.slots) + 2 * kept_text.CONTEXT * (len(most.slots) + 1)
    assert max(sizes) <= bound < watched.tokens
    assert "omitted" in {x.kind for x in kept_text.kept_text(watched)}


def test_undo_fork_and_a_failed_text_leave_the_transcript_true(watched):
    watched.read(TEXT)
    said(watched)
    before, tokens = ids_of(watched), watched.tokens
    other = watched.fork()
    said(other, "And when?")

    def broken():
        yield TEXT
        raise OSError

    with pytest.raises(OSError):
        watched.read(broken())
    assert ids_of(watched)[: watched.state.tokens] == before[: watched.state.tokens]
    said(watched, "Else?")
    watched.undo()
    assert watched.tokens == tokens and ids_of(watched)[:-1] == before[:-1]
    assert ids_of(other)[: len(before)] == before and len(ids_of(other)) == other.tokens


def test_of_a_loaded_session_the_text_is_not_known(watched, model, tokenizer, tmp_path):
    watched.read(TEXT)
    watched.save(tmp_path)
    loaded = Session.load(tmp_path, model, tokenizer)
    with pytest.raises(ValueError, match="expected one with a transcript, got none"):
        kept_text.kept_text(loaded)
    loaded.transcript = Transcript()
    assert set(ids_of(loaded)) == {UNKNOWN} and texts(loaded, "window", "sink") == ""
    answer = said(loaded)
    assert answer == said(watched)
    assert texts(loaded, "window").rstrip().endswith(answer.rstrip())
    assert sum(x.tokens for x in kept_text.kept_text(loaded)) == loaded.state.tokens


def test_full_attention_would_take_a_pair_for_every_token(watched):
    assert full_attention_nbytes(watched.state) == 0
    watched.read(TEXT)
    config, once = watched.model.config, full_attention_nbytes(watched.state)
    pair = 2 * config.num_key_value_heads * config.head_dim * 4 * config.num_hidden_layers
    assert once == pair * watched.state.tokens
