"""The kinds of ``--nms`` against one plain loop over float64, and cases worked by hand."""

import math

import pytest
import torch
from test_models_detector import TwoHeads, images_and_frames

from models.detector import COUNTED, Detector, Dropped
from models.nms_variants import NMS_KINDS, NmsOptions, NmsRule, suppress
from utils.structures import Detections

KINDS = [kind for kind in NMS_KINDS if kind != "cfg"]


def detections(*rows):
    """Return detections of rows (score, label, x1, y1, x2, y2)."""
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    return Detections(table[:, 2:], table[:, 0], table[:, 1].long())


def random_candidates(count, seed, score_levels=0):
    """Boxes that overlap a lot, some without area; with ``score_levels`` many scores are equal."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 60
    size = torch.rand(count, 2, generator=generator) * 40 * (torch.rand(count, 1, generator=generator) > 0.1)
    scores = torch.rand(count, generator=generator) * 0.98 + 0.01
    if score_levels:
        scores = (scores * score_levels).ceil() / score_levels
    return Detections(torch.cat((corner, corner + size), 1), scores, torch.randint(0, 3, (count,), generator=generator))


def iou_of(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    intersection = max(0.0, width) * max(0.0, height)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - intersection
    return intersection / union if union else 0.0


def overlap_of(kind, a, b):
    """IoU, for DIoU less the squared distance of the centres over the squared diagonal of the box around both."""
    if kind != "diou":
        return iou_of(a, b)
    distance = ((a[0] + a[2] - b[0] - b[2]) / 2) ** 2 + ((a[1] + a[3] - b[1] - b[3]) / 2) ** 2
    around = (max(a[2], b[2]) - min(a[0], b[0])) ** 2 + (max(a[3], b[3]) - min(a[1], b[1])) ** 2
    return iou_of(a, b) - distance / max(around, 1e-9)


def loop(kind, candidates, rule):
    """Return rows (score, label, x1, y1, x2, y2), by the definitions, one box after the other in float64."""
    boxes, labels = candidates.boxes_xyxy.tolist(), candidates.labels.tolist()
    scores = candidates.scores.tolist()
    left, rows = list(range(len(boxes))), []
    while left and (rule.max_detections is None or len(rows) < rule.max_detections):
        best = max(left, key=lambda i: (scores[i], -i))
        if kind.startswith("soft") and scores[best] <= rule.confidence:
            break
        left.remove(best)
        rows.append((scores[best], labels[best], *boxes[best]))
        for i in list(left):
            if not rule.agnostic and labels[i] != labels[best]:
                continue
            overlap = overlap_of(kind, boxes[best], boxes[i])
            if kind == "soft-gaussian":
                scores[i] *= math.exp(-overlap * overlap / rule.sigma)
            elif kind == "soft-linear":
                scores[i] *= 1 - overlap if overlap > rule.iou_threshold else 1
            elif overlap > rule.iou_threshold:
                left.remove(i)
    return [merged(row, candidates, rule) for row in rows] if kind == "merge" else rows


def merged(row, candidates, rule):
    score, label, *kept = row
    total, sums = 0.0, [0.0] * 4
    every = zip(candidates.boxes_xyxy.tolist(), candidates.scores.tolist(), candidates.labels.tolist(), strict=True)
    for box, weight, other in every:
        itself = box == kept and weight == score and other == label
        if itself or ((rule.agnostic or other == label) and iou_of(kept, box) > rule.iou_threshold):
            total += weight
            sums = [old + weight * new for old, new in zip(sums, box, strict=True)]
    return (score, label, *(value / total for value in sums))


def rows_of(found):
    return torch.cat((found.scores[:, None], found.labels[:, None], found.boxes_xyxy), dim=1).double()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize(
    "count, score_levels, iou_threshold, limit, confidence, sigma",
    [
        (0, 0, 0.5, 300, 0.001, 0.5),
        (1, 0, 0.5, 300, 0.001, 0.5),
        (60, 0, 0.3, None, 0.0, 0.5),
        (150, 0, 0.5, 300, 0.001, 0.5),
        (150, 5, 0.6, 20, 0.2, 0.1),
        (600, 0, 0.45, 300, 0.05, 1.0),
        (600, 3, 0.0, 40, 0.0, 0.3),
    ],
)
def test_equals_the_plain_loop(kind, agnostic, count, score_levels, iou_threshold, limit, confidence, sigma):
    candidates = random_candidates(count, seed=count + score_levels, score_levels=score_levels)
    rule = NmsRule(iou_threshold, limit, kind, agnostic, confidence, sigma)
    expected = torch.tensor(loop(kind, candidates, rule), dtype=torch.float64).reshape(-1, 6)
    found = suppress(candidates, rule)
    assert found.boxes_xyxy.dtype == found.scores.dtype == torch.float32 and found.labels.dtype == torch.int64
    torch.testing.assert_close(rows_of(found), expected, atol=2e-5, rtol=1e-6)
    assert count < 60 or len(found) > 1
    assert count < 60 or found.scores.sum() < candidates.scores.sum()  # something happened


def test_kinds_by_hand():
    # Two boxes of 20 x 10, 5 apart: IoU 15 / 25 = 0.6; centres 5 apart, the box around both 25 x 10: 25 / 725.
    pair = detections((0.8, 0, 0, 0, 20, 10), (0.4, 0, 5, 0, 25, 10))
    found = {kind: suppress(pair, NmsRule(0.58, 10, kind, sigma=0.5)) for kind in KINDS}
    assert {kind: len(one) for kind, one in found.items()} == {
        "greedy": 1, "diou": 2, "soft-linear": 2, "soft-gaussian": 2, "merge": 1
    }  # fmt: skip
    assert found["soft-linear"].scores.tolist() == pytest.approx([0.8, 0.4 * 0.4])
    assert found["soft-gaussian"].scores.tolist() == pytest.approx([0.8, 0.4 * math.exp(-0.36 / 0.5)])
    assert found["merge"].boxes_xyxy.tolist()[0] == pytest.approx([5 / 3, 0, 20 + 5 / 3, 10])
    assert found["merge"].scores.tolist() == pytest.approx([0.8])


def test_soft_drops_what_sinks_to_the_confidence():
    pair = detections((0.8, 0, 0, 0, 20, 10), (0.4, 0, 5, 0, 25, 10))
    assert len(suppress(pair, NmsRule(0.5, 10, "soft-linear", confidence=0.15))) == 2
    assert len(suppress(pair, NmsRule(0.5, 10, "soft-linear", confidence=0.17))) == 1


def test_cfg_is_greedy_with_the_penalty_of_the_cfg():
    candidates = random_candidates(200, seed=1)
    plain, own, diou = (
        suppress(candidates, NmsRule(0.4, 300, kind, cfg_beta=beta))
        for kind, beta in (("cfg", None), ("cfg", 1.0), ("diou", None))
    )
    assert torch.equal(plain.scores, suppress(candidates, NmsRule(0.4, 300, "greedy", cfg_beta=1.0)).scores)
    assert torch.equal(own.scores, diou.scores) and len(own) > len(plain)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", KINDS)
def test_infinite_boxes_and_boxes_without_area_are_kept_as_they_are(kind):
    infinite = math.inf
    strange = detections(
        (0.9, 0, -infinite, 0, infinite, 10),
        (0.8, 0, 3, 3, 3, 3),
        (0.7, 0, 1e30, 1e30, 1e38, 1e38),
        (0.6, 0, 1, 1, 5, 5),
        (1e-4, 0, 300, 300, 310, 310),
    )
    found = suppress(strange, NmsRule(0.5, 10, kind))
    assert found.scores.tolist() == pytest.approx([0.9, 0.8, 0.7, 0.6, 1e-4])
    assert not found.boxes_xyxy.isnan().any()


@pytest.mark.parametrize("kind", NMS_KINDS)
def test_the_detector_suppresses_as_it_is_told(kind):
    images, metas = images_and_frames(2)
    nms = NmsOptions(kind, 0.3 if kind == "soft-gaussian" else 0.5, agnostic_nms=True)
    detector = Detector(TwoHeads(), 0.2, 0.4, 30, nms=nms, clip=False)
    candidates = detector.candidates(detector.raw_outputs(images), metas)
    for found, of_image in zip(detector(images, metas), candidates, strict=True):
        rule = NmsRule(0.4, 30, kind, True, 0.2, nms.nms_sigma)
        expected = loop(kind, of_image, rule)
        assert len(expected) > 3
        torch.testing.assert_close(rows_of(found), torch.tensor(expected).double(), atol=1e-4, rtol=1e-5)


def test_another_kind_of_the_same_network():
    images, metas = images_and_frames(1)
    detector = Detector(TwoHeads(), 0.2, 0.4)
    other = detector.looking_for(nms=NmsOptions("soft-linear"), agnostic=True)
    assert other.network is detector.network and detector.nms == NmsOptions()
    assert other.nms == NmsOptions("soft-linear", agnostic_nms=True)
    assert other.looking_for(confidence=0.3).nms == other.nms
    assert len(other(images, metas)[0]) != len(detector(images, metas)[0])


def test_what_the_limit_drops_is_counted():
    images, metas = images_and_frames(3)
    everything = [len(found) for found in Detector(TwoHeads(), 0.2, 0.4, 10_000)(images, metas)]
    limit = sorted(everything)[1]  # one image has fewer, one as many, one more
    detector = Detector(TwoHeads(), 0.2, 0.4, limit)
    detector(images, metas)
    assert detector.dropped == Dropped()  # nobody asked
    detector.counts_dropped = True
    detector(images, metas)
    above = [count - limit for count in everything if count > limit]
    assert detector.dropped == Dropped(len(above), sum(above)) and above
    detector(images, metas)
    assert detector.dropped == Dropped(2 * len(above), 2 * sum(above))
    detector.reset_speed()
    assert detector.dropped == Dropped()


def test_very_many_dropped_detections_are_counted_as_at_least(monkeypatch):
    images, metas = images_and_frames(1)
    monkeypatch.setattr("models.detector.COUNTED", 2)
    detector = Detector(TwoHeads(), 0.01, 1.0, 5)
    detector.counts_dropped = True
    detector(images, metas)
    assert detector.dropped == Dropped(1, 2, is_least=True) and COUNTED > 300


@pytest.mark.parametrize(
    "values, words",
    [
        (("soft",), "--nms is one of cfg, greedy"),
        (("soft-gaussian", 0.0), "--nms-sigma must be above 0"),
        (("soft-gaussian", math.nan), "--nms-sigma must be above 0"),
        (("greedy", 0.3), "--nms-sigma is for --nms soft-gaussian"),
    ],
)
def test_options_that_mean_nothing_are_refused(values, words):
    with pytest.raises(ValueError, match=words):
        NmsOptions(*values)
