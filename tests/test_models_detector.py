"""The detector against loops over every slot, for batches, sizes and thresholds."""

import math

import numpy as np
import pytest
import torch
from stub_network import StubNetwork
from torch import nn

from data.letterbox import RESIZES
from models import detector as detector_module
from models.decode import DecodedPredictions, decode_predictions
from models.detector import Detector
from models.heads import Head
from models.nms_variants import NmsOptions
from utils.structures import ImageMeta

HEADS = (
    Head(anchors_wh=((30.0, 20.0), (60.0, 90.0)), stride=16, num_classes=3),
    Head(anchors_wh=((8.0, 10.0), (14.0, 6.0)), stride=8, num_classes=3, scale_x_y=1.2, new_coords=True),
)


class TwoHeads(StubNetwork):
    """Two convolutions that answer as a network of two heads does; ``fuse`` is a copy."""

    def __init__(self, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.heads = HEADS
        self.layers = nn.ModuleList(
            nn.Conv2d(3, h.num_anchors * (5 + h.num_classes), h.stride, h.stride) for h in HEADS
        )
        for layer in self.layers:
            layer.weight.data = torch.randn(layer.weight.shape, generator=generator) * 0.4
            layer.bias.data = torch.randn(layer.bias.shape, generator=generator) * 0.4

    def forward(self, images):
        maps = []
        for layer, head in zip(self.layers, self.heads, strict=True):
            out = layer(images)
            batch, _, rows, cols = out.shape
            maps.append(out.view(batch, head.num_anchors, -1, rows, cols).permute(0, 1, 3, 4, 2))  # B A H W 5+C
        return maps

    def fuse(self):
        copy = TwoHeads()
        copy.load_state_dict(self.state_dict())
        return copy.to(next(self.parameters()).device)


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def boxes_oracle(raw, head):
    """Yield (box xyxy in network pixels, objectness, class probabilities) of every slot of a [A H W 5+C] map."""
    for row, col in np.ndindex(*raw.shape[1:3]):
        for anchor, (prior_w, prior_h) in enumerate(head.anchors_wh):
            tx, ty, tw, th, objectness, *classes = raw[anchor, row, col].tolist()
            s = head.scale_x_y
            x = (sigmoid(tx) * s - (s - 1) / 2 + col) * head.stride
            y = (sigmoid(ty) * s - (s - 1) / 2 + row) * head.stride
            if head.new_coords:
                w, h = prior_w * (2 * sigmoid(tw)) ** 2, prior_h * (2 * sigmoid(th)) ** 2
            else:
                w, h = prior_w * math.exp(tw), prior_h * math.exp(th)
            yield (x - w / 2, y - h / 2, x + w / 2, y + h / 2), sigmoid(objectness), [sigmoid(c) for c in classes]


def detections_oracle(raw_maps, image, meta, confidence, iou_threshold, limit):
    """Loops in plain Python over every slot and class, from the formulas of models/heads.py."""
    found = []
    for raw, head in zip(raw_maps, HEADS, strict=True):
        for box, objectness, classes in boxes_oracle(raw[image], head):
            found += [(objectness * c, label, box) for label, c in enumerate(classes) if objectness * c > confidence]
    found.sort(key=lambda item: -item[0])
    kept = []
    for item in found:
        rivals = [other for other in kept if other[1] == item[1]]
        if len(kept) < limit and all(overlap(item[2], other[2]) <= iou_threshold for other in rivals):
            kept.append(item)
    (scale_x, scale_y), (left, top), (width, height) = meta.scale_xy, meta.offset_xy, meta.original_wh
    result = []
    for score, label, (x1, y1, x2, y2) in kept:
        corners = [(x1 - left) / scale_x, (y1 - top) / scale_y, (x2 - left) / scale_x, (y2 - top) / scale_y]
        result.append((score, label, np.clip(corners, 0, [width, height] * 2)))
    return result


def overlap(a, b):
    inter = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    return inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter)


def images_and_frames(count=3, height=48, width=80, seed=0):
    images = torch.randint(
        0, 256, (count, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )
    # The second image was letterboxed, the third stretched.
    metas = [
        ImageMeta(10, "a", (width, height)),
        ImageMeta(11, "b", (40, 36), (4 / 3, 4 / 3), (40 / 3, 0.0)),
        ImageMeta(12, "c", (160, 24), (0.5, 2.0), (0.0, 0.0)),
    ]
    return images, metas[:count]


@pytest.mark.parametrize("confidence, limit", [(0.02, 300), (0.09, 7)])
def test_equals_loops_over_every_slot(confidence, limit):
    images, metas = images_and_frames()
    network = TwoHeads()
    detector = Detector(network, confidence=confidence, iou=0.45, max_detections=limit)
    raw_maps = network.eval()(images / 255)
    for number, found in enumerate(detector(images, metas)):
        expected = detections_oracle(raw_maps, number, metas[number], confidence, 0.45, limit)
        assert len(found) == len(expected) > 3
        np.testing.assert_allclose(found.scores, [item[0] for item in expected], rtol=1e-5)
        assert found.labels.tolist() == [item[1] for item in expected]
        np.testing.assert_allclose(found.boxes_xyxy, np.array([item[2] for item in expected]), atol=1e-3)


def test_batch_equals_single_images():
    images, metas = images_and_frames()
    detector = Detector(TwoHeads(), confidence=0.01)
    for number, together in enumerate(detector(images, metas)):
        (alone,) = detector(images[number : number + 1], metas[number : number + 1])
        assert torch.equal(alone.labels, together.labels)
        torch.testing.assert_close(alone.scores, together.scores, rtol=1e-5, atol=0)
        torch.testing.assert_close(alone.boxes_xyxy, together.boxes_xyxy, rtol=1e-5, atol=1e-3)


def test_one_class_per_box_above_the_evaluation_confidence():
    images, metas = images_and_frames(1)
    (found,) = Detector(TwoHeads(), confidence=0.2, iou=1.0, max_detections=10**6)(images, metas)
    slots = decode_predictions(TwoHeads()(images / 255), HEADS, 0.2)
    best = slots.objectness.sigmoid() * slots.class_logits.sigmoid().max(dim=1).values
    assert len(found) == int((best > 0.2).sum()) > 0


def test_classes_are_selected_and_agnostic_keeps_fewer():
    images, metas = images_and_frames(1)
    (everything,) = Detector(TwoHeads(), confidence=0.01, iou=0.3)(images, metas)
    (some,) = Detector(TwoHeads(), confidence=0.01, iou=0.3, classes=[2, 0])(images, metas)
    assert set(everything.labels.tolist()) == {0, 1, 2} and set(some.labels.tolist()) == {0, 2}
    expected = everything.scores[everything.labels != 1]
    torch.testing.assert_close(some.scores[: len(expected)], expected)
    (agnostic,) = Detector(TwoHeads(), confidence=0.01, iou=0.3, nms=NmsOptions(agnostic_nms=True))(images, metas)
    assert len(agnostic) < len(everything)


def test_nms_compares_original_pixels(monkeypatch):
    # Two pairs of boxes of 20 x 20 pixels, 10 apart, IoU 1/3, in an image that is squeezed to a quarter of its width:
    # what Darknet's penalty takes off grows for the pair one above the other and shrinks for the pair side by side.
    boxes = torch.tensor([[0.0, 0, 20, 20], [0, 10, 20, 30], [40, 0, 60, 20], [50, 0, 70, 20]])
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6])
    squeezed = boxes * torch.tensor([0.25, 1, 0.25, 1])
    decoded = DecodedPredictions(squeezed, scores.logit(), torch.full((4, 1), 20.0), torch.zeros(4, dtype=torch.int64))
    monkeypatch.setattr("models.decode.decode_predictions", lambda *_: decoded)
    detector = Detector(TwoHeads(), confidence=0.3, iou=0.13)
    detector.network.nms_beta = 0.6
    for meta, kept in ((ImageMeta(0, "", (80, 30), (0.25, 1.0)), 4), (ImageMeta(0, "", (80, 30)), 3)):
        (found,) = detector.detect([torch.zeros(1)], [meta])
        assert len(found) == kept


def test_images_may_lie_between_two_bytes():
    detector = Detector(TwoHeads())
    images, _ = images_and_frames(1)
    for exact, given in zip(detector.raw_outputs(images), detector.raw_outputs(images.float()), strict=True):
        assert torch.equal(exact, given)
    between = images.float() + 0.4
    torch.testing.assert_close(detector.raw_outputs(between)[0], detector.network(between / 255)[0])
    assert not torch.equal(detector.raw_outputs(between)[0], detector.raw_outputs(images)[0])


def test_nothing_found_gives_empty_detections():
    images, metas = images_and_frames()
    found = Detector(TwoHeads(), confidence=0.999999)(images, metas)
    assert [len(item) for item in found] == [0, 0, 0]
    assert found[0].boxes_xyxy.shape == (0, 4) and found[0].labels.dtype == torch.int64


def test_boxes_are_not_clamped_but_clipped_to_the_image():
    # exp(20) x 30 pixels is far above training's clamp; the box covers the image and is clipped to it.
    raw = torch.full((1, 2, 1, 1, 8), -20.0)
    raw[0, 0, 0, 0] = torch.tensor([0, 0, 20.0, 20.0, 5, 5, -9, -9])
    head = HEADS[0]
    boxes = decode_predictions([raw], [head], 0.1).boxes_xyxy_net
    assert boxes[0, 2] - boxes[0, 0] > 30 * math.exp(19.9)
    meta = ImageMeta(0, "", (100, 50))
    assert meta.to_original(boxes).tolist() == [[0, 0, 100, 50]]
    assert (meta.to_original(boxes, clip=False) != meta.to_original(boxes)).any()
    # Half the size, after the border of 10 pixels at the top is taken off.
    bordered = ImageMeta(0, "", (100, 50), (2.0, 2.0), (0.0, 10.0))
    beyond = torch.tensor([[-20.0, 0.0, 300.0, 130.0]])
    assert bordered.to_original(beyond, clip=False).tolist() == [[-10.0, -5.0, 150.0, 60.0]]


def test_broken_weights_give_no_detections_instead_of_nan():
    images, metas = images_and_frames(1)
    network = TwoHeads()
    network.layers[0].weight.data[0] = math.nan  # the x of anchor 0 of head 0
    (found,) = Detector(network, confidence=0.01)(images, metas)
    assert len(found) and found.boxes_xyxy.isfinite().all()
    network.layers[0].weight.data[:] = math.nan
    network.layers[1].weight.data[:] = math.nan
    assert len(Detector(network, confidence=0.01)(images, metas)[0]) == 0


def test_owns_a_copy_and_measures_time():
    images, metas = images_and_frames()
    network = TwoHeads()
    detector = Detector(network, confidence=0.01)
    before = detector(images, metas)[0].scores
    network.layers[0].weight.data.zero_()
    assert torch.equal(detector(images, metas)[0].scores, before)
    speed = detector.speed()
    assert speed.images == 6 and 0 < speed.inference_ms < speed.total_ms == speed.inference_ms + speed.nms_ms
    detector.reset_speed()
    assert detector.speed().images == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_half_on_a_cpu_is_bfloat16_where_the_cpu_has_it(monkeypatch, dtype):
    monkeypatch.setattr(detector_module, "half_type", lambda _device: dtype)
    images, metas = images_and_frames()
    exact = Detector(TwoHeads(), confidence=0.05)(images, metas)
    detector = Detector(TwoHeads(), confidence=0.05, half=True)
    assert detector.raw_outputs(images)[0].dtype == dtype
    for a, b in zip(exact, detector(images, metas), strict=True):
        torch.testing.assert_close(a.scores[:5], b.scores[:5], rtol=0.03, atol=1e-3)
        assert torch.equal(a.scores, b.scores) == (dtype == torch.float32)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("half", [False, True])
def test_cuda_agrees_with_cpu(half):
    images, metas = images_and_frames()
    on_cpu = Detector(TwoHeads(), confidence=0.05)(images, metas)
    on_gpu = Detector(TwoHeads().cuda(), confidence=0.05, half=half)(images, metas)
    for a, b in zip(on_cpu, on_gpu, strict=True):
        torch.testing.assert_close(a.scores[:5], b.cpu().scores[:5].float(), rtol=0.03 if half else 1e-3, atol=1e-3)


@pytest.mark.parametrize("original_wh", [(640, 427), (333, 500), (1, 1), (32, 32)])
@pytest.mark.parametrize("frame_of", list(RESIZES.values()))
def test_original_pixels_survive_the_way_to_the_network_and_back(original_wh, frame_of):
    meta = frame_of(1, "", original_wh, (256, 416))
    width, height = original_wh
    boxes = torch.rand(50, 2, 2).sort(dim=1).values.flatten(1) * torch.tensor([width, height] * 2)
    there = meta.to_network(boxes)
    assert there[:, 0::2].max() <= 416 and there[:, 1::2].max() <= 256 and there.min() >= 0
    torch.testing.assert_close(meta.to_original(there), boxes, rtol=1e-5, atol=1e-3)
