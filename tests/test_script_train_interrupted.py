"""train.py that is interrupted or killed, or loses a worker or its folder: one line, and a checkpoint to go on from."""

import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import train
from tests.test_script_train import BASIC, ROOT, command, environment, epochs_done, make_project, train_as_typed
from utils.errors import UserError


@pytest.fixture
def project(tmp_path) -> Path:
    return make_project(tmp_path)


def start_run(project: Path, *arguments: str) -> subprocess.Popen:
    """Start a run whose signals are those of a foreground job."""

    def as_in_a_terminal() -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)

    return subprocess.Popen(command(*arguments), cwd=project, env=environment(), text=True, preexec_fn=as_in_a_terminal,
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)  # fmt: skip


def wait_until(process: subprocess.Popen, happened: Callable[[], object]) -> None:
    deadline = time.time() + 200
    while not happened() and time.time() < deadline and process.poll() is None:
        time.sleep(0.005)


def workers_of(process: subprocess.Popen) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def only_message(errors: str) -> str:
    """What stands on the error output besides progress bars."""
    assert "Traceback" not in errors and "Exception ignored" not in errors, errors
    return re.split("[\r\n]", errors.strip())[-1].rpartition("]")[2]  # the end of a bar's line


MOMENTS = {
    "the folder is there": lambda process, run: run.exists(),
    "before the first epoch": lambda process, run: (run / "last.pt").exists(),
    "a worker starts": lambda process, run: (run / "last.pt").exists() and workers_of(process),
    "in the third epoch": lambda process, run: epochs_done(run / "last.pt") >= 2,
}


# All three go the same way; the slow ones repeat at the other moments what SIGINT shows.
CASES = [(how, moment) for how in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) for moment in MOMENTS]
QUICK = [*CASES[: len(MOMENTS)], (signal.SIGTERM, "in the third epoch"), (signal.SIGHUP, "a worker starts")]


@pytest.mark.parametrize(
    ("how", "moment"), [pytest.param(*one, marks=[] if one in QUICK else pytest.mark.slow) for one in CASES]
)
def test_a_signal_to_all_processes_of_a_run_ends_it_with_a_hint(project, how, moment):
    run = project / "runs/train/cut"
    process = start_run(project, *BASIC, "--epochs", "60", "--workers", "2", "--name", "cut")
    wait_until(process, lambda: MOMENTS[moment](process, run))
    os.killpg(process.pid, how)
    message = only_message(process.communicate(timeout=60)[1])
    assert process.returncode == 128 + how
    if moment == "the folder is there":
        assert message.startswith("interrupted")
    else:
        words = message.split("; ")
        assert [words[0], words[2]] == [
            "interrupted",
            f"go on with: python {ROOT}/train.py --resume runs/train/cut/last.pt",
        ]
        assert re.fullmatch("kept up to (the start|epoch [0-9]+|batch [0-9] of epoch [0-9]+)", words[1])
        assert epochs_done(run / "last.pt") >= 0 and not list(run.glob(".*"))


def test_no_process_that_loads_outlives_a_run_whose_exception_is_held(project, monkeypatch):
    def fail(*_):
        raise UserError("no test")

    monkeypatch.chdir(project)
    monkeypatch.setattr(train, "validate", fail)
    monkeypatch.setattr(sys, "argv", ["train.py", *BASIC, "--workers", "2"])
    with pytest.raises(UserError) as held:
        train.main()
    assert held and not multiprocessing.active_children()


@pytest.mark.parametrize("which", ["of training", "of the test"])
def test_a_worker_that_is_killed_in_a_run_is_one_line_and_the_run_goes_on_from_its_checkpoint(project, which):
    run = project / "runs/train/cut"
    process = start_run(project, *BASIC, "--epochs", "60", "--workers", "2", "--name", "cut")
    wait_until(process, lambda: len(workers_of(process)) == 4)  # two train, two test
    os.kill(workers_of(process)[0 if which == "of training" else -1], signal.SIGKILL)
    message = only_message(process.communicate(timeout=60)[1])
    assert process.returncode == 2
    assert re.fullmatch(
        r"error: a loading process died .*; kept up to .*; go on with: python .*train.py --resume .*last.pt", message
    )
    assert epochs_done(run / "last.pt") >= 0 and not list(run.glob(".*"))


@pytest.mark.parametrize("how", ["deleted", "renamed"])
def test_a_run_whose_folder_goes_stops_with_one_line(project, how):
    run = project / "runs/train/cut"
    process = start_run(project, *BASIC, "--epochs", "60", "--workers", "0", "--name", "cut")
    wait_until(process, lambda: epochs_done(run / "last.pt") >= 1)
    run.rename(project / "elsewhere")
    if how == "deleted":
        shutil.rmtree(project / "elsewhere")
    message = only_message(process.communicate(timeout=60)[1])
    assert process.returncode == 2
    assert message.startswith("error: runs/train/cut: the folder of this run is gone, deleted or renamed")
    assert not run.exists()


def same_run(first: Path, second: Path) -> bool:
    """Whether the checkpoints and the log of two runs are equal to the bit."""
    for name in ("last.pt", "best.pt"):
        one, other = (torch.load(run / name, weights_only=True) for run in (first, second))
        parts = one.keys() & {"model", "ema"}
        if one["history"] != other["history"] or one["epoch"] != other["epoch"] or not parts:
            return False
        if not all(torch.equal(one[part][key], other[part][key]) for part in parts for key in one[part]):
            return False
    return (first / "results.csv").read_bytes() == (second / "results.csv").read_bytes()


def place_of(last: Path) -> str:
    """Where a run is that was killed."""
    if not last.exists():
        return "before anything was saved"
    content = torch.load(last, weights_only=True)
    return "within an epoch" if content["progress"] else "between epochs" if content["epoch"] else "in the first epoch"


@pytest.mark.slow
@pytest.mark.parametrize("every_step", [False, True])
def test_a_run_that_is_killed_at_twenty_random_moments_ends_as_if_undisturbed(project, every_step, capsys):
    """SIGKILL, then --resume, again and again, until twenty runs have lost a process; with 0 and 2 workers in turn."""
    shared = (*BASIC, "--batch-size", "2", "--accumulate", "2", "--epochs", "6", "--multi-scale", "--mixup", "0.5")
    if every_step:
        shared += ("--save-minutes", "0.000001")
    started = time.time()
    train_as_typed(project, *shared, "--name", "whole")
    seconds = time.time() - started
    chance, places = random.Random(int(every_step)), Counter()
    run = project / "runs/train/cut"
    last = run / "last.pt"
    while places.total() < 20:
        shutil.rmtree(run, ignore_errors=True)
        for kills_here in range(4):  # three kills at most, so that every run comes to its end
            if run.exists() and not last.exists():
                shutil.rmtree(run)  # killed before anything was saved
            arguments = ("--resume", str(last)) if last.exists() else (*shared, "--name", run.name)
            process = start_run(project, *arguments, "--workers", str(places.total() % 2 * 2))
            try:
                errors = process.communicate(timeout=chance.uniform(0, seconds) if kills_here < 3 else 300)[1]
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
                places[place_of(last)] += 1
                continue
            assert process.returncode == 0 or "has finished its" in errors, errors
            break
        assert same_run(project / "runs/train/whole", run)
        assert not list(run.glob(".*")), "what a killed process left half written"
    with capsys.disabled():
        print(f"\nkilled {dict(places)}")
