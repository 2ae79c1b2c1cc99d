"""Checkpoints of this toolkit: what is read back, and what is refused."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models.checkpoints.format import read_checkpoint, save_checkpoint
from utils.errors import UserError

ROOT = Path(__file__).resolve().parent.parent


class Attack:
    def __reduce__(self):
        return os.system, ("touch attacked",)


def test_round_trip(tmp_path):
    save_checkpoint(tmp_path / "a.pt", {"model": {"w": torch.arange(3)}, "epoch": 2})
    content = read_checkpoint(tmp_path / "a.pt")
    assert content["epoch"] == 2 and content["model"]["w"].tolist() == [0, 1, 2]


def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"format": "yolo-lab-1", "x": Attack()}, "evil.pt")
    Path("plain.pt").write_bytes(pickle.dumps(Attack()))
    for name in ("evil.pt", "plain.pt"):
        with pytest.raises(UserError, match=name):
            read_checkpoint(name)
    assert not Path("attacked").exists()


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04rest"])
def test_other_files_are_refused_in_one_line(tmp_path, content):
    path = tmp_path / "a.pt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.pt"):
        read_checkpoint(path)


def test_every_truncation_is_refused(tmp_path):
    path = tmp_path / "a.pt"
    save_checkpoint(path, {"model": {"w": torch.arange(1000)}})
    whole = path.read_bytes()
    for length in range(0, len(whole) - 1, 97):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError):
            read_checkpoint(path)


def test_a_foreign_checkpoint_and_a_missing_one(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "other.pt")
    with pytest.raises(UserError, match="format"):
        read_checkpoint(tmp_path / "other.pt")
    with pytest.raises(UserError, match="no such checkpoint"):
        read_checkpoint(tmp_path / "none.pt")


KILLED_WHILE_WRITING = """
import os, signal, sys, torch
from pathlib import Path
from models.checkpoints.format import save_checkpoint
path = Path(sys.argv[1])
save_checkpoint(path, {"epoch": 1})
real_save = torch.save
def killed(content, target):
    real_save(content, target)
    with open(target, "rb+") as file:
        file.truncate(os.path.getsize(target) // 2)
    os.kill(os.getpid(), signal.SIGKILL)
torch.save = killed
save_checkpoint(path, {"epoch": 2})
"""


def test_a_kill_while_writing_leaves_the_previous_checkpoint(tmp_path):
    path = tmp_path / "last.pt"
    done = subprocess.run([sys.executable, "-c", KILLED_WHILE_WRITING, str(path)], cwd=ROOT, check=False)
    assert done.returncode == -9
    assert read_checkpoint(path)["epoch"] == 1
