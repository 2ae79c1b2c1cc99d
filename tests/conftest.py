"""Fixtures shared by all tests."""

import os
import sys
from pathlib import Path

# Before torch is imported, also for the processes that tests start: networks of tests are so small that threads wait
# for one another most of the time.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from tests.tiny_project import load_script, make_project
from utils.errors import run_command

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data beside the repository; a user does not have it."""
    if not (SHARED / "data").is_dir():
        pytest.skip("needs the real data in ../shared, which is not part of the repository")
    return SHARED


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request) -> torch.device:
    """The CPU, and the GPU where there is one."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return torch.device(request.param)


@pytest.fixture
def run_main(monkeypatch, capfd):
    """Run the main of a script, given as a module; return exit status, standard output and error output."""

    def call(script, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *map(str, arguments)])
        status = 0
        try:
            run_command(script.main)
        except SystemExit as stop:
            status = stop.code
        return status, *capfd.readouterr()

    return call


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A folder as after a training, which is the current one."""
    make_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def evaluation_script():
    """The module of test.py."""
    return load_script("test")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
