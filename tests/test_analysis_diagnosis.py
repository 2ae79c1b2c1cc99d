"""test.py --at-conf, --at-iou, --points and --report: what is printed and written, for a network and for files."""

import csv
import json

import pytest

from tests.tiny_project import run_script

PICTURES = {"PR_curve.png", "F1_curve.png", "P_curve.png", "R_curve.png", "reliability_diagram.png"}
TABLES = {
    "curves.csv",
    "curves.json",
    "PR_curve.csv",
    "confusion_matrix.json",
}


def read(folder, name):
    return json.loads((folder / name).read_text(), parse_constant=pytest.fail)


def test_a_network_of_ours(project, evaluation_script, monkeypatch, capsys):
    arguments = ("--workers", 0, "--report", "--resamples", 10, "--at-conf", 0.1, "--points", 11)
    assert run_script(evaluation_script, monkeypatch, *arguments) == 0
    folder, printed = project / "runs/test/exp", capsys.readouterr().out
    files = {path.name for path in folder.iterdir()}
    assert files >= PICTURES | TABLES | {
        "confusion_matrix.png",
        "confusion_matrix_normalized.png",
        "confusion_matrix.csv",
    }
    content = read(folder, "metrics.json")
    (name, point), matrix = next(iter(content["working_points"].items())), read(folder, "confusion_matrix.json")
    assert name == "best" and (point["confidence"], point["iou"], point["points"]) == (0.1, 0.5, 11)
    assert point["tp"] + point["fn"] == content["num_instances"]
    assert (matrix["confidence"], matrix["iou"]) == (0.1, 0.45) and matrix["names"][-1] == "background"
    assert sum(map(sum, matrix["matrices"]["best"][:-1])) == content["num_instances"]
    rows = list(csv.reader((folder / "confusion_matrix.csv").open()))
    assert [list(map(int, row[1:])) for row in rows[1:]] == matrix["matrices"]["best"]
    of_all = content["best_thresholds"]["best"][0]
    assert (of_all["confidence"], of_all["precision"]) == (content["best_f1_confidence"], content["precision"])
    assert f"P and R are those at confidence {of_all['confidence']:.3f}" in printed
    assert " for conf_thresh = 0.10, TP = " in printed and "used 11 Recall-points" in printed
    assert "calibration error" in printed and "WARNING: --conf-thres" not in printed
    rows = list(csv.DictReader((folder / "curves.csv").open()))
    assert rows[0].keys() == {"detector", "class", "confidence", "precision", "recall", "f1"}
    assert max(float(row["f1"]) for row in rows if row["class"] == "all") == pytest.approx(of_all["f1"], abs=1e-5)


def test_several_files_are_drawn_together_and_have_a_matrix_each(project, evaluation_script, monkeypatch, capsys):
    assert run_script(evaluation_script, monkeypatch, "--save-json", "--workers", 0) == 0
    plain = {path.name for path in (project / "runs/test/exp").iterdir()}
    assert not plain & (PICTURES | TABLES) and "working_points" not in read(project / "runs/test/exp", "metrics.json")
    assert "conf_thresh" not in capsys.readouterr().out
    rows = json.loads((project / "runs/test/exp/detections.json").read_text())
    (project / "half.json").write_text(json.dumps(rows[::2]))
    files = ("a/b=runs/test/exp/detections.json", "a_b=half.json")
    arguments = (
        "--results",
        *files,
        "--data",
        "tiny.data",
        "--resamples",
        0,
        "--report",
        "--at-iou",
        0.3,
        "--name",
        "two",
    )
    assert run_script(evaluation_script, monkeypatch, *arguments) == 0
    folder = project / "runs/test/two"
    names = {path.name for path in folder.iterdir()}
    assert names >= PICTURES | TABLES | {f"confusion_matrix{kind}_{ending}.png" for kind in ("", "_normalized")
                                         for ending in ("1_a_b", "2_a_b")}  # fmt: skip
    content = read(folder, "metrics.json")
    assert content["working_points"].keys() == content["best_thresholds"].keys() == {"a/b", "a_b"}
    assert content["working_points"]["a_b"]["iou"] == read(folder, "confusion_matrix.json")["iou"] == 0.3


def test_a_confidence_that_lowers_map_is_said_once_and_not_where_speed_is_measured(
    project, evaluation_script, monkeypatch, capsys
):
    assert run_script(evaluation_script, monkeypatch, "--workers", 0, "--conf-thres", 0.1) == 0
    assert capsys.readouterr().out.count("WARNING: --conf-thres 0.1 lowers mAP") == 1
    for more in (("--task", "speed", "--conf-thres", 0.1), ("--conf-thres", 0.01)):
        assert run_script(evaluation_script, monkeypatch, "--workers", 0, *more) == 0
        assert "lowers mAP" not in capsys.readouterr().out


MISTAKES = [
    (("--at-conf", "1"), "--at-conf must lie between 0 and 1, not 1.0"),
    (("--at-iou", "0"), "--at-iou must lie between 0 and 1, not 0.0"),
    (("--points", "10"), "--points must be 0, 11 or 101, not 10"),
    (("--results", "empty.json", "--data", "tiny.data", "--iou-type", "segm", "--points", 0), "leave out --iou-type"),
]


@pytest.mark.parametrize("arguments, words", MISTAKES)
def test_mistakes_are_one_line(project, evaluation_script, monkeypatch, capsys, arguments, words):
    (project / "empty.json").write_text("[]")
    assert run_script(evaluation_script, monkeypatch, *arguments) == 2
    assert words in capsys.readouterr().err.splitlines()[-1]


def test_no_detections_at_all(project, evaluation_script, monkeypatch):
    (project / "empty.json").write_text("[]")
    arguments = ("--results", "empty.json", "--data", "tiny.data", "--resamples", 0, "--report", "--at-conf", 0.3)
    assert run_script(evaluation_script, monkeypatch, *arguments) == 0
    content = read(project / "runs/test/exp", "metrics.json")
    assert content["working_points"]["empty"]["precision"] is None
    assert content["columns"][0]["calibration_error"] is None
