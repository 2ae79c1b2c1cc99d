"""Heads that decode by themselves, and what only Darknet's inference knows, against its formulas in plain loops."""

import math

import numpy as np
import pytest
import torch
from weights_by_hand import HandmadeWeights, leaky, windows

from models.checkpoints.darknet_weights import save_darknet_weights
from models.detection_network import check_image_size
from models.detector import Detector
from models.network import build_network_from_text
from utils.errors import UserError
from utils.structures import ImageMeta

CONV = "[convolutional]\nfilters=6\nsize=3\nstride=2\npad=1\nactivation=leaky\n"


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def detect(network, raw_maps, confidence):
    """Return what a detector finds in raw maps, without suppression: rows cx, cy, w, h, class, score."""
    wh = network.input_wh
    detector = Detector(network, confidence=confidence, iou=1.0, max_detections=10_000, clip=False)
    (found,) = detector.detect(raw_maps, [ImageMeta(0, "", wh, (1.0, 1.0))])
    low, high = found.boxes_xyxy[:, :2].double(), found.boxes_xyxy[:, 2:].double()
    columns = ((low + high) / 2, high - low, found.labels[:, None], found.scores[:, None])
    return sorted(torch.cat(columns, dim=1).tolist())


def same(found, expected):
    assert len(found) == len(expected) > 3
    np.testing.assert_allclose(found, sorted(expected), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("keys", "power"), [("sqrt=1\n", 2), ("", 1), ("softmax=1\nsqrt=1\n", 2)])
def test_yolov1_boxes_are_those_of_its_vector(keys, power):
    side, boxes, classes = 3, 2, 4
    text = f"[net]\nwidth=60\nheight=45\n[connected]\noutput={side * side * (5 * boxes + classes)}\nactivation=linear\n"
    text += f"[detection]\nside={side}\nnum={boxes}\nclasses={classes}\ncoords=4\n{keys}"
    network = build_network_from_text(text, "x.cfg").eval()
    vector = np.random.default_rng(0).uniform(0.05, 1.1, side * side * (5 * boxes + classes)).astype(np.float32)
    with torch.no_grad():
        raw = network.layers[1](torch.from_numpy(vector)[None, :, None, None])
    expected = []
    for cell in range(side * side):
        probabilities = vector[cell * classes : (cell + 1) * classes].astype(np.float64)
        if "softmax" in keys:
            probabilities = np.exp(probabilities) / np.exp(probabilities).sum()
        for box in range(boxes):
            objectness = float(vector[side * side * classes + cell * boxes + box])
            start = side * side * (classes + boxes) + (cell * boxes + box) * 4
            x, y, w, h = map(float, vector[start : start + 4])
            row, col = divmod(cell, side)
            place = [(x + col) / side * 60, (y + row) / side * 45, w**power * 60, h**power * 45]
            for label, probability in enumerate(probabilities):
                score = objectness * probability
                if score > 0.08:
                    expected.append([*place, label, min(score, 1.0)])
    same(detect(network, [raw], 0.08), expected)


def decoded(raw, anchors, cell_wh, scale, confidence, new_coords=False, probabilities=False):
    """Darknet's get_yolo_box and thresholds, slot by slot, for a map [A H W 5+C]."""
    expected = []
    act = (lambda x: x) if probabilities else sigmoid
    for anchor, row, col in np.ndindex(raw.shape[:3]):
        tx, ty, tw, th, objectness, *classes = map(float, raw[anchor, row, col])
        x = (act(tx) * scale - (scale - 1) / 2 + col) * cell_wh[0]
        y = (act(ty) * scale - (scale - 1) / 2 + row) * cell_wh[1]
        if new_coords:
            w, h = ((act(t) * 2) ** 2 * side for t, side in zip((tw, th), anchors[anchor], strict=True))
        else:
            w, h = (math.exp(t) * side for t, side in zip((tw, th), anchors[anchor], strict=True))
        for label, logit in enumerate(classes):
            score = act(objectness) * act(logit)
            if act(objectness) > confidence and score > confidence:
                expected.append([x, y, w, h, label, min(score, 1.0)])
    return expected


HEAD = "[convolutional]\nfilters=14\nsize=1\nactivation={}\n[yolo]\nmask=0,1\nnum=2\nclasses=2\nanchors=4,5, 9,7\n{}"
ANCHORS = ((4, 5), (9, 7))


def raw_map(network, low=-2.0, high=2.0):
    generator = torch.Generator().manual_seed(0)
    rows, cols = (math.ceil(side / 2) for side in network.input_wh[::-1])
    return torch.empty(1, 14, rows, cols).uniform_(low, high, generator=generator).view(1, 2, 7, rows, cols).permute(
        0, 1, 3, 4, 2
    )  # fmt: skip


@pytest.mark.parametrize(("activation", "keys"), [("linear", "scale_x_y=1.2\n"), ("logistic", "new_coords=1\n")])
def test_cells_that_no_stride_divides(activation, keys):
    network = build_network_from_text("[net]\nwidth=15\nheight=10\n" + CONV + HEAD.format(activation, keys), "x.cfg")
    raw = raw_map(network)
    expected = decoded(
        raw[0], ANCHORS, (15 / 8, 10 / 5), 1.2 if "scale" in keys else 1.0, 0.09, new_coords="new" in keys
    )
    same(detect(network, [raw], 0.09), expected)
    check_image_size(network, (15, 10))
    with pytest.raises(UserError, match=r"image size 16 x 16: x\.cfg works at 15 x 10 only"):
        check_image_size(network, 16)
    with pytest.raises(UserError, match=r"its cells have 1\.875 x 2 pixels; make width and height multiples of 2"):
        network.require_trainable()


@pytest.mark.parametrize("activation", ["linear", "leaky", "relu"])
def test_new_coords_without_a_logistic_reads_probabilities(activation):
    text = "[net]\nwidth=16\nheight=10\n" + CONV + HEAD.format(activation, "new_coords=1\nscale_x_y=2\n")
    network = build_network_from_text(text, "x.cfg")
    raw = raw_map(network, -0.3, 1.2)
    same(detect(network, [raw], 0.09), decoded(raw[0], ANCHORS, (2, 2), 2.0, 0.09, True, True))
    with pytest.raises(
        UserError, match=r"x\.cfg:14: \[yolo\] is for detection only: to train with new_coords=1, write"
    ):
        network.require_trainable()


def test_heads_may_have_different_classes():
    text = "[net]\nwidth=16\nheight=10\n" + CONV + HEAD.format("linear", "") + "[route]\nlayers=0\n"
    text += HEAD.format("linear", "").replace("filters=14", "filters=18").replace("classes=2", "classes=4")
    network = build_network_from_text(text, "x.cfg")
    assert network.num_classes == 4
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(1, 2, 5, 8, width, generator=generator) for width in (7, 9))
    expected = [row for raw in (first, second) for row in decoded(raw[0], ANCHORS, (2, 2), 1.0, 0.09)]
    same(detect(network, [first, second], 0.09), expected)
    assert {head.num_classes for head in build_network_from_text(text, "x.cfg", 3).heads} == {3}


def test_one_input_channel_makes_images_grey():
    text = "[net]\nwidth=16\nheight=16\nchannels=1\n" + CONV + HEAD.format("linear", "")
    network = build_network_from_text(text, "x.cfg").eval()
    image = torch.rand(2, 3, 16, 16)
    grey = 0.299 * image[:, :1] + 0.587 * image[:, 1:2] + 0.114 * image[:, 2:]
    torch.testing.assert_close(network(image)[0], network(grey)[0])
    torch.testing.assert_close(network.fuse()(image)[0], network(grey)[0])
    network.require_trainable()


@pytest.mark.parametrize(("kind", "normalised"), [("xnor", False), ("xnor", True), ("binary", True)])
def test_binary_weights_and_inputs(tmp_path, kind, normalised):
    weights = HandmadeWeights()
    bias = weights.draw(3)
    scale, mean, variance = np.ones(3), np.zeros(3), np.full(3, 1 - 1e-5)
    if normalised:
        scale, mean, variance = weights.draw(3), weights.draw(3), weights.draw(3, low=0.5, high=2.0)
    kernels = weights.draw(3, 2, 3, 3)
    text = (
        f"[net]\nwidth=5\nheight=4\nchannels=2\n[convolutional]\nfilters=3\nsize=3\npad=1\nactivation=leaky\n{kind}=1\n"
    )
    network = weights.network(text + f"batch_normalize={int(normalised)}\n", tmp_path)
    x = np.random.default_rng(1).uniform(-1, 1, (2, 4, 5)).astype(np.float32)
    signs = np.sign(kernels) * np.abs(kernels).mean(axis=(1, 2, 3), keepdims=True)
    # Where inputs are bits, those outside of the map are 0, which stands for -1.
    total = windows(np.sign(x), signs, outside=-1.0) if kind == "xnor" else windows(x.astype(np.float64), signs)
    columns = (mean, np.sqrt(variance + 1e-5), scale, bias)
    mean, deviation, scale, bias = (column[:, None, None] for column in columns)
    expected = leaky((total - mean) / deviation * scale + bias)
    for version in (network, network.fuse()):
        with torch.no_grad():
            (output,) = version(torch.from_numpy(x)[None])
        assert np.abs(output[0].numpy() - expected).max() < 1e-5 * np.ptp(expected)
    with pytest.raises(UserError, match=r"x\.cfg:5: \[convolutional\] is for detection only: binary weights"):
        network.require_trainable()


SHARED = "[convolutional]\nbatch_normalize=1\nfilters=6\nsize=3\nstride={}\npad=1\nactivation=leaky\nshare_index={}\n"


@pytest.mark.parametrize(("stride", "index"), [(1, -1), (2, 1), (1, -1.0)])
def test_a_convolution_shares_the_weights_of_another(tmp_path, stride, index):
    own = SHARED.format(1, 0).replace("share_index=0\n", "")
    text = "[net]\nwidth=16\nheight=10\n" + CONV + own + SHARED.format(stride, index)
    network = build_network_from_text(text, "x.cfg").eval()
    first, owner, _ = network.layers
    for tensor in (owner.bn.running_mean, owner.bn.running_var, owner.bn.weight, owner.bn.bias):
        torch.nn.init.uniform_(tensor, 0.5, 2.0)
    image = torch.rand(1, 3, 10, 16)
    again = owner(owner(first(image)))[:, :, ::stride, ::stride]
    for version in (network, network.fuse()):
        torch.testing.assert_close(version(image)[0], again)
    save_darknet_weights(network, tmp_path / "x.weights")
    # In the file: 6 biases and 6 x 3 x 9 weights, then 4 x 6 and 6 x 6 x 9 of the owner; nothing of the sharer.
    assert (tmp_path / "x.weights").stat().st_size == 20 + 4 * (6 + 162 + 24 + 324)
    assert len(list(network.parameters())) == 2 + 3


def test_weights_of_another_shape_cannot_be_shared():
    text = "[net]\nwidth=16\nheight=10\n" + CONV + SHARED.format(1, 0)
    with pytest.raises(
        UserError, match=r"x\.cfg:17: \[convolutional\] share_index: layer 0 has no weights of 6 x 6 x 3 x"
    ):
        build_network_from_text(text, "x.cfg")
    with pytest.raises(UserError, match=r"share_index=5 is not one of the layers 0\.\.0 before it"):
        build_network_from_text(text.replace("share_index=0", "share_index=5"), "x.cfg")


def test_route_lhalf_takes_the_first_half_of_the_channels():
    network = build_network_from_text("[net]\nwidth=16\nheight=10\n" + CONV + "[route_lhalf]\nlayers=-1\n", "x.cfg")
    image = torch.rand(1, 3, 10, 16)
    assert torch.equal(network(image)[0], network.layers[0](image)[:, :3])
    with pytest.raises(UserError, match=r"\[route_lhalf\] halves layer 0's 5 channels"):
        build_network_from_text("[net]\nwidth=8\nheight=8\n[conv]\nfilters=5\n[route_lhalf]\nlayers=0\n", "x.cfg")


def test_contrastive_leaves_its_map_as_it_is():
    network = build_network_from_text("[net]\nwidth=16\nheight=10\n" + CONV + "[contrastive]\nyolo_layer=-3\n", "x.cfg")
    image = torch.rand(1, 3, 10, 16)
    assert torch.equal(network(image)[0], network.layers[0](image))
