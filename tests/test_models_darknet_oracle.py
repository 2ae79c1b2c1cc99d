"""Our networks against what Darknet itself computed from the same weights (``../shared/oracle``)."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from evaluation.coco import evaluate_coco
from evaluation.results import clean_ground_truth
from models.checkpoints.darknet_weights import load_darknet_weights
from models.network import build_network
from utils.config import REPOSITORY

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

    data = tmp_path / "val128.data"
    names = REPOSITORY / "cfg/coco.names"
    data.write_text(f"classes=80\ntrain={annotations}\nvalid={annotations}\nnames={names}\n")
    weights = shared / f"data/weights/yolo-fastest-1.1/{name}"
    command = f"test.py --cfg {weights}.cfg --weights {weights}.weights --data {data} --resize stretch --name fidelity"
    command += " --conf-thres .005 --iou-thres .45 --no-clip --workers 0"  # as Darknet in that run
    run = subprocess.run(
        [sys.executable, REPOSITORY / command.split()[0], *command.split()[1:]],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    found = json.loads((tmp_path / "runs/test/fidelity/metrics.json").read_text())
    assert abs(found["ap"] - expected.ap) < 0.003
    assert abs(found["ap50"] - expected.ap50) < 0.003
