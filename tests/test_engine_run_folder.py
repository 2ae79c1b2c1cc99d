"""The folder of a run: its name, its tables and curves, and which run is the newest."""

import csv
import os
from time import time as now
from types import SimpleNamespace

import pytest
import torch
import yaml

import train
from engine.run_folder import (
    epoch_summary,
    find_newest_checkpoint,
    new_run_folder,
    newest_run,
    options_of_run,
    plot_labels,
    plot_results,
    save_config,
    save_results_csv,
    weights_of_run,
)
from engine.train_loop import TrainState
from engine.training_run import TrainingRun
from models.checkpoints.format import save_checkpoint
from utils import distributed
from utils.errors import UserError

HISTORY = [
    {"epoch": 1, "train/box": 2.0, "metrics/mAP_0.5": 0.1},
    {"epoch": 2, "train/box": 1.0},  # not tested
    {"epoch": 3, "train/box": 0.5, "metrics/mAP_0.5": 0.5},
    {"epoch": 4, "train/box": 0.4, "metrics/mAP_0.5": 0.3},
]


def test_names_are_never_taken_twice(tmp_path):
    assert [new_run_folder(tmp_path, "exp").name for _ in range(3)] == ["exp", "exp2", "exp3"]
    assert list((tmp_path / "exp").iterdir()) == []


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write|file stands"):
        new_run_folder(tmp_path / "file", "exp")


def test_summary_by_hand():
    # 0.1, 0.5, 0.3: mean 0.3, variance (0.04 + 0.04 + 0) / 3
    summary = epoch_summary(HISTORY, "metrics/mAP_0.5")
    assert summary == {
        "max": 0.5,
        "mean": pytest.approx(0.3),
        "std": pytest.approx((0.08 / 3) ** 0.5),
        "best_epoch": 3,
        "epochs": 3,
    }
    assert epoch_summary(HISTORY, "metrics/mAP_0.5", last=2)["mean"] == pytest.approx(0.4)
    assert epoch_summary([], "metrics/mAP_0.5") == {}


def test_csv_and_config_can_be_read_back(tmp_path):
    save_results_csv(tmp_path / "results.csv", HISTORY)
    rows = list(csv.DictReader((tmp_path / "results.csv").read_text().splitlines()))
    assert [row["metrics/mAP_0.5"] for row in rows] == ["0.1", "", "0.5", "0.3"]
    save_config(tmp_path, {"cfg": "yolov3-größe.cfg", "img_size": [320]})
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == {"cfg": "yolov3-größe.cfg", "img_size": [320]}


def test_pictures_are_written_without_a_screen(tmp_path, monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    plot_results(tmp_path / "results.png", HISTORY)
    plot_labels(tmp_path / "labels.png", [0, 1], [[0.5, 0.5], [0.1, 0.2]], [[0.2, 0.2], [0.9, 0.1]], ["a", "b"])
    plot_labels(tmp_path / "none.png", [], [], [], ["$x_$", "$\\frac$", "a$b", "<!--"])  # no mathematics
    assert all((tmp_path / name).stat().st_size > 1000 for name in ("results.png", "labels.png", "none.png"))


@pytest.mark.parametrize("name", ["../out", "a/../../out", "/tmp/out", ""])
def test_a_name_that_leads_out_of_the_runs_is_refused(tmp_path, name):
    with pytest.raises(UserError, match="inside"):
        new_run_folder(tmp_path / "runs", name)
    assert not list(tmp_path.iterdir())


def write_at(path, time, text=""):
    """Write a file whose modification time is so many seconds after 1970."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (time, time))


def test_the_newest_run_is_the_one_that_wrote_weights_last(tmp_path):
    assert newest_run(tmp_path) is None
    with pytest.raises(UserError, match=r"train\.py"):
        find_newest_checkpoint(tmp_path)
    for time, name in enumerate(("a/best.pt", "a/last.pt", "b/best.pt", "b/last.pt", "c/last.pt")):
        write_at(tmp_path / name, time)
    assert newest_run(tmp_path) == tmp_path / "c"
    assert find_newest_checkpoint(tmp_path) == tmp_path / "c/last.pt"
    write_at(tmp_path / "a/last.pt", 99)  # resumed: its best weights are older than this
    assert find_newest_checkpoint(tmp_path) == tmp_path / "a/best.pt"


def test_weights_and_options_are_those_of_one_run(tmp_path):
    write_at(tmp_path / "old/config.yaml", 1, "data: old.data\n")
    write_at(tmp_path / "old/best.pt", 5)
    write_at(tmp_path / "new/config.yaml", 9, "data: new.data\n")  # has no weights yet, as with --nosave
    write_at(tmp_path / "new/.last.77.pt", 9)  # killed while it wrote
    write_at(tmp_path / "new/copy.pt", 9)
    assert newest_run(tmp_path) == tmp_path / "old"
    assert options_of_run(newest_run(tmp_path)) == {"data": "old.data"}
    assert weights_of_run(newest_run(tmp_path)) == find_newest_checkpoint(tmp_path)
    (tmp_path / "old/config.yaml").unlink()  # options of another run would not fit these weights
    assert options_of_run(newest_run(tmp_path)) == {}


def test_without_any_weights_the_newest_configuration_counts(tmp_path):
    for time, name in enumerate(("b", "a")):
        write_at(tmp_path / name / "config.yaml", time, f"data: {name}.data\n")
    assert options_of_run(newest_run(tmp_path)) == {"data": "a.data"}
    assert weights_of_run(newest_run(tmp_path)) is None
    with pytest.raises(UserError, match="no trained network"):
        find_newest_checkpoint(tmp_path)
    write_at(tmp_path / "a/config.yaml", 7, "- no options\n")
    with pytest.raises(UserError, match=r"a/config\.yaml: not a list of 'option: value' lines"):
        options_of_run(newest_run(tmp_path))  # another run's data, or the demo set, would be silently wrong
    assert options_of_run(None) == {}


def test_weights_that_were_never_trained_are_not_the_newest(tmp_path):
    def save(name, epoch, time):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        save_checkpoint(tmp_path / name, {"epoch": epoch})
        os.utime(tmp_path / name, (time, time))

    save("stopped/last.pt", 0, 9)  # written before the first epoch
    write_at(tmp_path / "stopped/config.yaml", 9)
    assert weights_of_run(tmp_path / "stopped") is None
    with pytest.raises(UserError, match="no trained network"):
        find_newest_checkpoint(tmp_path)
    assert newest_run(tmp_path) == tmp_path / "stopped"  # its configuration is the newest
    save("untested/last.pt", 2, 5)  # --notest
    assert find_newest_checkpoint(tmp_path) == tmp_path / "untested/last.pt"
    save("old/last.pt", 3, 7)
    save("old/best.pt", 1, 6)
    assert find_newest_checkpoint(tmp_path) == tmp_path / "old/best.pt"
    write_at(tmp_path / "damaged/last.pt", 8, "cut off")  # is named, not passed over
    assert find_newest_checkpoint(tmp_path) == tmp_path / "damaged/last.pt"


def test_the_time_that_is_left_is_that_of_epochs_like_the_last(tmp_path):
    run = TrainingRun(tmp_path, {"epochs": 10, "patience": 0}, (), "")
    state = SimpleNamespace(epoch=4, best_epoch=4)
    for run.epoch_seconds, words in ((600, "1 h 0 min left"), (70, "7 min left"), (4, "")):
        assert run.time_left(state) == words  # six epochs are left
    state.epoch = 10
    assert run.time_left(state) == ""


def test_after_a_resume_within_an_epoch_the_rest_of_it_says_nothing_of_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "is_main", lambda: False)  # nothing is written
    run = TrainingRun(tmp_path, {"epochs": 10, "patience": 0}, (), "", was_begun=True)
    state = TrainState(torch.nn.Linear(1, 1), None, None, None)
    for seconds, words in ((60, ""), (600, "1 h 20 min left")):
        run.epoch_ended = now() - seconds
        run._finish_epoch(state, {}, None)
        assert run.time_left(state) == words


def test_a_validation_loss_that_is_no_number_has_no_cell():
    metrics = SimpleNamespace(precision=0.5, recall=0.5, ap50=0.5, ap=0.5)
    loss = SimpleNamespace(means=lambda: {"box": 0.25, "obj": float("nan"), "cls": float("inf")})
    optimizer = SimpleNamespace(param_groups=[{"lr": 0.1}])
    row = train.epoch_row({"box": 1.0}, None, metrics, loss, SimpleNamespace(optimizer=optimizer))
    assert row["val/box"] == 0.25 and not {"val/obj", "val/cls"} & row.keys()
