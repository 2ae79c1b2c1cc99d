"""Darknet's loss of [region] and [Gaussian_yolo]: its gradient against Darknet's delta.

``darknet_deltas.npz`` holds what Darknet itself (AlexeyAB/darknet 59596d7, on a CPU, with batch=2) computed for
:data:`CASES`: the input of the last layer, the objects as rows (image, x, y, w, h, class), and delta. The oracle of
``darknet_loss_oracle.py`` is compared with it, too, and then stands for it where inputs are drawn at random.
"""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from darknet_loss_oracle import Gaussian, Region

from models.assignment.options import AssignmentOptions
from models.gaussian_loss import iou_slopes
from models.head_biases import initialise_head_biases
from models.loss import LossOptions, build_loss
from models.network import build_network_from_text
from utils.boxes import box_iou, cxcywh_to_xyxy
from utils.errors import UserError
from utils.structures import Targets

RECORDED = Path(__file__).parent / "darknet_deltas.npz"
NET = "[net]\nwidth=96\nheight=64\nchannels=3\nbatch=2\n"  # 3 x 2 cells
TREE = (-1, -1, 0, 0, 0, 1, 2, 2)  # two at the top, three below the first, one below the second, two below number 2
ANCHORS = ((0.57, 0.67), (1.87, 2.06), (3.3, 5.4))  # in cells
PIXELS = ((10.0, 13.0), (30.0, 61.0), (60.0, 45.0))
MASK = (0, 2)
KINDS_OF_LOSS = ("mse", "iou", "giou", "diou", "ciou")


def section(kind, anchors, **keys):
    numbers = ",".join(f"{number:g}" for wh in anchors for number in wh)
    return f"[{kind}]\nanchors={numbers}\nnum={len(anchors)}\n" + "".join(f"{k}={v}\n" for k, v in keys.items())


def region(classes=3, **keys):
    return "region", classes, keys


def gaussian(classes=4, **keys):
    return "Gaussian_yolo", classes, keys


CASES = {
    "region": region(softmax=1, bias_match=1),
    "region, all scales, rescore": region(
        softmax=1, bias_match=1, rescore=1, object_scale=5, noobject_scale=1.5, class_scale=2, coord_scale=3, thresh=0.2
    ),
    "region, predicted shapes": region(softmax=1, bias_match=0, object_scale=5, thresh=0.6),
    "region, first images": region(softmax=1, bias_match=1, rescore=1, thresh=0.6),
    "region, tree": region(8, softmax=1, bias_match=1, rescore=1, class_scale=2, thresh=0.6, tree="my.tree"),
    **{f"gaussian, {kind}": gaussian(iou_loss=kind, iou_normalizer=0.5) for kind in KINDS_OF_LOSS},
    "gaussian, all factors": gaussian(
        iou_loss="giou", ignore_thresh=0.1, uc_normalizer=0.7, obj_normalizer=0.4, iou_thresh=0.2, scale_x_y=1.1
    ),
    "gaussian, smooth and limited": gaussian(label_smooth_eps=0.1, max_delta=0.3),
}  # fmt: skip


def head_text(case, folder):
    """Return the cfg of a case, and its number of channels before the head."""
    kind, classes, keys = CASES[case]
    if "tree" in keys:
        path = folder / keys["tree"]
        path.write_text("".join(f"c{number} {parent}\n" for number, parent in enumerate(TREE)))
        keys = keys | {"tree": path}
    if kind == "region":
        channels = len(ANCHORS) * (5 + classes)
        head = section(kind, ANCHORS, classes=classes, coords=4, **keys)
    else:
        channels = len(MASK) * (9 + classes)
        head = section(kind, PIXELS, classes=classes, mask=",".join(map(str, MASK)), **keys)
    convolution = f"[convolutional]\nfilters={channels}\nsize=1\nstride=32\nactivation=linear\n"
    return NET + convolution + head, channels


def targets_of(rows):
    rows = torch.as_tensor(np.asarray(rows), dtype=torch.float32).reshape(-1, 6)
    return Targets(rows[:, 0].long(), rows[:, 5].long(), rows[:, 1:5])


def our_delta(case, folder, x, rows):
    """Return minus the gradient with respect to the head's input, for a sum over images."""
    network = build_network_from_text(head_text(case, folder)[0], str(folder / "x.cfg"))
    loss = build_loss(LossOptions(loss="darknet"), AssignmentOptions(match="darknet"), network.heads)
    loss.images_seen = 0 if "first images" in case else None
    x = torch.as_tensor(x).clone().requires_grad_()
    loss([network.layers[-1](x)], targets_of(rows)).total.backward()
    return -x.grad.numpy() * 64


def oracle_delta(case, x, rows):
    kind, classes, keys = CASES[case]
    truths = [[tuple(float(n) for n in row[1:]) for row in rows if row[0] == image] for image in range(len(x))]
    truths = [[(*truth[:4], int(truth[4])) for truth in of_image] for of_image in truths]
    if kind == "region":
        tree = TREE if "tree" in keys else None
        numbers = {name: value for name, value in keys.items() if name != "tree"}
        oracle = Region(ANCHORS, classes, tree, **numbers)
        return np.array(oracle.delta(x.tolist(), truths, warm_up="first images" in case))
    return np.array(Gaussian(PIXELS, MASK, classes, (96, 64), **keys).delta(x.tolist(), truths))


def drawn(case, folder, seed, objects):
    """Return a random input of the head and random objects; with many of them, slots are wanted by several."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(2, head_text(case, folder)[1], 2, 3)).astype(np.float32)
    boxes = [
        (
            image,
            *generator.uniform(0.05, 0.95, 2),
            *generator.uniform(0.05, 0.65, 2),
            generator.integers(CASES[case][1]),
        )
        for image in range(2)
        for _ in range(objects)
    ]
    return x, np.array(boxes, np.float32).reshape(-1, 6)


def assert_equal_deltas(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * max(1, np.abs(theirs).max()))


@pytest.mark.parametrize("case", CASES)
def test_the_gradient_is_darknets_own_delta(tmp_path, case):
    with np.load(RECORDED) as recorded:
        x, rows, delta = (recorded[f"{case}/{name}"] for name in ("x", "rows", "delta"))
    assert (delta != 0).mean() > 0.1
    assert_equal_deltas(oracle_delta(case, x, rows), delta)
    assert_equal_deltas(our_delta(case, tmp_path, x, rows), delta)


@pytest.mark.parametrize("objects", [0, 1, 5, 30])
@pytest.mark.parametrize("case", [*CASES])
def test_the_gradient_is_the_delta_of_plain_loops(tmp_path, case, objects):
    for seed in range(2):
        x, rows = drawn(case, tmp_path, seed, objects)
        assert_equal_deltas(our_delta(case, tmp_path, x, rows), oracle_delta(case, x, rows))


def test_without_softmax_every_class_has_a_logistic(tmp_path, monkeypatch):
    monkeypatch.setitem(CASES, "logistic", region(softmax=0, bias_match=1, class_scale=3))
    x, rows = drawn("logistic", tmp_path, 0, 4)
    assert_equal_deltas(our_delta("logistic", tmp_path, x, rows), oracle_delta("logistic", x, rows))
    (note,) = build_network_from_text(head_text("logistic", tmp_path)[0], "x.cfg").layer_notes
    assert note.startswith("x.cfg:11: [region] without softmax")


def test_numbers_that_are_not_finite_teach_nothing(tmp_path):
    # A raw uncertainty of -200 has σ = 0: its deltas are 0 / 0, for which Darknet puts 0.
    x, rows = drawn("gaussian, mse", tmp_path, 3, 2)
    x[:, [1, 3, 14, 16]] = -200
    ours = our_delta("gaussian, mse", tmp_path, x, rows)
    assert np.isfinite(ours).all() and (ours != 0).any()


@pytest.mark.parametrize("kind", ["iou", "giou"])
def test_the_pull_of_an_iou_is_its_slope_where_boxes_overlap(kind):
    # By differences: Darknet's pull is the slope in x and y, and twice the slope in w and h.
    box, truth = torch.tensor([[0.5, 0.4, 0.3, 0.2]]).double(), torch.tensor([[0.55, 0.44, 0.25, 0.31]]).double()
    step = 1e-3
    for number, factor in enumerate((1, 1, 2, 2)):
        ends = []
        for sign in (-1, 1):
            moved = box.clone()
            moved[0, number] += sign * step
            ends.append(float(box_iou(cxcywh_to_xyxy(moved), cxcywh_to_xyxy(truth), kind, elementwise=True)))
        slope = (ends[1] - ends[0]) / (2 * step)
        assert float(iou_slopes(box, truth, kind)[0, number]) == pytest.approx(slope * factor, rel=1e-3)


def test_the_first_12800_images_of_a_run_pull_boxes_to_their_anchors(tmp_path):
    network = build_network_from_text(head_text("region", tmp_path)[0], "x.cfg")
    loss = build_loss(LossOptions(loss="darknet"), AssignmentOptions(match="darknet"), network.heads)
    raw = [network.layers[-1](torch.ones(2, 24, 2, 3))]
    boxes = []
    for seen in (None, 0, 12_797, 12_798):  # this batch of two is counted: 12,799 is still below, 12,800 is not
        loss.images_seen = seen
        boxes.append(float(loss(raw, Targets.empty()).parts["box"]))
    assert boxes[0] == boxes[3] == 0 and boxes[1] == boxes[2] > 0
    # 36 slots, each 0.01 / 2 times ((0.5 - σ(1))² twice and 1² twice); per 64 images.
    each = 2 * (0.5 - 1 / (1 + math.exp(-1))) ** 2 + 2
    assert boxes[1] == pytest.approx(36 * 0.005 * each / 64, rel=1e-5)


LEARNERS = {
    "region": ("region", "bias_match=1\nsoftmax=1\nrescore=1\nobject_scale=5\nthresh=.6\n", 24),
    "region, tree": ("region", "bias_match=1\nsoftmax=1\nrescore=0\nobject_scale=5\ntree=my.tree\n", 24),
    "gaussian": ("Gaussian_yolo", "mask=0,1,2\niou_loss=giou\nignore_thresh=.5\n", 36),
}


@pytest.mark.parametrize("name", LEARNERS)
def test_thirty_steps_on_four_images_lower_the_loss_to_a_third(tmp_path, name):
    kind, keys, filters = LEARNERS[name]
    (tmp_path / "my.tree").write_text("a -1\nb 0\nc 0\n")
    anchors = "1,1, 2,2, 1.5,.8" if kind == "region" else "16,16, 32,32, 24,13"
    text = "[net]\nwidth=64\nheight=64\nchannels=3\n"
    for size in (16, 32, 64, 64):
        text += f"[convolutional]\nbatch_normalize=1\nfilters={size}\nsize=3\nstride=2\npad=1\nactivation=leaky\n"
    text += f"[convolutional]\nfilters={filters}\nsize=1\nactivation=linear\n[{kind}]\nanchors={anchors}\nnum=3\n{keys}"
    torch.manual_seed(0)
    network = build_network_from_text(text + "classes=3\n", str(tmp_path / "x.cfg"))
    initialise_head_biases(network)
    loss_function = build_loss(LossOptions(loss="darknet"), AssignmentOptions(match="darknet"), network.heads)
    images = torch.rand(4, 3, 64, 64)
    targets = targets_of(
        [(0, 0.3, 0.4, 0.3, 0.3, 0), (1, 0.6, 0.6, 0.5, 0.4, 1), (2, 0.2, 0.7, 0.2, 0.3, 2), (3, 0.5, 0.3, 0.6, 0.5, 1)]
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    losses = []
    for _ in range(31):
        total = loss_function(network(images), targets).total
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append(float(total.detach()))
    assert losses[30] < losses[0] / 3, losses


def test_what_darknets_loss_cannot_do_is_refused_in_one_line(tmp_path):
    network = build_network_from_text(head_text("region", tmp_path)[0], "x.cfg")
    with pytest.raises(UserError, match="for --match atss add --loss alpha"):
        build_loss(LossOptions(loss="darknet"), AssignmentOptions(match="atss"), network.heads)
    yolo = (
        NET
        + "[convolutional]\nfilters=18\nsize=1\nstride=32\n"
        + "[yolo]\nanchors=9,9, 20,20, 30,30\nnum=3\nclasses=1\n"
    )
    with pytest.raises(UserError, match=r"for \[yolo\] leave it out"):
        build_loss(
            LossOptions(loss="darknet"),
            AssignmentOptions(match="darknet"),
            build_network_from_text(yolo, "x.cfg").heads,
        )
    for options in ({"box": 3.0}, {"fl_gamma": 1.5}, {"balance": (1.0,)}, {"box_loss": "ciou"}):
        with pytest.raises(ValueError, match="is not used by --loss darknet"):
            LossOptions(loss="darknet", **options)


@pytest.mark.parametrize("match", ["standard", "ratio", "darknet", "pure", "split", "fast", "atss", "simota", "tal"])
@pytest.mark.parametrize("case", ["region", "region, tree", "gaussian, mse"])
def test_every_strategy_trains_these_heads_with_the_usual_loss(tmp_path, case, match):
    network = build_network_from_text(head_text(case, tmp_path)[0], str(tmp_path / "x.cfg"))
    x, rows = drawn(case, tmp_path, 0, 3)
    x = torch.from_numpy(x).requires_grad_()
    result = build_loss(LossOptions(), AssignmentOptions(match=match), network.heads)(
        [network.layers[-1](x)], targets_of(rows)
    )
    result.total.backward()
    assert torch.isfinite(x.grad).all() and (x.grad != 0).any()
