"""export.py: every format holds the network, and the other scripts take what it wrote like any other weights."""

import json

import numpy as np
import pytest
import torch

from data.splits import open_split
from engine.exports import calibration_images
from engine.resolve import Wanted, resolve
from models.checkpoints.load import load_network, load_weights
from models.detector import Detector
from models.exported.graph import DetectionGraph
from models.exported.network import ExportedNetwork
from tests.tiny_project import CFG, NAMES, load_script, make_project, random_network, run_script
from utils.errors import UserError
from utils.structures import ImageMeta

pytest.importorskip("onnxscript", reason="needs the packages of requirements-export.txt")
FILES = {
    "onnx": "best.onnx",
    "torchscript": "best.torchscript",
    "openvino": "best_openvino",
    "darknet": "best.weights",
    "safetensors": "best.safetensors",
}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project with a trained network, exported into all formats of float32; nobody may change it."""
    folder = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_project(folder)
        arguments = ("--format", *FILES, "--img-size", "96", "64")
        assert run_script(load_script("export"), patch, *arguments) == 0
    return folder


def plain_decode(raw, head):
    """Boxes [N 4] and scores [N C] of one head's map [A H W 5+C], slot by slot in float64."""
    boxes, scores = [], []
    for row, col in np.ndindex(*raw.shape[1:3]):
        for anchor, (prior_w, prior_h) in enumerate(head.anchors_wh):
            tx, ty, tw, th, objectness, *classes = raw[anchor, row, col].double().tolist()
            x, y = ((1 / (1 + np.exp(-t)) + cell) * head.stride for t, cell in ((tx, col), (ty, row)))
            w, h = prior_w * np.exp(tw), prior_h * np.exp(th)
            boxes.append((x - w / 2, y - h / 2, x + w / 2, y + h / 2))
            scores.append([1 / (1 + np.exp(-objectness)) / (1 + np.exp(-c)) for c in classes])
    return np.array(boxes), np.array(scores)


@pytest.mark.parametrize("name", ["onnx", "torchscript", "openvino"])
def test_boxes_and_scores_are_those_of_the_formulas(project, name):
    network = random_network()
    exported = load_network(project / "runs/export/exp" / FILES[name]).network
    assert isinstance(exported, ExportedNetwork)
    images = torch.rand(3, 3, 64, 96)  # of a file for one image at a time
    boxes, scores = exported.boxes_and_scores(images.numpy())
    with torch.no_grad():
        (raw,) = network(images)
    for number in range(3):
        wanted_boxes, wanted_scores = plain_decode(raw[number], network.heads[0])
        np.testing.assert_allclose(scores[number], wanted_scores, atol=1e-5)
        np.testing.assert_allclose(boxes[number], wanted_boxes, rtol=1e-4, atol=1e-3)


def test_the_record_says_what_was_checked(project):
    record = json.loads((project / "runs/export/exp/export.json").read_text())
    assert [one["format"] for one in record["files"]] == list(FILES)
    assert record["metadata"]["names"] == list(NAMES) and record["metadata"]["input_wh"] == [96, 64]
    assert len(record["metadata"]["weights_sha256"]) == 64
    for one in record["files"]:
        assert one["difference"]["boxes"] <= 1e-4 and one["difference"]["scores"] <= 1e-4
        assert one["size_bytes"] > 0 and one["milliseconds"] > 0
    assert not list((project / "runs/export/exp").glob(".*"))


@pytest.mark.parametrize("name", FILES)
def test_test_py_finds_the_same_average_precision(project, name, monkeypatch):
    monkeypatch.chdir(project)
    wanted, got = f"of-{name}-network", f"of-{name}"
    common = ("--img-size", "96", "64", "--workers", "0", "--no-rect", "--exist-ok", "--data", "tiny.data")
    weights = project / "runs/export/exp" / FILES[name]
    assert run_script(load_script("test"), monkeypatch, *common, "--name", wanted) == 0
    assert run_script(load_script("test"), monkeypatch, *common, "--name", got, "--weights", weights) == 0
    first, second = (json.loads((project / "runs/test" / one / "metrics.json").read_text()) for one in (wanted, got))
    assert 0 < first["ap"] < 1
    for key in ("ap", "ap50", "precision", "recall", "ar100"):
        if key in first:
            assert second[key] == pytest.approx(first[key], abs=1e-6), key


def test_detect_py_takes_names_and_size_from_the_file(project, monkeypatch, capfd):
    monkeypatch.chdir(project)
    weights = project / "runs/export/exp/best.onnx"
    arguments = ("--weights", weights, "--source", project / "images/000.png", "--save-json")
    assert run_script(load_script("detect"), monkeypatch, *arguments) == 0
    printed = capfd.readouterr().out
    assert "to 96x64" in printed and any(name in printed for name in NAMES)


@pytest.mark.parametrize("name", ["test", "detect"])
def test_half_and_a_gpu_are_not_promised_to_an_exported_file(project, name, run_main, monkeypatch):
    monkeypatch.chdir(project)
    script = load_script(name)
    monkeypatch.setattr(script, "choose_device", lambda _: torch.device("meta"))  # any that is not the CPU
    status, out, err = run_main(script, "--weights", project / "runs/export/exp/best.onnx", "--half")
    assert status == 0, err
    assert "--half means nothing for tiny.cfg in best.onnx: an exported file computes as it was exported" in out
    assert f"torch {torch.__version__}, cpu" in out and "meta" not in out


def test_the_classes_of_the_data_may_be_fewer_and_in_another_order(project, monkeypatch):
    network = load_network(project / "runs/export/exp/best.onnx").network
    images = torch.rand(1, 3, 64, 96)
    (all_classes,), (fewer,) = network(images), network.with_classes([2, 0])(images)
    assert torch.equal(fewer[..., 4:], all_classes[..., [6, 4]])
    assert network.with_classes([2, 0]).with_classes([1]).classes == (0,)


def test_a_detector_of_the_file_finds_what_one_of_the_network_finds(project):
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    metas = [ImageMeta(number, "", (96, 64)) for number in range(2)]
    wanted = Detector(random_network(), confidence=0.05)(images, metas)
    found = Detector(load_network(project / "runs/export/exp/best.onnx").network, confidence=0.05)(images, metas)
    for one, other in zip(wanted, found, strict=True):
        assert len(one) > 10 and one.labels.tolist() == other.labels.tolist()
        torch.testing.assert_close(one.boxes_xyxy, other.boxes_xyxy, atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(one.scores, other.scores, atol=1e-5, rtol=1e-4)


def test_safetensors_train_on_and_exported_files_do_not(project):
    folder = project / "runs/export/exp"
    report = load_weights(random_network(seed=1), folder / "best.safetensors")
    assert report.complete and report.names == NAMES
    with pytest.raises(UserError, match="cannot be trained"):
        load_weights(random_network(), folder / "best.onnx")


def test_every_format_refuses_damage_in_one_line(project, tmp_path):
    for name in ("best.onnx", "best.torchscript", "best.safetensors", "best.weights"):
        content = (project / "runs/export/exp" / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 2])
        (tmp_path / "best.cfg").write_text(CFG)
        with pytest.raises(UserError) as caught:
            load_network(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value).strip(), name


def test_another_size_than_the_file_has_is_refused(project, monkeypatch, capfd):
    monkeypatch.chdir(project)
    arguments = ("--weights", "runs/export/exp/best.onnx", "--img-size", "128", "--workers", "0")
    assert run_script(load_script("test"), monkeypatch, *arguments) == 2
    assert "works at 96 x 64 only" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["onnx", "torchscript", "openvino"])
def test_matches_of_an_exported_file_are_refused_in_one_line(project, name, monkeypatch, capfd):
    monkeypatch.chdir(project)
    weights = f"runs/export/exp/{FILES[name]}"
    assert run_script(load_script("analyze"), monkeypatch, "--matching-stats", "--weights", weights) == 2
    error = capfd.readouterr().err
    assert error.startswith(f"error: {weights}: has no objectness and no anchors") and error.count("\n") == 1
    assert "name the weights that were exported" in error


def test_a_file_that_differs_gets_no_name(project, monkeypatch, capfd):
    monkeypatch.chdir(project)
    script = load_script("export")
    # The written graph has other weights than the one it is compared with.
    monkeypatch.setattr("engine.exports.Job.written_graph", lambda job: DetectionGraph(random_network(seed=5)))
    assert run_script(script, monkeypatch, "--format", "torchscript", "--name", "wrong") == 2
    assert "differs from the network" in capfd.readouterr().err
    assert not list((project / "runs/export/wrong").iterdir())


@pytest.mark.parametrize("limit", [("--conf-thres", 0.35), ("--iou-thres", 0.1), ("--max-det", 1)])
def test_a_file_with_an_nms_may_keep_less_than_usual(project, limit, run_main, monkeypatch):
    monkeypatch.chdir(project)
    arguments = ("--format", "onnx", "--nms", *limit, "--name", "nms")
    status, out, err = run_main(load_script("export"), *arguments)
    assert (status, err) == (0, "")
    assert "% of " in out


def test_formats_that_do_not_take_an_option_are_named(project, run_main, monkeypatch):
    monkeypatch.chdir(project)
    arguments = ("--format", "torchscript", "darknet", "onnx", "--nms", "--half", "--name", "named")
    status, out, _ = run_main(load_script("export"), *arguments)
    assert status == 0
    assert "--nms: means nothing for torchscript, darknet; it is for onnx, openvino\n" in out
    assert "--half: means nothing for darknet; it is for onnx, openvino, torchscript\n" in out
    _, out, _ = run_main(load_script("detect"), "--weights", "runs/export/named/best.onnx", "--iou-thres", 0.9)
    assert "has an NMS of its own (iou 0.6, confidence 0.001, at most 300 detections per class)" in out


def test_a_missing_package_is_one_line(project, monkeypatch, capfd):
    monkeypatch.chdir(project)
    monkeypatch.setitem(__import__("sys").modules, "onnxslim", None)
    assert run_script(load_script("export"), monkeypatch, "--name", "missing") == 2
    assert "needs the package onnxslim; pip install -r requirements-export.txt" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--format", "onnx-int8", "--dynamic"), "calibrated for one size"),
        (("--weights", "runs/export/exp/best.onnx"), "is exported already"),
        (("--opset", "7"), "--opset"),
    ],
)
def test_contradictions_are_refused(project, arguments, message, monkeypatch, capfd):
    monkeypatch.chdir(project)
    assert run_script(load_script("export"), monkeypatch, *arguments) == 2
    assert message in capfd.readouterr().err


@pytest.mark.parametrize(("name", "package"), [("onnx-int8", "onnxruntime"), ("openvino-int8", "nncf")])
def test_int8_is_smaller_and_finds_nearly_the_same(project, name, package, monkeypatch, capfd):
    pytest.importorskip(package)
    monkeypatch.chdir(project)
    arguments = ("--format", name, "--img-size", "96", "64", "--data", "tiny.data", "--name", name)
    assert run_script(load_script("export"), monkeypatch, *arguments) == 0
    assert "last convolutions in float: error" in capfd.readouterr().out
    (record,) = json.loads((project / "runs/export" / name / "export.json").read_text())["files"]
    assert record["precision"] == "int8" and 0 < record["difference"]["scores"] < 0.5
    assert record["difference"]["agreement"] >= 0.8 and record["difference"]["detections"] > 5


def test_too_few_images_for_a_batch_are_one_line(project, run_main, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(project)
    arguments = ("--format", "onnx-int8", "--data", "tiny.data", "--batch-size", 8)
    status, _, err = run_main(load_script("export"), *arguments)
    assert status == 2
    assert err.startswith("error: tiny.data: has 7 training images, too few to calibrate int8 with --batch-size 8")


def test_images_that_are_held_out_do_not_calibrate(project, monkeypatch):
    monkeypatch.chdir(project)
    (project / "held.data").write_text("classes=3\ntrain=images\nnames=tiny.names\n")
    resolved = resolve(Wanted(data="held.data", val_fraction=0.4))
    metadata = load_network(project / "runs/export/exp/best.onnx").network.metadata
    wanted = open_split("held.data", "train", val_fraction=0.4)
    assert len(calibration_images(resolved, metadata, 128)) == len(wanted) < 7
