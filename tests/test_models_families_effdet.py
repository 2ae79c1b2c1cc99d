"""EfficientDet: its loss and boxes are those of effdet's own benches, also at other sizes than it was built for."""

import sys

import pytest
import torch

from models.assignment.options import AssignmentOptions
from models.detector import Detector
from models.families import effdet_networks
from models.families.table import open_network
from models.loss import LossOptions
from utils.errors import UserError
from utils.structures import ImageMeta, Targets

CLASSES = 3
SIZE_HW = (128, 256)
NAME = "efficientdet_lite0"  # the smallest
NAMES = tuple(effdet_networks.DETECTORS)
CORNERS = torch.tensor([[20.0, 30, 110, 90], [130, 10, 240, 60], [40, 50, 90, 120]])  # pixels


@pytest.fixture(scope="module")
def effdet():
    """The package, or no test."""
    return pytest.importorskip("effdet", reason="needs effdet: pip install -r requirements-detectors.txt")


@pytest.fixture(scope="module")
def network(effdet):
    torch.manual_seed(0)
    return open_network(NAME, CLASSES)


def scene():
    """Return images [2 3 H W], 0..1, and their objects, of which one has no area."""
    images = torch.rand(2, 3, *SIZE_HW, generator=torch.Generator().manual_seed(1))
    center, size = (CORNERS[:, :2] + CORNERS[:, 2:]) / 2, CORNERS[:, 2:] - CORNERS[:, :2]
    boxes_cxcywh = torch.cat((center, size), dim=1) / torch.tensor((SIZE_HW[1], SIZE_HW[0]) * 2)
    boxes_cxcywh = boxes_cxcywh[[0, 1, 2, 2]]
    boxes_cxcywh[3, 2] = 0
    return images, Targets(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 2, 1, 1]), boxes_cxcywh)


def theirs(effdet, name, network):
    """Return effdet's own model, built for the size of the scene, with the same tensors."""
    config = effdet.get_efficientdet_config(effdet_networks.DETECTORS[name].effdet_name)
    config.num_classes, config.image_size = CLASSES, SIZE_HW
    model = effdet.EfficientDet(config, pretrained_backbone=False)
    model.load_state_dict(network.model.state_dict())
    return model


def as_effdet_normalises(images, network):
    mean, std = ((0.5,) * 3, (0.5,) * 3) if "lite" in network.name else ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    return (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def check_loss(effdet, name, network):
    images, targets = scene()
    bench = effdet.DetBenchTrain(theirs(effdet, name, network)).train()
    corners_yxyx = CORNERS[:, [1, 0, 3, 2]]
    wanted = {
        "bbox": [corners_yxyx[:2], corners_yxyx[2:]],
        "cls": [torch.tensor([1, 3]), torch.tensor([2])],  # from 1
    }
    torch.manual_seed(5)  # of the layers that are left out
    expected = bench(as_effdet_normalises(images, network), wanted)
    learner = network.learner(LossOptions(), AssignmentOptions(), SIZE_HW[::-1]).train()
    torch.manual_seed(5)
    found = learner(images, targets, Targets.empty())
    torch.testing.assert_close(found.parts["class"], expected["class_loss"] * 2, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.parts["box"], expected["box_loss"] * 50 * 2, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.total, expected["loss"] * 2 / 64, rtol=1e-5, atol=1e-6)
    found.total.backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def spread_scores(network, images):
    """Make the logits of the finest level vary by 1: scores of a random network tie, and ties have no order."""
    for module in network.modules():  # without statistics of its own maps, hardly anything comes through random layers
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        network.train()(images)
        network.model.class_net.predict.conv_pw.weight /= network.eval()(images).classes[0].std()


def check_boxes(effdet, name, network):
    images = (scene()[0] * 255).to(torch.uint8)
    spread_scores(network, images / 255)
    bench = effdet.DetBenchPredict(theirs(effdet, name, network)).eval()
    with torch.inference_mode():
        expected = bench(as_effdet_normalises(images / 255, network))  # [B 100 6]: x y x y score label, labels from 1
    detector = Detector(network, confidence=0.0, iou=0.5, max_detections=100, clip=False)
    found = detector(images, [ImageMeta(number, "", SIZE_HW[::-1]) for number in range(2)])
    for mine, rows in zip(found, expected, strict=True):
        assert len(mine) == 100
        torch.testing.assert_close(mine.scores, rows[:, 4], rtol=0, atol=1e-5)
        assert torch.equal(mine.labels, rows[:, 5].long() - 1)
        torch.testing.assert_close(mine.boxes_xyxy, rows[:, :4], rtol=1e-5, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_loss_and_boxes_are_effdets(effdet, name):
    torch.manual_seed(0)
    network = open_network(name, CLASSES)
    check_loss(effdet, name, network)
    check_boxes(effdet, name, network)


@pytest.mark.slow  # effdet is imported
def test_classes_are_selected_and_put_into_order(network):
    images = scene()[0]
    selected = network.with_classes([2, 0])
    assert (selected.num_classes, network.num_classes) == (2, 3)
    network.eval(), selected.eval()
    with torch.inference_mode():
        (everything, boxes), (some, same_boxes) = network(images), selected(images)
    for level, chosen in zip(everything, some, strict=True):
        by_class = level.unflatten(1, (-1, 3))[:, :, [2, 0]]
        torch.testing.assert_close(chosen.unflatten(1, (-1, 2)), by_class)
    assert all(map(torch.equal, boxes, same_boxes))
    learner = selected.learner(LossOptions(), AssignmentOptions(), SIZE_HW[::-1]).train()
    targets = Targets(torch.tensor([0]), torch.tensor([1]), torch.tensor([[0.5, 0.5, 0.4, 0.4]]))
    assert torch.isfinite(learner(images, targets, Targets.empty()).total)


@pytest.mark.slow  # effdet is imported
def test_classes_in_another_order_learn_and_are_kept_as_they_are_found(network):
    images, targets = scene()
    order = torch.tensor([2, 0, 1])  # class i is class order[i] of the network
    moved = network.with_classes(order.tolist())
    kept = open_network(NAME, CLASSES)
    kept.load_state_dict(moved.state_dict())
    renamed = Targets(targets.image, order.argsort()[targets.label], targets.boxes_cxcywh)
    losses = []
    for one, wanted in ((network, targets), (moved, renamed), (kept, renamed), (moved, targets)):
        learner = one.learner(LossOptions(), AssignmentOptions(), SIZE_HW[::-1]).train()
        torch.manual_seed(5)
        losses.append(learner(images, wanted, Targets.empty()).total.item())
    assert losses[1] == losses[2] == pytest.approx(losses[0], rel=1e-5)
    assert losses[3] != losses[1]  # by the old numbers


@pytest.mark.slow  # effdet is imported
def test_a_single_image_and_one_without_objects_are_learned_from(network):
    learner = network.learner(LossOptions(), AssignmentOptions(), (128, 128)).train()
    loss = learner(scene()[0][:1, :, :, :128], Targets.empty(), Targets.empty())
    assert torch.isfinite(loss.total) and loss.parts["box"] == 0
    assert all(module.training for module in network.modules())


@pytest.mark.slow  # effdet is imported
def test_what_a_test_has_prepared_serves_the_next_epoch(network):
    images, targets = scene()
    learner = network.learner(LossOptions(), AssignmentOptions(), SIZE_HW[::-1])
    network._anchors.clear()
    with torch.inference_mode():
        learner.eval().loss_of_outputs()(network(images), targets, Targets.empty())
    learner.train()(images, targets, Targets.empty()).total.backward()


@pytest.mark.slow  # effdet is imported
def test_parts_have_all_parameters_once(network):
    parts = network.parts()
    counted = [id(parameter) for part in parts for parameter in part.parameters()]
    assert len(set(counted)) == len(counted) == len(list(network.parameters()))
    for name, parameter in network.named_parameters():
        assert any(parameter is one for one in parts[network.part_of(name)].parameters())


@pytest.mark.slow  # effdet is imported
def test_only_the_last_layers_depend_on_the_classes(effdet, network):
    other = {name: tensor.shape for name, tensor in open_network(NAME, 5).state_dict().items()}
    for name, tensor in network.state_dict().items():
        assert (tensor.shape != other[name]) == network.depends_on_classes(name)


def test_without_the_package_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "effdet", None)
    for name in effdet_networks.DETECTORS:
        with pytest.raises(
            UserError, match=f"^{name}: needs the package effdet; pip install -r requirements-detectors"
        ):
            open_network(name, 3)
