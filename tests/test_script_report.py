"""test.py --report and analyze.py --results as a user types them."""

import json
import shutil
from pathlib import Path

import pytest

import analyze
from tests.html_pages import Elements
from tests.tiny_project import run_script


def data_of(path):
    """What is in a report for programs."""
    return json.loads(Elements(Path(path).read_text(encoding="utf-8")).data)


def test_a_network_alone_and_beside_a_file(project, evaluation_script, monkeypatch, capsys):
    settings = ("--workers", 0, "--resamples", 10, "--report")
    assert run_script(evaluation_script, monkeypatch, *settings, "--save-json") == 0
    assert "open runs/test/exp/report.html in a browser" in capsys.readouterr().out
    alone, metrics = data_of("runs/test/exp/report.html"), json.loads(Path("runs/test/exp/metrics.json").read_text())
    assert metrics["comparison"].items() <= alone["numbers"]["results"].items()
    (column,) = metrics["comparison"]["columns"]
    assert column["numbers"]["AP"] == metrics["ap"] and len(column["interval_95"]["AP"]) == 2
    images = alone["images"]["images-that-cost-most"]
    assert len(images["images"]) == 7 and images["detectors"] == ["best"] and "Würfel" in images["classes"]
    lost = [float(image["remark"].split()[-1]) for image in images["images"]]
    assert lost == sorted(lost, reverse=True) and lost[0] > lost[-1]

    files = ("--weights", "runs/train/exp/best.pt", "--results", "file=runs/test/exp/detections.json")
    assert run_script(evaluation_script, monkeypatch, *settings, *files, "--report-images", 2, "--name", "both") == 0
    both = data_of("runs/test/both/report.html")["images"]["images-that-cost-most"]
    assert both["detectors"] == ["best", "file"] and len(both["images"]) == 2
    of_detectors = [[box[:7] for box in both["images"][0]["boxes"] if box[7] == number] for number in (0, 1)]
    assert of_detectors[0] == of_detectors[1] != []


def test_the_same_report_of_files_by_both_scripts(project, evaluation_script, run_main, monkeypatch):
    assert run_script(evaluation_script, monkeypatch, "--workers", 0, "--save-json", "--name", "own") == 0
    arguments = ("--results", "own=runs/test/own/detections.json", "--data", "tiny.data", "--resamples", 10, "--report")
    assert run_script(evaluation_script, monkeypatch, *arguments, "--name", "files") == 0
    assert run_main(analyze, *arguments, "--name", "files")[0] == 0
    folder = Path("runs/analyze/files")
    assert [path.name for path in Path("runs/analyze").iterdir()] == ["files"]
    assert {"report.html", "results.json", "tables.md", "numbers.csv", "ap50_lost.csv"} <= {
        path.name for path in folder.iterdir()
    }
    assert data_of(folder / "report.html") == data_of("runs/test/files/report.html")
    assert not data_of(folder / "report.html")["images"]["images-that-cost-most"]["unreadable"]
    results = json.loads((folder / "results.json").read_text())
    assert results["statistics"] == data_of(folder / "report.html")["numbers"]["results"]
    assert (results["mode"], results["data"]["split"]) == ("results", "valid")
    assert "| own" in (folder / "tables.md").read_text()


def test_images_that_are_not_on_the_disk_are_counted(project, evaluation_script, monkeypatch):
    assert run_script(evaluation_script, monkeypatch, "--workers", 0, "--save-json", "--name", "own") == 0
    shutil.rmtree(project / "images")
    files = ("--results", "runs/test/own/detections.json", "--data", "runs/test/own/ground_truth.json")
    assert run_script(evaluation_script, monkeypatch, *files, "--resamples", 0, "--report", "--name", "files") == 0
    page = Elements(Path("runs/test/files/report.html").read_text(encoding="utf-8"))
    assert "not shown: 7 images not on the disk" in page.text
    assert json.loads(page.data)["images"]["images-that-cost-most"]["images"] == []


def test_masks_have_numbers_and_no_pictures(shared, evaluation_script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = shared / "data/cocoapi"
    files = ("--results", folder / "keypoints_dt.json", "--data", folder / "keypoints_gt.json")
    assert run_script(evaluation_script, monkeypatch, *files, "--iou-type", "keypoints", "--report") == 0
    data = data_of("runs/test/exp/report.html")
    assert data["images"] == {} and data["numbers"]["results"]["columns"][0]["numbers"]["AR75"] == pytest.approx(
        0.737, abs=1
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--results", "no.json", "--data", "tiny.data"), "no.json: there is no such file"),
        (("--results", "tiny.cfg"), "--results needs the ground truth: name it with --data"),
        (("--results", "tiny.cfg", "--data", "tiny.data", "--report-images", "-1"), "--report-images must not be"),
        (("--iou-type", "segm", "--dataset-stats"), "--iou-type"),
        (
            ("--dataset-stats", "--resamples", "3"),
            "--resamples is read by --compare, --results only; add one",
        ),
    ],
)
def test_mistakes_are_one_line(project, run_main, arguments, says):
    status, _, err = run_main(analyze, *arguments)
    assert status == 2 and says in err and len(err.strip().splitlines()) == 1
    assert not Path("runs/analyze").exists()
