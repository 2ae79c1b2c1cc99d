"""The detector through torch.hub, by a program that lies elsewhere and has packages of its own."""

import ast
import inspect
import os
import subprocess
import sys

import pytest

import hubconf
from models import load
from tests.test_architecture import ALLOWED
from tests.tiny_project import REPOSITORY, make_project

PROGRAM = """
import sys
import torch
{before}
detector = torch.hub.load({folder!r}, "detector", source="local", weights="best.pt", device="cpu")
print([path for path in sys.path if path == {folder!r}])
print({{name for name in {packages} if name in sys.modules}})
results = list(detector(["photo.png"] * 3, batch_size=2))
results[0].save("drawn.png")
print(len(results), len(results[0]) > 3, results[0].to_coco()[0]["file_name"], results[0].names)
"""


@pytest.fixture
def elsewhere(tmp_path):
    """A folder of a program, with weights and an image but nothing of this repository."""
    checkpoint = make_project(tmp_path / "project", num_images=1)
    (tmp_path / "program").mkdir()
    checkpoint.rename(tmp_path / "program/best.pt")
    (tmp_path / "project/images/000.png").rename(tmp_path / "program/photo.png")
    return tmp_path / "program"


def run(folder, before=""):
    text = PROGRAM.format(before=before, folder=str(REPOSITORY), packages=sorted(ALLOWED))
    (folder / "program.py").write_text(text)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "program.py"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, env=environment)


def test_from_another_folder(elsewhere):
    """Files of the names of our packages that were not imported, and modules of other names, do no harm."""
    (elsewhere / "helpers.py").write_text("x = 1\n")
    for name in hubconf._PACKAGES:
        (elsewhere / f"{name}.py").write_text("raise SystemExit('the wrong one')\n")
    done = run(elsewhere, "import helpers")
    assert done.returncode == 0, done.stderr
    path, packages, found = done.stdout.splitlines()
    assert path == "[]" and ast.literal_eval(packages) == set(hubconf._PACKAGES)
    assert found == "3 True photo.png ('disc', 'Würfel', 'bar')"
    assert (elsewhere / "drawn.png").is_file()


@pytest.mark.parametrize("name, file", [("utils", "utils.py"), ("models", "models/__init__.py"), ("data", "data/x")])
def test_a_module_of_the_same_name_is_named_in_one_line(elsewhere, name, file):
    (elsewhere / file).parent.mkdir(exist_ok=True)
    (elsewhere / file).write_text("")
    done = run(elsewhere, f"import {name}")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ImportError: {REPOSITORY}: needs its own package '{name}'")
    assert str(elsewhere / file.removesuffix("/x")) in last and "process of its own" in last


def test_it_takes_what_load_takes():
    assert inspect.signature(hubconf.detector) == inspect.signature(load)
    assert "weights:" in (hubconf.detector.__doc__ or "")
