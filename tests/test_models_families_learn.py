"""Every kind of network without a cfg learns four images by heart, and goes through the scripts as all others do."""

import pytest
import torch

import detect
import train
from models.assignment.options import AssignmentOptions
from models.checkpoints.format import read_checkpoint
from models.detector import Detector
from models.families.table import open_network, own_match
from models.loss import LossOptions
from tests.tiny_project import make_project
from utils.boxes import box_iou
from utils.structures import ImageMeta, Targets

pytestmark = pytest.mark.slow
pytest.importorskip("torchvision.models.detection", exc_type=(ImportError, RuntimeError))
KINDS = {  # name -> side of the input, learning rate
    "retinanet_resnet50_fpn": (128, 3e-4),
    "fcos_resnet50_fpn": (128, 1e-4),
    "fasterrcnn_mobilenet_v3_large_320_fpn": (128, 1e-3),
    "ssdlite320_mobilenet_v3_large": (320, 2e-3),
    "ssd300_vgg16": (300, 3e-4),
    "centernet_resnet18": (128, 1e-3),
    "efficientdet_d0": (128, 3e-3),
}
FOUND_AGAIN = ("retinanet_resnet50_fpn", "ssdlite320_mobilenet_v3_large", "centernet_resnet18")


@pytest.fixture(autouse=True)
def _package(request):
    """Skip a network whose package is not installed."""
    if request.node.callspec.params["name"].startswith("efficientdet"):
        pytest.importorskip("effdet", reason="needs effdet: pip install -r requirements-detectors.txt")


def four_images(side):
    """Return four pictures, each with one bright rectangle, and their objects."""
    corners = torch.tensor([[0.1, 0.2, 0.6, 0.7], [0.4, 0.1, 0.9, 0.6], [0.2, 0.3, 0.8, 0.8], [0.3, 0.4, 0.7, 0.95]])
    images = torch.full((4, 3, side, side), 60, dtype=torch.uint8)
    for number, (x1, y1, x2, y2) in enumerate((corners * side).round().int().tolist()):
        images[number, number % 3, y1:y2, x1:x2] = 230
    center, size = (corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]
    targets = Targets(torch.arange(4), torch.tensor([0, 1, 0, 1]), torch.cat((center, size), dim=1))
    return images, targets, corners * side


@pytest.mark.parametrize("name", KINDS)
def test_thirty_steps_on_four_images(name):
    torch.manual_seed(0)
    side, rate = KINDS[name]
    images, targets, corners = four_images(side)
    network = open_network(name, 2)
    assignment = AssignmentOptions(match=own_match(name) or AssignmentOptions.match)
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


@pytest.mark.parametrize("name", KINDS)
def test_through_the_scripts(name, tmp_path, monkeypatch, run_main, evaluation_script):
    make_project(tmp_path, num_images=4)
    monkeypatch.chdir(tmp_path)
    side = KINDS[name][0]
    size = [] if side in (300, 320) else ["--img", side]
    flags = ["--data", "tiny.data", "--cfg", name, *size, "--batch", 3, "--workers", 0, "--device", "cpu", "--no-amp"]
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
        evaluation_script, "--weights", "runs/train/whole/last.pt", "--workers", 0, "--device", "cpu"
    )
    assert status == 0 and name in out, error
    status, out, error = run_main(
        detect, "--weights", "runs/train/whole/last.pt", "--device", "cpu", "--conf-thres", 0.01
    )
    assert status == 0 and "4 pictures" in out, error
