"""Files that are written whole or not at all."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from analysis.matching.blocks import read_blocks
from engine.run_folder import new_run_folder
from utils.errors import UserError
from utils.files import (
    GrowingFile,
    atomic_path,
    keep_previous,
    read_text,
    remove_unfinished,
    write_json_atomically,
    write_text_atomically,
)

ROOT = Path(__file__).resolve().parent.parent


def test_a_failure_keeps_the_old_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    write_text_atomically(path, "old")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_the_temporary_name_keeps_the_suffix(tmp_path):
    with atomic_path(tmp_path / "a.png") as temporary:
        assert temporary.suffix == ".png" and temporary.parent == tmp_path
        temporary.touch()


def test_json_refuses_nan_and_keeps_the_old_file(tmp_path):
    write_json_atomically(tmp_path / "a.json", {"x": 1})
    with pytest.raises(ValueError):
        write_json_atomically(tmp_path / "a.json", {"x": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}


def test_text_is_read_up_to_a_limit_and_named_by_line(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\n")
    assert read_text(path, 8) == "one\r\n"
    with pytest.raises(UserError, match=r"a\.txt: has more than 7 bytes"):
        read_text(path, 7)
    path.write_bytes(b"one\ntwo\xff\n")
    with pytest.raises(UserError, match=r"a\.txt:2: is not a UTF-8 text file"):
        read_text(path, 100)
    with pytest.raises(OSError):
        read_text(tmp_path, 100)


def killed_while_writing(path):
    """Let another process be killed in the middle of writing a file; return the name that it leaves."""
    code = (
        "import os, signal, sys\nfrom utils.files import atomic_path\n"
        f"with atomic_path({str(path)!r}) as temporary:\n    temporary.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT)
    (left,) = path.parent.glob(f".{path.stem}.*")
    return left


@pytest.mark.parametrize("name", ["last.pt", "block-0000001.npz", "results", "a.b.c.txt"])
def test_what_a_killed_process_left_is_removed(tmp_path, name):
    left = killed_while_writing(tmp_path / name)
    remove_unfinished(tmp_path.glob(".*"))
    assert not left.exists()


def test_what_may_still_be_written_or_is_somebody_elses_stays(tmp_path):
    left = killed_while_writing(tmp_path / "last.pt")
    machine, process = left.name.split(".")[2].split("-")
    other = f"{int(machine, 16) ^ 1:08x}"
    kept = {
        f".last.{machine}-{os.getpid()}.pt",  # of a process that runs
        f".last.{machine}-1.pt",  # and of one of another user
        f".last.{other}-{process}.pt",  # of another machine, whose processes nobody here knows
        f".last.{process}.pt",  # of no known machine
        ".hidden",
        ".gitignore.txt",
        f"last.{machine}-{process}.pt",  # not hidden: a user's
    }
    for name in kept:
        (tmp_path / name).touch()
    remove_unfinished(tmp_path.iterdir())
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_a_new_run_removes_what_killed_runs_left(tmp_path):
    run = new_run_folder(tmp_path / "runs", "exp")
    (run / "partial").mkdir()
    left = [killed_while_writing(run / "best.pt"), killed_while_writing(run / "partial" / "block-0000000.npz")]
    new_run_folder(tmp_path / "runs", "exp")
    assert not any(path.exists() for path in left)
    left = killed_while_writing(run / "partial" / "block-0000000.npz")
    read_blocks(run / "partial")
    assert not left.exists()


@pytest.mark.parametrize(("text", "written"), [("a\udcffb", "a\\udcffb"), ("\ud800", "\\ud800"), ("é", "é")])
def test_letters_that_utf8_does_not_have_are_written_all_the_same(tmp_path, text, written):
    write_text_atomically(tmp_path / "a.txt", text)
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == written


def test_a_growing_file_has_its_name_when_it_is_closed(tmp_path):
    file = GrowingFile(tmp_path / "new" / "a.txt")
    file.close()
    assert list(tmp_path.iterdir()) == []
    file = GrowingFile(tmp_path / "new" / "a.txt")
    file.add("één, ")
    file.add("\udcff")
    assert not file.path.exists()
    file.close()
    assert file.path.read_text(encoding="utf-8") == "één, \\udcff" and list(file.path.parent.iterdir()) == [file.path]


@pytest.mark.parametrize("has_links", [True, False])
def test_the_files_before_stay_in_their_order(tmp_path, monkeypatch, has_links):
    def refuse(*_):
        raise OSError("no links here")

    if not has_links:
        monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "last.pt"
    for number in range(5):
        with atomic_path(path) as temporary:
            temporary.write_text(str(number))
            keep_previous(path, 2)
            assert path.is_file() == (number > 0)
    assert {found.name: found.read_text() for found in tmp_path.iterdir()} == {
        "last.pt": "4", "last-1.pt": "3", "last-2.pt": "2"
    }  # fmt: skip
    keep_previous(path, 0)
    assert [found.name for found in tmp_path.iterdir()] == ["last.pt"]
