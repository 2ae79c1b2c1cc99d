"""Our networks against what Darknet itself computed from the same weights (``../shared/oracle``)."""

import json
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch

from evaluation.coco import evaluate_coco
from evaluation.results import clean_ground_truth
from models.checkpoints.darknet_weights import load_darknet_weights
from models.network import build_network
from utils.config import REPOSITORY

AS_DARKNET = "--conf-thres .005 --iou-thres .45 --no-clip --workers 0"  # in the run that wrote its JSON
MODELS = ("yolo-fastest-1.1", "yolo-fastest-1.1-xl")


def loaded(shared, name):
    folder = shared / "data/weights/yolo-fastest-1.1"
    network = build_network(folder / f"{name}.cfg").eval()
    assert load_darknet_weights(network, folder / f"{name}.weights").complete
    return network


@pytest.mark.parametrize("name", MODELS)
def test_the_last_head_is_that_of_darknet(shared, name):
    oracle = np.load(shared / f"oracle/{name}_darknet.npz")
    network = loaded(shared, name)
    images = torch.from_numpy(oracle["images_uint8_rgb"]).float() / 255
    with torch.no_grad():
        raw_maps, fused = network(images), network.fuse()(images)
    for raw in (raw_maps[-1], fused[-1]):
        # After Darknet's own activations: x, y, objectness and classes logistic, w and h raw.
        activated = torch.cat((raw[..., :2].sigmoid(), raw[..., 2:4], raw[..., 4:].sigmoid()), dim=-1)
        ours = activated.permute(0, 1, 4, 2, 3).reshape(3, 255, 20, 20).numpy()
        assert np.abs(ours - oracle["last_head"]).max() < 1e-4
    for raw, folded in zip(raw_maps, fused, strict=True):
        assert (raw - folded).abs().max() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_average_precision_is_that_of_darknets_own_detections(shared, tmp_path, name):
    annotations = shared / "data/coco/annotations/instances_val2017.json"
    ground_truth = clean_ground_truth(json.loads(annotations.read_text()))
    darknets = json.loads((shared / f"oracle/{name}_darknet_val128_results.json").read_text())
    expected = evaluate_coco(ground_truth, darknets)

    (tmp_path / "val128.data").write_text(f"valid={annotations}\nnames={weights_of(shared, name).parent}/coco.names\n")
    weights = weights_of(shared, name)
    run(
        tmp_path,
        f"test.py --weights {weights}.weights --data val128.data --name fidelity {AS_DARKNET}",
    )
    found = json.loads((tmp_path / "runs/test/fidelity/metrics.json").read_text())
    assert abs(found["ap"] - expected.ap) < 0.0005
    assert abs(found["ap50"] - expected.ap50) < 0.002


@pytest.mark.parametrize("name", MODELS)
def test_boxes_of_detect_are_those_of_darknet(shared, tmp_path, name):
    files = np.load(shared / f"oracle/{name}_darknet.npz")["files"].tolist()
    folder = shared / "data/coco/images/val2017"
    (tmp_path / "three.txt").write_text("".join(f"{folder / file}\n" for file in files))
    # Up to 0.1 a box may have several classes, as always in Darknet.
    options = "--source three.txt --conf-thres .1 --iou-thres .45 --save-json --nosave --name fidelity"
    words = run(tmp_path, f"detect.py --weights {weights_of(shared, name)}.weights {options}")
    assert "stretch to 320x320 (as Darknet: no letter_box=1 in the cfg)" in words.splitlines()[0]
    ours = json.loads((tmp_path / "runs/detect/fidelity/detections.json").read_text())
    darknets = json.loads((shared / f"oracle/{name}_darknet_val128_results.json").read_text())
    for file in files:
        image = cv2.imread(str(folder / file))
        found, expected = (corners_by_class(results, int(file[:-4]), image) for results in (ours, darknets))
        assert found.keys() == expected.keys()
        for category, boxes in expected.items():
            assert len(found[category]) == len(boxes)
            distances = np.abs(np.array(found[category])[:, None] - np.array(boxes)).max(axis=2)  # pixels
            assert distances.min(axis=0).max() < 0.5 and distances.min(axis=1).max() < 0.5


def weights_of(shared, name):
    return shared / f"data/weights/yolo-fastest-1.1/{name}"


def run(folder, command):
    script, *arguments = command.split()
    done = subprocess.run(
        [sys.executable, REPOSITORY / script, *arguments], cwd=folder, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def corners_by_class(results, image_id, image):
    """Return the boxes of an image above 0.3 as corners inside the image, by class."""
    found = {}
    for one in results:
        if one["image_id"] == image_id and one["score"] > 0.3:
            x, y, width, height = one["bbox"]
            box = [max(x, 0), max(y, 0), min(x + width, image.shape[1]), min(y + height, image.shape[0])]
            found.setdefault(one["category_id"], []).append(box)
    return found
