"""CenterNet's targets, loss and boxes against plain loops over cells, and its radius against its definition."""

import math

import pytest
import torch

from models.assignment.options import AssignmentOptions
from models.detector import Detector
from models.loss import LossOptions
from utils.structures import ImageMeta, Targets

pytest.importorskip("torchvision.models", exc_type=(ImportError, RuntimeError))
from models.families import centernet
from models.families.centernet import CenterMaps, build_centernet, center_loss, center_radius, center_targets

TARGETS = Targets(  # two near one another, one at the border, one of another image, one without width
    torch.tensor([0, 0, 0, 1, 1]),
    torch.tensor([1, 1, 0, 1, 0]),
    torch.tensor(
        [
            [0.4, 0.5, 0.5, 0.6],
            [0.55, 0.5, 0.4, 0.5],
            [1.0, 0.02, 0.3, 0.2],
            [0.31, 0.77, 0.12, 0.1],
            [0.5, 0.5, 0, 0.2],
        ]
    ),
)
SHAPE = (2, 2, 36, 48)  # B C h w


def maps(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return CenterMaps(*(torch.randn(2, channels, *SHAPE[2:], generator=generator) for channels in (2, 2, 2)))


def overlaps(width, height, radius):
    """IoU with a box of a box that is shifted by the radius, shrunk by it on every side, and grown by it."""
    shared = (width - radius) * (height - radius)
    area = width * height
    shrunk, grown = (width - 2 * radius) * (height - 2 * radius), (width + 2 * radius) * (height + 2 * radius)
    return shared / (2 * area - shared), shrunk / area, area / grown


@pytest.mark.parametrize("wh", [(10.0, 10.0), (3.0, 40.0), (0.5, 0.7), (200.0, 90.0)])
def test_the_worst_box_within_the_radius_overlaps_just_enough(wh):
    radius = center_radius(torch.tensor([wh], dtype=torch.float64)).item()
    assert radius > 0 and min(overlaps(*wh, radius)) == pytest.approx(0.7, abs=1e-9)


def heat_oracle():
    """The heat map cell by cell, in float64."""
    _, classes, rows, cols = SHAPE
    heat = torch.zeros(2, classes, rows, cols, dtype=torch.float64)
    for image, label, (x, y, w, h) in zip(TARGETS.image, TARGETS.label, TARGETS.boxes_cxcywh.double(), strict=True):
        if w * h == 0:
            continue
        w, h = (w * cols).item(), (h * rows).item()
        col, row = min(int(x * cols), cols - 1), min(int(y * rows), rows - 1)
        radius = 0
        while min(overlaps(w, h, radius + 1)) >= 0.7 and 2 * (radius + 1) < min(w, h):
            radius += 1
        for r in range(rows):
            for c in range(cols):
                if max(abs(r - row), abs(c - col)) <= radius:
                    deviation = (2 * radius + 1) / 6
                    value = math.exp(-((r - row) ** 2 + (c - col) ** 2) / (2 * deviation**2))
                    heat[image, label, r, c] = max(heat[image, label, r, c].item(), value)
    return heat


def test_targets_equal_a_loop_over_cells():
    found = center_targets(TARGETS, SHAPE)
    torch.testing.assert_close(found.heat.double(), heat_oracle(), rtol=1e-5, atol=1e-6)
    assert ((found.heat > 0) & (found.heat < 1)).sum() > 10
    assert (found.heat == 1).sum() == 4 and len(found.image) == 4
    assert (found.col.tolist(), found.row.tolist()) == ([19, 26, 47, 14], [18, 18, 0, 27])
    torch.testing.assert_close(found.size[0], torch.tensor([24.0, 21.6]))
    torch.testing.assert_close(found.offset[3], torch.tensor([14.88 - 14, 27.72 - 27]))


def loss_oracle(raw):
    """The three parts, per object, by the paper's equations."""
    truth, (_, _, rows, cols) = heat_oracle(), SHAPE
    heat = size = offset = 0.0
    for place in torch.cartesian_prod(*map(torch.arange, SHAPE)).tolist():
        p, y = 1 / (1 + math.exp(-raw.heat[tuple(place)].item())), truth[tuple(place)].item()
        heat -= (1 - p) ** 2 * math.log(p) if y == 1 else (1 - y) ** 4 * p**2 * math.log(1 - p)
    for image, (x, y, w, h) in zip(TARGETS.image.tolist(), TARGETS.boxes_cxcywh.tolist(), strict=True):
        if w * h:
            col, row = min(int(x * cols), cols - 1), min(int(y * rows), rows - 1)
            for axis, (length, center) in enumerate(((w * cols, x * cols - col), (h * rows, y * rows - row))):
                size += abs(raw.size[image, axis, row, col].item() - length)
                offset += abs(raw.offset[image, axis, row, col].item() - center)
    return {"heat": heat / 4, "size": 0.1 * size / 4, "offset": offset / 4}


def test_loss_equals_a_loop_over_cells():
    raw = maps()
    found = center_loss(raw, TARGETS, Targets.empty())
    assert found.parts.keys() == {"heat", "size", "offset"}
    for name, expected in loss_oracle(raw).items():
        assert found.parts[name].item() == pytest.approx(expected * 2, rel=1e-5)  # a sum over two images
    assert found.total.item() == pytest.approx(sum(loss_oracle(raw).values()) * 2 / 64, rel=1e-5)
    alone = center_loss(raw, Targets.empty(), Targets.empty())
    assert alone.parts["size"] == 0 and torch.isfinite(alone.total)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return build_centernet(18, 2)


def test_boxes_equal_a_loop_over_cells(network, monkeypatch):
    raw = maps(1)
    monkeypatch.setattr(centernet, "DETECTIONS", 60)
    for image, found in enumerate(network.candidates(raw, 0.3)):
        expected = []
        for label, row, col in torch.cartesian_prod(*map(torch.arange, SHAPE[1:])).tolist():
            heat = raw.heat[image, label]
            around = heat[max(0, row - 1) : row + 2, max(0, col - 1) : col + 2]
            width, height = raw.size[image, :, row, col].tolist()
            if heat[row, col] == around.max():
                x, y = col + raw.offset[image, 0, row, col].item(), row + raw.offset[image, 1, row, col].item()
                box = [4 * (x - width / 2), 4 * (y - height / 2), 4 * (x + width / 2), 4 * (y + height / 2)]
                expected.append((heat[row, col].sigmoid().item(), label, min(width, height) > 0, box))
        expected = [one for one in sorted(expected, reverse=True)[:60] if one[0] > 0.3 and one[2]]
        assert found.labels.tolist() == [one[1] for one in expected] and len(expected) > 1
        torch.testing.assert_close(found.scores, torch.tensor([one[0] for one in expected]))
        torch.testing.assert_close(found.boxes_xyxy, torch.tensor([one[3] for one in expected]), rtol=1e-5, atol=1e-4)


def test_peaks_are_not_suppressed_and_classes_are_selected(network):
    images = torch.randint(0, 256, (1, 3, 64, 96), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    metas = [ImageMeta(0, "", (96, 64))]
    (everything,) = Detector(network, confidence=0.0, iou=0.1)(images, metas)
    (loose,) = Detector(network, confidence=0.0, iou=1.0)(images, metas)
    torch.testing.assert_close(everything.boxes_xyxy, loose.boxes_xyxy)
    swapped = network.with_classes([1, 0])
    raw, other = (one.eval()(images / 255).heat for one in (network, swapped))
    torch.testing.assert_close(other, raw.flip(1))
    assert network.with_classes([1]).num_classes == 1


def test_it_learns_and_its_parts_have_all_parameters(network):
    learner = network.learner(LossOptions(), AssignmentOptions(), (64, 64)).train()
    learner(torch.rand(2, 3, 64, 64), TARGETS, Targets.empty()).total.backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    parts = network.parts()
    assert sum(len(list(part.parameters())) for part in parts) == len(list(network.parameters()))
    for name, parameter in network.named_parameters():
        assert any(parameter is one for one in parts[network.part_of(name)].parameters())
    assert [parts[number] for number in network.parts_that_predict()] == [network.heat, network.size, network.offset]
