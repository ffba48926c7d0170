"""Files appear whole or not at all."""

import os
import stat

import pytest

from ahn.io.files import written_whole


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
