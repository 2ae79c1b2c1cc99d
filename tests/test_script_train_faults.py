"""What breaks a training off, at a moment that the test chooses: a signal, a full disk, no memory, files that go.

Each time there is one line, a status, a whole checkpoint, and a run that goes on to the end of an undisturbed one.
"""

import os
import resource
import signal

import pytest
import torch

import train
from engine.resumed_run import go_on_after_restart
from models.checkpoints import format as checkpoint_format
from models.checkpoints.format import read_checkpoint, save_checkpoint
from tests.tiny_project import make_project
from utils import distributed
from utils.files import write_json_atomically

FLAGS = ["--data", "tiny.data", "--cfg", "tiny.cfg", "--img", 64, "--batch", 2, "--accumulate", 2, "--device", "cpu",
         "--workers", 0, "--epochs", 3, "--warmup-epochs", 0]  # fmt: skip
LAST = "runs/train/cut/last.pt"


@pytest.fixture
def project(tmp_path, monkeypatch):
    make_project(tmp_path, num_images=8)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def at_call(number, function, happen):
    """Return the function, which lets something happen within its call of that number, from 1."""
    calls = []

    def wrapped(*arguments, **named):
        calls.append(1)
        if len(calls) == number:
            happen()
        return function(*arguments, **named)

    return wrapped


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def place(path=LAST):
    content = read_checkpoint(path)
    return content["epoch"], [part["batches"] for part in content["progress"]]


def goes_on_as_if_undisturbed(run_main, last=LAST):
    status, _, errors = run_main(train, "--resume", last)
    assert status == 0, errors
    assert run_main(train, *FLAGS, "--name", "whole")[0] == 0
    whole, cut = (read_checkpoint(f"runs/train/{name}/last.pt") for name in ("whole", "cut"))
    assert all(torch.equal(whole[part][key], cut[part][key]) for part in ("model", "ema") for key in whole[part])
    return whole["history"] == cut["history"]


def last_line(errors):
    assert "Traceback" not in errors
    return errors.strip().splitlines()[-1]


# What is interrupted: where it is, the name of what is called there, in which call -> epochs and batches that are kept.
INTERRUPTED = {
    "the first step": (train.EpochBar, "update", 1, (0, [2])),
    "a step of the first epoch": (train.EpochBar, "update", 3, (0, [4])),
    "a step of the second epoch": (train.EpochBar, "update", 5, (1, [2])),
    "validation": (train, "evaluate", 2, (1, [4])),
    "the writing of the first checkpoint": (checkpoint_format.torch, "save", 1, (0, [])),
    "the writing of best.pt": (checkpoint_format.torch, "save", 2, (1, [])),
    "the writing of last.pt": (checkpoint_format.torch, "save", 3, (1, [])),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", INTERRUPTED)
def test_ctrl_c(project, run_main, monkeypatch, what):
    where, name, number, kept = INTERRUPTED[what]
    with monkeypatch.context() as patch:
        patch.setattr(where, name, at_call(number, getattr(where, name), interrupt))
        status, _, errors = run_main(train, *FLAGS, "--name", "cut")
    assert status == 130
    if what == "the writing of the first checkpoint":  # before anything is learned, there is nothing to lose
        assert last_line(errors).startswith("interrupted") and not os.path.exists(LAST)
        return
    assert "interrupted; kept up to" in last_line(errors) and f"--resume {LAST}" in last_line(errors)
    assert place() == kept and not list(project.glob("runs/train/cut/.*"))
    assert goes_on_as_if_undisturbed(run_main)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["last.pt", "last.pt within an epoch"])
def test_a_full_disk_is_one_line_and_the_checkpoint_before_is_whole(project, run_main, monkeypatch, what):
    def fill():
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))  # no file of more bytes can be written

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    within = ["--save-minutes", 1e-9] if what.endswith("epoch") else []
    number, kept = (5, (1, [])) if within else (8, (1, []))
    try:
        with monkeypatch.context() as patch:
            patch.setattr(train.EpochBar, "update", at_call(number, train.EpochBar.update, fill))
            status, _, errors = run_main(train, *FLAGS, *within, "--name", "cut")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert status == 2
    assert last_line(errors).startswith("error: runs/train/cut/") and f"--resume {LAST}" in last_line(errors)
    assert place() == kept and not list(project.glob("runs/train/cut/.*.pt"))
    assert goes_on_as_if_undisturbed(run_main)


@pytest.mark.slow
def test_a_gpu_without_memory_is_one_line(project, run_main, monkeypatch):
    def no_memory():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of …")

    with monkeypatch.context() as patch:
        patch.setattr(train.EpochBar, "update", at_call(6, train.EpochBar.update, no_memory))
        status, _, errors = run_main(train, *FLAGS, "--name", "cut")
    assert status == 2 and place() == (1, [])
    assert last_line(errors).startswith("error: out of memory; lower --batch-size") and LAST in last_line(errors)
    assert goes_on_as_if_undisturbed(run_main)


@pytest.mark.slow
def test_labels_that_go_are_not_missed_before_the_next_start_which_says_so(project, run_main, monkeypatch):
    def lose():
        label.rename(project / "gone")

    label = project / "labels/000.txt"
    assert run_main(train, *FLAGS, "--name", "whole")[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr(train, "evaluate", at_call(1, train.evaluate, lose))
        assert run_main(train, *FLAGS, "--name", "cut")[0] == 0
    whole, cut = (read_checkpoint(f"runs/train/{name}/last.pt") for name in ("whole", "cut"))
    assert whole["history"] == cut["history"]
    status, said, _ = run_main(train, "--resume", LAST, "--epochs", 4)
    assert status == 0 and "WARNING: the train data has changed since the start before: 8 images with" in said


@pytest.mark.slow
def test_a_damaged_last_pt_names_the_one_before_which_goes_on(project, run_main, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(train, "evaluate", at_call(3, train.evaluate, interrupt))
        assert run_main(train, *FLAGS, "--name", "cut")[0] == 130
    assert place() == (2, [4])
    with open(LAST, "rb+") as file:
        file.truncate(1000)
    status, _, errors = run_main(train, "--resume", LAST)
    older = "runs/train/cut/last-1.pt"
    assert status == 2 and last_line(errors).endswith(f"; the one before it is there: --resume {older}")
    assert place(older) == (2, [])
    assert goes_on_as_if_undisturbed(run_main, older)


@pytest.mark.slow
def test_deterministic_operations_change_nothing_on_a_cpu(project, run_main):
    try:
        assert run_main(train, *FLAGS, "--name", "cut", "--deterministic")[0] == 0
    finally:
        torch.use_deterministic_algorithms(False)
    assert run_main(train, *FLAGS, "--name", "whole")[0] == 0
    whole, cut = (read_checkpoint(f"runs/train/{name}/last.pt") for name in ("whole", "cut"))
    assert cut["options"]["deterministic"] and whole["history"] == cut["history"]
    assert all(torch.equal(whole["model"][key], cut["model"][key]) for key in whole["model"])


def test_after_a_restart_the_run_of_this_torchrun_goes_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, launch in (("a", "first"), ("b", "second"), ("c", "second")):
        write_json_atomically(tmp_path / f"runs/train/{name}/environment.json", {"starts": [{"launch": launch}]})
        if name != "c":  # which was ended before it saved anything
            save_checkpoint(tmp_path / f"runs/train/{name}/last.pt", {})
    given = {"cfg": "tiny.cfg", "workers": 3}
    assert go_on_after_restart(given) == given
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert go_on_after_restart(given) == given  # not torchrun's
    for launch, run in (("first", "a"), ("second", "b")):
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", launch)
        assert go_on_after_restart(given) == {"workers": 3, "resume": f"runs/train/{run}/last.pt"}
        assert go_on_after_restart(given | {"epochs": 9})["epochs"] == 9
        # With 0 the epochs follow from the iterations; the run knows how many they are.
        assert "epochs" not in go_on_after_restart(given | {"epochs": 0, "max_batches": 6})
    assert go_on_after_restart({"resume": "x"}) == {"resume": "x"}
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "third")
    assert go_on_after_restart(given) == given
    # Without --rdzv-id all torchruns have the same name; then the process that started this one tells them apart.
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert str(os.getppid()) in distributed.launch()
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert distributed.launch() == ""
