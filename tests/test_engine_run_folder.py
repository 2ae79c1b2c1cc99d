import csv

import pytest
import yaml

from engine.run_folder import epoch_summary, new_run_folder, plot_labels, plot_results, save_config, save_results_csv
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
    plot_labels(tmp_path / "none.png", [], [], [], ["a"])
    assert all((tmp_path / name).stat().st_size > 1000 for name in ("results.png", "labels.png", "none.png"))


@pytest.mark.parametrize("name", ["../out", "a/../../out", "/tmp/out", ""])
def test_a_name_that_leads_out_of_the_runs_is_refused(tmp_path, name):
    with pytest.raises(UserError, match="inside"):
        new_run_folder(tmp_path / "runs", name)
    assert not list(tmp_path.iterdir())
