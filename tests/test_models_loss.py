"""The α-weighted loss: its parts written out in plain Python, its gradients, its counts, what it must not depend on."""

import dataclasses
import math

import pytest
import torch
from assignment_cases import CLASSES, random_raw_maps, targets_of, two_heads
from assignment_oracle import Oracle, sigmoid

from models.assignment.counts import losing_matches
from models.assignment.options import AssignmentOptions
from models.heads import Head, priors_wh
from models.loss import LossOptions, build_loss, write_largest
from models.raw_maps import gather_predictions
from utils.boxes import IOU_KINDS
from utils.config import REPOSITORY, build_options, read_recipe
from utils.errors import UserError
from utils.structures import Assignment, Matches, Targets

ROWS = [(b, n % 3, 0.15 + 0.17 * n, 0.3 + 0.1 * n, 0.2 + 0.05 * n, 0.5 - 0.06 * n) for b in (0, 2) for n in range(5)]
PLAIN = LossOptions(box=1.0, obj=1.0, cls=80 / CLASSES, box_loss="giou")  # every gain 1
IMAGES = 3 / 64  # the batch has 3 images, and the yolov3 gains are for 64


def leaf_raw_maps(heads, batch_size=3, seed=0, **options):
    raw_maps = [raw.requires_grad_() for raw in random_raw_maps(heads, batch_size, seed, **options)]
    for raw in raw_maps:
        raw.retain_grad()
    return raw_maps


def run(heads, raw_maps, assignment, options=PLAIN, rows=ROWS, crowd=()):
    return build_loss(options, assignment, heads)(raw_maps, targets_of(rows), targets_of(crowd))


def bce(logit, truth):
    return -truth * math.log(sigmoid(logit)) - (1 - truth) * math.log(1 - sigmoid(logit))


def slots_of(matches):
    """[(target, head, anchor, row, col, weight)], repeated matches included."""
    columns = (matches.target, matches.head, matches.anchor, matches.row, matches.col, matches.weight)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def plain_parts(heads, raw_maps, assignment, alpha, tobj, kind="giou", normalise="head"):
    """The formulas of docs/assignment.md, *The loss*, match by match and slot by slot, with all gains 1."""
    oracle = Oracle(ROWS, [raw.detach() for raw in raw_maps], heads)
    box = cls = 0.0
    truth = {}
    for name, share, matches in (("base", 1 - alpha, assignment.base), ("extra", alpha, assignment.extra)):
        found = slots_of(matches)
        for t, head, a, j, i, weight in found:
            number = sum(key[1] == head for key in found) if normalise == "head" else len(found)
            quality = oracle.quality(t, (head, a, j, i), kind)
            b, label, *_ = oracle.rows[t]
            logits = oracle.raw_maps[head][b, a, j, i][5:]
            entropy = sum(bce(logit, float(c == label)) for c, logit in enumerate(logits)) / CLASSES
            box += share * weight * (1 - quality) / number
            cls += share * weight * entropy / number
            if name in tobj.split("+"):
                key = (head, b, a, j, i)
                truth[key] = max(truth.get(key, 0.0), quality, 0.0)
    obj = 0.0
    for number, raw in enumerate(oracle.raw_maps):
        values = [bce(raw[b, a, j, i, 4], truth.get((number, b, a, j, i), 0.0))
                  for b in range(len(raw)) for a, j, i in oracle.slots(number)]  # fmt: skip
        obj += sum(values) / len(values)
    return {"box": box, "obj": obj, "cls": cls}


# --- the parts


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("match", ["standard", "pure", "split", "fast", "atss+tal"])
def test_parts_equal_the_formula(match, alpha):
    heads = two_heads()
    raw_maps = leaf_raw_maps(heads)
    extra = {"extra_iou": 0.3} if match in ("pure", "split", "fast") else {}
    extra |= {"linear_reweight": 0.5} if match == "fast" else {}
    result = run(heads, raw_maps, AssignmentOptions(match=match, alpha=alpha, **extra))
    assert match == "standard" or len(result.assignment.extra) > 5
    used = 0.0 if match == "standard" else alpha  # without extra matches alpha has no effect
    expected = plain_parts(heads, raw_maps, result.assignment, used, "base+extra")
    for name, value in expected.items():
        assert result.parts[name].item() == pytest.approx(value * IMAGES, rel=1e-4), name


@pytest.mark.parametrize("kind", IOU_KINDS)
@pytest.mark.parametrize("normalise", ["head", "batch"])
@pytest.mark.parametrize("tobj", ["base", "extra", "base+extra"])
def test_parts_with_every_iou_normalisation_and_objectness(kind, normalise, tobj):
    heads = two_heads(scale_x_y=2.0, new_coords=True)
    raw_maps = leaf_raw_maps(heads)
    options = AssignmentOptions(match="fast", alpha=0.4, tobj=tobj, normalise=normalise, extra_iou=0.25)
    result = run(heads, raw_maps, options, dataclasses.replace(PLAIN, box_loss=kind))
    expected = plain_parts(heads, raw_maps, result.assignment, 0.4, tobj, kind, normalise)
    for name, value in expected.items():
        assert result.parts[name].item() == pytest.approx(value * IMAGES, rel=1e-4), name


@pytest.mark.parametrize("match", ["pure", "split", "fast"])
@pytest.mark.parametrize("size", [1, 3])
def test_alpha_zero_and_objectness_of_base_is_standard_to_the_last_bit(match, size):
    heads = two_heads()
    results = []
    for options in (
        AssignmentOptions(),
        AssignmentOptions(match=match, alpha=0.0, tobj="base", extra_iou=0.2, candidates="map"),
    ):
        raw_maps = leaf_raw_maps(heads, size * 3, 7)
        rows = [(b * size, *rest) for b, *rest in ROWS]
        result = run(heads, raw_maps, options, LossOptions(), rows)
        sum(result.parts.values()).backward()
        results.append((result.parts, [raw.grad for raw in raw_maps], result.assignment))
    (parts, grads, _), (other_parts, other_grads, assignment) = results
    assert len(assignment.extra) > 20
    for name in parts:
        assert torch.equal(parts[name], other_parts[name])
    assert all(torch.equal(one, two) for one, two in zip(grads, other_grads, strict=True))


@pytest.mark.parametrize("alpha, sets", [(0.0, ("base",)), (0.5, ("base", "extra")), (1.0, ("extra",))])
@pytest.mark.parametrize("match", ["pure", "split", "fast"])
def test_gradients_reach_exactly_the_slots_in_the_sets(match, alpha, sets):
    heads = two_heads()
    raw_maps = leaf_raw_maps(heads)
    result = run(heads, raw_maps, AssignmentOptions(match=match, alpha=alpha, extra_iou=0.3))
    sum(result.parts.values()).backward()
    expected = set()
    for name in sets:
        for t, head, a, j, i, _ in slots_of(getattr(result.assignment, name)):
            expected.add((head, ROWS[t][0], a, j, i))
    assert expected
    for columns in (slice(0, 4), slice(5, None)):
        touched = [(raw.grad[..., columns] != 0).any(dim=-1).nonzero().tolist() for raw in raw_maps]
        reached = {(head, *slot) for head, slots in enumerate(touched) for slot in slots}
        assert reached == expected
    assert all((raw.grad[..., 4] != 0).all() for raw in raw_maps)


def test_the_gradient_is_that_of_the_formula_in_double_precision():
    """Finite differences of the box and class part with respect to every number of one base slot."""
    heads = two_heads()
    raw_maps = leaf_raw_maps(heads)
    options = AssignmentOptions(match="fast", alpha=0.3, extra_iou=0.3)
    result = run(heads, raw_maps, options)
    (result.parts["box"] + result.parts["cls"]).backward()
    t, head, a, j, i, _ = slots_of(result.assignment.base)[3]
    slot = (ROWS[t][0], a, j, i)
    for column in (0, 1, 2, 3, 5, 6, 7):
        values = []
        for step in (1e-4, -1e-4):
            moved = [raw.detach().double().clone() for raw in raw_maps]
            moved[head][(*slot, column)] += step
            parts = plain_parts(heads, moved, result.assignment, 0.3, "base")
            values.append((parts["box"] + parts["cls"]) * IMAGES)
        slope = (values[0] - values[1]) / 2e-4
        assert raw_maps[head].grad[(*slot, column)].item() == pytest.approx(slope, rel=1e-3, abs=1e-7)


def test_alpha_without_extra_matches_is_said_once_and_by_one_process(caplog, monkeypatch):
    build_loss(LossOptions(), AssignmentOptions(match="standard", alpha=0.3), two_heads())
    monkeypatch.setenv("RANK", "1")
    build_loss(LossOptions(), AssignmentOptions(match="standard", alpha=0.3), two_heads())
    assert len(caplog.records) == 1 and "no effect" in caplog.text


# --- objectness


def test_the_largest_target_wins_a_slot_whatever_the_order():
    place = tuple(torch.tensor(index) for index in ([0, 0, 1, 0], [0, 0, 0, 0], [1, 1, 0, 1], [2, 2, 1, 2]))
    values = torch.tensor([0.3, 0.9, 0.4, 0.5])
    for order in ([0, 1, 2, 3], [1, 0, 3, 2], [3, 2, 1, 0]):
        truth = torch.zeros(2, 1, 2, 3)
        write_largest(truth, tuple(index[order] for index in place), values[order])
        assert truth[0, 0, 1, 2] == 0.9 and truth[1, 0, 0, 1] == 0.4 and truth.count_nonzero() == 2


def test_gr_blends_the_iou_with_one():
    heads = two_heads()
    raw_maps = leaf_raw_maps(heads)
    one = run(heads, raw_maps, AssignmentOptions(), dataclasses.replace(PLAIN, gr=0.0))
    oracle = Oracle(ROWS, [raw.detach() for raw in raw_maps], heads)
    positive = {(ROWS[t][0], head, a, j, i) for t, head, a, j, i, _ in slots_of(one.assignment.base)}
    total = 0.0
    for number, raw in enumerate(oracle.raw_maps):
        slots = [(b, *slot) for b in range(3) for slot in oracle.slots(number)]
        values = [bce(raw[b, a, j, i, 4], float((b, number, a, j, i) in positive)) for b, a, j, i in slots]
        total += sum(values) / len(values)
    assert one.parts["obj"].item() == pytest.approx(total * IMAGES, rel=1e-5)


def test_ignored_slots_get_no_objectness_gradient_unless_matched():
    heads = two_heads()
    raw_maps = leaf_raw_maps(heads)
    crowd = [(1, 0, 0.5, 0.5, 0.8, 0.8)]
    options = AssignmentOptions(ignore_thresh=0.2, ignore_crowd=True)
    result = run(heads, raw_maps, options, crowd=crowd)
    result.parts["obj"].backward()
    places = result.assignment.base.place_per_head()
    for raw, mask, place in zip(raw_maps, result.assignment.ignore, places, strict=True):
        matched = torch.zeros_like(mask)
        matched[place] = True
        assert (mask & ~matched).any() and mask[1].any()
        assert torch.equal(raw.grad[..., 4] == 0, mask & ~matched)


# --- gains, balance, and the shapes of the entropies


def test_gains_of_the_two_origins():
    heads = two_heads()
    raw_maps = leaf_raw_maps(heads)
    plain = run(heads, raw_maps, AssignmentOptions(), dataclasses.replace(PLAIN, balance=(1.0, 1.0))).parts
    box, obj, cls = (plain[name].item() / IMAGES for name in ("box", "obj", "cls"))

    yolov3 = run(heads, raw_maps, AssignmentOptions(), LossOptions()).parts
    expected = {"box": 3.54 * box, "obj": 64.3 * obj, "cls": 37.4 * 3 / 80 * cls}
    assert {k: v.item() for k, v in yolov3.items()} == pytest.approx({k: v * 3 / 64 for k, v in expected.items()})

    # Two heads: x 3/2; the longer side is 160 of 640 pixels; three images; the balance of two heads is 4 (fine), 1.
    options = LossOptions(gains="yolov5", balance=(1.0, 1.0))
    yolov5 = run(heads, raw_maps, AssignmentOptions(), options).parts
    expected = {"box": 0.05 * 1.5 * box, "obj": 1.5 * (160 / 640) ** 2 * obj, "cls": 0.5 * 3 / 80 * 1.5 * cls}
    assert {k: v.item() for k, v in yolov5.items()} == pytest.approx({k: v * 3 for k, v in expected.items()})
    fixed = build_loss(options, AssignmentOptions(), heads, img_size=640)(raw_maps, targets_of(ROWS)).parts
    assert fixed["obj"].item() == pytest.approx(16 * yolov5["obj"].item())


def test_balance_is_finest_head_first_whatever_the_order_of_the_cfg():
    heads = two_heads()
    raw_maps = leaf_raw_maps(heads)

    def obj(order, **options):
        options = dataclasses.replace(PLAIN, **options)
        loss = build_loss(options, AssignmentOptions(), tuple(heads[n] for n in order))
        return loss([raw_maps[n] for n in order], targets_of(ROWS)).parts["obj"].item()

    coarse, fine = obj([0, 1], balance=(0.0, 1.0)), obj([0, 1], balance=(1.0, 0.0))
    assert obj([0, 1], balance=(4.0, 1.0)) == pytest.approx(4 * fine + coarse)
    assert obj([1, 0], balance=(4.0, 1.0)) == pytest.approx(4 * fine + coarse)
    by_origin = obj([0, 1], gains="yolov5") / (3 * 1.5 * (160 / 640) ** 2) * IMAGES
    assert by_origin == pytest.approx(4 * fine + coarse)
    three = build_loss(
        LossOptions(gains="yolov5"), AssignmentOptions(), (*heads, dataclasses.replace(heads[1], stride=8))
    )
    assert three.balance == (0.4, 1.0, 4.0)
    with pytest.raises(UserError, match=r"^--balance has 3 numbers, but the network has 2 heads$"):
        build_loss(LossOptions(balance=(1.0, 1.0, 1.0)), AssignmentOptions(), heads)


def test_label_smoothing_positive_weights_and_focal_by_hand():
    # One slot, one class-1 object that fits exactly: class logits (0.2, -0.4, 0.1), objectness logit 0.3 and target 1.
    heads = (Head(((16.0, 16.0),), 16, CLASSES),)
    raw = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.3, 0.2, -0.4, 0.1]).view(1, 1, 1, 1, 8)
    rows = [(0, 1, 0.5, 0.5, 1.0, 1.0)]

    def parts(**options):
        result = build_loss(dataclasses.replace(PLAIN, **options), AssignmentOptions(), heads)([raw], targets_of(rows))
        return {name: value.item() * 64 for name, value in result.parts.items()}

    logits, truths = (0.2, -0.4, 0.1), (0, 1, 0)
    assert parts()["box"] == pytest.approx(0, abs=1e-6)
    assert parts()["obj"] == pytest.approx(bce(0.3, 1))
    smooth = [0.05 + 0.9 * t for t in truths]
    assert parts(label_smoothing=0.1)["cls"] == pytest.approx(sum(map(bce, logits, smooth)) / 3)
    weighted = (bce(0.2, 0) + 2.5 * bce(-0.4, 1) + bce(0.1, 0)) / 3
    assert parts(cls_pw=2.5)["cls"] == pytest.approx(weighted)
    assert parts(obj_pw=2.5)["obj"] == pytest.approx(2.5 * bce(0.3, 1))
    # Focal: 0.25 (1 - p)^γ for a positive, 0.75 p^γ for a negative.
    focal = 0.75 * sigmoid(0.2) ** 1.5 * bce(0.2, 0) + 0.25 * (1 - sigmoid(-0.4)) ** 1.5 * bce(-0.4, 1)
    focal += 0.75 * sigmoid(0.1) ** 1.5 * bce(0.1, 0)
    assert parts(fl_gamma=1.5)["cls"] == pytest.approx(focal / 3)
    assert parts(fl_gamma=1.5)["obj"] == pytest.approx(0.25 * (1 - sigmoid(0.3)) ** 1.5 * bce(0.3, 1))


@pytest.mark.parametrize("gamma", [0.5, 1.0, 1.5])
def test_the_focal_loss_has_finite_gradients_at_saturated_logits(gamma):
    heads = (Head(((16.0, 16.0),), 16, CLASSES),)
    for value in (20.0, -20.0):
        raw = torch.zeros(1, 1, 2, 2, 8)
        raw[..., 4:] = value
        raw.requires_grad_()
        options = dataclasses.replace(PLAIN, fl_gamma=gamma)
        result = run(heads, [raw], AssignmentOptions(), options, [(0, 1, 0.25, 0.25, 0.5, 0.5)])
        sum(result.parts.values()).backward()
        assert raw.grad.isfinite().all() and raw.grad.abs().sum() > 0


def test_one_class_has_no_class_loss():
    heads = tuple(dataclasses.replace(head, num_classes=1) for head in two_heads())
    result = run(heads, leaf_raw_maps(heads), AssignmentOptions(), rows=[(0, 0, 0.5, 0.5, 0.3, 0.3)])
    assert result.parts["cls"] == 0 and result.parts["box"] > 0


def test_without_objects_only_the_objectness_is_left_and_everything_stays_finite():
    heads = two_heads()
    for match in ("standard", "fast", "simota"):
        raw_maps = leaf_raw_maps(heads)
        result = run(heads, raw_maps, AssignmentOptions(match=match), rows=[])
        sum(result.parts.values()).backward()
        assert result.parts["box"] == 0 and result.parts["cls"] == 0 and result.parts["obj"] > 0
        assert all(raw.grad.isfinite().all() for raw in raw_maps)
        assert result.counts.summary()["positives_per_object"] == 0


def test_wild_predictions_and_degenerate_objects_stay_finite():
    heads = two_heads()
    raw_maps = [(raw * 100).requires_grad_() for raw in random_raw_maps(heads, 3, 0)]
    rows = [*ROWS, (0, 0, 0.5, 0.5, 0.0, 0.0), (1, 1, 0.5, 0.5, 0.0, 0.4), (1, 1, 0.0, 1.0, 40.0, 40.0)]
    for match in ("standard", "fast", "simota"):
        for kind in IOU_KINDS:
            options = AssignmentOptions(match=match, match_fallback=True)
            result = run(heads, raw_maps, options, LossOptions(box_loss=kind), rows)
            gradients = torch.autograd.grad(sum(result.parts.values()), raw_maps)
            assert all(g.isfinite().all() for g in gradients)


# --- reading the raw maps


def matches_at(image, anchor, row, col):
    count = len(image)
    index = [torch.tensor(values) for values in (image, anchor, row, col)]
    zeros = torch.zeros(count, dtype=torch.int64)
    image, anchor, row, col = index
    return Matches(zeros, image, zeros, anchor, row, col, torch.zeros(count), torch.ones(count), (count,))


@pytest.mark.parametrize("layout", ["channels_last", "contiguous", "with gaps"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_reading_has_the_gradient_of_plain_indexing(layout, dtype):
    leaf = random_raw_maps(two_heads(), 2, 1)[1].to(dtype)
    if layout == "contiguous":
        leaf = leaf.contiguous()
    elif layout == "with gaps":
        leaf = torch.cat((leaf, leaf), dim=-1)
    leaf.requires_grad_()
    reference = leaf.detach().float().requires_grad_()
    base, extra = matches_at([0, 0, 1, 0], [0, 2, 1, 0], [5, 0, 3, 5], [9, 0, 4, 9]), matches_at([0], [0], [5], [9])
    objectness, *rows = gather_predictions([leaf[..., :8]], Assignment(base, extra, (None,)))
    ours = (*objectness, *rows)
    theirs = (reference[..., 4], *(reference[(*m.place, slice(8))] for m in (base, extra)))
    weights = [torch.randn(part.shape) for part in ours]
    sum((part * weight).sum() for part, weight in zip(ours, weights, strict=True)).backward()
    sum((part * weight).sum() for part, weight in zip(theirs, weights, strict=True)).backward()
    for one, two in zip(ours, theirs, strict=True):
        assert one.dtype == torch.float32 and torch.equal(one, two)
    assert leaf.grad.dtype == dtype
    close = {"rtol": 1e-2, "atol": 1e-2} if dtype == torch.bfloat16 else {}
    assert torch.allclose(leaf.grad.float(), reference.grad, **close)


def test_the_gradient_keeps_the_memory_order_of_the_convolution():
    head = two_heads()[1]
    conv = torch.nn.Conv2d(4, 3 * 8, 1).to(memory_format=torch.channels_last)
    features = torch.randn(2, 4, 6, 10).contiguous(memory_format=torch.channels_last)
    output = conv(features)
    seen = []
    output.register_hook(lambda gradient: seen.append(gradient.is_contiguous(memory_format=torch.channels_last)))
    raw = output.view(2, 3, 8, 6, 10).permute(0, 1, 3, 4, 2)
    result = build_loss(PLAIN, AssignmentOptions(), (head,))([raw], targets_of(ROWS[:5]))
    sum(result.parts.values()).backward()
    assert seen == [True] and conv.weight.grad.isfinite().all()


@pytest.mark.parametrize("match", ["standard", "ratio", "fast", "simota"])
def test_the_same_batch_gives_the_same_loss_and_gradients_bit_for_bit(match):
    # 60 objects crowd the 9 + 30 slots around one place, so that slots repeat often.
    heads = two_heads()
    generator = torch.Generator().manual_seed(0)
    places, sizes = torch.rand(2, 60, 2, generator=generator)
    boxes = torch.cat((places * 0.1 + 0.45, sizes), dim=1)
    targets = Targets(torch.zeros(60, dtype=torch.int64), torch.arange(60) % 3, boxes)
    outcomes = []
    for _ in range(4):
        raw_maps = leaf_raw_maps(heads, 2, 3)
        result = build_loss(LossOptions(), AssignmentOptions(match=match), heads)(raw_maps, targets)
        sum(result.parts.values()).backward()
        outcomes.append([*result.parts.values(), *(raw.grad for raw in raw_maps)])
    assert match == "simota" or result.counts.summary()["collisions"] > 3  # SimOTA gives a slot to one object only
    for other in outcomes[1:]:
        assert all(torch.equal(one, two) for one, two in zip(outcomes[0], other, strict=True))


def test_under_autocast_the_loss_is_that_of_its_inputs_in_float32():
    heads = two_heads()
    raw_maps = [raw.bfloat16().requires_grad_() for raw in random_raw_maps(heads, 3, 0)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = run(heads, raw_maps, AssignmentOptions(match="fast", alpha=0.5))
    outside = run(heads, [raw.float() for raw in raw_maps], AssignmentOptions(match="fast", alpha=0.5))
    for name, value in outside.parts.items():
        assert inside.parts[name].dtype == torch.float32 and torch.equal(inside.parts[name], value)
    sum(inside.parts.values()).backward()
    assert all(raw.grad.dtype == torch.bfloat16 for raw in raw_maps)


def test_an_evaluation_before_training_leaves_no_inference_tensors_behind():
    heads = (Head(((17.0, 19.0),), 16, CLASSES),)  # anchors that no other test has put into the caches
    raw = torch.zeros(1, 1, 3, 7, 8)
    rows = [(0, 0, 0.5, 0.5, 0.2, 0.3)]
    with torch.inference_mode():
        priors_wh(heads[0], raw.device)
        run(heads, [raw], AssignmentOptions(match="fast"), rows=rows)
    raw = torch.zeros(1, 1, 3, 7, 8, requires_grad=True)
    result = run(heads, [raw], AssignmentOptions(match="fast"), rows=rows)
    sum(result.parts.values()).backward()
    assert raw.grad.abs().sum() > 0


def test_works_under_distributed_data_parallel(tmp_path):
    head = two_heads()[1]
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        conv = torch.nn.Conv2d(4, 3 * 8, 1)
        wrapped = torch.nn.parallel.DistributedDataParallel(conv)
        features = torch.randn(2, 4, 6, 10)
        gradients = []
        for network in (wrapped, conv):
            conv.zero_grad()
            raw = network(features).view(2, 3, 8, 6, 10).permute(0, 1, 3, 4, 2)
            result = build_loss(PLAIN, AssignmentOptions(match="fast"), (head,))([raw], targets_of(ROWS[:5]))
            sum(result.parts.values()).backward()
            gradients.append(conv.weight.grad.clone())
        assert torch.equal(*gradients) and gradients[0].abs().sum() > 0
    finally:
        torch.distributed.destroy_process_group()


# --- counts


def test_losing_matches_by_hand():
    # Slot 5: objects 0 (0.4), 1 (0.7), 0 again; slot 6: object 2 twice, which is no collision; slot 7: a tie.
    slot = torch.tensor([5, 5, 5, 6, 6, 7, 7])
    target = torch.tensor([0, 1, 0, 2, 2, 3, 1])
    quality = torch.tensor([0.4, 0.7, 0.4, 0.2, 0.2, 0.5, 0.5])
    loses, repeated, collisions = losing_matches(slot, target, quality)
    assert loses.tolist() == [True, False, True, False, False, True, False]
    assert repeated.tolist() == [False, False, True, False, True, False, False]
    assert collisions == 2


def test_counts_by_hand_and_their_sum():
    # Two anchors 16 x 16 on one grid of 128 x 128 pixels. Image 0: two objects in one cell, 16 x 16 and 16 x 12, which
    # both match both anchors: two collisions, both lost by the second object. Image 1: an object of 100 x 100 (large:
    # 10,000 > 96^2) that no anchor fits, shape IoU 256/10,000.
    heads = (Head(((16.0, 16.0), (16.0, 16.0)), 16, CLASSES),)
    raw = torch.zeros(2, 2, 8, 8, 8)
    center = 24 / 128
    rows = [
        (0, 0, center, center, 0.125, 0.125),
        (0, 1, center, center, 0.125, 12 / 128),
        (1, 0, 0.5, 0.5, 100 / 128, 100 / 128),
    ]
    counts = run(heads, [raw], AssignmentOptions(), rows=rows).counts
    summary = counts.summary()
    expected = {
        "objects": 3, "objects_small": 2, "objects_large": 1, "unmatched": 1, "unmatched_large": 1,
        "base_per_object": 4 / 3, "positives_per_object": 4 / 3, "extra_share": 0, "collisions": 2, "lost_slots": 2,
        "lost_slots_small": 2, "lost_all_slots": 1, "lost_all_slots_small": 1,
    }  # fmt: skip
    assert {name: summary[name] for name in expected} == pytest.approx(expected)
    # IoU of the predictions (16 x 16 at the centre): 1 with the first, 12/16 with the second; four matches.
    assert summary["base_iou"] == pytest.approx((1 + 0.75) / 2)
    double = (counts + counts).summary()
    assert double["objects"] == 6 and double["base_iou"] == pytest.approx(summary["base_iou"])
    assert "1.33 per object" in counts.line() and "1 of 3 objects without a match (S/M/L 0/0/1)" in counts.line()


def test_the_counts_are_those_of_plain_iou_whatever_the_box_loss():
    heads = two_heads()
    counts = [
        run(heads, random_raw_maps(heads, 3, 0), AssignmentOptions(match="pure"), LossOptions(box_loss=kind)).counts
        for kind in IOU_KINDS
    ]
    assert all(other.summary() == counts[0].summary() for other in counts[1:])
    assert counts[0].summary()["base_iou"] > 0


def test_extra_matches_are_counted_apart():
    heads = two_heads()
    result = run(heads, leaf_raw_maps(heads), AssignmentOptions(match="pure", extra_iou=0.3, candidates="map"))
    summary = result.counts.summary()
    base, extra = len(result.assignment.base), len(result.assignment.extra)
    assert summary["extra_share"] == pytest.approx(extra / (base + extra))
    assert summary["positives_per_object"] == pytest.approx((base + extra) / len(ROWS))


# --- the recipes


@pytest.mark.parametrize("name, match, gains", [("yolov3", "standard", "yolov3"), ("yolov5", "ratio", "yolov5")])
def test_recipes_are_read_and_mean_what_they_say(name, match, gains):
    optimiser = ["lr0", "lrf", "momentum", "weight_decay", "warmup_epochs", "warmup_momentum", "warmup_bias_lr"]
    augmentation = ["hsv_h", "hsv_s", "hsv_v", "degrees", "translate", "scale", "shear"]
    augmentation += ["flipud", "fliplr", "mosaic", "mixup"]
    numbers = [(key, float, 0.0) for key in optimiser + augmentation]
    others = dataclasses.make_dataclass("Others", [("optimizer", str, "SGD"), *numbers])
    groups = (AssignmentOptions, LossOptions, others)
    values = read_recipe(REPOSITORY / "cfg/hyp" / f"{name}.yaml", groups)
    assert {*optimiser, *augmentation} <= values.keys()
    assignment, loss, _ = build_options(values, groups)
    assert assignment.match == match and loss.gains == gains
    defaults = LossOptions(gains=gains)
    heads = two_heads()
    raw_maps = random_raw_maps(heads, 3, 0)
    by_recipe = run(heads, raw_maps, assignment, dataclasses.replace(loss, box_loss="giou"))
    by_default = run(heads, raw_maps, AssignmentOptions(match=match), defaults)
    assert {k: v.item() for k, v in by_recipe.parts.items()} == {k: v.item() for k, v in by_default.parts.items()}
