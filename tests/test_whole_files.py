"""A file under its own name is the old one or the new one, whole; what killed writers leave is known by its name."""

import os
import signal
import subprocess
import sys

import pytest
from torchassay.whole_files import clear, meant_for, replacing

KILLED = """
import os, signal, sys
from pathlib import Path
from torchassay.whole_files import replacing
with replacing(Path(sys.argv[1])) as fresh:
    fresh.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_new_file_takes_the_place_of_the_old_one(tmp_path, monkeypatch):
    path, synced = tmp_path / "table.csv", []
    path.write_text("old")
    with monkeypatch.context() as patch, replacing(path) as fresh:
        assert fresh.parent == tmp_path and fresh.suffix == ".csv"  # writers go by it
        fresh.write_text("new")
        assert path.read_text() == "old"
        patch.setattr(os, "fsync", lambda handle: synced.append(path.read_text()))
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]
    assert synced == ["old", "new"]  # the file before it gets its name, the folder after


def test_a_writer_that_fails_leaves_the_old_one_alone(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(path) as fresh:
        fresh.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_what_a_killed_writer_leaves(tmp_path):
    path, other = tmp_path / "table [1].csv", tmp_path / ".partial-notes"
    for kept in (path, other):
        kept.write_text("old")
    ended = subprocess.run([sys.executable, "-c", KILLED, str(path)])
    assert ended.returncode == -signal.SIGKILL
    [left] = set(tmp_path.iterdir()) - {path, other}
    assert left.read_text() == "half" and path.read_text() == "old"
    assert meant_for(left) == path.name and meant_for(path) is None and meant_for(other) is None
    clear(tmp_path)
    assert set(tmp_path.iterdir()) == {path, other}
