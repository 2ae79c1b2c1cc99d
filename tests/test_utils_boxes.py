"""Formats and the IoU family: closed forms, the papers' formulas, torchvision where it loads, degenerate boxes."""

import math

import pytest
import torch
from assignment_oracle import iou as plain_iou

from utils.boxes import IOU_KINDS, box_iou, cxcywh_to_xyxy, intersection_over_first, shape_iou, xyxy_to_cxcywh


def random_boxes(count, seed, scale=100.0):
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(count, 2, generator=generator, dtype=torch.float64) * scale
    return torch.cat((low, low + torch.rand(count, 2, generator=generator, dtype=torch.float64) * scale + 1), dim=1)


def test_formats_by_hand_and_there_and_back():
    assert cxcywh_to_xyxy(torch.tensor([5.0, 7.0, 4.0, 2.0])).tolist() == [3.0, 6.0, 7.0, 8.0]
    assert xyxy_to_cxcywh(torch.tensor([3.0, 6.0, 7.0, 8.0])).tolist() == [5.0, 7.0, 4.0, 2.0]
    boxes = random_boxes(50, 0)
    assert torch.allclose(cxcywh_to_xyxy(xyxy_to_cxcywh(boxes)), boxes)
    assert cxcywh_to_xyxy(torch.zeros(0, 4)).shape == (0, 4)


def test_the_family_by_hand():
    # a = 4 x 4 at the origin, b = 2 x 4 starting at x = 2, y = 2: intersection 2 x 2 = 4, union 16 + 8 - 4 = 20.
    a, b = torch.tensor([[0.0, 0.0, 4.0, 4.0]]), torch.tensor([[2.0, 2.0, 4.0, 6.0]])
    iou = 4 / 20
    assert box_iou(a, b).item() == pytest.approx(iou)
    # The hull is 4 x 6 = 24; 24 - 20 = 4 of it is empty.
    assert box_iou(a, b, "giou").item() == pytest.approx(iou - 4 / 24)
    # Centres (2, 2) and (3, 4): squared distance 5; squared diagonal 16 + 36 = 52.
    assert box_iou(a, b, "diou").item() == pytest.approx(iou - 5 / 52)
    v = 4 / math.pi**2 * (math.atan(2 / 4) - math.atan(4 / 4)) ** 2
    assert box_iou(a, b, "ciou").item() == pytest.approx(iou - 5 / 52 - v * v / (1 - iou + v))
    assert intersection_over_first(a, b).item() == pytest.approx(4 / 16)
    assert intersection_over_first(b, a).item() == pytest.approx(4 / 8)


def test_shape_iou_by_hand():
    # 10 x 20 and 20 x 10: 100 / 300; 10 x 20 and itself: 1; a matrix of 1 x 2.
    assert shape_iou(torch.tensor([[10.0, 20.0]]), torch.tensor([[20.0, 10.0], [10.0, 20.0]])).tolist() == [
        [pytest.approx(1 / 3), 1.0]
    ]


@pytest.mark.parametrize("kind", IOU_KINDS)
def test_matches_the_formulas_written_out(kind):
    a, b = random_boxes(200, 1), random_boxes(200, 2)
    expected = [plain_iou(p, q, kind) for p, q in zip(a.tolist(), b.tolist(), strict=True)]
    assert box_iou(a, b, kind, elementwise=True).tolist() == pytest.approx(expected, abs=1e-12)
    matrix = box_iou(a[:7], b[:5], kind)
    assert matrix.shape == (7, 5)
    assert torch.equal(matrix.diagonal(), box_iou(a[:5], b[:5], kind, elementwise=True))
    assert box_iou(a.view(4, 50, 4), b.view(4, 50, 4)[:, :3], kind).shape == (4, 50, 3)


def gradient_of_ciou(a, b):
    """d(CIoU)/da by hand: the derivative of every term, with β held constant."""
    (x1, y1, x2, y2), (u1, v1, u2, v2) = a, b
    w, h, gw, gh = x2 - x1, y2 - y1, u2 - u1, v2 - v1
    iw, ih = min(x2, u2) - max(x1, u1), min(y2, v2) - max(y1, v1)
    overlap = iw > 0 and ih > 0
    inter = iw * ih if overlap else 0.0
    union = w * h + gw * gh - inter
    iou = inter / union
    d_inter = [-ih * (x1 > u1), -iw * (y1 > v1), ih * (x2 < u2), iw * (y2 < v2)] if overlap else [0.0] * 4
    d_area = [-h, -w, h, w]
    cw, ch = max(x2, u2) - min(x1, u1), max(y2, v2) - min(y1, v1)
    dx, dy = (x1 + x2 - u1 - u2) / 2, (y1 + y2 - v1 - v2) / 2
    rho2, c2 = dx * dx + dy * dy, cw * cw + ch * ch
    d_c2 = [-2 * cw * (x1 < u1), -2 * ch * (y1 < v1), 2 * cw * (x2 > u2), 2 * ch * (y2 > v2)]
    turn = math.atan(gw / gh) - math.atan(w / h)
    v = 4 / math.pi**2 * turn**2
    beta = v / (1 - iou + v)
    d_v = [8 / math.pi**2 * turn * sign / (w * w + h * h) for sign in (h, -w, -h, w)]
    gradient = []
    for n, d_rho2 in enumerate((dx, dy, dx, dy)):
        d_iou = (d_inter[n] * union - inter * (d_area[n] - d_inter[n])) / union**2
        gradient.append(d_iou - (d_rho2 * c2 - rho2 * d_c2[n]) / c2**2 - beta * d_v[n])
    return gradient


def test_the_gradient_of_ciou_holds_beta_constant():
    a, b = random_boxes(100, 3), random_boxes(100, 4)
    a.requires_grad_()
    box_iou(a, b, "ciou", elementwise=True).sum().backward()
    expected = [gradient_of_ciou(p, q) for p, q in zip(a.tolist(), b.tolist(), strict=True)]
    assert torch.allclose(a.grad, torch.tensor(expected, dtype=torch.float64), atol=1e-9)


@pytest.mark.parametrize("kind", ["iou", "giou", "diou"])
def test_the_gradient_equals_finite_differences(kind):
    a, b = random_boxes(20, 5).requires_grad_(), random_boxes(20, 6)
    assert torch.autograd.gradcheck(lambda boxes: box_iou(boxes, b, kind, elementwise=True), a, eps=1e-5)


@pytest.mark.parametrize("kind", ["giou", "diou", "ciou"])
def test_agrees_with_torchvision(kind):
    try:
        from torchvision import ops
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"torchvision does not load here ({error}); the closed forms above are the referee")
    name = {"giou": "generalized", "diou": "distance", "ciou": "complete"}[kind]
    a, b = random_boxes(100, 3).float(), random_boxes(100, 4).float()
    ours, theirs = a.clone().requires_grad_(), a.clone().requires_grad_()
    loss = 1 - box_iou(ours, b, kind, elementwise=True)
    reference = getattr(ops, f"{name}_box_iou_loss")(theirs, b, reduction="none")
    loss.sum().backward()
    reference.sum().backward()
    assert torch.allclose(loss, reference, atol=1e-5)
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-5)


DEGENERATE = {
    "no width": ([5.0, 5.0, 5.0, 9.0], [1.0, 1.0, 8.0, 8.0]),
    "two points": ([5.0, 5.0, 5.0, 5.0], [5.0, 5.0, 5.0, 5.0]),
    "two points apart": ([5.0, 5.0, 5.0, 5.0], [7.0, 5.0, 7.0, 5.0]),
    "identical": ([1.0, 2.0, 4.0, 8.0], [1.0, 2.0, 4.0, 8.0]),
    "disjoint": ([0.0, 0.0, 1.0, 1.0], [50.0, 60.0, 70.0, 90.0]),
    "touching": ([0.0, 0.0, 1.0, 1.0], [1.0, 0.0, 2.0, 1.0]),
    "huge": ([-1e4, -1e4, 1e4, 1e4], [0.0, 0.0, 1.0, 1.0]),
    "huge and flat": ([0.0, 5.0, 1e4, 5.0], [0.0, 0.0, 1e4, 1e4]),
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("kind", IOU_KINDS)
@pytest.mark.parametrize("case", DEGENERATE)
def test_degenerate_boxes_are_finite_and_so_are_their_gradients(case, kind, dtype):
    a, b = (torch.tensor([box], dtype=dtype) for box in DEGENERATE[case])
    a.requires_grad_()
    value = box_iou(a, b, kind, elementwise=True)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    value.sum().backward()
    assert value.isfinite().all() and a.grad.isfinite().all()
    assert -2.01 <= value.item() <= 1.0
    if case == "identical":
        assert value.item() == 1


@pytest.mark.parametrize("kind", IOU_KINDS)
def test_half_precision_boxes_are_compared_in_float32(kind):
    a, b = random_boxes(50, 7).half(), random_boxes(50, 8).half()
    assert torch.equal(box_iou(a, b, kind), box_iou(a.float(), b.float(), kind))


def test_an_unknown_kind_names_the_known_ones():
    with pytest.raises(ValueError, match="iou, giou, diou, ciou"):
        box_iou(torch.zeros(1, 4), torch.zeros(1, 4), "siou")
