"""Test-time augmentation with a network that is known: it finds the bright rectangle, one slot per image."""

import math

import pytest
import torch
from stub_network import StubNetwork

from models.detector import Detector
from models.exported.network import DecodedHead
from models.nms_variants import NmsOptions
from models.views import AugmentedDetector, InputView, ViewOptions, build_detector
from utils.errors import UserError
from utils.structures import ImageMeta

SCORE_OF_WIDTH = {128: 0.5, 64: 0.9, 192: 0.7}  # of the network input
RECTANGLE = (16, 24, 56, 72)  # x1, y1, x2, y2 in the input of 128 x 96; far from the middle


class BrightRectangle(StubNetwork):
    """Finds the box around the pixels above one half, and remembers the sizes that it has seen."""

    heads = (DecodedHead(anchors_wh=(), stride=32, num_classes=2),)
    max_stride = 32
    cfg_path = "rectangle.cfg"

    def __init__(self, fixed_size=False):
        super().__init__()
        self.fixed_size = fixed_size
        self.seen = []

    def forward(self, images):
        self.seen.append(tuple(images.shape))
        rows = []
        for image in images:
            y, x = (image.mean(dim=0) > 0.5).nonzero(as_tuple=True)
            box = (x.min(), y.min(), x.max() + 1, y.max() + 1)
            rows.append([*map(float, box), SCORE_OF_WIDTH[image.shape[2]], 0.0])
        return [torch.tensor(rows)[:, None, None, None]]


def scene():
    """Return a network input of two images, and where they lie in it: letterboxed and stretched."""
    images = torch.full((2, 3, 96, 128), 20, dtype=torch.uint8)
    x1, y1, x2, y2 = RECTANGLE
    images[0, :, y1:y2, x1:x2] = 250
    images[1, :, 8:40, 80:120] = 250
    return images, [ImageMeta(0, "", (240, 160), (0.5, 0.5), (4.0, 8.0)), ImageMeta(1, "", (64, 96), (2.0, 1.0))]


EXPECTED = ([(16 - 4) * 2, (24 - 8) * 2, (56 - 4) * 2, (72 - 8) * 2], [40, 8, 60, 40])  # original pixels


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("scale, wh", [(1.0, (128, 96)), (0.5, (64, 64)), (0.875, (128, 96)), (1.5, (192, 160))])
def test_every_view_gives_the_box_in_original_pixels(scale, wh, mirrored):
    network = BrightRectangle()
    images, metas = scene()
    detector = AugmentedDetector(network, [InputView(scale, mirrored)], confidence=0.1)
    found = detector(images, metas)
    assert network.seen == [(2, 3, *wh[::-1])]  # in whole strides
    for one, expected in zip(found, EXPECTED, strict=True):
        assert one.boxes_xyxy.tolist() == [pytest.approx(expected, abs=1e-4)]
        assert one.scores.tolist() == pytest.approx([SCORE_OF_WIDTH[wh[0]]])


def test_views_meet_before_suppression():
    views = ViewOptions(augment=True, augment_scales=(1.0, 0.5, 1.5))
    images, metas = scene()
    thresholds = {"confidence": 0.1, "max_detections": 2}
    everything = build_detector(BrightRectangle(), NmsOptions(), views, iou=1.0, **thresholds)
    assert everything.views == (InputView(1.0), InputView(0.5, True), InputView(1.5))
    for one, expected in zip(everything(images, metas), EXPECTED, strict=True):
        assert one.scores.tolist() == pytest.approx([0.9, 0.7])  # the limit is of all views together
        assert one.boxes_xyxy.tolist() == [pytest.approx(expected, abs=1e-4)] * 2
    assert (everything.dropped.images, everything.dropped.detections) == (2, 2)
    assert everything.speed().images == 2
    greedy = build_detector(BrightRectangle(), NmsOptions(), views, iou=0.5, **thresholds)
    assert [one.scores.tolist() for one in greedy(images, metas)] == [pytest.approx([0.9])] * 2
    assert greedy.dropped.images == 0
    soft = build_detector(BrightRectangle(), NmsOptions("soft-gaussian"), views, confidence=0.05, max_detections=2)
    scores = [0.9, 0.7 * math.exp(-1 / 0.5)]
    assert [one.scores.tolist() for one in soft(images, metas)] == [pytest.approx(scores, abs=1e-4)] * 2


def test_one_view_as_it_is_changes_nothing():
    images, metas = scene()
    plain = Detector(BrightRectangle(), confidence=0.1)(images, metas)
    same = AugmentedDetector(BrightRectangle(), [InputView()], confidence=0.1)(images, metas)
    for one, other in zip(plain, same, strict=True):
        assert torch.equal(one.boxes_xyxy, other.boxes_xyxy) and torch.equal(one.scores, other.scores)
    assert type(build_detector(BrightRectangle(), NmsOptions(), ViewOptions())) is Detector


def test_a_view_is_the_picture_mirrored_and_filled_up_with_grey():
    images = torch.zeros(1, 3, 96, 128, dtype=torch.uint8)
    images[:, :, :, :10] = 200
    (view, _) = InputView(1.0, mirrored=True).of(images, [ImageMeta(0, "", (128, 96))], 32)
    assert torch.equal(view, images.flip(3)) and view.dtype == torch.uint8
    (view, (meta,)) = InputView(0.83).of(images, [ImageMeta(0, "", (256, 192), (0.5, 0.5))], 32)
    assert view.shape == (1, 3, 96, 128) and (view[:, :, 80:] == 114).all() and (view[..., 106:] == 114).all()
    assert (view[:, :, :80, 20:106] == 0).all() and meta.scale_xy == (0.5 * 106 / 128, 0.5 * 80 / 96)


def test_a_network_of_one_size_takes_mirrored_views_only():
    one_size = BrightRectangle(fixed_size=True)
    with pytest.raises(UserError, match="takes one size only; give --augment-scales 1 1"):
        build_detector(one_size, NmsOptions(), ViewOptions(augment=True))
    detector = build_detector(one_size, NmsOptions(), ViewOptions(True, (1.0, 1.0)), confidence=0.1)
    images, metas = scene()
    assert [one.boxes_xyxy.tolist() for one in detector(images, metas)] == [[pytest.approx(e)] for e in EXPECTED]


@pytest.mark.parametrize(
    "values, words",
    [
        ((True, ()), "above 0"),
        ((True, (1.0, 0.0)), "above 0"),
        ((True, (5.0,)), "not above 4"),
        ((True, (math.nan,)), "above 0"),
        ((False, (1.0, 1.0)), "--augment-scales is for --augment"),
    ],
)
def test_options_that_mean_nothing_are_refused(values, words):
    with pytest.raises(ValueError, match=words):
        ViewOptions(*values)
