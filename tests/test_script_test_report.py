"""test.py --report: where the points went, of files and of a network; without the flag nothing changes."""

import csv
import json

import pytest

from tests.tiny_project import run_script

REPORT = ("--report", "--resamples", 10)
NEW_KEYS = {"breakdowns", "worst_images", "suspicious_labels"}


def test_a_network(project, evaluation_script, monkeypatch, capsys):
    assert run_script(evaluation_script, monkeypatch, "--workers", 0) == 0
    before = json.loads((project / "runs/test/exp/metrics.json").read_text())
    assert not before.keys() & NEW_KEYS
    assert "Objects by" not in capsys.readouterr().out

    assert run_script(evaluation_script, monkeypatch, *REPORT, "--match", "standard,ratio", "--workers", 0) == 0
    folder = project / "runs/test/exp2"
    content = json.loads((folder / "metrics.json").read_text())
    assert content.keys() - before.keys() == NEW_KEYS | {"best_thresholds", "comparison"}
    assert content["ap"] == before["ap"]
    (of_network,) = content["breakdowns"].values()
    assert of_network["all"] == [
        {"group": "all", "objects": content["num_instances"], "ap": pytest.approx(content["ap"])}
        | {key: of_network["all"][0][key] for key in ("ap50", "ar", "found")}
    ]
    of_sizes = {row["group"]: row["ap"] for row in of_network["size"]}
    assert of_sizes == {name: pytest.approx(content[f"ap_{name}"]) for name in of_sizes}
    for breakdown in ("positives of standard", "positives of ratio", "best prior IoU", "occlusion", "class"):
        assert sum(row["objects"] for row in of_network[breakdown]) == content["num_instances"]
    assert "Objects by positives of ratio" in capsys.readouterr().out
    rows = list(csv.reader((folder / "table.csv").open()))
    all_objects = rows[rows.index(["all", "objects", "AP", "AP50", "AR", "share found"]) + 1]
    assert float(all_objects[2]) == of_network["all"][0]["ap"]
    assert "### Objects by elongation" in (folder / "table.md").read_text()


def test_files_side_by_side_with_pictures(project, evaluation_script, monkeypatch, capsys):
    assert run_script(evaluation_script, monkeypatch, "--save-json", "--workers", 0) == 0
    found = json.loads((project / "runs/test/exp/detections.json").read_text())
    (project / "a.json").write_text(json.dumps(found[::2]))
    (project / "b.json").write_text(json.dumps(found[1::2]))
    arguments = ("--results", "a.json", "b.json", "--data", "tiny.data", "--resamples", 0, "--report", "--name", "two")
    assert run_script(evaluation_script, monkeypatch, *arguments) == 0
    folder = project / "runs/test/two"
    content = json.loads((folder / "metrics.json").read_text())
    assert list(content["breakdowns"]) == ["a", "b"] and "best prior IoU" not in content["breakdowns"]["a"]
    for name, column in zip("ab", content["columns"], strict=True):
        assert content["breakdowns"][name]["all"][0]["ap"] == pytest.approx(column["numbers"]["AP"])
        lost = [one["ap50_lost"] for one in content["worst_images"][name]]
        assert lost == sorted(lost, reverse=True) and lost[-1] > 0
    rows = list(csv.DictReader((folder / "suspicious_labels.csv").open()))
    assert len(rows) == sum(content["suspicious_labels"]["counts"].values())
    assert (folder / "suspicious_labels.jpg").is_file() == bool(rows)
    capsys.readouterr()

    arguments = ("--cfg", "tiny.cfg", "--img-size", 96, "--results", "a.json", "--data", "tiny.data", "--resamples", 0)
    assert run_script(evaluation_script, monkeypatch, *arguments, "--report", "--name", "cfg") == 0
    content = json.loads((project / "runs/test/cfg/metrics.json").read_text())
    assert "positives of standard" in content["breakdowns"]["a"]


def test_images_that_are_not_there(shared, evaluation_script, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    files = (shared / "data/cocoapi" / f"instances_val2014_{name}" for name in ("fakebbox100_results.json", "100.json"))
    results, truth = files
    assert (
        run_script(evaluation_script, monkeypatch, "--results", results, "--data", truth, "--resamples", 0, "--report")
        == 0
    )
    folder = tmp_path / "runs/test/exp"
    content = json.loads((folder / "metrics.json").read_text())
    assert "no pictures: the images are not on the disk" in capsys.readouterr().out
    assert not (folder / "suspicious_labels.jpg").exists()
    (column,) = content["columns"]
    (breakdowns,) = content["breakdowns"].values()
    sizes = [row["ap"] for row in breakdowns["size"]]
    assert sizes == pytest.approx([column["numbers"][name] for name in ("APs", "APm", "APl")])


def test_masks_have_no_report_yet(shared, evaluation_script, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    files = (shared / "data/cocoapi" / f"instances_val2014_{name}" for name in ("fakesegm100_results.json", "100.json"))
    results, truth = files
    arguments = ("--results", results, "--data", truth, "--iou-type", "segm", *REPORT)
    assert run_script(evaluation_script, monkeypatch, *arguments) == 0
    assert "told of boxes, not of segm" in capsys.readouterr().out
    assert not json.loads((tmp_path / "runs/test/exp/metrics.json").read_text()).keys() & NEW_KEYS


MISTAKES = [
    (("--match", "ratio"), "--match ratio is for --report"),
    (("--results", "empty.json", "--data", "tiny.data", "--report", "--match", "ratio"), "name its --cfg"),
    (("--report", "--match", "simota"), "--match simota looks at predictions"),
    (("--report", "--match", "nonsense"), "unknown strategy 'nonsense'"),
    (("--results", "empty.json", "--data", "tiny.data", "--report", "--cfg", "no.cfg"), "cfg 'no.cfg' does not exist"),
]


@pytest.mark.parametrize("arguments, words", MISTAKES)
def test_mistakes_are_one_line(project, evaluation_script, monkeypatch, capsys, arguments, words):
    (project / "empty.json").write_text("[]")
    assert run_script(evaluation_script, monkeypatch, *arguments) == 2
    assert words in capsys.readouterr().err.splitlines()[-1]
