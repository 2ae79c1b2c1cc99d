"""Mask and Keypoint R-CNN: losses, masks and key points are torchvision's own, on real images."""

import numpy as np
import pytest
import torch

from data.dataset import BatchPlan, DetectionDataset
from data.labels.read import read_dataset
from data.splits import open_data
from models.assignment.options import AssignmentOptions
from models.checkpoints.format import save_checkpoint
from models.checkpoints.load import load_network, load_weights
from models.detector import Detector
from models.families.table import found_besides_boxes, key_points_of_text, open_network, open_network_from_text
from models.loss import LossOptions
from models.nms_variants import NmsRule, suppress
from tests.tiny_project import NO_AUGMENTATION
from utils.boxes import cxcywh_to_xyxy
from utils.errors import UserError
from utils.structures import KEY_POINTS, MASKS, ImageMeta, Targets

detection = pytest.importorskip("torchvision.models.detection", exc_type=(ImportError, RuntimeError))
boxes = pytest.importorskip("torchvision.ops.boxes", exc_type=(ImportError, RuntimeError))
SIDE = 128
NAMES = ("maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2", "keypointrcnn_resnet50_fpn")


@pytest.fixture(scope="module")
def real_batch(shared):
    """Three images of COCO with their outlines, letterboxed, and made-up key points in their boxes."""
    path = shared / "data/coco/annotations/instances_train2017.json"
    annotations = read_dataset(open_data(str(path)), "train", wants=frozenset({MASKS}))
    dataset = DetectionDataset(annotations, augment=NO_AUGMENTATION)
    batch = dataset.training_batch(BatchPlan((0, 1, 2), (SIDE, SIDE)), NO_AUGMENTATION)
    targets = batch.targets
    shares = torch.rand(len(targets), 5, 2, generator=torch.Generator().manual_seed(1))
    corners = cxcywh_to_xyxy(targets.boxes_cxcywh) * SIDE
    points_xy = corners[:, None, :2] + shares * (corners[:, None, 2:] - corners[:, None, :2])
    visible = (shares.sum(dim=2, keepdim=True) > 0.6) * 2.0
    points = torch.cat((points_xy, visible), dim=2)
    targets = Targets(targets.image, targets.label, targets.boxes_cxcywh, targets.masks, points)
    assert len(targets) > 10 and targets.masks.shape == (len(targets), SIDE, SIDE)
    return batch.images.contiguous() / 255, targets


def theirs(network):
    """Return torchvision's own model with the same tensors."""
    own = {"num_keypoints": 5} if network.finds == {KEY_POINTS} else {}
    model = getattr(detection, network.name)(
        weights=None, weights_backbone=None, num_classes=81, min_size=SIDE, max_size=SIDE, _skip_resize=True, **own
    )
    model.load_state_dict(network.model.state_dict())
    return model


def with_statistics(network, images, targets):
    """Return the network with batch norms that know these images: else hardly anything comes through random layers."""
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        network.train().losses(images, targets)
    return network


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_losses_and_shapes_are_the_librarys(name, real_batch, monkeypatch):
    monkeypatch.setattr(boxes, "_batched_nms_coordinate_trick", boxes._batched_nms_vanilla)
    images, targets = real_batch
    torch.manual_seed(0)
    network = open_network(name, 80, key_points=5 if "keypoint" in name else 0)
    reference = theirs(network).train()
    corners = cxcywh_to_xyxy(targets.boxes_cxcywh) * SIDE
    wanted = [
        {
            "boxes": corners[targets.image == number],
            "labels": targets.label[targets.image == number] + 1,
            "masks": targets.masks[targets.image == number],
            "keypoints": targets.key_points[targets.image == number],
        }
        for number in range(len(images))
    ]
    torch.manual_seed(5)  # which candidates are learned from
    expected = reference(list(images), wanted)
    learner = network.learner(LossOptions(), AssignmentOptions(), (SIDE, SIDE)).train()
    torch.manual_seed(5)
    found = learner(images, targets, Targets.empty())
    assert found.parts.keys() == expected.keys() and len(expected) == 5
    for part, loss in expected.items():
        torch.testing.assert_close(found.parts[part], loss * len(images), rtol=1e-5, atol=1e-5)
    found.total.backward()
    assert all(parameter.grad is not None for parameter in network.parameters() if parameter.requires_grad)

    with_statistics(network, images, targets)
    reference = theirs(network).eval()
    reference.transform._skip_resize = False
    heads = reference.roi_heads
    heads.score_thresh, heads.nms_thresh, heads.detections_per_img = 0.005, 0.5, 30
    in_boxes = {}  # masks before torchvision pastes them
    paste = reference.transform.postprocess
    monkeypatch.setattr(
        reference.transform,
        "postprocess",
        lambda found, *sizes: paste(in_boxes.setdefault("found", [dict(one) for one in found]) and found, *sizes),
    )
    with torch.inference_mode():
        expected = reference(list(images))
        raw = network.eval().looking_above(0.005)(images)
        kept = [suppress(one, NmsRule(0.5, 30)) for one in network.candidates(raw, 0.005)]
        whole = network.complete(raw, kept)
    for mine, library, small in zip(whole, expected, in_boxes["found"], strict=True):
        order, their_order = (
            ranks(*columns)
            for columns in (
                (mine.boxes_xyxy, mine.scores, mine.labels),
                (library["boxes"], library["scores"], library["labels"] - 1),
            )
        )
        assert len(order) == len(their_order) == 30
        torch.testing.assert_close(mine.boxes_xyxy[order], library["boxes"][their_order], rtol=1e-5, atol=1e-4)
        if network.finds == {MASKS}:
            torch.testing.assert_close(mine.masks.grids[order], small["masks"][their_order, 0], rtol=1e-5, atol=1e-5)
            pasted = mine.masks.select(order).whole() != (library["masks"][their_order, 0] > 0.5).numpy()
            assert pasted.mean() < 1e-4  # values within 1e-5 of one half
        else:
            points = torch.cat((library["keypoints"][..., :2], library["keypoints_scores"][..., None]), dim=2)
            torch.testing.assert_close(mine.key_points[order], points[their_order], rtol=1e-5, atol=1e-4)


def ranks(boxes_xyxy, scores, labels):
    """Return the order of detections by their numbers: those of random weights have equal scores, which have none."""
    rows = zip(scores.tolist(), labels.tolist(), *boxes_xyxy.round(decimals=2).T.tolist(), strict=True)
    keyed = [((round(score, 6), *rest), index) for index, (score, *rest) in enumerate(rows)]
    return torch.tensor([index for _, index in sorted(keyed)])


@pytest.mark.slow
@pytest.mark.parametrize("name", ("maskrcnn_resnet50_fpn", "keypointrcnn_resnet50_fpn"))
def test_shapes_come_back_to_original_pixels(name, real_batch):
    images, targets = real_batch
    torch.manual_seed(0)
    network = with_statistics(open_network(name, 80, 5 if "keypoint" in name else 0), images, targets)
    pixels = (images * 255).byte()
    plain = [ImageMeta(number, "", (SIDE, SIDE)) for number in range(3)]
    halved = [ImageMeta(number, "", (2 * SIDE, 2 * SIDE), (0.5, 0.5), (4.0, 0.0)) for number in range(3)]
    detector = Detector(network, 0.005, 0.5, max_detections=10, clip=False)
    for one, other in zip(detector(pixels, plain), detector(pixels, halved), strict=True):
        shift = torch.tensor([4.0, 0.0] * 2)
        torch.testing.assert_close((one.boxes_xyxy - shift) * 2, other.boxes_xyxy, rtol=1e-4, atol=1e-3)
        if network.finds == {MASKS}:
            torch.testing.assert_close(one.masks.grids, other.masks.grids, rtol=1e-4, atol=1e-4)
            assert other.masks.image_wh == (2 * SIDE, 2 * SIDE)
            torch.testing.assert_close(other.masks.boxes_xyxy, other.boxes_xyxy)
        else:
            points = (one.key_points[..., :2] - shift[:2]) * 2
            torch.testing.assert_close(points, other.key_points[..., :2], rtol=1e-4, atol=1e-2)
    boxes_alone = Detector(network, 0.005, 0.5, max_detections=10)
    boxes_alone.boxes_only = True
    assert all(found.masks is None and found.key_points is None for found in boxes_alone(pixels, plain))
    nothing = Detector(network, 1.0)(pixels, plain)[0]
    assert len(nothing) == len(nothing.masks or ()) == 0


@pytest.mark.slow
def test_masks_follow_their_classes(real_batch):
    images, targets = real_batch
    torch.manual_seed(0)
    network = with_statistics(open_network("maskrcnn_resnet50_fpn", 80), images, targets)
    order = torch.arange(80).flip(0)
    moved = network.with_classes(order.tolist()).eval()
    network.eval()
    with torch.inference_mode():
        raw = network(images)
        found = [suppress(one, NmsRule(0.5, 5)) for one in network.candidates(raw, 0.005)]
        renamed = [type(one)(one.boxes_xyxy, one.scores, order[one.labels]) for one in found]
        for one, other in zip(network.complete(raw, found), moved.complete(raw, renamed), strict=True):
            torch.testing.assert_close(one.masks.grids, other.masks.grids)


def test_a_checkpoints_text_knows_the_key_points():
    with torch.device("meta"):
        network = open_network("keypointrcnn_resnet50_fpn", 2, key_points=5)
        rebuilt = open_network_from_text(network.cfg_text, "x", 3)
        assert (rebuilt.num_key_points, rebuilt.num_classes) == (5, 3)
        assert open_network("keypointrcnn_resnet50_fpn", 1).num_key_points == 17
    with pytest.raises(UserError, match="knows no network"):
        open_network_from_text("[detector]\nname=keypointrcnn_resnet50_fpn\nkey_points=x\n", "x", 3)


def test_the_text_of_a_checkpoint_says_how_many_key_points_it_knows():
    assert key_points_of_text("[detector]\nname=keypointrcnn_resnet50_fpn\nkey_points=5\n") == 5
    assert key_points_of_text("[detector]\nname=ssd300_vgg16\n") == key_points_of_text("[net]\nkey_points=5\n") == 0
    assert key_points_of_text("[detector]\nkey_points=x\n") is None


@pytest.mark.slow
def test_weights_with_another_number_of_key_points_fill_all_but_the_last_layers(tmp_path):
    name, path = "keypointrcnn_resnet50_fpn", tmp_path / "five.pt"
    five = open_network(name, 2, key_points=5)
    content = {"names": ["a", "b"], "cfg_text": five.cfg_text, "cfg_name": name, "options": {}}
    save_checkpoint(path, content | {"model": five.state_dict()})
    network = open_network(name, 2, key_points=3)
    fresh = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    report = load_weights(network, path)
    assert (report.classes, report.key_points) == (None, (5, 3)) and not report.complete
    assert "another number of key points, 5 in the file and 3 here" in str(report)
    for key, tensor in network.state_dict().items():
        last = key.startswith("model.roi_heads.keypoint_predictor.")
        assert torch.equal(tensor, (fresh if last else five.state_dict())[key]), key
    assert load_network(path, name).network.num_key_points == 5
    both = load_weights(open_network(name, 4, key_points=3), path)
    assert (both.classes, both.key_points) == ((2, 4), (5, 3))


def test_what_is_read_follows_from_the_name():
    assert found_besides_boxes("maskrcnn_resnet50_fpn_v2") == {MASKS}
    assert found_besides_boxes("keypointrcnn_resnet50_fpn") == {KEY_POINTS}
    assert found_besides_boxes("fasterrcnn_resnet50_fpn") == found_besides_boxes("yolov3.cfg") == frozenset()
    assert np.array_equal(sorted(NAMES), sorted(name for name in NAMES if found_besides_boxes(name)))
