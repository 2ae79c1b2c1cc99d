"""Every command: it says what it does when asked, and the user's run from any folder by their path."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny_project import REPOSITORY
from utils.config import command_from_here

COMMANDS = sorted(
    str(path.relative_to(REPOSITORY))
    for folder in (".", "analysis", "benchmarks", "data", "docs", "engine", "evaluation", "models", "utils")
    for path in ((REPOSITORY / folder).glob("*.py") if folder == "." else (REPOSITORY / folder).rglob("*.py"))
    if '__name__ == "__main__"' in path.read_text()
)


def run(*arguments, cwd):
    done = subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_helps_and_does_nothing_else(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [command, "--help"])
    monkeypatch.setattr(sys, "path", [str(REPOSITORY), *sys.path])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(REPOSITORY / command), run_name="__main__")
    printed, errors = capsys.readouterr()
    assert (stop.value.code, errors) == (0, "")
    assert printed.startswith("usage: ") and "--help" in printed and len(printed.split("\n\n")[1]) > 20
    assert not list(tmp_path.iterdir())


def test_the_commands_are_known():
    of_users = {command for command in COMMANDS if Path(command).parts[0] not in ("benchmarks", "docs")}
    assert of_users == {
        "train.py", "test.py", "detect.py", "export.py", "analyze.py", "kmeans_anchors.py", "models/network.py",
        "models/convert_weights.py", "data/coco_convert.py", "data/download_coco.py", "data/shapes.py",
    }  # fmt: skip


@pytest.mark.parametrize(
    "command",
    [
        "models/network.py",
        "models/convert_weights.py",
        "data/coco_convert.py",
        "data/download_coco.py",
        "data/shapes.py",
    ],
)
def test_a_mistake_is_one_line_from_any_folder(command, tmp_path):
    status, _, errors = run(str(REPOSITORY / command), "--helpp", cwd=tmp_path)
    assert status == 2 and errors.startswith("error: ") and errors.count("\n") == 1


def test_the_layers_of_a_cfg_from_any_folder(tmp_path):
    status, printed, _ = run(str(REPOSITORY / "models/network.py"), "yolov3-nano.cfg", cwd=tmp_path)
    assert status == 0 and "parameters" in printed
    assert run("-m", "models.network", "yolov3-nano.cfg", cwd=REPOSITORY) == (0, printed, "")  # as it always was


def test_a_command_is_named_as_it_works_here(tmp_path, monkeypatch):
    command = "python data/download_coco.py --folder x.py"
    monkeypatch.chdir(REPOSITORY)
    assert command_from_here(command) == command
    monkeypatch.chdir(tmp_path)
    assert command_from_here(command) == f"python {REPOSITORY}/data/download_coco.py --folder x.py"
    (tmp_path / "data").mkdir()
    (tmp_path / "data/download_coco.py").touch()  # the user's own
    assert command_from_here(command) == command
