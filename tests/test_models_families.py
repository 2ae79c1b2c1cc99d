"""Networks without a cfg: their losses and boxes are those of the library they come from; one more is one line."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from data.labels.read import read_dataset
from data.loader import LoaderSettings, evaluation_batches
from data.splits import open_data
from engine.optimizer import OptimizerOptions, build_optimizer
from models.assignment.options import AssignmentOptions
from models.detector import Detector
from models.families import table, torchvision_networks
from models.families.table import Family, is_family, match_of, open_network, open_network_from_text
from models.loss import LossOptions
from models.nms_variants import NmsOptions, NmsRule, suppress
from utils.boxes import cxcywh_to_xyxy
from utils.errors import UserError
from utils.structures import ImageMeta, Targets

detection = pytest.importorskip("torchvision.models.detection", exc_type=(ImportError, RuntimeError))
boxes = pytest.importorskip("torchvision.ops.boxes", exc_type=(ImportError, RuntimeError))
SIZES = {
    "ssdlite320_mobilenet_v3_large": 320,
    "ssd300_vgg16": 300,
    "fasterrcnn_mobilenet_v3_large_320_fpn": 256,
}  # others at 128
EVERY = [
    pytest.param(name, marks=() if name == "ssdlite320_mobilenet_v3_large" else pytest.mark.slow)
    for name in torchvision_networks.DETECTORS
]
CLASSES = 3
CORNERS = torch.tensor([[0.21, 0.37, 0.76, 0.66], [0.17, 0.51, 0.42, 0.93], [0.11, 0.08, 0.73, 0.69]])  # shares


def scene(side, images=2):
    """Return images [B 3 H W], 0..1, and their objects, of which one has no area."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.rand(images, 3, side, side, generator=generator)
    x1, y1, x2, y2 = CORNERS.unbind(dim=1)
    boxes_cxcywh = torch.stack(((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1), dim=1)
    boxes_cxcywh = boxes_cxcywh[[0, 1, 2, 2]]
    boxes_cxcywh[3, 2] = 0
    return pixels, Targets(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 2, 1, 1]), boxes_cxcywh)


def real_scene(side, shared):
    """Return eight photographs and their objects, of as few classes."""
    annotations = read_dataset(open_data(str(shared / "data/coco")), "train")
    batch = next(iter(evaluation_batches(annotations, LoaderSettings((side, side), 8, stride=1))))
    return batch.images / 255, replace(batch.targets, label=batch.targets.label % CLASSES)


@pytest.fixture
def pictures(request):
    """A function that returns images and their objects at the size of a side."""
    return partial(real_scene, shared=request.getfixturevalue("shared")) if request.param == "photographs" else scene


def wanted_of(targets, count, side, shift):
    """Return the objects of each image as torchvision wants them, without those that have no area."""
    corners = cxcywh_to_xyxy(targets.boxes_cxcywh) * side
    has_area = (corners[:, 2:] > corners[:, :2]).all(dim=1)
    rows = [has_area & (targets.image == number) for number in range(count)]
    return [{"boxes": corners[mine], "labels": targets.label[mine] + shift} for mine in rows]


def own_rule(name):
    """Return the options of the assignment that the network has by itself."""
    return AssignmentOptions(match=match_of(name) or AssignmentOptions.match)


def test_a_network_learns_by_the_rule_of_its_training_else_by_its_own():
    assert (match_of("fcos_resnet50_fpn"), match_of("yolov3-nano.cfg")) == ("fcos", "standard")
    assert match_of("fcos_resnet50_fpn", {"match": "atss"}) == match_of("yolov3-nano.cfg", {"match": "atss"}) == "atss"
    assert match_of("ssd300_vgg16", {"match": "standard"}) == match_of("centernet_resnet18") == ""


def theirs(name, network):
    """Return torchvision's own model with the same tensors."""
    kind = torchvision_networks.DETECTORS[name]
    side = SIZES.get(name, 128)
    # In training torchvision draws a size even where there is one to draw from; left out, both draw the same samples.
    sizes = {} if kind.fixed_size else {"min_size": side, "max_size": side, "_skip_resize": True}
    model = getattr(detection, name)(
        weights=None, weights_backbone=None, num_classes=CLASSES + kind.has_background, **sizes
    )
    model.load_state_dict(network.model.state_dict())
    return model


PICTURES = pytest.mark.parametrize(
    "pictures", ["noise", pytest.param("photographs", marks=pytest.mark.slow)], indirect=True
)


@PICTURES
@pytest.mark.parametrize("name", EVERY)
def test_losses_are_the_librarys(name, pictures):
    torch.manual_seed(0)
    network = open_network(name, CLASSES)
    side, shift = SIZES.get(name, 128), int(torchvision_networks.DETECTORS[name].has_background)
    images, targets = pictures(side)
    reference = theirs(name, network).train()
    wanted = wanted_of(targets, len(images), side, shift)
    torch.manual_seed(5)  # some draw which candidates they learn from
    expected = reference(list(images), wanted)
    learner = network.learner(LossOptions(), own_rule(name), (side, side)).train()
    torch.manual_seed(5)
    found = learner(images, targets, Targets.empty())
    assert found.parts.keys() == expected.keys() and (found.counts is None) == (not network.heads)
    for part, loss in expected.items():
        torch.testing.assert_close(found.parts[part], loss * len(images), rtol=1e-5, atol=1e-5)  # sums over images
    torch.testing.assert_close(found.total, sum(expected.values()) * len(images) / 64, rtol=1e-5, atol=1e-6)
    found.total.backward()
    assert all(parameter.grad is not None for parameter in network.parameters() if parameter.requires_grad)


def rows_of(boxes_xyxy, scores, labels):
    """Return detections as rows that can be sorted: those of random weights have equal scores, which have no order."""
    return sorted(zip(scores.tolist(), labels.tolist(), *boxes_xyxy.T.tolist(), strict=True), reverse=True)


@PICTURES
@pytest.mark.parametrize("name", EVERY)
def test_detections_are_the_librarys(name, pictures, monkeypatch):
    # With few boxes torchvision moves those of other classes away from one another, which rounds their coordinates.
    monkeypatch.setattr(boxes, "_batched_nms_coordinate_trick", boxes._batched_nms_vanilla)
    torch.manual_seed(0)
    network = open_network(name, CLASSES)
    kind, side = torchvision_networks.DETECTORS[name], SIZES.get(name, 128)
    images, targets = pictures(side)
    for module in network.modules():  # without statistics of its own maps, hardly anything comes through random layers
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        network.train().losses(images, targets)
        for key in kind.rows_per_class(name) if name == "ssd300_vgg16" else ():  # whose scores are all but 0 or 1
            network.model.state_dict()[key].mul_(0.05)
    reference = theirs(name, network).eval()
    reference.transform._skip_resize = False  # in testing it resizes to the size that the images have
    last = getattr(reference, "roi_heads", reference)
    last.score_thresh, last.nms_thresh, last.detections_per_img = 0.005, 0.5, 10_000
    with torch.inference_mode():
        expected = reference(list(images))
        candidates = network.candidates(network.eval().looking_above(0.005)(images), 0.005)
    for mine, of_library in zip(candidates, expected, strict=True):
        found = suppress(mine, NmsRule(0.5))
        labels = of_library["labels"] - int(kind.has_background)
        assert len(found) == len(labels) > 20
        ours = torch.tensor(rows_of(found.boxes_xyxy, found.scores, found.labels))
        library = torch.tensor(rows_of(of_library["boxes"], of_library["scores"], labels))
        torch.testing.assert_close(ours, library, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def ssdlite():
    torch.manual_seed(0)
    return open_network("ssdlite320_mobilenet_v3_large", CLASSES)


def test_thresholds_belong_to_a_detector(ssdlite):
    images = (scene(320)[0] * 255).to(torch.uint8)
    metas = [ImageMeta(number, "", (320, 320)) for number in range(2)]
    weak = Detector(ssdlite, confidence=0.01, max_detections=10_000)
    median = torch.cat([found.scores for found in weak(images, metas)]).median().item()
    strong = weak.looking_for(confidence=median)
    counts = [sum(map(len, detector(images, metas))) for detector in (weak, strong, weak)]
    assert counts[0] == counts[2] > counts[1]
    merged = weak.looking_for(nms=NmsOptions("merge"))(images, metas)
    assert sum(map(len, merged)) == counts[0]  # the same boxes are kept, at other places


def test_classes_are_selected_and_put_into_order(ssdlite):
    images = (scene(320)[0] * 255).to(torch.uint8)
    metas = [ImageMeta(number, "", (320, 320)) for number in range(2)]
    everything = Detector(ssdlite, confidence=0.01, iou=1.0, max_detections=10_000)(images, metas)[0]
    selected = ssdlite.with_classes([2, 0])
    assert (selected.num_classes, ssdlite.num_classes) == (2, 3)
    some = Detector(selected, confidence=0.01, iou=1.0, max_detections=10_000)(images, metas)[0]
    for new, old in ((0, 2), (1, 0)):
        torch.testing.assert_close(some.scores[some.labels == new], everything.scores[everything.labels == old])


@pytest.mark.parametrize("name", EVERY)
def test_classes_in_another_order_learn_and_are_kept_as_they_are_found(name):
    torch.manual_seed(0)
    network = open_network(name, CLASSES)
    side = SIZES.get(name, 128)
    images, targets = scene(side)
    order = torch.tensor([2, 0, 1])  # class i is class order[i] of the network
    moved = network.with_classes(order.tolist())
    kept = open_network(name, CLASSES)
    kept.load_state_dict(moved.state_dict())
    renamed = Targets(targets.image, order.argsort()[targets.label], targets.boxes_cxcywh)
    losses = []
    for one, wanted in ((network, targets), (moved, renamed), (kept, renamed), (moved, targets)):
        learner = one.learner(LossOptions(), own_rule(name), (side, side)).train()
        torch.manual_seed(5)
        losses.append(learner(images, wanted, Targets.empty()).total.item())
    assert losses[1] == losses[2] == pytest.approx(losses[0], rel=1e-4)
    assert losses[3] != losses[1]  # by the old numbers


def test_a_single_image_learns_with_the_statistics_of_the_others(ssdlite):
    images, targets = scene(320)
    learner = ssdlite.learner(LossOptions(), AssignmentOptions(), (320, 320)).train()
    before = {name: value.clone() for name, value in ssdlite.state_dict().items()}
    one = Targets(targets.image[:2], targets.label[:2], targets.boxes_cxcywh[:2])
    assert torch.isfinite(learner(images[:1], one, Targets.empty()).total)
    assert all(torch.equal(value, before[name]) for name, value in ssdlite.state_dict().items())
    assert all(module.training for module in ssdlite.modules())


@pytest.mark.parametrize("name", EVERY)
def test_parts_have_all_parameters_once(name):
    network = open_network(name, CLASSES)
    parts = network.parts()
    counted = [id(parameter) for part in parts for parameter in part.parameters()]
    assert len(set(counted)) == len(counted) == len(list(network.parameters()))
    for key, parameter in network.named_parameters():
        assert any(parameter is one for one in parts[network.part_of(key)].parameters())
    predicting = {key for key, _ in network.named_parameters() if network.part_of(key) in network.parts_that_predict()}
    beginnings = ("model.rpn.", "model.roi_heads.") if "rcnn" in name else ("model.head.",)
    assert predicting == {key for key, _ in network.named_parameters() if key.startswith(beginnings)} != set()


def test_layer_decay_goes_by_the_parts(ssdlite):
    groups = build_optimizer(ssdlite, OptimizerOptions(layer_decay=0.5), 64).param_groups
    rate_of = {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
    expected = {"backbone.features": 0.25, "backbone.extra": 0.5, "head": 1.0}
    for key, parameter in ssdlite.named_parameters():
        assert rate_of[id(parameter)] == next(
            rate for part, rate in expected.items() if key.startswith(f"model.{part}.")
        )


def test_what_it_has_of_its_own_cannot_be_chosen(ssdlite):
    for loss, assignment, option in (
        (LossOptions(box=1.0), AssignmentOptions(), "--box"),
        (LossOptions(), AssignmentOptions(match="atss"), "--match"),
    ):
        with pytest.raises(UserError, match=f"^{option}: leave it out; ssdlite320"):
            ssdlite.learner(loss, assignment, (320, 320))


def test_a_checkpoints_text_rebuilds_it(ssdlite):
    rebuilt = open_network_from_text(ssdlite.cfg_text, "x", 4)
    assert (rebuilt.cfg_path, rebuilt.num_classes) == (ssdlite.cfg_path, 4)
    with pytest.raises(UserError, match="knows no network 'nothing'"):
        open_network_from_text("[detector]\nname=nothing\n", "x", 4)


def test_another_network_is_one_line(monkeypatch, ssdlite):
    assert not is_family("mine")
    monkeypatch.setitem(table.FAMILIES, "mine", Family(lambda num_classes: ssdlite, "nowhere"))
    assert is_family("mine") and open_network("mine", 3) is ssdlite


def test_a_cfg_of_that_name_in_this_folder_is_a_cfg(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ssd300_vgg16").write_text("[net]\n")
    assert not is_family("ssd300_vgg16")
