"""Files appear whole or not at all; what a killed write leaves goes with the next."""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ahn.io.files import (
    check_writable,
    files_written_whole,
    folder_written_whole,
    write_json,
    written_whole,
)
from ahn.io.partial import MARK, is_partial
from commands import file_size_limit

WRITERS = {"file": written_whole, "folder": folder_written_whole, "files": files_written_whole}


def partials(folder):
    return [path for path in folder.rglob("*") if is_partial(path.name)]


def filled(writer, target):
    """Begin a write and put something into it."""
    context = WRITERS[writer](target)
    temporary = context.__enter__()
    inside = temporary if writer == "file" else temporary / "inside"
    inside.write_text("half")
    return context


def test_the_file_appears_when_the_block_has_succeeded(tmp_path):
    target = tmp_path / "result.json"
    with written_whole(target) as temporary:
        temporary.write_text("new")
        assert temporary.parent == tmp_path
        assert not target.exists()
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "result.json"
    target.write_text("old")
    with pytest.raises(KeyError), written_whole(target) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_permissions_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        with written_whole(tmp_path / "result") as temporary:
            temporary.write_text("x")
        assert stat.S_IMODE((tmp_path / "result").stat().st_mode) == 0o640
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)


def in_child(work) -> int:
    """The wait status of a forked process that does this."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(3)
    return os.waitpid(child, 0)[1]


@pytest.mark.parametrize("writer", WRITERS)
def test_what_a_killed_write_leaves_is_swept_by_the_next(writer, tmp_path):
    def killed():
        context = filled(writer, tmp_path / "out")
        os.kill(os.getpid(), signal.SIGKILL)
        context.__exit__(None, None, None)

    assert os.WTERMSIG(in_child(killed)) == signal.SIGKILL
    assert len(partials(tmp_path)) == 1
    if writer == "files":  # they lie within the folder itself
        with files_written_whole(tmp_path / "out"):
            pass
    else:
        write_json(tmp_path / "another", {})
    assert not partials(tmp_path)


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_ends_the_process_cleans_up(writer, number, tmp_path):
    def ended():
        with WRITERS[writer](tmp_path / "out") as temporary:
            inside = temporary if writer == "file" else temporary / "inside"
            inside.write_text("half")
            os.kill(os.getpid(), number)
            time.sleep(60)

    assert os.WTERMSIG(in_child(ended)) == number
    assert not partials(tmp_path) and not (tmp_path / "out" / "inside").exists()


def test_handlers_of_others_stay(tmp_path):
    heard = []
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
    try:
        with written_whole(tmp_path / "out") as temporary:
            os.kill(os.getpid(), signal.SIGTERM)
            temporary.write_text("whole")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard and (tmp_path / "out").read_text() == "whole"


@pytest.mark.parametrize("writer", WRITERS)
def test_a_write_under_way_is_left_alone(writer, tmp_path):
    context = filled(writer, tmp_path / "out")
    found = partials(tmp_path)
    write_json(tmp_path / "another", {})
    assert partials(tmp_path) == found
    context.__exit__(None, None, None)
    assert not partials(tmp_path) and (tmp_path / "out").exists()


def test_writers_of_one_file_do_not_disturb_each_other(tmp_path):
    def write(name):
        for turn in range(50):
            write_json(tmp_path / "out", {"name": name, "turn": turn})

    threads = [threading.Thread(target=write, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert json.loads((tmp_path / "out").read_text())["turn"] == 49
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_strangers_are_not_swept(tmp_path):
    (tmp_path / "precious").write_text("x")
    (tmp_path / f".a{MARK}link").symlink_to(tmp_path / "precious")
    (tmp_path / f"name{MARK}x").write_text("x")
    (tmp_path / ".hidden").write_text("x")
    write_json(tmp_path / "out", {})
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"precious", f".a{MARK}link", f"name{MARK}x", ".hidden", "out"}


def test_a_link_is_followed(tmp_path):
    (tmp_path / "place").mkdir()
    for name in ("there", "not yet"):
        link = tmp_path / f"to {name}"
        link.symlink_to(tmp_path / "place" / name)
        write_json(link, {"name": name})
        assert link.is_symlink()
        assert json.loads((tmp_path / "place" / name).read_text()) == {"name": name}
    (tmp_path / "folder").symlink_to(tmp_path / "place" / "new")
    with folder_written_whole(tmp_path / "folder") as temporary:
        (temporary / "x").write_text("x")
    assert (tmp_path / "folder").is_symlink() and (tmp_path / "place" / "new" / "x").exists()


def test_what_is_no_file_is_written_into(tmp_path):
    for device in ("/dev/null", tmp_path / "link"):
        if device != "/dev/null":
            device.symlink_to("/dev/null")
        write_json(device, {})
        assert stat.S_ISCHR(Path(device).stat().st_mode)
    with pytest.raises(OSError, match="/dev/full") as caught:
        write_json("/dev/full", {})
    assert caught.value.errno == errno.ENOSPC
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    write_json(pipe, {"a": 1})
    reader.join()
    assert json.loads(read[0]) == {"a": 1} and stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_descriptor_is_written_into(tmp_path):
    with (tmp_path / "out").open("w") as file:
        file.write("before\n")
        file.flush()
        write_json(f"/dev/fd/{file.fileno()}", {})
    assert (tmp_path / "out").read_text() == "before\n{}\n"


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(bytes(2**16)),
        lambda path: save_file({"x": torch.zeros(2**16)}, path),
        lambda path: torch.save(torch.zeros(2**16), path),
    ],
    ids=["bytes", "safetensors", "torch"],
)
@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_said_by_the_name_of_what_is_written(writer, write, tmp_path):
    target = tmp_path / "out"
    with file_size_limit(4096), pytest.raises(OSError) as caught, WRITERS[writer](target) as path:
        write(path if writer == "file" else path / "x")
    assert caught.value.filename == str(target) and caught.value.errno
    assert not partials(tmp_path)


def test_a_name_of_any_length(tmp_path):
    for name in ("x" * 255, "ü" * 127):
        write_json(tmp_path / name, {})
        assert (tmp_path / name).exists()


def test_what_cannot_be_written_is_known_before(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere" / "x")
    for path in (tmp_path / "folder", tmp_path / "link", tmp_path / "no" / "x"):
        with pytest.raises(ValueError, match="--out: expected a file in a folder"):
            check_writable(path, "--out")
    for path in (tmp_path / "new", "/dev/null", "/dev/stdout"):
        check_writable(path, "--out")
    monkeypatch.chdir(tmp_path)
    check_writable("bare", "--out")
