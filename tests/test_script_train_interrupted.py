"""train.py that is interrupted or killed, or loses a worker or its folder: one line, and a checkpoint to go on from."""

import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.test_script_train import BASIC, ROOT, command, environment, epochs_done, make_project, train_as_typed


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
        assert message == f"interrupted; go on with: python {ROOT}/train.py --resume runs/train/cut/last.pt"
        assert epochs_done(run / "last.pt") >= 0 and not list(run.glob(".*"))


@pytest.mark.parametrize("which", ["of training", "of the test"])
def test_a_worker_that_is_killed_in_a_run_is_one_line_and_the_run_goes_on_from_its_checkpoint(project, which):
    run = project / "runs/train/cut"
    process = start_run(project, *BASIC, "--epochs", "60", "--workers", "2", "--name", "cut")
    wait_until(process, lambda: len(workers_of(process)) == 4)  # two train, two test
    os.kill(workers_of(process)[0 if which == "of training" else -1], signal.SIGKILL)
    message = only_message(process.communicate(timeout=60)[1])
    assert process.returncode == 2
    assert re.fullmatch(r"error: a loading process died .*; go on with: python .*train.py --resume .*last.pt", message)
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


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "2"])
def test_runs_that_are_killed_at_random_moments_end_as_if_undisturbed(project, workers):
    """SIGKILL until the run has come to its end: the checkpoints and the log are bit for bit those of a whole run."""
    shared = (*BASIC, "--epochs", "6", "--workers", workers, "--multi-scale", "--mixup", "0.5")
    started = time.time()
    train_as_typed(project, *shared, "--name", "whole")
    seconds = time.time() - started
    chance = random.Random(int(workers))
    for number in range(6):
        run, kills = project / f"runs/train/cut{number}", 0
        while True:
            last = run / "last.pt"
            arguments = ("--resume", str(last)) if last.exists() else (*shared, "--name", run.name)
            if run.exists() and not last.exists():
                shutil.rmtree(run)  # killed before anything was saved
            process = start_run(project, *arguments)
            try:
                # Three kills at most, so that every run comes to its end.
                errors = process.communicate(timeout=chance.uniform(0, seconds) if kills < 3 else 300)[1]
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
                kills += 1
                continue
            assert process.returncode == 0 or "has finished its" in errors, errors
            break
        files = [[torch.load(folder / name, weights_only=True) for name in ("last.pt", "best.pt")]
                 for folder in (project / "runs/train/whole", run)]  # fmt: skip
        for whole, cut in zip(*files, strict=True):
            assert whole["history"] == cut["history"] and whole["epoch"] == cut["epoch"]
            parts = whole.keys() & {"model", "ema"}
            assert parts and all(torch.equal(whole[part][key], cut[part][key]) for part in parts for key in whole[part])
        assert (run / "results.csv").read_bytes() == (project / "runs/train/whole/results.csv").read_bytes()
        assert not list(run.glob(".*")), "what a killed process left half written"
