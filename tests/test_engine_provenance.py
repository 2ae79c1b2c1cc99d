"""The record of a run: what it was made with, start by start."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

import train
from data.labels.read import read_dataset
from data.splits import open_data
from engine.provenance import fingerprint, record_start, revision_and_diff
from tests.tiny_project import make_project

FLAGS = ["--data", "tiny.data", "--cfg", "tiny.cfg", "--img", 64, "--batch", 4, "--workers", 0, "--device", "cpu"]


@pytest.fixture
def project(tmp_path, monkeypatch):
    make_project(tmp_path, num_images=4)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(folder):
    return read_dataset(open_data(str(folder / "tiny.data")), "train")


def test_each_start_of_a_run_is_recorded(project, run_main):
    assert run_main(train, *FLAGS, "--epochs", 1, "--name", "a")[0] == 0
    assert run_main(train, "--resume", "runs/train/a", "--epochs", 2)[0] == 0
    first, second = json.loads((project / "runs/train/a/environment.json").read_text())["starts"]
    assert "--name a" in first["command"] and "--resume" in second["command"]
    assert first["packages"]["torch"] == torch.__version__.partition("+")[0] or first["packages"]["torch"]
    assert first["python"] == sys.version.split()[0] and first["machine"]["processes"] == 1
    assert first["data"]["train"]["images"] == 4 and first["data"] == second["data"]


def test_the_command_that_is_recorded_repeats_the_run(project, run_main):
    assert run_main(train, *FLAGS, "--epochs", 1, "--name", "a", "--seed", 5)[0] == 0
    (start,) = json.loads((project / "runs/train/a/environment.json").read_text())["starts"]
    arguments = start["again"].split()
    assert arguments[:2] == ["python", "train.py"]
    assert run_main(train, *arguments[2:])[0] == 0
    lines = [(project / f"runs/train/{name}/results.csv").read_text() for name in ("a", "a2")]
    assert lines[0] == lines[1]


def test_a_damaged_record_is_begun_anew(tmp_path):
    (tmp_path / "environment.json").write_text('{"starts": [')
    record_start(tmp_path, {}, torch.device("cpu"))
    assert len(json.loads((tmp_path / "environment.json").read_text())["starts"]) == 1


def test_the_fingerprint_tells_data_apart_but_not_where_they_lie(project, tmp_path):
    before = fingerprint(read(project))
    moved = tmp_path / "elsewhere"
    shutil.copytree(project, moved, ignore=shutil.ignore_patterns("elsewhere", "runs"))
    assert fingerprint(read(moved)) == before
    annotations = read(project)
    boxes = annotations.boxes_xyxy.copy()
    boxes[0, 0] += 1e-9
    assert fingerprint(replace(annotations, boxes_xyxy=boxes))["sha256"] != before["sha256"]
    with open(annotations.image_paths[0], "ab") as file:
        file.write(b"\0")
    assert fingerprint(read(project))["sha256"] != before["sha256"]


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_the_commit_and_what_was_changed_since(tmp_path):
    clone = tmp_path / "clone"
    clone.mkdir()
    assert revision_and_diff(clone) == (None, "")
    git(clone, "init", "-q")
    (clone / "code.py").write_text("a = 1\n")
    git(clone, "add", ".")
    git(clone, "commit", "-qm", "first")
    revision, diff = revision_and_diff(clone)
    assert len(revision) == 40 and diff == ""
    (clone / "code.py").write_text("a = 2\n")
    assert "-a = 1\n+a = 2\n" in revision_and_diff(clone)[1]
    (clone / "inside").mkdir()
    assert revision_and_diff(clone / "inside") == (None, "")  # a folder inside another one's clone


def test_without_git_there_is_no_commit(monkeypatch, tmp_path):
    (tmp_path / ".git").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert revision_and_diff(tmp_path) == (None, "")
