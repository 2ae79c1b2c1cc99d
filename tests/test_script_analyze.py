"""analyze.py as a user types it: what it writes, what it refuses, and broken annotations of every kind."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

import analyze
from analysis.mode import AnalyzeOptions
from utils.errors import UserError

REPOSITORY = Path(__file__).resolve().parent.parent


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def no_drawing(monkeypatch):
    """Plots take most of the time of a small analysis, so their files stay empty; one test draws real ones."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, path, **options: path.touch())


@pytest.fixture
def run(tmp_path, monkeypatch, run_main):
    """Run analyze.py's main in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: run_main(analyze, *arguments)


def coco_dict():
    """Two images, three objects and a crowd region; a third image without objects."""
    return {
        "images": [{"id": i, "width": 200, "height": 100, "file_name": f"{i}.jpg"} for i in (1, 2, 3)],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 3, "bbox": [10, 10, 50, 20], "area": 900, "iscrowd": 0},
            {"id": 2, "image_id": 1, "category_id": 3, "bbox": [12, 12, 50, 20], "area": 1000, "iscrowd": 0},
            {"id": 3, "image_id": 2, "category_id": 7, "bbox": [0, 0, 120, 90], "area": 10800, "iscrowd": 0},
            {"id": 4, "image_id": 2, "category_id": 7, "bbox": [100, 0, 100, 100], "area": 10000, "iscrowd": 1},
        ],
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
    }


def write_coco(folder, content, name="instances.json"):
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def document(folder="dataset-stats"):
    return json.loads(Path("runs/analyze", folder, "results.json").read_text())


def test_dataset_stats_writes_every_kind_of_file(run, tmp_path):
    path = write_coco(tmp_path, coco_dict())
    status, out, _ = run("--dataset-stats", "--data", path)
    assert status == 0
    assert "| annotated images" in out
    assert "runs/analyze/dataset-stats" in out
    result = document()
    assert result["schema"] == "yolo-lab-analysis-2"
    assert result["mode"] == "dataset-stats"
    assert result["command"].startswith("python analyze.py --dataset-stats")
    assert (result["data"]["data"], result["data"]["images"], result["data"]["annotations"]) == (str(path), 3, 4)
    statistics = result["statistics"]
    assert statistics["images"] == {"total": 3, "annotated": 2, "without_objects": 1}
    assert statistics["objects"] == {"total": 4, "crowd": 1}
    # IoU of the first two: 48 x 18 / (2000 - 864) = 0.76; of the others 20 x 90 / (10800 + 10000 - 1800) = 0.09.
    assert statistics["overlapping"]["pairs"] == 1
    names = {file.name for file in Path("runs/analyze/dataset-stats").iterdir()}
    assert {"tables.md", "classes.csv", "pairs.csv", "histograms.png", "classes.png"} <= names
    rows = rows_of("runs/analyze/dataset-stats/classes.csv")
    assert [(row["name"], row["objects"], row["crowd"]) for row in rows] == [("cat", "2", "0"), ("dog", "2", "1")]


def test_a_second_run_does_not_overwrite_the_first(run, no_drawing, tmp_path):
    path = write_coco(tmp_path, coco_dict())
    for options in ((), ("--no-crowd",), ("--name", "mine")):
        assert run("--dataset-stats", "--data", path, *options)[0] == 0
    assert document()["statistics"]["objects"]["total"] == 4
    assert document("dataset-stats2")["statistics"]["objects"]["total"] == 3
    assert document("mine")["statistics"]["objects"]["total"] == 4


@pytest.mark.parametrize(
    "option, value", [("--near-gap", "-3"), ("--near-gap", "nan"), ("--coincident", "inf"), ("--overlap-iou", "1.5"),
                      ("--containment", "-0.1"), ("--crowded-pairs", "0"), ("--elongation", "0.5")],
)  # fmt: skip
def test_thresholds_without_sense_are_refused(run, tmp_path, option, value):
    status, _, err = run("--dataset-stats", "--data", write_coco(tmp_path, coco_dict()), option, value)
    assert status == 2 and option in err and err.count("\n") == 1


def test_label_problems_are_told_by_every_analysis(run, no_drawing, tmp_path, monkeypatch):
    content = coco_dict()
    content["annotations"][0]["bbox"] = [10, 10, 0, 20]
    path = write_coco(tmp_path, content)
    status, out, _ = run("--anchor-stats", "--data", path)
    said = f"labels: 1 x zero or negative size; first: {path} (annotation 1, box"
    assert status == 0 and said in out
    assert document("anchor-stats")["notes"][0].startswith(said)


def test_the_first_line_says_what_is_analysed(run, no_drawing, tmp_path):
    path = write_coco(tmp_path, coco_dict())
    _, out, _ = run("--dataset-stats", "--anchor-stats", "--data", path)
    assert out.splitlines()[0] == (
        f"analyze: --dataset-stats --anchor-stats of {path} (all) with the anchors of yolov3-nano.cfg"
    )


def test_a_cfg_that_is_not_there_is_refused_before_anything_is_done(run, tmp_path):
    status, _, err = run("--dataset-stats", "--anchor-stats", "--data", write_coco(tmp_path, coco_dict()),
                         "--cfg", "nope.cfg")  # fmt: skip
    assert status == 2 and "nope.cfg" in err and not Path("runs").exists()


def test_anchor_stats_of_chosen_strategies(run, tmp_path):
    path = write_coco(tmp_path, coco_dict())
    arguments = ("--anchor-stats", "--data", path, "--cfg", "yolov3-tiny.cfg", "--img-size", 320)
    status, out, _ = run(*arguments, "--match", "standard,ratio", "--iou-t", 0.3)
    assert status == 0
    assert "Matches at 320 x 320" in out
    result = document("anchor-stats")
    assert list(result["statistics"]["strategies"]) == ["standard", "ratio"]
    assert result["statistics"]["objects"] == 3  # without the crowd region
    assert result["statistics"]["best_possible_recall"]["iou_t"] == 0.3
    assert [row["stride"] for row in result["statistics"]["strategies"]["ratio"]["anchors"]] == [32] * 3 + [16] * 3


def test_without_a_mode_it_says_what_it_chose(run, no_drawing, tmp_path):
    path = write_coco(tmp_path, coco_dict())
    status, out, _ = run("--data", path)
    assert status == 0
    assert out.splitlines()[0].startswith("analyze: --dataset-stats")
    assert str(path) in out.splitlines()[0]
    assert document()["mode"] == "dataset-stats"


def test_without_arguments_only_a_run_with_weights_has_matches_to_look_at(run, tmp_path):
    run_folder = tmp_path / "runs/train/exp"
    run_folder.mkdir(parents=True)
    (run_folder / "config.yaml").write_text("data: mine.data\ncfg: yolov3-tiny.cfg\n")
    (run_folder / ".last.77.pt").touch()  # of a process that was killed while it wrote
    assert analyze.default_modes({}, "yolov3-nano.cfg") == ["dataset_stats", "anchor_stats"]
    options = analyze.with_defaults(AnalyzeOptions())
    assert (options.data, options.cfg) == ("mine.data", "yolov3-tiny.cfg")
    (run_folder / "last.pt").touch()
    assert analyze.default_modes({}, "yolov3-nano.cfg") == ["dataset_stats", "anchor_stats", "matching_stats"]
    assert analyze.default_modes({"data": "x"}, "yolov3-nano.cfg") == ["dataset_stats", "anchor_stats"]
    assert analyze.default_modes({}, "retinanet_resnet50_fpn") == ["dataset_stats", "anchor_stats", "matching_stats"]
    assert analyze.default_modes({}, "fcos_resnet50_fpn") == ["dataset_stats", "matching_stats"]
    assert analyze.default_modes({}, "centernet_resnet18") == ["dataset_stats", "score_mismatch"]


@pytest.mark.parametrize("damage", ["- 1\n", "data: [1\n", "x: &a [*a]\n", "data: \x00\n", "data: " + "9" * 5000])
def test_a_damaged_newest_run_stops_only_what_needs_its_data(run, tmp_path, capfd, damage):
    run_folder = tmp_path / "runs/train/exp"
    run_folder.mkdir(parents=True)
    (run_folder / "config.yaml").write_text(damage)
    with pytest.raises(UserError, match=r"config\.yaml.*or name the data with --data"):
        analyze.with_defaults(AnalyzeOptions())
    options = analyze.with_defaults(AnalyzeOptions(data="mine.data"))
    assert (options.data, options.cfg) == ("mine.data", "yolov3-nano.cfg")
    (note,) = capfd.readouterr().err.splitlines()
    assert note.startswith("note: runs/train/exp/config.yaml")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--dataset-stats", "--img-size", "320"), "--img-size is read by --anchor-stats"),
        (("--anchor-stats", "--near-gap", "5"), "--near-gap is read by --dataset-stats only"),
        (("--dataset-stats", "--data", "nothing.data"), "'nothing.data' does not exist"),
        (("--anchor-stats", "--match", "fast"), "--match fast looks at predictions"),
        (("--anchor-stats", "--match", "standrad"), "did you mean 'standard'"),
        (("--anchor-stats", "--cfg", "yolov3-tiny.cfg", "--img-size", "300"), "multiple of 32"),
        (("--anchor-stats", "--cfg", "none.cfg"), "none.cfg"),
        (("--compare", "runs/train/none"), "no such run"),
        (("--dataset-statistics",), "unrecognized arguments"),
    ],
)
def test_mistakes_are_one_line_and_status_2(run, tmp_path, arguments, message):
    if "--data" not in arguments and arguments[0] in ("--dataset-stats", "--anchor-stats"):
        arguments = (*arguments, "--data", write_coco(tmp_path, coco_dict()))
    status, _, error = run(*arguments)
    assert status == 2
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not Path("runs").exists()


def changed(**changes):
    content = coco_dict()
    for key, value in changes.items():
        content[key] = value
    return content


def with_box(bbox, **more):
    content = coco_dict()
    content["annotations"].append({"id": 9, "image_id": 1, "category_id": 3, "bbox": bbox, "iscrowd": 0, **more})
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (changed(images=[]), "has no images"),
        (changed(categories=[]), "'categories' is empty"),
        ({key: value for key, value in coco_dict().items() if key != "categories"}, "categories"),
        (json.dumps(coco_dict())[:-40], "cut off"),
        ("", "not valid JSON"),
        ("[]", "not a COCO annotation file"),
    ],
)
@pytest.mark.parametrize("mode", ["--dataset-stats", "--anchor-stats"])
def test_files_that_cannot_be_used_are_one_line(run, tmp_path, content, message, mode):
    status, _, error = run(mode, "--data", write_coco(tmp_path, content))
    assert (status, len(error.strip().splitlines())) == (2, 1)
    assert message in error


@pytest.mark.parametrize(
    ("content", "kept", "problems"),
    [
        (changed(annotations=[]), 0, 0),
        (changed(annotations=coco_dict()["annotations"][:1]), 1, 0),
        (with_box([5, 5, 0, 10]), 4, 1),
        (with_box([5, 5, 10, -3]), 4, 1),
        (with_box([300, 5, 10, 10]), 4, 1),
        (with_box([float("nan"), 5, 10, 10]), 4, 1),
        (with_box([5, 5, 10]), 4, 1),
        (with_box([5, 5, 10, 10], image_id=77), 4, 1),
        (with_box([5, 5, 10, 10], category_id=77), 4, 1),
        (with_box([5, 5, 10, 10], id=1), 5, 1),  # an id twice: counted anew, nothing lost
    ],
)
def test_broken_annotations_are_counted_and_listed_never_lost(run, no_drawing, tmp_path, content, kept, problems):
    path = write_coco(tmp_path, content)
    status, out, _ = run("--dataset-stats", "--data", path)
    assert status == 0
    statistics = document()["statistics"]
    assert statistics["objects"]["total"] == kept
    assert statistics["problems"]["total"] == sum(statistics["problems"]["by_kind"].values()) == problems
    listing = Path("runs/analyze/dataset-stats/problems.csv")
    assert listing.exists() == bool(problems)
    if problems:
        assert "1 label problem" in out
        assert rows_of(listing)[0]["file"] == str(path)
    assert run("--anchor-stats", "--data", path)[0] == 0
    assert document("anchor-stats")["statistics"]["objects"] == max(0, kept - (len(content["annotations"]) >= 4))


def test_label_problems_of_text_files_name_their_line(run, no_drawing, tmp_path):
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    cv2.imwrite(str(tmp_path / "images/a.png"), np.zeros((40, 60, 3), np.uint8))
    (tmp_path / "labels/a.txt").write_text("0 .5 .5 .2 .2\n0 .5 .5 0 .2\n0 .5 .5 nan .2\n1 .3 .3 .1 .1\n")
    status, _, _ = run("--dataset-stats", "--data", tmp_path / "images")
    assert status == 0
    rows = rows_of("runs/analyze/dataset-stats/problems.csv")
    assert sorted(row["line"] for row in rows) == ["2", "3"]
    assert all(row["file"].endswith("labels/a.txt") for row in rows)
    assert document()["statistics"]["objects"]["total"] == 2


def test_compare_prints_runs_and_settings(run, tmp_path):
    from test_analysis_compare_runs import make_run

    folders = [make_run(tmp_path / "runs/train" / f"s{seed}", [0.1, 0.2 + seed / 10], seed=seed) for seed in (0, 1)]
    status, out, _ = run("--compare", *folders)
    assert status == 0
    assert "| s0" in out
    assert "standard α=0" in out
    statistics = document("compare")["statistics"]
    assert [row["mAP@0.5"]["max"] for row in statistics["runs"]] == pytest.approx([0.2, 0.3])
    assert Path("runs/analyze/compare/curves.png").exists()


def test_a_mistake_in_a_process_of_its_own(tmp_path):
    script = str(REPOSITORY / "analyze.py")
    failed = subprocess.run([sys.executable, script, "--compare", "none"], cwd=tmp_path, capture_output=True, text=True)
    assert failed.returncode == 2
    assert failed.stderr.count("\n") == 1
    assert "Traceback" not in failed.stderr
