"""--resume: which run it means, what may change, and how a finished run goes on."""

import json
import os
import signal
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

import train
from engine.optimizer import OptimizerOptions
from engine.resumed_run import check_data, find_last, other_length
from models.checkpoints.format import read_checkpoint, save_checkpoint
from tests.tiny_project import make_project
from utils.errors import UserError

QUICK = ["--data", "tiny.data", "--cfg", "tiny.cfg", "--img", "64", "--batch", "4", "--workers", "0", "--device", "cpu"]


@pytest.fixture
def project(tmp_path, monkeypatch):
    make_project(tmp_path, num_images=8)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_epochs(run_main, *arguments, status=0):
    found, out, error = run_main(train, *arguments)
    assert found == status, error
    return out + error


def weights(name, file="last.pt"):
    return read_checkpoint(f"runs/train/{name}/{file}")["model"]


def same(first, second):
    return all(torch.equal(first[key], second[key]) for key in first)


def touch(path, seconds):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.utime(path, (seconds, seconds))
    return path


def test_a_file_a_folder_and_the_newest(tmp_path):
    old, new = (touch(tmp_path / "runs" / name / "last.pt", time) for name, time in (("b", 1), ("a", 2)))
    touch(tmp_path / "runs/c/best.pt", 3)  # cannot be resumed
    assert find_last(str(old)) == find_last(str(old.parent)) == old
    assert find_last("newest", str(tmp_path / "runs")) == new
    touch(old, 9)
    assert find_last("newest", str(tmp_path / "runs")) == old
    with pytest.raises(UserError, match=r"none/ has a last\.pt.*--project"):
        find_last("newest", str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("names", "learned", "found", "says"),
    [
        (("a", "b"), 5, 5, ""),
        (("a", "b"), 17, 0, ""),  # a network that finds boxes alone
        (("b", "a"), 5, 5, r"x\.data: has other classes than when runs/last\.pt was written \(a, b\); put them back"),
        (
            ("a", "b"),
            1,
            5,
            r"x\.data: has 1 key point of an object, and 5 when runs/last\.pt was written; put",
        ),
    ],
)
def test_data_with_other_objects_are_refused(names, learned, found, says):
    annotations = SimpleNamespace(names=names, num_key_points=learned)
    with pytest.raises(UserError, match=says) if says else nullcontext():
        check_data({"names": ["a", "b"]}, "runs/last.pt", "x.data", annotations, found)


def cut_after(epochs, monkeypatch, run_main, *arguments):
    """Start a run, or go on with one, and interrupt it when it has so many epochs."""

    def some_epochs(state, *rest):
        if state.epoch == epochs:
            raise KeyboardInterrupt
        return original(state, *rest)

    original = train.train_one_epoch
    with monkeypatch.context() as patch:
        patch.setattr(train, "train_one_epoch", some_epochs)
        run_epochs(run_main, *arguments, status=130)


@pytest.mark.parametrize("how", [["--resume"], ["--resume", "runs/train/cut"], ["--resume", "runs/train/cut/last.pt"]])
def test_each_way_goes_on_bit_for_bit(project, monkeypatch, run_main, how):
    run_epochs(run_main, *QUICK, "--epochs", 2, "--name", "whole", "--optimizer", "Adam")
    cut_after(1, monkeypatch, run_main, *QUICK, "--epochs", 2, "--name", "cut", "--optimizer", "Adam")
    assert "instead of" not in run_epochs(run_main, *how)
    assert same(weights("whole"), weights("cut"))


def test_a_project_of_ones_own(project, monkeypatch, run_main):
    cut_after(1, monkeypatch, run_main, *QUICK, "--epochs", 2, "--project", "mine", "--name", "cut")
    assert "no run in runs/train/" in run_epochs(run_main, "--resume", status=2)
    assert "no run in none/" in run_epochs(run_main, "--resume", "--project", "none", status=2)
    run_epochs(run_main, "--resume", "--project", "mine")
    assert read_checkpoint("mine/cut/last.pt")["epoch"] == 2
    said = run_epochs(run_main, "--resume", "mine/cut", "--project", "mine", status=2)
    assert "leave out --project" in said


def test_more_epochs_follow_the_curve_of_the_longer_run(project, run_main):
    run_epochs(run_main, *QUICK, "--epochs", 2, "--name", "a", "--lr0", 0.01, "--lrf", 0.1)
    said = run_epochs(run_main, "--resume", status=2)
    assert "has finished its 2 epochs" in said and "--epochs 4" in said and "--weights" in said
    said = run_epochs(run_main, "--resume", "--epochs", 4)
    # The curve of 4 epochs at its third: 1 + (0.1 - 1) * (1 - cos(2 pi / 3)) / 2 = 0.325 of 0.01.
    assert "4 epochs instead of 2" in said and "epoch 2 had 0.001, epoch 3 has 0.00325" in said
    found = read_checkpoint("runs/train/a/last.pt")
    assert found["epoch"] == 4 == len(found["history"]) and found["options"]["epochs"] == 4
    assert (project / "runs/train/a/results.png").is_file()
    assert "--epochs 3 must not be less" in run_epochs(run_main, "--resume", "--epochs", 3, status=2)


def test_an_interrupted_extension_goes_on_bit_for_bit(project, monkeypatch, run_main):
    for name in ("whole", "cut"):
        run_epochs(run_main, *QUICK, "--epochs", 1, "--name", name)
    run_epochs(run_main, "--resume", "runs/train/whole", "--epochs", 3)
    cut_after(2, monkeypatch, run_main, "--resume", "runs/train/cut", "--epochs", 3)
    assert not (project / "runs/train/cut/results.png").exists()  # it would say that the run has finished
    assert "instead of" not in run_epochs(run_main, "--resume")
    assert same(weights("whole"), weights("cut"))


def test_the_note_by_hand():
    options = OptimizerOptions(lr0=0.1, lrf=0.0, schedule="linear")
    assert other_length(options, 5, 5, 5) == other_length(options, 0, 5, 9) == ""
    # Of 5 epochs the last has 0; of 9 the sixth has 1 - 5/8 of 0.1.
    assert "(epoch 5 had 0, epoch 6 has 0.0375)" in other_length(options, 5, 5, 9)


def fitness_of(monkeypatch, *values):
    """Let the tested epochs have these fitnesses."""
    left = list(values)
    monkeypatch.setattr(train, "fitness", lambda *_: left.pop(0))


def test_patience_counts_epochs_since_the_best(project, monkeypatch, run_main):
    fitness_of(monkeypatch, 0.1, 0.3, 0.3, 0.2, 0.9)  # an equal one is no better one
    said = run_epochs(run_main, *QUICK, "--epochs", 9, "--patience", 2, "--name", "a", "--nosave")
    last = read_checkpoint("runs/train/a/last.pt")
    assert last["epoch"] == 4 and last["best_epoch"] == 2 and "no better epoch since epoch 2" in said
    said = run_epochs(run_main, "--resume", status=2)
    assert "stopped after 4 epochs" in said and "--patience 0" in said
    fitness_of(monkeypatch, 0.4, 0.1, 0.1, 0.1, 0.1)
    run_epochs(run_main, "--resume", "--patience", 3)
    assert read_checkpoint("runs/train/a/last.pt")["epoch"] == 8


def test_patience_is_resumed_where_it_was(project, monkeypatch, run_main):
    fitness_of(monkeypatch, 0.5, 0.4)
    cut_after(2, monkeypatch, run_main, *QUICK, "--epochs", 9, "--patience", 3, "--name", "a")
    fitness_of(monkeypatch, 0.4, 0.4, 0.4)
    run_epochs(run_main, "--resume")
    assert read_checkpoint("runs/train/a/last.pt")["epoch"] == 4


def test_a_checkpoint_from_before_these_options_is_resumed(project, monkeypatch, run_main):
    run_epochs(run_main, *QUICK, "--epochs", 2, "--name", "whole")
    cut_after(1, monkeypatch, run_main, *QUICK, "--epochs", 2, "--name", "cut")
    path = project / "runs/train/cut/last.pt"
    content = read_checkpoint(path)
    del content["best_epoch"]
    for name in ("patience", "save_period", "project", "exist_ok", "optimizer", "cache", "freeze"):
        del content["options"][name]
    content["options"] |= {"adam": False, "cache_images": False, "freeze": 0}
    save_checkpoint(path, content)
    run_epochs(run_main, "--resume")
    assert same(weights("whole"), weights("cut"))


def test_save_period_keeps_every_nth_epoch(project, run_main):
    run_epochs(run_main, *QUICK, "--epochs", 5, "--save-period", 2, "--name", "a")
    folder = project / "runs/train/a"
    assert sorted(path.name for path in folder.glob("*.pt")) == [
        "best.pt",
        "epoch2.pt",
        "epoch4.pt",
        "last-1.pt",
        "last.pt",
    ]
    assert read_checkpoint(folder / "epoch2.pt")["epoch"] == 2
    said = run_epochs(run_main, "--resume", folder / "epoch2.pt", status=2)
    assert "holds no training state" in said


def test_exist_ok_replaces_a_run_and_nothing_else(project, run_main):
    folder = project / "runs/train/a"
    run_epochs(run_main, *QUICK, "--epochs", 2, "--save-period", 1, "--name", "a")
    (folder / "notes.txt").write_text("mine")
    said = run_epochs(run_main, *QUICK, "--epochs", 1, "--name", "a", "--exist-ok")
    assert "--exist-ok: replaces the run in runs/train/a" in said
    assert read_checkpoint(folder / "last.pt")["epoch"] == 1 and not (folder / "epoch2.pt").exists()
    assert len(list(folder.glob("events.*"))) <= 1 and (folder / "notes.txt").read_text() == "mine"
    # As a recipe it starts a run of its own.
    run_epochs(run_main, "--hyp", folder / "config.yaml")
    assert (project / "runs/train/a2/last.pt").is_file()


def test_exist_ok_replaces_a_run_that_was_killed_in_its_first_epoch(project, run_main, monkeypatch):
    folder = project / "runs/train/a"
    with monkeypatch.context() as patch:
        patch.setattr(train, "validate", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        run_epochs(run_main, *QUICK, "--epochs", 1, "--name", "a", status=143)
    (folder / "loggers.yaml").write_text("mlflow: of the killed run\n")
    assert (folder / "last-1.pt").is_file() and read_checkpoint(folder / "last.pt")["epoch"] == 0
    said = run_epochs(run_main, *QUICK, "--epochs", 1, "--nosave", "--name", "a", "--exist-ok")
    assert "--exist-ok: replaces the run in runs/train/a" in said and "WARNING" not in said
    assert not (folder / "last-1.pt").exists() and not (folder / "loggers.yaml").exists()
    assert len(json.loads((folder / "environment.json").read_text())["starts"]) == 1


@pytest.mark.parametrize(
    "arguments, words",
    [
        ("--patience 3 --notest", "leave out --notest"),
        ("--save-period 1 --nosave", "leave one of them out"),
        ("--cache gpu", "invalid choice"),
        ("--freeze 0 99", "--freeze 99: tiny.cfg has the layers 0 to 3"),
        ("--freeze 0 1 2", "leaves nothing to learn"),
        ("--patience -1", "must not be negative"),
        ("--optimizer lion", "invalid choice"),
    ],
)
def test_mistakes(project, run_main, arguments, words):
    assert words in run_epochs(run_main, *QUICK, "--epochs", 1, *arguments.split(), status=2)


def test_several_numbers_freeze_these_layers(project, run_main):
    run_epochs(run_main, *QUICK, "--epochs", 1, "--notest", "--name", "start")
    given = ("--epochs", 1, "--notest", "--weights", "runs/train/start/last.pt", "--lr0", 0.1)
    assert "1 of the 4 layers" in run_epochs(run_main, *QUICK, *given, "--name", "first", "--freeze", 1)
    assert "2 of the 4 layers" in run_epochs(run_main, *QUICK, *given, "--name", "those", "--freeze", 1, 3)
    start = read_checkpoint("runs/train/start/last.pt")["ema"]
    moved = {
        name: {int(key.split(".")[1]) for key, value in weights(name).items() if not torch.equal(value, start[key])}
        for name in ("first", "those")
    }
    assert moved == {"first": {1, 2}, "those": {0, 2}}


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    ["--image-weights --close-mosaic 1 --schedule one-cycle --layer-decay 0.5", "--class-balanced 0.9 --auto-anchor"],
)
def test_what_an_epoch_shows_and_how_it_steps_is_resumed_bit_for_bit(project, monkeypatch, run_main, options):
    (project / "tiny.cfg").write_text((project / "tiny.cfg").read_text().replace("10,14, 23,27", "100,14, 230,27"))
    given = (*QUICK, "--epochs", 3, *options.split(), "--name")
    said = run_epochs(run_main, *given, "whole")
    assert ("an epoch shows 8 images in" in said) == ("balanced" in options)
    cut_after(2, monkeypatch, run_main, *given, "cut")
    run_epochs(run_main, "--resume")
    whole, cut = (read_checkpoint(f"runs/train/{name}/last.pt") for name in ("whole", "cut"))
    assert same(whole["model"], cut["model"]) and same(whole["ema"], cut["ema"])
    assert whole["history"] == cut["history"] and whole["class_ap"] == cut["class_ap"] and len(cut["class_ap"]) == 3
    assert ("anchors=100,14" in whole["cfg_text"]) != ("auto-anchor" in options)
    assert whole["cfg_text"] == cut["cfg_text"]


@pytest.mark.slow
def test_a_checkpoint_from_before_the_ap_of_classes_was_kept_is_resumed(project, monkeypatch, run_main):
    cut_after(1, monkeypatch, run_main, *QUICK, "--epochs", 2, "--name", "cut")
    path = project / "runs/train/cut/last.pt"
    content = read_checkpoint(path)
    del content["class_ap"]
    for name in ("image_weights", "class_balanced", "close_mosaic", "auto_anchor", "log", "layer_decay"):
        del content["options"][name]
    save_checkpoint(path, content)
    run_epochs(run_main, "--resume")
    save_checkpoint(path, read_checkpoint(path) | {"class_ap": [0.5, "much"]})
    assert "its 'class_ap' is missing or unreadable" in run_epochs(run_main, "--resume", "--epochs", 3, status=2)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ("--image-weights --notest", "leave out --notest"),
        ("--image-weights --class-balanced 0.1", "leave one out"),
        ("--log neptune", "none of wandb, mlflow"),
        ("--close-mosaic -1", "close_mosaic = -1"),
    ],
)
def test_contradictions_of_sampling_and_logs(project, run_main, arguments, words):
    assert words in run_epochs(run_main, *QUICK, "--epochs", 1, *arguments.split(), status=2)
