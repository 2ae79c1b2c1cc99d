"""test.py as a user types it: its numbers against pycocotools, its files, and what it refuses."""

import contextlib
import csv
import io
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from evaluation.coco import TWELVE
from tests.tiny_project import NAMES, REPOSITORY, random_network, run_script, save_run


def pycocotools_says(truth_path, found_path):
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        truth = COCO(str(truth_path))
        evaluation = COCOeval(truth, truth.loadRes(str(found_path)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats.tolist(), [line for line in printed.getvalue().splitlines() if "@[" in line]


def null_for_undefined(numbers):
    return [None if number == -1 else number for number in numbers]


def test_without_arguments_as_a_user_types_it(project):
    command = [sys.executable, str(REPOSITORY / "test.py"), "--save-json", "--workers", "1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=project, timeout=120)
    assert done.returncode == 0, done.stderr
    first = done.stdout.splitlines()[0]
    assert "runs/train/exp/best.pt (tiny.cfg) on tiny.data" in first and "7 images" in first and "96x96" in first
    folder = project / "runs/test/exp"
    stats, lines = pycocotools_says(folder / "ground_truth.json", folder / "detections.json")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert [metrics[row[0]] for row in TWELVE] == null_for_undefined(stats)  # to the last digit
    assert 0.1 < metrics["ap"] < 0.95 and metrics["ar_small"] > 0
    assert all(line in done.stdout.splitlines() for line in lines)
    assert re.search(
        r"^Speed: [\d.]+/[\d.]+/[\d.]+ ms inference/NMS/total per 96x96 image at batch-size 16$", done.stdout, re.M
    )
    assert (folder / "val_batch0.jpg").stat().st_size > 1000
    assert "Traceback" not in done.stderr


def test_areas_of_custom_data_are_box_areas(project, evaluation_script, monkeypatch):
    assert run_script(evaluation_script, monkeypatch, "--save-json", "--workers", 0) == 0
    truth = json.loads((project / "runs/test/exp/ground_truth.json").read_text())
    assert truth["annotations"]
    for row in truth["annotations"]:
        assert row["area"] == pytest.approx(row["bbox"][2] * row["bbox"][3], rel=1e-9)


def test_evaluators_batches_and_workers_agree(project, evaluation_script, monkeypatch):
    runs = (("--evaluator", "pycocotools", "--workers", 0), ("--batch-size", 2, "--workers", 1), ("--workers", 0))
    for arguments in runs:
        assert run_script(evaluation_script, monkeypatch, *arguments, "--no-rect", "--verbose") == 0
    results = [json.loads(path.read_text()) for path in sorted(project.glob("runs/test/*/metrics.json"))]
    assert results[0]["evaluator"] == "pycocotools" and results[2]["evaluator"] == "hotcoco"
    for row in TWELVE:  # a batch of another size may round the network's numbers differently
        values = [result[row[0]] for result in results]
        assert values[0] == values[2] and values[1] == pytest.approx(values[0], abs=1e-6)


def test_verbose_table_has_a_line_per_class(project, evaluation_script, monkeypatch, capsys):
    assert run_script(evaluation_script, monkeypatch, "--verbose", "--workers", 0, "--name", "mine") == 0
    lines = capsys.readouterr().out.splitlines()
    head = next(number for number, line in enumerate(lines) if line.split()[:1] == ["Class"])
    assert lines[head].split() == ["Class", "Images", "Targets", "P", "R", "mAP@0.5", "mAP@0.5:0.95"]
    rows = [line.split() for line in lines[head + 1 : head + 5]]
    assert [row[0] for row in rows] == ["all", *NAMES] and rows[0][1] == "7"
    assert sum(int(row[2]) for row in rows[1:]) == int(rows[0][2])
    metrics = json.loads((project / "runs/test/mine/metrics.json").read_text())
    per_class = [row["ap50"] for row in metrics["classes"] if row["instances"]]
    assert metrics["ap50"] == pytest.approx(np.mean(per_class))


def test_single_class(project, evaluation_script, monkeypatch):
    assert run_script(evaluation_script, monkeypatch, "--single-cls", "--workers", 0) == 0
    metrics = json.loads((project / "runs/test/exp/metrics.json").read_text())
    assert [row["name"] for row in metrics["classes"]] == ["object"] and metrics["ap50"] > 0.1


@pytest.mark.parametrize("text", ["", "0 0.5 0.5 0.5 0.5\n"])
def test_without_an_object_nothing_is_defined_but_all_is_said(project, evaluation_script, monkeypatch, capsys, text):
    for path in project.glob("labels/*.txt"):
        path.write_text("" if path.stem != "002" else text)
    assert run_script(evaluation_script, monkeypatch, "--workers", 0, "--verbose") == 0
    out = capsys.readouterr().out
    metrics = json.loads((project / "runs/test/exp/metrics.json").read_text())
    said = "tiny.data (valid): not a single object in 7 images; AP is undefined"
    if text:  # an object that is not found is another matter
        assert said not in out and metrics["ap"] is not None and metrics["classes"][1]["ap"] is None
    else:
        assert said in out and "-1" not in out and metrics["ap"] is metrics["ap50"] is metrics["recall"] is None
    row = next(line.split() for line in out.splitlines() if line.split()[:1] == ["Würfel"])
    assert row == ["Würfel", "0", "0", "-", "-", "-", "-"]


def test_pycocotools_counts_the_same_objects_in_the_original_file(project, evaluation_script, monkeypatch):
    assert run_script(evaluation_script, monkeypatch, "--save-json", "--workers", 0, "--name", "plain") == 0
    truth = json.loads((project / "runs/test/plain/ground_truth.json").read_text())
    outside, flat, turned = [5000, 5, 30, 30], [10, 10, 0, 20], [60, 40, -20, 20]
    for number, box in enumerate([outside, flat, turned] * 3, start=1000):
        row = {"id": number, "image_id": truth["images"][0]["id"], "category_id": 1 + number % 3, "iscrowd": 0}
        truth["annotations"].append({**row, "bbox": box, "area": 50})
    (project / "bad.json").write_text(json.dumps(truth))
    (project / "bad.data").write_text("classes=3\ntrain=bad.json\nvalid=bad.json\nvalid_images=images\n")
    assert (
        run_script(evaluation_script, monkeypatch, "--save-json", "--workers", 0, "--data", "bad.data", "--name", "bad")
        == 0
    )
    stats, _ = pycocotools_says(project / "bad.json", project / "runs/test/bad/detections.json")
    plain, bad = (json.loads((project / f"runs/test/{name}/metrics.json").read_text()) for name in ("plain", "bad"))
    assert [bad[row[0]] for row in TWELVE] == null_for_undefined(stats)
    assert bad["num_instances"] == plain["num_instances"] + 9 and bad["ap"] < plain["ap"]


def test_classes_in_another_order_give_the_same_numbers(project, evaluation_script, monkeypatch, capsys):
    assert run_script(evaluation_script, monkeypatch, "--workers", 0, "--name", "plain") == 0
    (project / "turned.names").write_text("bar\ndisc\nwürfel\n")
    (project / "tiny.data").write_text("classes=3\ntrain=images\nvalid=images\nnames=turned.names\n")
    place = {"0": "1", "1": "2", "2": "0"}  # of disc, Würfel and bar
    for path in project.glob("labels/*.txt"):
        rows = [line.split() for line in path.read_text().splitlines()]
        path.write_text("".join(f"{' '.join([place[row[0]], *row[1:]])}\n" for row in rows))
    assert run_script(evaluation_script, monkeypatch, "--workers", 0, "--name", "turned") == 0
    assert "runs/train/exp/best.pt: numbers its classes unlike tiny.data; mapped by name\n" in capsys.readouterr().out
    plain, turned = (
        json.loads((project / f"runs/test/{name}/metrics.json").read_text()) for name in ("plain", "turned")
    )
    assert [turned[row[0]] for row in TWELVE] == pytest.approx([plain[row[0]] for row in TWELVE], abs=1e-12)
    assert turned["ap50"] > 0.1
    assert [turned["classes"][int(place[str(k)])]["ap"] for k in range(3)] == [row["ap"] for row in plain["classes"]]


def test_classes_that_the_data_lack_are_left_out(project, evaluation_script, monkeypatch, capsys):
    assert run_script(evaluation_script, monkeypatch, "--workers", 0, "--name", "plain") == 0
    (project / "bar.names").write_text("Bar\n")
    (project / "tiny.data").write_text("classes=1\ntrain=images\nvalid=images\nnames=bar.names\n")
    for path in project.glob("labels/*.txt"):
        rows = [line for line in path.read_text().splitlines() if line.startswith("2")]
        path.write_text("".join(f"0{row[1:]}\n" for row in rows))
    assert run_script(evaluation_script, monkeypatch, "--workers", 0, "--name", "bar") == 0
    assert "best.pt: 2 of its 3 classes are not in tiny.data; mapped by name; these are" in capsys.readouterr().out
    plain, bar = (json.loads((project / f"runs/test/{name}/metrics.json").read_text()) for name in ("plain", "bar"))
    assert bar["ap"] == bar["classes"][0]["ap"] == pytest.approx(plain["classes"][2]["ap"], abs=1e-12)


def test_speed_alone_writes_nothing(project, evaluation_script, monkeypatch, capsys):
    assert run_script(evaluation_script, monkeypatch, "--task", "speed", "--workers", 0, "--batch-size", 3) == 0
    assert "at batch-size 3" in capsys.readouterr().out
    assert not (project / "runs/test").exists()


def test_the_speed_at_several_batch_sizes_is_a_table(project, evaluation_script, monkeypatch, capsys):
    arguments = ("--task", "speed", "--workers", 0, "--batch-sizes", 1, 3)
    assert run_script(evaluation_script, monkeypatch, *arguments) == 0
    printed = capsys.readouterr().out
    assert "at batch-size 1\nPercentiles over 7 batches" in printed
    assert "at batch-size 3\nPercentiles over 3 batches" in printed  # 3 + 3 + 1 images
    content = json.loads((project / "runs/test/exp/speed.json").read_text())
    rows = list(csv.DictReader((project / "runs/test/exp/speed.csv").open()))
    assert [row["batch_size"] for row in rows] == ["1", "3"] and {row["images"] for row in rows} == {"7"}
    for in_csv, in_json in zip(rows, content["rows"], strict=True):
        assert in_csv.pop("runtime") == in_json.pop("runtime") == "torch"
        assert {name: float(value) for name, value in in_csv.items()} == in_json
        assert in_json["inference_ms"] + in_json["nms_ms"] == pytest.approx(in_json["total_ms"])
        assert in_json["p50_ms"] <= in_json["p90_ms"] <= in_json["p99_ms"]
        assert f"{in_json['total_ms']:.1f} ms inference/NMS/total" in printed
    assert content["options"]["weights"] == "runs/train/exp/best.pt" and "threads" in content["device"]


def test_the_speed_in_other_runtimes_is_in_the_same_table(project, evaluation_script, monkeypatch, capsys):
    arguments = ("--task", "speed", "--workers", 0, "--batch-sizes", 1, 3, "--runtimes", "torchscript")
    assert run_script(evaluation_script, monkeypatch, *arguments) == 0
    printed = capsys.readouterr().out
    rows = list(csv.DictReader((project / "runs/test/exp/speed.csv").open()))
    expected = [("torch", "1"), ("torch", "3"), ("torchscript", "1"), ("torchscript", "3")]
    assert [(row["runtime"], row["batch_size"]) for row in rows] == expected
    assert {row["images"] for row in rows} == {"7"} and all(float(row["inference_ms"]) > 0 for row in rows)
    assert printed.count("torchscript: Speed: ") == 2 and "rectangular" not in printed
    assert not (project / "runs/export").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(("--batch-sizes", 8), "--batch-sizes is for --task speed"),
     (("--task", "speed", "--batch-sizes", 0), "--batch-sizes must be at least 1"),
     (("--runtimes", "onnx"), "--runtimes is for --task speed"),
     (("--task", "speed", "--runtimes", "onnx", "--device", "0"), "--runtimes compares on a CPU")],
)  # fmt: skip
def test_batch_sizes_that_mean_nothing(project, evaluation_script, monkeypatch, capsys, arguments, words):
    assert run_script(evaluation_script, monkeypatch, *arguments) == 2
    assert words in capsys.readouterr().err


def test_stretch_and_a_size_that_is_not_square(project, evaluation_script, monkeypatch, capsys):
    assert run_script(evaluation_script, monkeypatch, "--resize", "stretch", "--img-size", 64, 96, "--workers", 0) == 0
    assert "stretch to 64x96" in capsys.readouterr().out
    assert json.loads((project / "runs/test/exp/metrics.json").read_text())["options"]["img_size"] == [64, 96]


def test_newest_run_is_taken(project, evaluation_script, monkeypatch, capsys):
    save_run(project, random_network(1), "later")
    assert run_script(evaluation_script, monkeypatch, "--workers", 0) == 0
    assert "runs/train/later/best.pt" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--weights", "nothing.pt"], "nothing.pt"),
        (["--data", "nothing.data"], "nothing.data"),
        (["--img-size", "100"], "96 or 104"),
        (["--conf-thres", "2"], "between 0 and 1"),
        (["--device", "7"], "--device cpu"),
        (["--batchsize", "7"], "--batch-size"),
        (["--evaluator", "mine"], "hotcoco"),
        (["--data", "two.data"], "3 classes"),
        (["--weights", "tiny.cfg"], "neither a checkpoint"),
        (["--weights", "cut.pt"], "cut"),
        (["--cfg", "other.cfg"], "layer 1"),
        (["--task", "test"], "no 'test'"),
    ],
)
def test_a_mistake_is_one_line_and_status_two(project, evaluation_script, monkeypatch, capsys, arguments, words):
    (project / "two.data").write_text("classes=2\ntrain=images\nvalid=images\nnames=two.names\n")
    (project / "two.names").write_text("a\nb\n")
    (project / "cut.pt").write_bytes((project / "runs/train/exp/best.pt").read_bytes()[:3000])
    (project / "other.cfg").write_text((project / "tiny.cfg").read_text().replace("filters=16", "filters=20"))
    if "two.data" in arguments:  # its labels must be valid for two classes
        for path in project.glob("labels/*.txt"):
            path.write_text("1 0.5 0.5 0.2 0.2\n")
    assert run_script(evaluation_script, monkeypatch, *arguments, "--workers", 0) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and words in error


def test_no_run_yet(tmp_path, evaluation_script, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_script(evaluation_script, monkeypatch) == 2
    assert "run train.py first" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
def test_coco_with_real_weights_equals_pycocotools(shared, tmp_path, evaluation_script, monkeypatch, backend):
    monkeypatch.chdir(tmp_path)
    annotations = shared / "data/coco/annotations/instances_val2017.json"
    weights = shared / "data/weights/yolo-fastest-1.1/yolo-fastest-1.1.weights"
    arguments = ("--weights", weights, "--data", annotations, "--save-json", "--evaluator", backend)
    assert run_script(evaluation_script, monkeypatch, *arguments) == 0
    # The referee reads the original annotations, not those that we wrote.
    stats, _ = pycocotools_says(annotations, tmp_path / "runs/test/exp/detections.json")
    metrics = json.loads((tmp_path / "runs/test/exp/metrics.json").read_text())
    assert [metrics[row[0]] for row in TWELVE] == null_for_undefined(stats) and metrics["ap50"] > 0.25
