"""test.py --results: files of any detector, side by side, without a network and beside one."""

import csv
import json
import re

import pytest

from tests.tiny_project import run_script

PUBLISHED = [  # of the COCO API: kind of IoU, results, ground truth, numbers
    ("bbox", "instances_val2014_fakebbox100_results.json", "instances_val2014_100.json",
     "0.505 0.697 0.573 0.586 0.519 0.501 0.387 0.594 0.595 0.640 0.566 0.564"),
    ("segm", "instances_val2014_fakesegm100_results.json", "instances_val2014_100.json",
     "0.320 0.562 0.299 0.387 0.310 0.327 0.268 0.415 0.417 0.469 0.377 0.381"),
    ("keypoints", "keypoints_dt.json", "keypoints_gt.json",
     "0.505 0.723 0.634 0.466 0.750 0.518 0.727 0.636 0.467 0.750"),
]  # fmt: skip


@pytest.mark.parametrize("published", PUBLISHED)
def test_the_published_numbers(shared, evaluation_script, tmp_path, monkeypatch, capsys, published):
    monkeypatch.chdir(tmp_path)
    kind, results, truth, numbers = published
    folder = shared / "data/cocoapi"
    arguments = ("--results", folder / results, "--data", folder / truth, "--iou-type", kind, "--resamples", 20)
    assert run_script(evaluation_script, monkeypatch, *arguments) == 0
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [words[1] for words in shown if words and words[0].startswith("A") and words[1][0] == "0"] == numbers.split()
    run = tmp_path / "runs/test/exp"
    (column,) = json.loads((run / "metrics.json").read_text())["columns"]
    assert [f"{number:.3f}" for number in column["numbers"].values()] == numbers.split()
    if kind == "keypoints":  # of a single image, which says nothing of others
        assert column["interval_95"] is None
    else:
        assert list(column["interval_95"]) == list(column["numbers"])
        assert all(low < high for low, high in column["interval_95"].values())
    rows = list(csv.reader((run / "table.csv").open()))
    assert [row[1][:5] for row in rows[1 : 1 + len(numbers.split())]] == numbers.split()
    assert re.search(rf"^\| AP +\| +{numbers.split()[0]}", (run / "table.md").read_text(), re.MULTILINE)


def test_darknets_own_detections_side_by_side(shared, evaluation_script, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    files = [f"{name}={shared}/oracle/{file}_darknet_val128_results.json" for name, file in
             (("small", "yolo-fastest-1.1"), ("large", "yolo-fastest-1.1-xl"))]  # fmt: skip
    truth = shared / "data/coco/annotations/instances_val2017.json"
    assert run_script(evaluation_script, monkeypatch, "--results", *files, "--data", truth, "--resamples", 100) == 0
    found = json.loads((tmp_path / "runs/test/exp/metrics.json").read_text())
    small, large = found["columns"]
    assert [round(one["numbers"]["AP"], 4) for one in (small, large)] == [0.1587, 0.2274]
    assert [round(one["numbers"]["AP50"], 4) for one in (small, large)] == [0.3633, 0.4432]
    (difference,) = found["differences"]
    assert (difference["of"], difference["minus"]) == ("large", "small")
    low, high = difference["interval_95"]["AP"]
    assert 0.03 < low < difference["numbers"]["AP"] < high < 0.12
    assert set(small["delta_ap50"]) >= {"Cls", "Loc", "Both", "Dupe", "Bkg", "Miss"}
    assert "large - small" in capsys.readouterr().out


def test_a_network_is_one_more_column_and_its_file_differs_by_nothing(project, evaluation_script, monkeypatch, capsys):
    assert run_script(evaluation_script, monkeypatch, "--save-json", "--workers", 0) == 0
    file = "runs/test/exp/detections.json"
    weights = "runs/train/exp/best.pt"
    arguments = ("--weights", weights, "--results", f"file={file}", "--workers", 0, "--resamples", 30, "--name", "both")
    assert run_script(evaluation_script, monkeypatch, *arguments) == 0
    content = json.loads((project / "runs/test/both/metrics.json").read_text())
    own, other = content["comparison"]["columns"]
    assert (own["name"], other["name"]) == ("best", "file") and own["numbers"] == other["numbers"]
    assert own["numbers"]["AP"] == content["ap"]
    assert all(
        bounds in ([0, 0], [None, None]) for bounds in content["comparison"]["differences"][0]["interval_95"].values()
    )
    assert (project / "runs/test/both/table.csv").is_file() and "file - best" in capsys.readouterr().out


def test_runs_of_one_name_have_a_spread(project, evaluation_script, monkeypatch, capsys):
    assert run_script(evaluation_script, monkeypatch, "--save-json", "--workers", 0) == 0
    rows = json.loads((project / "runs/test/exp/detections.json").read_text())
    for number in (2, 3):
        (project / f"{number}.json").write_text(json.dumps(rows[::number]))
    capsys.readouterr()
    arguments = ("--results", "a=2.json", "a=3.json", "--data", "tiny.data", "--resamples", 0, "--name", "runs")
    assert run_script(evaluation_script, monkeypatch, *arguments) == 0
    (column,) = json.loads((project / "runs/test/runs/metrics.json").read_text())["columns"]
    each = [run["AP"] for run in column["runs"]]
    assert column["files"] == 2 and column["numbers"]["AP"] == pytest.approx(sum(each) / 2)
    assert column["over_runs"]["AP"]["std"] == pytest.approx(abs(each[0] - each[1]) / 2**0.5)
    assert "over 2 runs" in capsys.readouterr().out


def test_differences_of_runs_are_paired_in_the_order_given(project, evaluation_script, monkeypatch, capsys):
    assert run_script(evaluation_script, monkeypatch, "--save-json", "--workers", 0) == 0
    rows = json.loads((project / "runs/test/exp/detections.json").read_text())
    for number in (2, 3, 4, 5):
        (project / f"{number}.json").write_text(json.dumps(rows[::number]))
    files = ("a=2.json", "b=4.json", "a=3.json", "b=5.json", "c=2.json")
    arguments = ("--results", *files, "--data", "tiny.data", "--resamples", 0, "--name", "runs")
    capsys.readouterr()
    assert run_script(evaluation_script, monkeypatch, *arguments) == 0
    content = json.loads((project / "runs/test/runs/metrics.json").read_text())
    first, second, _ = ([run["AP"] for run in column["runs"]] for column in content["columns"])
    (difference,) = content["differences"]  # those with c have no partner for the second run
    each = [second[0] - first[0], second[1] - first[1]]
    assert (difference["of"], difference["minus"], difference["interval_95"]) == ("b", "a", None)
    assert difference["numbers"]["AP"] == pytest.approx(sum(each) / 2)
    assert difference["over_runs"]["AP"]["std"] == pytest.approx(abs(each[0] - each[1]) / 2**0.5)
    # Half of Student's interval with 1 degree of freedom: 12.706 |d1 - d2| / sqrt 2 / sqrt 2.
    half = 12.706 * abs(each[0] - each[1]) / 2
    assert difference["over_runs"]["AP"]["interval_95"] == pytest.approx(half, rel=1e-4)
    (line,) = [line for line in capsys.readouterr().out.split("b - a")[1].splitlines() if line.split()[:1] == ["AP"]]
    assert f"± {half:.3f} over 2 runs" in line and ("(0)" in line) == (half >= abs(sum(each) / 2))


def test_parameters_reach_every_column(project, evaluation_script, monkeypatch, capsys):
    assert run_script(evaluation_script, monkeypatch, "--save-json", "--workers", 0) == 0
    weights, file = "runs/train/exp/best.pt", "runs/test/exp/detections.json"
    chosen = ("--max-dets", 1, 2, "--area", "tiny=0:900", "--iou-thresholds", 0.3, "0.5:0.7:0.1", "--class-agnostic",
              "--resamples", 20)  # fmt: skip
    arguments = ("--weights", weights, "--results", f"file={file}", "--workers", 0, *chosen, "--name", "both")
    capsys.readouterr()
    assert run_script(evaluation_script, monkeypatch, *arguments) == 0
    content = json.loads((project / "runs/test/both/metrics.json").read_text())
    own, other = content["comparison"]["columns"]
    assert list(own["numbers"]) == ["AP", "AP50", "AP_tiny", "AR1", "AR2", "AR_tiny"]
    assert own["numbers"] == other["numbers"]
    assert content["comparison"]["parameters"] == {
        "iou_thresholds": pytest.approx([0.3, 0.5, 0.6, 0.7]),
        "areas": {"all": [0, 1e10], "tiny": [0, 900]},
        "max_dets": [1, 2],
        "class_agnostic": True,
    }
    assert "[all classes as one; IoU 0.3, 0.5, 0.6, 0.7; areas" in capsys.readouterr().out

    plain = ("--weights", weights, "--workers", 0, *chosen, "--name", "plain")
    assert run_script(evaluation_script, monkeypatch, *plain) == 0
    again = json.loads((project / "runs/test/plain/metrics.json").read_text())
    assert again["ap"] == content["ap"], "COCO's own numbers stay what they are"
    assert [one["numbers"] for one in again["comparison"]["columns"]] == [own["numbers"]]


def test_masks_beside_a_network_are_refused_before_it_runs(shared, project, evaluation_script, monkeypatch, capsys):
    folder = shared / "data/cocoapi"
    arguments = ("--results", folder / "instances_val2014_fakesegm100_results.json", "--iou-type", "segm",
                 "--data", folder / "instances_val2014_100.json", "--weights", "no-such-weights.pt")  # fmt: skip
    assert run_script(evaluation_script, monkeypatch, *arguments) == 2
    assert "--iou-type segm: leave out --weights" in capsys.readouterr().err


MISTAKES = [
    (("--results", "no.json", "--data", "tiny.data"), "no.json: there is no such file"),
    (("--results", "tiny.data"), "--results needs the ground truth: name it with --data"),
    (("--results", "tiny.cfg", "--data", "tiny.data"), "tiny.cfg:2: is not JSON"),
    (("--results", "empty.json", "--data", "tiny.data", "--iou-type", "segm"), "needs a COCO JSON"),
    (("--results", "empty.json", "--data", "tiny.data", "--resamples", "-1"), "--resamples must not be negative"),
    (("--iou-type", "segm"), "--iou-type segm is for --results"),
    (("--area", "small"), "--area small: give NAME=MIN:MAX"),
    (("--max-dets", "0"), "--max-dets must be between 1"),
    (("--iou-thresholds", "50"), "--iou-thresholds 50: give numbers above 0 and up to 1"),
]


@pytest.mark.parametrize("arguments, words", MISTAKES)
def test_mistakes_are_one_line(project, evaluation_script, monkeypatch, capsys, arguments, words):
    (project / "empty.json").write_text("[]")
    assert run_script(evaluation_script, monkeypatch, *arguments) == 2
    assert words in capsys.readouterr().err.splitlines()[-1]
