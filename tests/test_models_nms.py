"""NMS against the textbook loop, OpenCV and torchvision, and cases worked by hand."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import nms
from models.nms import non_max_suppression, select_candidates


def greedy_oracle(boxes, scores, labels, iou_threshold, max_detections, agnostic):
    """The textbook loop in plain Python; IoU rounded to float32 as the code under test computes it."""
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    kept = []
    for i in order:
        if len(kept) == max_detections:
            break
        for j in kept:
            if not agnostic and labels[i] != labels[j]:
                continue
            a, b = boxes[i], boxes[j]
            width = max(0, min(a[2], b[2]) - max(a[0], b[0]))
            height = max(0, min(a[3], b[3]) - max(a[1], b[1]))
            inter = width * height
            union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter
            if union and np.float32(inter) / np.float32(union) > np.float32(iou_threshold):
                break
        else:
            kept.append(i)
    return kept


def run(boxes, scores, labels, iou_threshold=0.5, max_detections=300, agnostic=False):
    kept = non_max_suppression(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(scores, dtype=torch.float32),
        torch.tensor(labels, dtype=torch.int64),
        iou_threshold,
        max_detections,
        agnostic,
    )
    return kept.tolist()


def random_case(count, num_classes, seed, score_levels):
    """Integer corners (all products exact in float32) and few score levels, so that ties are the rule."""
    generator = np.random.default_rng(seed)
    corner = generator.integers(0, 60, (count, 2))
    size = generator.integers(0, 40, (count, 2))  # zero-size boxes included
    boxes = np.concatenate((corner, corner + size), axis=1).tolist()
    scores = (generator.integers(0, score_levels, count) / 8).tolist()
    labels = generator.integers(0, num_classes, count).tolist()
    return boxes, scores, labels


@settings(deadline=None, max_examples=150)
@given(
    count=st.integers(0, 120),
    num_classes=st.sampled_from([1, 2, 80]),
    seed=st.integers(0, 2**32 - 1),
    score_levels=st.sampled_from([1, 3, 1000]),
    iou_threshold=st.sampled_from([0.0, 0.3, 0.45, 0.5, 0.65, 1.0]),
    max_detections=st.sampled_from([0, 1, 5, 1000]),
    agnostic=st.booleans(),
)
def test_equals_the_textbook_loop(count, num_classes, seed, score_levels, iou_threshold, max_detections, agnostic):
    boxes, scores, labels = random_case(count, num_classes, seed, score_levels)
    expected = greedy_oracle(boxes, scores, labels, iou_threshold, max_detections, agnostic)
    assert run(boxes, scores, labels, iou_threshold, max_detections, agnostic) == expected


@pytest.mark.parametrize("block, portion", [(1, 1), (3, 2), (7, 5), (16, 64)])
@pytest.mark.parametrize("agnostic", [False, True])
def test_blocks_and_portions_do_not_change_the_result(monkeypatch, block, portion, agnostic):
    monkeypatch.setattr(nms, "BLOCK", block)
    monkeypatch.setattr(nms, "FIRST_PORTION", portion)
    for seed in range(5):
        boxes, scores, labels = random_case(150, 3, seed, score_levels=6)
        for limit in (10, 1000):
            assert run(boxes, scores, labels, 0.3, limit, agnostic) == greedy_oracle(
                boxes, scores, labels, 0.3, limit, agnostic
            )


def test_a_suppressed_box_suppresses_nothing():
    # Three boxes 10 wide, shifted by 4: neighbours overlap 6/14 = 0.43, the ends 2/18 = 0.11.
    boxes = [[0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10]]
    assert run(boxes, [0.9, 0.8, 0.7], [0, 0, 0], 0.4) == [0, 2]


def test_threshold_itself_does_not_suppress():
    # Intersection 5 x 10 = 50, union 100: IoU is exactly 0.5, and the rule is "greater than".
    boxes = [[0, 0, 10, 10], [0, 0, 10, 5]]
    assert run(boxes, [0.9, 0.8], [0, 0], 0.5) == [0, 1]
    assert run(boxes, [0.9, 0.8], [0, 0], 0.49) == [0]


def test_far_classes_keep_full_precision():
    # At class 79 an offset of 79 x 4096 leaves steps of 1/32 pixel. The IoUs are 4.09 / 8.19 = 0.4994 and 4.1 / 8.19 =
    # 0.5006, of widths that differ by 1/100 pixel: an offset makes them equal, a mask cannot.
    boxes = [[0, 0, 8.19, 1], [0, 0, 4.09, 1], [100, 0, 108.19, 1], [100, 0, 104.1, 1]]
    assert run(boxes, [0.9, 0.8, 0.7, 0.6], [79, 79, 79, 79], 0.5) == [0, 1, 2]


def test_many_suppressed_candidates_equal_opencv():
    generator = np.random.default_rng(3)
    centers = generator.integers(50, 400, (40, 2))
    corner = centers[generator.integers(0, 40, 3000)] + generator.integers(-4, 5, (3000, 2))
    size = generator.integers(20, 60, (3000, 2))
    scores = generator.permutation(3000).astype(np.float32) / 3000  # no ties: OpenCV does not define their order
    labels = generator.integers(0, 5, 3000)
    rows = np.concatenate((corner, size), axis=1)
    expected = cv2.dnn.NMSBoxesBatched(rows.tolist(), scores.tolist(), labels.tolist(), -1.0, 0.55)
    boxes = np.concatenate((corner, corner + size), axis=1).tolist()
    assert sorted(run(boxes, scores.tolist(), labels.tolist(), 0.55, 3000)) == sorted(np.asarray(expected).tolist())


def test_equals_torchvision_where_it_loads():
    try:
        from torchvision.ops import batched_nms
    except Exception as error:  # on a CPU-only torch its operators cannot load: RuntimeError, not ImportError
        pytest.skip(f"torchvision is not usable here: {error}")
    boxes, scores, labels = random_case(500, 4, seed=0, score_levels=10**6)
    tensors = torch.tensor(boxes, dtype=torch.float32), torch.tensor(scores), torch.tensor(labels)
    assert run(boxes, scores, labels, 0.5, 500) == batched_nms(*tensors, 0.5).tolist()


def test_no_candidates():
    assert run([], [], []) == []


@pytest.mark.parametrize("multi_label", [True, False])
def test_candidates_equal_the_plain_product(multi_label):
    generator = torch.Generator().manual_seed(0)
    objectness = torch.randn(60, generator=generator) * 3 - 2
    class_logits = torch.randn(60, 7, generator=generator) * 3
    slot, label, score = select_candidates(objectness, class_logits, 0.05, multi_label)
    product = objectness.sigmoid()[:, None] * class_logits.sigmoid()  # S C
    expected = []
    for s in range(60):
        for c in range(7) if multi_label else [int(product[s].argmax())]:
            if product[s, c] > 0.05:
                expected.append((s, c))
    assert list(zip(slot.tolist(), label.tolist(), strict=True)) == expected
    # Vectorised and scalar sigmoid differ in the last bit, so a score depends on its place in the tensor by that much.
    torch.testing.assert_close(score, product[slot, label], rtol=1e-6, atol=0)
    assert 0 < len(expected) < product.numel()


def test_candidates_without_slots_and_with_certain_ones():
    slot, label, score = select_candidates(torch.zeros(0), torch.zeros(0, 3), 0.001, True)
    assert len(slot) == len(label) == len(score) == 0
    # sigmoid saturates to 1 exactly: a score of 1 passes any confidence below 1, and confidence 1 passes nothing.
    certain = torch.tensor([200.0]), torch.tensor([[200.0, -200.0]])
    assert select_candidates(*certain, 0.999, True)[1].tolist() == [0]
    assert len(select_candidates(*certain, 1.0, True)[0]) == 0


def test_not_a_number_is_no_candidate():
    nan = float("nan")
    for objectness, class_logit in ((nan, 1.0), (1.0, nan)):
        for multi_label in (True, False):
            slot, _, _ = select_candidates(torch.tensor([objectness]), torch.tensor([[class_logit]]), 0.1, multi_label)
            assert len(slot) == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_equals_cpu():
    boxes, scores, labels = random_case(4000, 5, seed=1, score_levels=50)
    tensors = torch.tensor(boxes, dtype=torch.float32), torch.tensor(scores), torch.tensor(labels)
    on_cpu = non_max_suppression(*tensors, 0.5, 300)
    assert torch.equal(non_max_suppression(*(t.cuda() for t in tensors), 0.5, 300).cpu(), on_cpu)


def test_distance_of_centers_is_subtracted_as_darknet_does():
    # Two boxes 10 x 10 shifted by 2 px in x: IoU 80/120 = 2/3; d = 4, c = 12^2 + 10^2 = 244, (4/244)^0.6 = 0.0849.
    boxes = torch.tensor([[0.0, 0, 10, 10], [2, 0, 12, 10]])
    scores, labels = torch.tensor([0.9, 0.8]), torch.tensor([0, 0])
    assert 2 / 3 - (4 / 244) ** 0.6 == pytest.approx(0.5818, abs=1e-4)  # noqa: SIM300
    for threshold, expected in ((0.58, [0]), (0.59, [0, 1])):
        assert non_max_suppression(boxes, scores, labels, threshold, beta=0.6).tolist() == expected
    # Two boxes without area in one point have no distance and no IoU: neither goes.
    points = torch.ones(2, 4)
    assert non_max_suppression(points, scores, labels, 0.5, beta=0.6).tolist() == [0, 1]
