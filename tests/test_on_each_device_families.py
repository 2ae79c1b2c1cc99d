"""Networks without a cfg learn, train and detect on a GPU as on the CPU."""

import math

import pytest
import torch

import detect
import train
from models.assignment.options import AssignmentOptions
from models.families.table import found_besides_boxes, match_of, open_network
from models.loss import LossOptions
from tests.test_models_families_learn import KINDS, draw_candidates, four_images, require_package, with_shapes
from tests.tiny_project import make_project
from utils.structures import Targets

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CPU, GPU = torch.device("cpu"), torch.device("cuda")


_package = pytest.fixture(autouse=True)(require_package)


@pytest.fixture
def every_candidate(monkeypatch):
    """Let torchvision's detectors learn from all candidates: which ones are drawn depends on the device."""
    draw_candidates(monkeypatch, lambda _: 10**6)


@pytest.fixture
def no_tf32(monkeypatch):
    """Compute convolutions in full float32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def look(network, name, device):
    """Return what the network in training mode has to learn of four images."""
    side = KINDS[name][0]
    images, targets, _ = four_images(side)
    assignment = AssignmentOptions(match=match_of(name) or AssignmentOptions.match)
    learner = network.learner(LossOptions(), assignment, (side, side)).train()
    return learner(images.to(device) / 255, targets.to(device), Targets.empty().to(device))


@pytest.mark.parametrize("name", KINDS)
def test_losses_and_gradients(name, every_candidate, no_tf32):
    found = {}
    for device in (CPU, GPU):
        torch.manual_seed(0)
        network = open_network(name, 2).to(device)
        for module in network.modules():  # what is left out by chance depends on the device
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            elif hasattr(module, "drop_prob"):  # timm's DropPath
                module.drop_prob = 0.0
        result = look(network, name, device)
        result.total.backward()
        norms = [parameter.grad.norm().item() for parameter in network.parameters() if parameter.grad is not None]
        found[device] = {key: part.item() for key, part in result.parts.items()}, math.hypot(*norms)
    assert found[GPU][0] == pytest.approx(found[CPU][0], rel=1e-2)
    assert found[GPU][1] == pytest.approx(found[CPU][1], rel=5e-2)


@torch.inference_mode()
@pytest.mark.parametrize("name", KINDS)
def test_scores_before_suppression(name, no_tf32):
    torch.manual_seed(0)
    images = four_images(KINDS[name][0])[0] / 255
    network = open_network(name, 2)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    look(network, name, CPU)  # without statistics of any image, numbers grow from layer to layer
    if name.startswith("centernet"):
        network.size[-1].bias.fill_(8.0)  # boxes without a size are no boxes
    network = network.eval().looking_above(1e-5)
    found = {}
    for device in (CPU, GPU):
        network.to(device)
        found[device] = [one.scores.to(CPU) for one in network.candidates(network(images.to(device)), 1e-5)]
    for one, other in zip(found[GPU], found[CPU], strict=True):
        assert len(other) and abs(len(one) - len(other)) <= 0.02 * len(other)  # proposals nearly tie
        strongest = [scores.sort(descending=True).values[:20] for scores in (one, other)]
        torch.testing.assert_close(*strongest, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", KINDS)
def test_through_the_scripts_in_mixed_precision(name, tmp_path, monkeypatch, run_main, evaluation_script):
    make_project(tmp_path, num_images=4)
    monkeypatch.chdir(tmp_path)
    side = KINDS[name][0]
    size = [] if side in (300, 320) else ["--img", side]
    data = ["--data", with_shapes(tmp_path, found_besides_boxes(name))]
    flags = ["--cfg", name, *size, "--batch", 2, "--workers", 0, "--device", "cuda", "--amp", "--epochs", 2]
    status, _, error = run_main(train, *data, *flags, "--name", "mixed")
    assert status == 0, error
    weights = ["--weights", "runs/train/mixed/last.pt", "--device", "cuda"]
    status, out, error = run_main(evaluation_script, *weights, "--workers", 0)
    assert status == 0 and name in out, error
    status, out, error = run_main(detect, *weights, "--conf-thres", 0.01, "--save-json")
    assert status == 0 and "4 pictures" in out, error
