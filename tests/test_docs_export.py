"""The page about exporting: its script of plain ONNX Runtime finds the boxes that our detector finds."""

import re
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch

from data.letterbox import letterbox_meta, place_images
from models.checkpoints.load import load_network
from models.detector import Detector
from tests.tiny_project import REPOSITORY, load_script, run_script

pytest.importorskip("onnxscript", reason="needs the packages of requirements-export.txt")


def test_the_script_of_the_page_finds_our_boxes(tmp_path, monkeypatch, shared):
    monkeypatch.chdir(tmp_path)
    weights = shared / "data/weights/yolov5n.pt"
    assert run_script(load_script("export"), monkeypatch, "--weights", weights, "--img-size", "416", "256") == 0
    (script,) = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs/export.md").read_text(), flags=re.DOTALL)
    assert script.count("\n") <= 30
    (tmp_path / "example.py").write_text(script)
    photo = sorted((shared / "data/coco/images/val2017").glob("*.jpg"))[0]
    command = [sys.executable, "example.py", "runs/export/exp/yolov5n.onnx", str(photo)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout.splitlines()

    loaded = load_network(weights)
    image = cv2.imread(str(photo))[..., ::-1]
    meta = letterbox_meta(0, "", image.shape[1::-1], (256, 416))
    (wanted,) = Detector(loaded.network, confidence=0.3, iou=0.45)(place_images([image], [meta], (256, 416)), [meta])
    assert len(wanted) > 3
    rows = [
        re.fullmatch(r"(.+) ([0-9.]+) ([-0-9.]+) ([-0-9.]+) ([-0-9.]+) ([-0-9.]+)", line).groups() for line in printed
    ]
    rows.sort(key=lambda row: -float(row[1]))
    assert [row[0] for row in rows] == [loaded.names[label] for label in wanted.labels.tolist()]
    np.testing.assert_allclose([float(row[1]) for row in rows], wanted.scores, atol=2e-4)
    np.testing.assert_allclose([[float(x) for x in row[2:]] for row in rows], wanted.boxes_xyxy, atol=0.2)
    assert torch.isfinite(wanted.boxes_xyxy).all()
