"""Every kind of network without a cfg learns four images by heart, and goes through the scripts as all others do."""

import json
from pathlib import Path

import pytest
import torch

import detect
import train
from engine.evaluate_shapes import KINDS as KINDS_OF_COCO
from models.assignment.options import AssignmentOptions
from models.checkpoints.format import read_checkpoint
from models.detector import Detector
from models.families.table import found_besides_boxes, match_of, open_network
from models.loss import LossOptions
from tests.tiny_project import make_project
from utils.boxes import box_iou
from utils.structures import KEY_POINTS, MASKS, ImageMeta, Targets

pytestmark = pytest.mark.slow
detection_utils = pytest.importorskip("torchvision.models.detection._utils", exc_type=(ImportError, RuntimeError))
KINDS = {  # name -> side of the input, learning rate
    "retinanet_resnet50_fpn": (128, 3e-4),
    "fcos_resnet50_fpn": (128, 1e-4),
    "fasterrcnn_mobilenet_v3_large_320_fpn": (128, 1e-3),
    "ssdlite320_mobilenet_v3_large": (320, 2e-3),
    "ssd300_vgg16": (300, 3e-4),
    "centernet_resnet18": (128, 1e-3),
    "efficientdet_d0": (128, 3e-3),
    "maskrcnn_resnet50_fpn": (128, 3e-4),
    "keypointrcnn_resnet50_fpn": (128, 3e-4),
}
FOUND_AGAIN = ("retinanet_resnet50_fpn", "ssdlite320_mobilenet_v3_large", "centernet_resnet18")


def require_package(request):
    """Skip a network whose package is not installed."""
    if request.node.callspec.params["name"].startswith("efficientdet"):
        pytest.importorskip("effdet", reason="needs effdet: pip install -r requirements-detectors.txt")


_package = pytest.fixture(autouse=True)(require_package)


def draw_candidates(monkeypatch, number):
    """Let torchvision's detectors learn from ``number(usual)`` candidates of an image."""
    sampler = detection_utils.BalancedPositiveNegativeSampler
    begin = sampler.__init__
    monkeypatch.setattr(sampler, "__init__", lambda self, count, share: begin(self, number(count), share))


@pytest.fixture
def few_samples(monkeypatch):
    """Let torchvision's detectors learn from a few candidates of an image: masks and key points of 128 take minutes."""
    draw_candidates(monkeypatch, lambda usual: min(usual, 32))


def four_images(side):
    """Return four pictures, each with one bright rectangle, and their objects, with masks and 17 key points."""
    corners = torch.tensor([[0.1, 0.2, 0.6, 0.7], [0.4, 0.1, 0.9, 0.6], [0.2, 0.3, 0.8, 0.8], [0.3, 0.4, 0.7, 0.95]])
    images = torch.full((4, 3, side, side), 60, dtype=torch.uint8)
    for number, (x1, y1, x2, y2) in enumerate((corners * side).round().int().tolist()):
        images[number, number % 3, y1:y2, x1:x2] = 230
    center, size = (corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]
    masks = (images.amax(dim=1) == 230).byte()
    corners_in_turn = torch.tensor([-0.4, 0.4]).repeat(9)[:17, None]  # near the upper left, near the lower right, …
    points_xy = (center[:, None] + corners_in_turn * size[:, None]) * side
    points = torch.cat((points_xy, torch.full((4, 17, 1), 2.0)), dim=2)
    boxes_cxcywh = torch.cat((center, size), dim=1)
    targets = Targets(torch.arange(4), torch.tensor([0, 1, 0, 1]), boxes_cxcywh, masks, points)
    return images, targets, corners * side


@pytest.mark.parametrize("name", KINDS)
def test_thirty_steps_on_four_images(name, request):
    if found_besides_boxes(name):
        request.getfixturevalue("few_samples")
    torch.manual_seed(0)
    side, rate = KINDS[name]
    images, targets, corners = four_images(side)
    network = open_network(name, 2)
    assignment = AssignmentOptions(match=match_of(name) or AssignmentOptions.match)
    learner = network.learner(LossOptions(), assignment, (side, side)).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate)

    def steps(count):
        for _ in range(count):
            optimizer.zero_grad()
            total = learner(images / 255, targets, Targets.empty()).total * 16  # the mean of the four images
            total.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 10.0)
            optimizer.step()
            yield total.item()

    losses = list(steps(30))
    assert min(losses[25:]) < losses[0] / 3
    if name in FOUND_AGAIN:
        for module in network.modules():  # four images have no statistics that hold in evaluation: keep those so far
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()
        list(steps(200))
        metas = [ImageMeta(number, "", (side, side)) for number in range(4)]
        for found, label, corner in zip(Detector(network, 0.05)(images, metas), targets.label, corners, strict=True):
            strongest = found.select(found.labels == label).boxes_xyxy[:5]
            assert len(strongest) and box_iou(strongest, corner[None]).max() > 0.5


def with_shapes(folder, finds):
    """Give the labels of a project what a network learns besides boxes; return its data file."""
    for path in (folder / "labels").glob("*.txt"):
        rows = [list(map(float, line.split())) for line in path.read_text().splitlines()]
        lines = []
        for label, x, y, w, h in rows:
            corners = (x - w / 2, y, x, y - h / 2, x + w / 2, y, x, y + h / 2)  # a diamond
            points = (x - w / 4, y, 2, x + w / 4, y, 1, 0, 0, 0)
            numbers = corners if MASKS in finds else (x, y, w, h, *points) if KEY_POINTS in finds else (x, y, w, h)
            lines.append(" ".join([str(int(label)), *(f"{number:.6f}" for number in numbers)]) + "\n")
        path.write_text("".join(lines))
    if KEY_POINTS not in finds:
        return "tiny.data"
    text = "train: images\nval: images\nnames: [disc, cube, bar]\nkpt_shape: [3, 3]\nflip_idx: [1, 0, 2]\n"
    (folder / "pose.yaml").write_text(text)
    return "pose.yaml"


@pytest.mark.parametrize("name", KINDS)
def test_through_the_scripts(name, tmp_path, monkeypatch, run_main, evaluation_script, request):
    if found_besides_boxes(name):
        request.getfixturevalue("few_samples")
    make_project(tmp_path, num_images=4)
    monkeypatch.chdir(tmp_path)
    side, finds = KINDS[name][0], found_besides_boxes(name)
    size = [] if side in (300, 320) else ["--img", side]
    flags = [
        "--data",
        with_shapes(tmp_path, finds),
        "--cfg",
        name,
        *size,
        "--batch",
        3,
        "--workers",
        0,
        "--device",
        "cpu",
        "--no-amp",
    ]
    for run, epochs in (("whole", 2), ("cut", 1)):
        status, _, error = run_main(train, *flags, "--epochs", epochs, "--lr-power", 4.0, "--schedule", "constant",
                                    "--warmup-epochs", 0, "--name", run)  # fmt: skip
        assert status == 0, error
    status, out, error = run_main(train, "--resume", "runs/train/cut", "--epochs", 2)
    assert status == 0, error
    status, _, error = run_main(train, *flags, "--multi-scale", "--name", "sizes", "--epochs", 1)
    assert status == (2 if side in (300, 320) else 0), error
    whole, resumed = (read_checkpoint(f"runs/train/{run}/last.pt")["model"] for run in ("whole", "cut"))
    assert all(torch.equal(tensor, resumed[key]) for key, tensor in whole.items())
    status, out, error = run_main(
        evaluation_script, "--weights", "runs/train/whole/last.pt", "--workers", 0, "--device", "cpu", "--save-json"
    )
    assert status == 0 and name in out, error
    assert ("masks:\n Average Precision" in out) == (MASKS in finds)
    assert ("OKS is defined for COCO's 17, not for 3" in out) == (KEY_POINTS in finds)
    kinds = {path.stem.removeprefix("detections_") for path in Path("runs/test/exp").glob("detections_*.json")}
    assert kinds == {KINDS_OF_COCO[what] for what in finds}
    status, out, error = run_main(
        detect, "--weights", "runs/train/whole/last.pt", "--device", "cpu", "--conf-thres", 0.01, "--save-json"
    )
    assert status == 0 and "4 pictures" in out, error
    found = json.loads(Path("runs/detect/exp/detections.json").read_text())
    assert all(("segmentation" in one) == (MASKS in finds) for one in found)
    assert all(len(one.get("keypoints", ())) == 9 * (KEY_POINTS in finds) for one in found)
