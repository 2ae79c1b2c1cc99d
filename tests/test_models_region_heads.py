"""Heads other than [yolo]: how [region] and [Gaussian_yolo] are read, decoded and scored."""

import math
import random

import pytest
import torch
from darknet_loss_oracle import Region, logistic
from torch.testing import assert_close

from engine.recipes import default_recipe
from models.checkpoints.darknet_weights import load_darknet_weights, save_darknet_weights
from models.decode import decode_predictions
from models.detector import Detector
from models.head_biases import initialise_head_biases
from models.heads import decode_map
from models.network import build_network, build_network_from_text
from models.nms import select_candidates
from utils.config import REPOSITORY
from utils.errors import UserError
from utils.structures import ImageMeta

TREE = (-1, -1, 0, 0, 0, 1, 2, 2)
NET = "[net]\nwidth=96\nheight=64\nchannels=3\n"
REGION = "[region]\nanchors=.5,.6, 1.5,2\nnum=2\nclasses=3\nsoftmax=1\n"
GAUSSIAN = "[Gaussian_yolo]\nmask=0,2\nanchors=10,13, 16,30, 33,23\nnum=3\nclasses=3\n"


def conv(filters, stride=32):
    return f"[convolutional]\nfilters={filters}\nsize=1\nstride={stride}\nactivation=linear\n"


def build(text, folder="", num_classes=None):
    return build_network_from_text(text, f"{folder}/x.cfg" if folder else "x.cfg", num_classes)


def with_tree(folder, lines=None):
    lines = lines or [f"c{number} {parent}" for number, parent in enumerate(TREE)]
    (folder / "my.tree").write_text("\n".join(lines) + "\n")
    return NET + conv(26) + REGION.replace("classes=3", "classes=8") + "tree=my.tree\n"


def found_by(network, x, confidence):
    """Return the candidates of a head's input as {(slot, class): score}, and the boxes of the slots that pass."""
    raw = network.layers[-1](x)
    decoded = decode_predictions([raw], network.heads, confidence)
    slot, label, score = select_candidates(decoded.objectness, decoded.class_logits, confidence, multi_label=True)
    boxes = decoded.boxes_xyxy_net[slot]
    return {
        (*(round(n, 2) for n in box), label): score
        for box, label, score in zip(boxes.tolist(), label.tolist(), score.tolist(), strict=True)
    }


def test_a_region_decodes_with_anchors_in_cells():
    # Zeros: the centre of the cell and the anchor's own size; classes share 1 equally.
    network = build(NET + conv(16) + REGION)
    raw = network.layers[-1](torch.zeros(1, 16, 2, 3))
    boxes = decode_map(raw, network.heads[0])  # in cells
    assert_close(boxes[0, 1, 1, 2], torch.tensor([2.5, 1.5, 1.5, 2.0]))
    assert_close(raw[..., 5:].sigmoid(), torch.full((1, 2, 2, 3, 3), 1 / 3))
    head = network.heads[0]
    assert head.anchors_wh == ((16.0, pytest.approx(19.2)), (48.0, 64.0)) and head.stride == 32


def test_the_sigmoid_of_a_class_is_its_softmax():
    network = build(NET + conv(16) + REGION)
    x = torch.randn(2, 16, 2, 3) * 4
    x[0, 5] = 60.0  # one class is certain: its logit stays finite, and so do gradients
    x.requires_grad_()
    raw = network.layers[-1](x)
    numbers = x.view(2, 2, 8, 2, 3).permute(0, 1, 3, 4, 2)
    assert_close(raw[..., :5], numbers[..., :5])
    assert_close(raw[..., 5:].sigmoid(), numbers[..., 5:].softmax(-1), atol=1e-6, rtol=1e-5)
    torch.nn.functional.logsigmoid(raw).sum().backward()
    assert torch.isfinite(raw).all() and torch.isfinite(x.grad).all()


@pytest.mark.parametrize("on", ["cpu", "meta"])
def test_a_tree_multiplies_the_softmax_of_every_group_on_the_branch(tmp_path, on):
    with torch.device(on):
        network = build(with_tree(tmp_path), tmp_path)
    if on == "meta":
        return
    x = torch.randn(1, 26, 2, 3) * 2
    raw = network.layers[-1](x)
    oracle = Region(((0.5, 0.6), (1.5, 2.0)), 8, TREE)
    slot = oracle._slot(x[0].tolist(), 1, 1, 2)
    in_group = oracle.probabilities(slot[5:])
    for number in range(8):
        wanted, node = 1.0, number
        while node >= 0:
            wanted, node = wanted * in_group[node], TREE[node]
        assert float(raw[0, 1, 1, 2, 5 + number].sigmoid()) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("spread", [1, 1.5, 2, 3])
def test_a_tree_scores_the_last_class_above_one_half_by_its_probability_alone(tmp_path, spread):
    network = build(with_tree(tmp_path), tmp_path)
    x = torch.randn(1, 26, 2, 3, generator=torch.Generator().manual_seed(0)) * spread
    oracle, wanted = Region(((0.5, 0.6), (1.5, 2.0)), 8, TREE), {}
    for n in range(2):
        for row in range(2):
            for col in range(3):
                slot = oracle._slot(x[0].tolist(), n, row, col)
                p = oracle.probabilities(slot[5:])
                for number in range(8):  # as hierarchy_predictions: parents come first
                    p[number] *= 1 if TREE[number] < 0 else p[TREE[number]]
                sure = [number for number in range(8) if p[number] > 0.5]
                if sure and logistic(slot[4]) > 0.3:
                    cx, cy, w, h = oracle._box(slot, n, row, col, 2, 3)
                    box = ((cx - w / 2) * 96, (cy - h / 2) * 64, (cx + w / 2) * 96, (cy + h / 2) * 64)
                    wanted[(*(round(number, 2) for number in box), sure[-1])] = p[sure[-1]]
    found = found_by(network, x, 0.3)
    assert len(wanted) > 2
    assert sorted(found.values()) == pytest.approx(sorted(wanted.values()), abs=1e-5)
    assert sorted(key[-1] for key in found) == sorted(key[-1] for key in wanted)


def test_a_gaussian_yolo_scores_with_its_certainty_and_decodes_as_a_yolo():
    # Per anchor x, σx, y, σy, w, σw, h, σh, objectness, classes; all other slots have no objectness.
    network = build(NET + conv(24) + GAUSSIAN + "scale_x_y=1.2\n")
    x = torch.full((1, 24, 2, 3), -20.0)
    numbers = [0.4, -1.0, -0.2, 0.5, 0.3, -2.0, -0.6, 0.1, 1.5, 2.0, -1.0, 0.7]
    x[0, 12:, 1, 2] = torch.tensor(numbers)
    certainty = 1 - sum(logistic(number) for number in numbers[1:8:2]) / 4
    cx = (2 + logistic(0.4) * 1.2 - 0.1) * 32
    cy = (1 + logistic(-0.2) * 1.2 - 0.1) * 32
    w, h = math.exp(0.3) * 33, math.exp(-0.6) * 23
    raw = network.layers[-1](x)
    assert_close(decode_map(raw, network.heads[0])[0, 1, 1, 2] * 32, torch.tensor([cx, cy, w, h]))
    found = found_by(network, x, 0.1)
    wanted = {number: logistic(1.5) * logistic(numbers[9 + number]) * certainty for number in range(3)}
    assert {key[-1]: score for key, score in found.items()} == pytest.approx(
        {number: score for number, score in wanted.items() if score > 0.1}, abs=1e-6
    )


@pytest.mark.parametrize("text", [NET + conv(16) + REGION, NET + conv(24) + GAUSSIAN], ids=["region", "gaussian"])
def test_the_detector_runs(text):
    network = build(text)
    meta = ImageMeta(1, "", (96, 64))
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    for found in Detector(network, confidence=0.01)(images, [meta, meta]):
        assert len(found) and bool((found.scores > 0.01).all()) and bool((found.labels < 3).all())


def test_other_classes_change_the_filters_by_each_heads_own_numbers():
    assert build(NET + conv(16) + REGION, num_classes=7).layers[0].conv.out_channels == 2 * (5 + 7)
    assert build(NET + conv(24) + GAUSSIAN, num_classes=7).layers[0].conv.out_channels == 2 * (9 + 7)


def test_biases_start_where_objects_are_rare_but_for_regions():
    gaussian, region = build(NET + conv(24) + GAUSSIAN), build(NET + conv(16) + REGION)
    for network in (gaussian, region):
        network.layers[0].conv.bias.data.zero_()
        initialise_head_biases(network, "yolov3")
    bias = gaussian.layers[0].conv.bias.detach().view(2, 12)
    assert bias[:, 8].tolist() == [-4.5, -4.5] and bool((bias[:, 9:] == bias[0, 9]).all()) and not bias[:, :8].any()
    assert not region.layers[0].conv.bias.any()


def test_missing_anchors_are_half_a_cell_and_superfluous_ones_are_left_out():
    network = build(NET + conv(16) + "[region]\nanchors=1,2\nnum=2\nclasses=3\nsoftmax=1\n")
    assert network.heads[0].anchors_wh == ((32.0, 64.0), (16.0, 16.0))
    network = build(NET + conv(8) + "[region]\nanchors=1,2,3,4\nnum=1\nclasses=3\nsoftmax=1\n")
    assert network.heads[0].anchors_wh == ((32.0, 64.0),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            NET + conv(17) + REGION,
            r"x.cfg:10: \[region\] needs 2 anchors x \(5 \+ 3 classes\) = 16 channels; the layer",
        ),
        (NET + conv(25) + GAUSSIAN, r"x.cfg:10: \[gaussian_yolo\] needs 2 anchors x \(9 \+ 3 classes\) = 24 channels"),
        (NET + conv(16) + REGION + "coords=5\n", r"x.cfg:15: \[region\] coords=5 is outside 4..4"),
        (NET + conv(16) + REGION + "classfix=-1\n", r"x.cfg:15: \[region\] classfix=-1 is outside 0..0"),
        (NET + conv(16) + REGION.replace(".5,.6", "0,.6"), r"x.cfg:11: \[region\] anchors must be above 0"),
        (NET + conv(16) + REGION + "tree=none.tree\n", r"x.cfg:15: \[region\] tree=none.tree: no such file here or"),
        (NET + conv(16) + REGION + "tree=" + "x" * 5000 + "\n", "no such file here or beside the cfg"),
        (NET + conv(24) + GAUSSIAN + "yolo_point=left_top\n", r"yolo_point=left_top is not known"),
        (NET + conv(16) + REGION + conv(8), r"reads layer 1, a \[region\] head; put a \[route\]"),
    ],
)
def test_what_cannot_be_built_is_refused_with_its_line(text, message):
    with pytest.raises(UserError, match=message) as caught:
        build(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a -1", "b 0"], r"x.cfg:15: \[region\] tree=my.tree: .*my.tree has 2 lines, not one for each of classes=8"),
        (["a 0", *["b 0"] * 7], r"my.tree:1: expected a name and the number of an earlier line"),
        (["a -1", *["b 0"] * 6, "c 9"], r"my.tree:8: expected"),
        (["a -1", "b x", *["b 0"] * 6], r"my.tree:2: expected"),
        (["a -1", "", *["b 0"] * 6], r"my.tree:2: expected"),
        (["a -1", "b -7", *["b 0"] * 6], r"my.tree:2: expected"),
    ],
)
def test_a_broken_tree_is_refused_with_its_line(tmp_path, lines, message):
    with pytest.raises(UserError, match=message):
        build(with_tree(tmp_path, lines), tmp_path)


def test_a_tree_is_found_from_the_folder_above_the_cfg_as_in_darknets_own(tmp_path):
    (tmp_path / "data").mkdir()
    text = with_tree(tmp_path / "data").replace("tree=my.tree", "tree=data/my.tree")
    (tmp_path / "cfg").mkdir()
    assert build(text, tmp_path / "cfg").heads[0].rule.tree.groups == (0, 0, 1, 1, 1, 2, 3, 3)


def test_keys_without_effect_are_named():
    (note,) = build(NET + conv(16) + REGION + "absolute=1\nrandom=1\njitter=.3\nbackground=1\n").notes
    assert note == "x.cfg: without effect here: [region] absolute, random, jitter, background"
    notes = build(NET + conv(24) + GAUSSIAN + "truth_thresh=.9\niou_thresh_kind=giou\n").notes
    assert "follows" in notes[-1] and "truth_thresh=0.9" in notes[-1] and "iou_thresh_kind=giou" in notes[-1]


@pytest.mark.parametrize("text", [NET + conv(16) + REGION, NET + conv(24) + GAUSSIAN], ids=["region", "gaussian"])
def test_weights_go_in_and_out_byte_for_byte(tmp_path, text):
    first, second = tmp_path / "a.weights", tmp_path / "b.weights"
    save_darknet_weights(build(text), first, seen=1234)
    again = build(text)
    report = load_darknet_weights(again, first)
    save_darknet_weights(again, second, report.seen)
    assert first.read_bytes() == second.read_bytes()


def test_mutated_cfgs_build_or_say_why(tmp_path):
    text, generator, refused = with_tree(tmp_path) + conv(8) + NET + GAUSSIAN, random.Random(0), 0
    for _ in range(300):
        place = generator.randrange(len(text))
        mutated = text[:place] + generator.choice("0123456789=-,.#[]xy\0é \n") + text[place + generator.randrange(3) :]
        mutated = mutated.replace(conv(8) + NET, generator.choice(["", conv(8) + NET]))
        try:
            with torch.device("meta"):
                build(mutated, tmp_path)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 50


@pytest.mark.parametrize(
    ("cfg", "parameters", "recipe"),
    [
        ("yolov2.cfg", 50_962_889, "darknet.yaml"),
        ("yolov2-voc.cfg", 50_655_389, "darknet.yaml"),
        ("yolov2-tiny.cfg", 11_232_057, "darknet.yaml"),
        ("yolov3-tiny.cfg", 8_852_366, "yolov3.yaml"),
    ],
)
def test_published_networks(cfg, parameters, recipe):
    with torch.device("meta"):
        network = build_network(REPOSITORY / "cfg" / cfg)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    assert default_recipe(cfg) == recipe
