"""Strategies that look at priors, the options, and what holds for every strategy."""

import dataclasses

import pytest
import torch
from assignment_cases import ANCHORS, as_dict, coco_targets, random_raw_maps, random_rows, rows, targets_of, two_heads
from assignment_oracle import Oracle
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from models.assignment.assigner import build_assigner
from models.assignment.options import AssignmentOptions
from models.assignment.strategies import strategies_for
from models.heads import Head
from tests.assignment_cases import SHAPES, match_maps
from utils.config import build_options, parse_options
from utils.errors import UserError
from utils.structures import Targets

STRATEGIES = strategies_for()  # for the two heads, which have anchors
COLUMNS = ("target", "image", "head", "anchor", "row", "col", "iou", "weight")  # of Matches
CLEAR = 1e-5  # decisions closer than this to their threshold may differ between float32 and float64


def assign(rows_, heads, raw_maps, crowd=(), **options):
    return match_maps(
        build_assigner(AssignmentOptions(**options), heads), targets_of(rows_), raw_maps, targets_of(crowd)
    )


def inside_the_grid(matches):
    rows_, cols = torch.tensor(SHAPES)[matches.head].unbind(dim=1)
    row, col = matches.row, matches.col
    return bool(((row >= 0) & (row < rows_) & (col >= 0) & (col < cols)).all())


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, abs=1e-4)


# --- against plain Python, one object at a time


@settings(max_examples=300, deadline=None)
@given(rows(max_size=10), st.sampled_from([0.1, 0.2, 0.225, 0.5]), st.booleans(), st.booleans())
def test_standard_equals_the_oracle(rows_, iou_t, only_best, fallback):
    heads = two_heads()
    raw_maps = random_raw_maps(heads, 3, 0)
    oracle = Oracle(rows_, raw_maps, heads)
    expected = oracle.standard(iou_t, only_best)
    expected = oracle.fallback(expected) if fallback else expected
    assume(oracle.margin > CLEAR)

    options = {"iou_t": iou_t, "match_anchors": "best" if only_best else "all", "match_fallback": fallback}
    assignment = assign(rows_, heads, raw_maps, **options)
    assert_same(as_dict(assignment.base), expected)
    assert as_dict(assignment.extra) == {}
    assert assignment.ignore == (None, None)


@settings(max_examples=300, deadline=None)
@given(rows(max_size=10), st.sampled_from([2.0, 4.0]))
def test_ratio_equals_the_oracle(rows_, anchor_t):
    heads = two_heads()
    raw_maps = random_raw_maps(heads, 3, 0)
    oracle = Oracle(rows_, raw_maps, heads)
    expected = oracle.ratio(anchor_t)
    assume(oracle.margin > CLEAR)
    assert_same(as_dict(assign(rows_, heads, raw_maps, match="ratio", anchor_t=anchor_t).base), expected)


@settings(max_examples=120, deadline=None)
@given(rows(max_size=10), st.sampled_from([None, 0.213, 1.0]), st.sampled_from([1.0, 0.3]), st.booleans())
def test_darknet_equals_the_oracle(rows_, iou_t, of_cfg, own_lists):
    heads = two_heads(iou_thresh=of_cfg)
    if own_lists:  # the coarse head's list is shorter and in another order than the fine one's
        coarse = dataclasses.replace(heads[0], all_anchors_wh=(ANCHORS[3], ANCHORS[0], ANCHORS[4]), mask=(0, 2))
        heads = (coarse, heads[1])
    raw_maps = random_raw_maps(heads, 3, 0)
    oracle = Oracle(rows_, raw_maps, heads)
    expected = oracle.darknet(iou_t)
    assume(oracle.margin > CLEAR)
    assert_same(as_dict(assign(rows_, heads, raw_maps, match="darknet", iou_t=iou_t).base), expected)


@settings(max_examples=100, deadline=None)
@given(rows(max_size=6))
def test_atss_equals_the_oracle(rows_):
    heads = two_heads()
    raw_maps = random_raw_maps(heads, 3, 0)
    oracle = Oracle(rows_, raw_maps, heads)
    expected = oracle.atss()
    assume(oracle.margin > CLEAR)
    assert_same(as_dict(assign(rows_, heads, raw_maps, match="atss").base), expected)


@pytest.mark.parametrize("shapes", [((1, 1), (2, 2)), ((1, 12), (2, 24)), ((3, 3), (6, 6)), ((20, 4), (40, 8))])
def test_atss_on_strips_and_small_grids(shapes):
    heads = two_heads()
    raw_maps = random_raw_maps(heads, 1, 0, shapes=shapes)
    rows_ = [(0, 0, 0.503, 0.271, 0.9, 0.8), (0, 1, 0.004, 0.998, 0.33, 0.61)]
    assert_same(as_dict(assign(rows_, heads, raw_maps, match="atss").base), Oracle(rows_, raw_maps, heads).atss())


@pytest.mark.parametrize("iou_t, background_iou", [(None, None), (0.6, 0.2), (0.3, 0.3)])
def test_maxiou_equals_the_oracle(iou_t, background_iou):
    heads = two_heads()
    raw_maps = random_raw_maps(heads, 3, 0)
    clear = 0
    for seed in range(10):
        rows_ = random_rows(seed)
        oracle = Oracle(rows_, raw_maps, heads)
        expected, undecided = oracle.maxiou(iou_t or 0.5, background_iou or 0.4)
        if oracle.margin < CLEAR:
            continue
        clear += 1
        found = assign(rows_, heads, raw_maps, match="maxiou", iou_t=iou_t, background_iou=background_iou)
        assert_same(as_dict(found.base), expected)
        places = {(b, n, a, j, i) for n, mask in enumerate(found.ignore) for b, a, j, i in mask.nonzero().tolist()}
        assert places == undecided
    assert clear >= 5


@settings(max_examples=60, deadline=None)
@given(rows(max_size=5), st.integers(0, 10_000))
def test_simota_equals_the_oracle(rows_, seed):
    heads = two_heads()
    raw_maps = random_raw_maps(heads, 3, seed)
    oracle = Oracle(rows_, raw_maps, heads)
    expected = oracle.simota()
    assume(oracle.margin > CLEAR)
    assert_same(as_dict(assign(rows_, heads, raw_maps, match="simota").base), expected)


@settings(max_examples=60, deadline=None)
@given(rows(max_size=5), st.integers(0, 10_000))
def test_tal_equals_the_oracle(rows_, seed):
    heads = two_heads()
    raw_maps = random_raw_maps(heads, 3, seed)
    oracle = Oracle(rows_, raw_maps, heads)
    expected = oracle.tal()
    assume(oracle.margin > 1e-4)
    assert_same(as_dict(assign(rows_, heads, raw_maps, match="tal").base), expected)


@settings(max_examples=60, deadline=None)
@given(
    rows(max_size=4), rows(max_size=3), st.integers(0, 10_000), st.sampled_from([None, 0.2, 0.5, 0.7]), st.booleans()
)
def test_ignored_slots_equal_the_oracle(rows_, crowd, seed, threshold, of_crowd):
    heads = two_heads()
    raw_maps = random_raw_maps(heads, 3, seed)
    oracle = Oracle(rows_, raw_maps, heads)
    expected = oracle.ignored(threshold and (threshold,) * 2, crowd if of_crowd else [])
    assume(oracle.margin > CLEAR)
    ignore = assign(rows_, heads, raw_maps, crowd, ignore_thresh=threshold, ignore_crowd=of_crowd).ignore
    if threshold is None and not of_crowd:
        assert ignore == (None, None)
    else:
        found = {(b, n, a, j, i) for n, mask in enumerate(ignore) for b, a, j, i in mask.nonzero().tolist()}
        assert found == expected


# --- edges worked by hand


def test_threshold_is_strict_and_a_tie_takes_the_first_anchor():
    # Anchors 16x16 twice; a target of 8x8 has a shape IoU of 64/256 = 0.25 exactly with both.
    heads = (Head(((16.0, 16.0), (16.0, 16.0)), 16, 3),)
    raw_maps = [torch.zeros(1, 2, 4, 4, 8)]
    rows_ = [(0, 0, 0.5, 0.5, 8 / 64, 8 / 64)]
    assert as_dict(assign(rows_, heads, raw_maps, iou_t=0.25).base) == {}
    assert as_dict(assign(rows_, heads, raw_maps, iou_t=0.24).base) == {(0, 0, 0, 2, 2): 0.25, (0, 0, 1, 2, 2): 0.25}
    assert as_dict(assign(rows_, heads, raw_maps, iou_t=0.24, match_anchors="best").base) == {(0, 0, 0, 2, 2): 0.25}
    assert as_dict(assign(rows_, heads, raw_maps, match="darknet").base) == {(0, 0, 0, 2, 2): 0.25}


def test_ratio_neighbours_by_hand():
    # A grid of 4 x 4 cells of 16 pixels, anchor 16 x 16, targets of 16 x 16; x in cells, y in the middle of row 1.
    heads = (Head(((16.0, 16.0),), 16, 3),)
    raw_maps = [torch.zeros(1, 1, 4, 4, 8)]
    columns = {
        0.3: {0},  # left half of the first column: no cell to its left
        0.7: {0, 1},  # right half: the right neighbour too
        1.3: {0, 1},
        1.5: {1},  # the middle: no neighbour
        2.0: {1, 2},  # on a border: the left neighbour; "right" is the own cell again and counts once
        3.9: {3},  # less than one cell from the right border
        4.0: {3},  # on the border of the image: clamped, and its left neighbour is the own cell
    }
    for x, expected in columns.items():
        found = as_dict(assign([(0, 0, x / 4, 1.5 / 4, 0.25, 0.25)], heads, raw_maps, match="ratio").base)
        assert {col for *_, col in found} == expected, x
        assert {row for _, _, _, row, _ in found} == {1}


def test_centre_at_zero_and_at_one_stays_in_the_grid():
    heads = two_heads()
    raw_maps = random_raw_maps(heads, 1, 0)
    corners = [(0, 0, 0.0, 0.0, 0.3, 0.3), (0, 0, 1.0, 1.0, 0.3, 0.3)]
    for match in STRATEGIES:
        assignment = assign(corners, heads, raw_maps, match=match)
        assert inside_the_grid(assignment.base)
    standard = as_dict(assign(corners, heads, raw_maps).base)
    assert {(t, h, j, i) for t, h, _, j, i in standard} == {(0, 0, 0, 0), (0, 1, 0, 0), (1, 0, 2, 4), (1, 1, 5, 9)}


def test_darknet_anchor_in_no_mask_matches_nothing_unless_asked_to():
    # The published yolov3-tiny leaves anchor 0 out of both masks; an object of its size then learns nothing.
    anchors = ((10.0, 14.0), (81.0, 82.0))
    heads = (Head((anchors[1],), 32, 3, all_anchors_wh=anchors, mask=(1,)),)
    raw_maps = [torch.zeros(1, 1, 3, 3, 8)]
    rows_ = [(0, 0, 0.5, 0.5, 10 / 96, 14 / 96)]
    assert as_dict(assign(rows_, heads, raw_maps, match="darknet").base) == {}
    assert list(as_dict(assign(rows_, heads, raw_maps, match="darknet", match_fallback=True).base)) == [(0, 0, 0, 1, 1)]


def test_darknet_takes_the_best_of_each_heads_own_anchors():
    # Each section has its own anchors and num: an object of 30 x 20 is closest to 32 x 32 in the one (shape IoU 600 /
    # 1024) and to 16 x 16 in the other (256 / 600), and both train it: Darknet looks at one section at a time.
    heads = (
        Head(((32.0, 32.0), (90.0, 90.0)), 32, 3, all_anchors_wh=((32.0, 32.0), (90.0, 90.0)), mask=(0, 1)),
        Head(((16.0, 16.0),), 16, 3, all_anchors_wh=((80.0, 80.0), (16.0, 16.0)), mask=(1,)),
    )
    raw_maps = [torch.zeros(1, 2, 3, 3, 8), torch.zeros(1, 1, 6, 6, 8)]
    found = as_dict(assign([(0, 0, 0.5, 0.5, 30 / 96, 20 / 96)], heads, raw_maps, match="darknet").base)
    assert found == pytest.approx({(0, 0, 0, 1, 1): 600 / 1024, (0, 1, 0, 3, 3): 256 / 600})


def test_darknet_ignores_by_the_threshold_of_the_cfg():
    heads = tuple(dataclasses.replace(head, ignore_thresh=0.3) for head in two_heads())
    raw_maps = random_raw_maps(heads, 2, 3)
    rows_ = [(1, 0, 0.5, 0.5, 0.4, 0.5)]
    by_cfg = assign(rows_, heads, raw_maps, match="darknet").ignore
    by_option = assign(rows_, heads, raw_maps, ignore_thresh=0.3).ignore
    assert sum(mask.sum() for mask in by_cfg) > 0
    assert all(torch.equal(one, other) for one, other in zip(by_cfg, by_option, strict=True))


def test_an_ignore_threshold_of_zero_ignores_every_prediction_that_overlaps_an_object():
    heads = tuple(dataclasses.replace(head, ignore_thresh=0.0) for head in two_heads())
    raw_maps = random_raw_maps(heads, 2, 3)
    rows_ = [(1, 0, 0.45, 0.52, 0.1, 0.15)]
    ignore = assign(rows_, heads, raw_maps, match="darknet").ignore
    found = {(b, n, a, j, i) for n, mask in enumerate(ignore) for b, a, j, i in mask.nonzero().tolist()}
    assert found == Oracle(rows_, raw_maps, heads).ignored((0.0, 0.0), []) and 0 < len(found) < 400


def test_maxiou_by_hand():
    """One anchor of 16 x 16 in each of 2 x 4 cells of 16 pixels; an object of 16 x 16 in the middle of two of them."""
    heads = (Head(((16.0, 16.0),), 16, 3),)
    raw_maps = [torch.zeros(1, 1, 2, 4, 8)]
    # Half of each anchor is covered: 128 / 384 = 1/3. Both are the best of the object, and match.
    found = assign([(0, 0, 0.25, 0.25, 0.25, 0.5)], heads, raw_maps, match="maxiou")
    assert as_dict(found.base) == {(0, 0, 0, 0, 0): pytest.approx(1 / 3), (0, 0, 0, 0, 1): pytest.approx(1 / 3)}
    # A second one of 22 x 16 covers 14 pixels of the width of column 0: 14 / 24, and 8 of that of column 1: 8 / 30. So
    # column 0 learns from the second, though it is a best one of the first, and column 1 from the first.
    rows_ = [(0, 0, 0.25, 0.25, 0.25, 0.5), (0, 1, 13 / 64, 0.25, 22 / 64, 0.5)]
    assert as_dict(assign(rows_, heads, raw_maps, match="maxiou").base) == {
        (1, 0, 0, 0, 0): pytest.approx(14 / 24),
        (0, 0, 0, 0, 1): pytest.approx(1 / 3),
    }


# --- order and padding


def shuffled(targets, order, image_map):
    image = image_map[targets.image][order]
    return Targets(image, targets.label[order], targets.boxes_cxcywh[order])


@pytest.mark.parametrize("match", [*STRATEGIES, "atss+fast", "standard+tal"])
@pytest.mark.parametrize("seed", range(3))
def test_order_of_targets_and_images_and_padding_change_nothing(match, seed):
    heads = two_heads()
    generator = torch.Generator().manual_seed(seed)
    raw_maps = random_raw_maps(heads, 3, seed)
    boxes = torch.rand(14, 4, generator=generator) * 0.6 + 0.1
    boxes[3] = boxes[9]  # two objects with one box ...
    image = torch.randint(0, 3, (14,), generator=generator)
    image[3] = image[9]
    label = torch.randint(0, 3, (14,), generator=generator)
    label[3], label[9] = 0, 2  # ... but of two classes
    targets = Targets(image, label, boxes)
    extra = {"remove_duplicate": True, "reduce_anchor": True, "extra_iou": 0.3} if match.endswith("fast") else {}
    extra |= {"extra_topk": 3, "assign_rate": 0.5, "extra_iou": 0.3} if match == "split" else {}
    assigner = build_assigner(AssignmentOptions(match=match, ignore_thresh=0.5, **extra), heads)
    before = match_maps(assigner, targets, raw_maps)

    order = torch.randperm(14, generator=generator)
    image_map = torch.tensor([3, 0, 1])  # image 2 of the new batch is empty padding
    new_maps = [torch.stack((raw[1], raw[2], torch.randn_like(raw[0]), raw[0])) for raw in raw_maps]
    after = match_maps(assigner, shuffled(targets, order, image_map), new_maps)

    for name in ("base", "extra"):
        old = {(t, *key): v for (t, *key), v in as_dict(getattr(before, name)).items()}
        new = {(int(order[t]), *key): v for (t, *key), v in as_dict(getattr(after, name)).items()}
        assert new.keys() == old.keys()
        assert new == pytest.approx(old, abs=1e-6)
    for old, new in zip(before.ignore, after.ignore, strict=True):
        assert torch.equal(new[torch.tensor([3, 0, 1])], old) and not new[2].any()


@pytest.mark.parametrize("match", STRATEGIES)
def test_no_targets(match):
    heads = two_heads()
    assignment = assign([], heads, random_raw_maps(heads, 2, 0), match=match)
    assert len(assignment.base) == len(assignment.extra) == 0
    assert assignment.base.per_head == assignment.extra.per_head == (0, 0)


@pytest.mark.parametrize("match", STRATEGIES)
@pytest.mark.parametrize("wh", [(0.0, 0.0), (0.0, 0.2), (1e-7, 1e-7), (30.0, 30.0)])
def test_degenerate_targets_break_nothing(match, wh):
    heads = two_heads()
    raw_maps = random_raw_maps(heads, 1, 0)
    assignment = assign([(0, 0, 0.4, 0.6, *wh), (0, 1, 0.5, 0.5, 0.3, 0.3)], heads, raw_maps, match=match)
    for part in (assignment.base, assignment.extra):
        assert part.iou.isfinite().all() and part.weight.isfinite().all()


@pytest.mark.parametrize("match", STRATEGIES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_broken_predictions_break_nothing_here(match, value):
    # The loss of such a batch is not finite, and the training loop names it; the matching must let it get that far.
    heads = two_heads()
    raw_maps = [torch.full_like(raw, value) for raw in random_raw_maps(heads, 2, 0)]
    assignment = assign([(0, 0, 0.4, 0.6, 0.2, 0.2), (1, 1, 0.5, 0.5, 0.3, 0.3)], heads, raw_maps, match=match)
    assert inside_the_grid(assignment.base)


def test_the_same_batch_gives_the_same_matches_and_layouts_do_not_matter():
    heads = two_heads()
    raw_maps = random_raw_maps(heads, 3, 5)
    contiguous = [raw.contiguous() for raw in raw_maps]
    strided = [torch.cat((raw, raw), dim=-1)[..., : raw.shape[-1]] for raw in raw_maps]
    rows_ = [(b, 0, 0.1 + 0.2 * n, 0.5, 0.3, 0.4) for b in range(3) for n in range(4)]
    for match in STRATEGIES:
        first = assign(rows_, heads, raw_maps, match=match)
        for other in (raw_maps, contiguous, strided):
            again = assign(rows_, heads, other, match=match)
            for one, two in ((first.base, again.base), (first.extra, again.extra)):
                assert one.per_head == two.per_head
                assert all(torch.equal(getattr(one, name), getattr(two, name)) for name in COLUMNS)


def test_half_precision_maps_are_decoded_in_float32():
    heads = two_heads()
    raw_maps = random_raw_maps(heads, 2, 5)
    rows_ = [(b, 0, 0.1 + 0.2 * n, 0.5, 0.3, 0.4) for b in range(2) for n in range(4)]
    half = [raw.bfloat16() for raw in raw_maps]
    for match in STRATEGIES:
        low = assign(rows_, heads, half, match=match)
        high = assign(rows_, heads, [raw.float() for raw in half], match=match)
        for one, two in ((low.base, high.base), (low.extra, high.extra)):
            assert torch.equal(one.row, two.row) and one.iou.dtype == torch.float32


# --- combinations and options


def test_a_combination_takes_base_from_one_and_extra_from_the_other():
    heads = two_heads()
    raw_maps = random_raw_maps(heads, 2, 1)
    rows_ = [(b, 0, 0.1 + 0.2 * n, 0.5, 0.3, 0.4) for b in range(2) for n in range(4)]
    both = assign(rows_, heads, raw_maps, match="atss+tal")
    atss, tal = (as_dict(assign(rows_, heads, raw_maps, match=name).base) for name in ("atss", "tal"))
    assert as_dict(both.base) == atss
    assert as_dict(both.extra) == {key: value for key, value in tal.items() if key not in atss}

    fast = assign(rows_, heads, raw_maps, match="atss+fast", extra_iou=0.3)
    reachable = as_dict(assign(rows_, heads, raw_maps, match="pure", candidates="map", extra_iou=0.3).extra)
    assert as_dict(fast.extra) == {key: value for key, value in reachable.items() if key not in atss}


@pytest.mark.parametrize(
    "options, word",
    [
        ({"match": "standart"}, "did you mean 'standard'"),  # codespell:ignore standart
        ({"match": "standard+fast+tal"}, "A+B"),
        ({"match": "fast+fast"}, "A+B"),
        ({"match": "standard", "anchor_t": 4.0}, "used by: ratio"),
        ({"match": "ratio", "iou_t": 0.3}, "used by: standard, darknet, pure, split, fast"),
        ({"match": "pure", "extra_topk": 5}, "used by: split"),
        ({"match": "split", "remove_duplicate": True}, "used by: fast"),
        ({"match": "atss", "tobj": "base"}, "used by: pure, split, fast"),
        ({"match": "atss+split", "iou_t": 0.3}, "--iou-t is not used"),
        ({"match": "fast", "extra_iou": 0.0}, "--extra-iou must be between"),
        ({"match": "fast", "alpha": 1.5}, "--alpha must be between"),
    ],
)
def test_wrong_options_are_refused_with_a_remedy(options, word):
    with pytest.raises(ValueError) as caught:
        AssignmentOptions(**options)
    assert word in str(caught.value)
    with pytest.raises(UserError):
        build_options(options, (AssignmentOptions,))


def test_options_as_flags():
    line = "--match fast --alpha 0.3 --remove-duplicate --linear-reweight 0.5 --no-ignore-crowd --tobj extra"
    (options,) = parse_options("test", AssignmentOptions, argv=line.split())
    assert options == AssignmentOptions(
        match="fast", alpha=0.3, remove_duplicate=True, linear_reweight=0.5, ignore_crowd=False, tobj="extra"
    )
    assert parse_options("test", AssignmentOptions, argv=["--ignore-crowd"])[0].ignore_crowd is True
    with pytest.raises(UserError, match="invalid choice"):
        parse_options("test", AssignmentOptions, argv=["--match-iou", "bilinear"])


# --- real images: what others counted
# ratio at 640: ultralytics/yolov5 v5.0 (tutorial.ipynb, on the same images). standard at 416: separate numpy code of
# the rule of ultralytics/yolov3 v8.

YOLOV3 = ((10, 13), (16, 30), (33, 23), (30, 61), (62, 45), (59, 119), (116, 90), (156, 198), (373, 326))


def yolov3_heads():
    anchors = tuple((float(w), float(h)) for w, h in YOLOV3)
    return tuple(
        Head(anchors[first : first + 3], stride, 80, all_anchors_wh=anchors, mask=(first, first + 1, first + 2))
        for first, stride in ((6, 32), (3, 16), (0, 8))
    )


def on_coco(shared, match, size):
    heads = yolov3_heads()
    targets, areas = coco_targets(shared, size)
    raw_maps = [torch.zeros(1).expand(128, 3, size // head.stride, size // head.stride, 6) for head in heads]
    return as_dict(match_maps(build_assigner(AssignmentOptions(match=match), heads), targets, raw_maps).base), areas


def test_ratio_gives_the_numbers_of_yolov5_on_coco(shared):
    found, areas = on_coco(shared, "ratio", 640)
    anchors = {(target, head, anchor) for target, head, anchor, _, _ in found}
    assert len(areas) == 929
    assert round(len(anchors) / len(areas), 2) == 4.26
    assert round(len({target for target, *_ in anchors}) / len(areas), 4) == 0.9946


def test_standard_gives_the_numbers_of_yolov3_on_coco(shared):
    found, areas = on_coco(shared, "standard", 416)
    matched = torch.zeros(len(areas), dtype=torch.bool)
    matched[[target for target, *_ in found]] = True
    assert round(len(found) / len(areas), 1) in (3.3, 3.4)  # 3046 / 929 = 3.28; per matched object 3.39
    assert round(100 * (~matched).float().mean().item(), 1) == 3.4
    assert (areas[~matched] < 32**2).float().mean() > 0.9  # nearly all small
