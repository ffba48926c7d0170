"""Laws of a session's folder: loaded is unbroken, damaged or another's is refused by name."""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import subprocess
import sys

import pytest

import ahn
from ahn.session import Session, SessionFolder
from commands import file_size_limit
from talks import chatting, new_model, new_session, said

FLIPS = int(os.environ.get("AHN_DAMAGES", 60))  # continuous integration does 1,000


@pytest.fixture
def saved(session, tmp_path):
    """A folder with a session of three turns."""
    said(session, max_new_tokens=4)
    said(session, "And then?", max_new_tokens=4)
    session.save(tmp_path / "session")
    return tmp_path / "session"


def test_saved_and_loaded_is_unbroken(session, saved, model, tokenizer):
    loaded = Session.load(saved, model, tokenizer)
    assert (loaded.tokens, loaded.nbytes) == (session.tokens, session.nbytes)
    assert loaded.history == session.history
    for each in (session, loaded):
        each.read("Something more.")
    assert said(loaded, "Else?") == said(session, "Else?")
    for _ in range(4):
        assert loaded.undo() == session.undo()
        assert said(loaded.fork(), "Else?") == said(session.fork(), "Else?")
    loaded.undo()
    assert loaded.tokens == 0 and not loaded.history


def test_an_answer_cut_short_goes_on_after_loading(session, model, tokenizer, tmp_path):
    pieces = session.ask("What?", max_new_tokens=9)
    next(pieces)
    pieces.close()
    assert session.state.pending
    session.save(tmp_path)
    assert said(Session.load(tmp_path, model, tokenizer), "More?") == said(session, "More?")


def test_a_save_replaces_the_session_that_was_there(session, saved, model, tokenizer):
    before = {x.name for x in (saved / "states").iterdir()}
    session.undo()
    session.save(saved)
    after = {x.name for x in (saved / "states").iterdir()}
    assert after < before
    assert Session.load(saved, model, tokenizer).history == session.history
    other = new_session(model, tokenizer)
    other.read("Another text.")
    other.save(saved)
    assert Session.load(saved, model, tokenizer).tokens == other.tokens
    assert len(list((saved / "states").iterdir())) == 1


def test_a_failed_save_leaves_the_session_that_was_there(session, saved, model, tokenizer):
    expected = said(Session.load(saved, model, tokenizer), "More?")
    said(session, "Else?")
    with file_size_limit(1000), pytest.raises(OSError, match="File too large"):
        session.save(saved)
    assert said(Session.load(saved, model, tokenizer), "More?") == expected
    session.save(saved)  # and the session in memory has lost nothing
    assert Session.load(saved, model, tokenizer).history == session.history


def test_damaged_folders_are_refused(saved, model, tokenizer, tmp_path):
    """Flipped bits, cut and missing files, wherever."""
    files = sorted(x for x in saved.rglob("*") if x.is_file())
    assert len(files) > 2
    for turn in range(FLIPS):
        chance = random.Random(turn)
        file = chance.choice(files)
        whole = file.read_bytes()
        data = bytearray(whole)
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        damaged = (bytes(data), whole[: chance.randrange(len(whole))], None)[turn % 10 // 8]
        if turn % 10 == 9:
            file.unlink()
        else:
            file.write_bytes(damaged)
        with pytest.raises((ValueError, FileNotFoundError)) as caught:
            Session.load(saved, model, tokenizer)
        assert "\n" not in str(caught.value), caught.value
        file.write_bytes(whole)
    assert Session.load(saved, model, tokenizer).tokens


def _changed(folder, **values):
    """The session with other facts and a checksum that is right."""
    from ahn.io.signed import write_signed

    facts = json.loads((folder / "session.json").read_text())
    facts.pop("sha256")
    write_signed(folder / "session.json", {**facts, **values})


def test_what_another_wrote_is_refused_by_name(saved, model, tokenizer):
    other = copy.deepcopy(tokenizer)
    other.add_tokens(["<more>"])
    with pytest.raises(ValueError, match="of another tokenizer's vocabulary"):
        Session.load(saved, model, other)
    base = new_model()
    base.model.norm.weight.data.mul_(2)
    with pytest.raises(ValueError, match="expected the weights of its base, got others"):
        Session.load(saved, base, tokenizer)
    memory = new_model()
    memory.model.layers[0].ahn.fn.o_proj.weight.data.mul_(2)
    with pytest.raises(ValueError, match="expected the weights of its memory, got others"):
        Session.load(saved, memory, tokenizer)
    with pytest.raises(ValueError, match=r"settings .* instead of"):
        Session.load(saved, new_model(window=65), tokenizer)
    with ahn.memory_off(model), pytest.raises(ValueError, match="in the mode window, got one in"):
        Session.load(saved, model, tokenizer)
    _changed(saved, format="ahn-session-folder-9")
    with pytest.raises(ValueError, match="expected ahn-session-folder-1, got 'ahn-session-fold"):
        Session.load(saved, model, tokenizer)
    _changed(saved, format="ahn-session-folder-1", history=3)
    with pytest.raises(ValueError, match="expected a session, got"):
        Session.load(saved, model, tokenizer)


def test_it_goes_on_with_its_own_template(saved, model, session):
    tokenizer = chatting(template="{{ messages }}")
    assert said(Session.load(saved, model, tokenizer), "More?") == said(session, "More?")


def test_folders_of_something_else_are_left_alone(session, model, tokenizer, tmp_path):
    (tmp_path / "thesis.txt").write_text("three years")
    with pytest.raises(ValueError, match=r"expected a new folder .* with thesis\.txt"):
        session.save(tmp_path)
    with pytest.raises(ValueError, match="expected a folder, got the file"):
        session.save(tmp_path / "thesis.txt")
    with pytest.raises(FileNotFoundError):
        Session.load(tmp_path / "none", model, tokenizer)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"expected session\.json, got a folder without it"):
        Session.load(tmp_path / "empty", model, tokenizer)
    with pytest.raises(ValueError, match="expected one that has read something"):
        new_session(model, tokenizer).save(tmp_path / "new")
    assert {x.name for x in tmp_path.iterdir()} == {"thesis.txt", "empty"}


def test_a_second_process_is_told(saved, model, tokenizer, tmp_path):
    code = (
        "import fcntl, os, sys\nfcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)\n"
        "print('held', flush=True)\nsys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, saved],
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match="session: expected a folder that no other"):
            Session.load(saved, model, tokenizer)
        process.communicate("")
    assert Session.load(saved, model, tokenizer).tokens


def test_a_copy_of_a_folder_is_a_session(saved, model, tokenizer, tmp_path):
    shutil.copytree(saved, tmp_path / "copy")
    with SessionFolder(saved), SessionFolder(tmp_path / "copy") as opened:
        assert opened.load(model, tokenizer).tokens
