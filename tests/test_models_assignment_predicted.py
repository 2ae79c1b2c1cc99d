"""pure, split and fast: against the oracle with every option, against one another, and by hand."""

import math

import pytest
import torch
from assignment_cases import CLASSES, as_dict, match_maps, random_raw_maps, rows, targets_of, two_heads
from assignment_oracle import Oracle
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import models.assignment.inputs
from models.assignment.assigner import build_assigner
from models.assignment.candidates import cells_that_can_reach, whole_map
from models.assignment.grid import grid_of_maps
from models.assignment.inputs import AssignmentInput, window_pairs
from models.assignment.options import AssignmentOptions
from models.assignment.predicted import predicted_iou
from models.heads import Head

CLEAR = 1e-5
THRESHOLDS = st.sampled_from([0.15, 0.3, 0.5, 0.7])
KINDS = st.sampled_from(["iou", "giou", "diou", "ciou"])
CANDIDATES = st.sampled_from([None, "cell", "neighbours", "map"])
DECODES = st.sampled_from([(1.0, False), (1.2, False), (2.0, True)])
DEFAULT_CANDIDATES = {"pure": "cell", "split": "neighbours", "fast": "map"}


def check(match, rows_, seed, decode, common, extra):
    """Compare a strategy with the oracle on one batch; returns the assignment."""
    heads = two_heads(*decode)
    raw_maps = random_raw_maps(heads, 3, seed)
    oracle = Oracle(rows_, raw_maps, heads)
    base = oracle.standard()
    words = common | {"candidates": common["candidates"] or DEFAULT_CANDIDATES[match]}
    expected = getattr(oracle, match)(**words) if match == "pure" else getattr(oracle, match)(base, **words, **extra)
    assume(oracle.margin > CLEAR)

    assignment = match_maps(
        build_assigner(AssignmentOptions(match=match, **common, **extra), heads), targets_of(rows_), raw_maps
    )
    assert as_dict(assignment.base).keys() == base.keys()
    found = as_dict(assignment.extra)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, abs=1e-4)
    return assignment


def common_options():
    return st.fixed_dictionaries({"extra_iou": THRESHOLDS, "match_iou": KINDS, "candidates": CANDIDATES})


@settings(max_examples=60, deadline=None)
@given(rows(max_size=4), st.integers(0, 10_000), DECODES, common_options())
def test_pure_equals_the_oracle(rows_, seed, decode, common):
    check("pure", rows_, seed, decode, common, {})


@settings(max_examples=100, deadline=None)
@given(
    rows(max_size=4), st.integers(0, 10_000), DECODES, common_options(),
    st.fixed_dictionaries(
        {
            "refilter": st.booleans(),
            "reduce_anchor": st.booleans(),
            "extra_topk": st.sampled_from([None, 1, 3, 5]),
            "assign_rate": st.sampled_from([None, 0.0, 0.5, 2.0]),
        }
    ),
)  # fmt: skip
def test_split_equals_the_oracle(rows_, seed, decode, common, extra):
    check("split", rows_, seed, decode, common, extra)


@settings(max_examples=100, deadline=None)
@given(
    rows(max_size=5), st.integers(0, 10_000), DECODES, common_options(),
    st.fixed_dictionaries(
        {
            "remove_duplicate": st.booleans(),
            "reduce_anchor": st.booleans(),
            "linear_reweight": st.sampled_from([None, 0.0, 0.5, 1.0]),
        }
    ),
)  # fmt: skip
def test_fast_equals_the_oracle(rows_, seed, decode, common, extra):
    assignment = check("fast", rows_, seed, decode, common, extra)
    low, start = extra["linear_reweight"], common["extra_iou"]
    iou, weight = assignment.extra.iou, assignment.extra.weight
    expected = torch.ones_like(iou) if low is None else low + (1 - low) * (iou - start) / (1 - start)
    assert torch.allclose(weight, expected, atol=1e-5)


@settings(max_examples=100, deadline=None)
@given(rows(max_size=8), st.integers(0, 10_000), DECODES, THRESHOLDS, KINDS)
def test_fast_finds_exactly_the_pairs_that_split_finds_on_the_map(rows_, seed, decode, extra_iou, kind):
    heads = two_heads(*decode)
    raw_maps = random_raw_maps(heads, 3, seed, spread=1.0)
    options = {"candidates": "map", "extra_iou": extra_iou, "match_iou": kind}
    fast, split = (
        match_maps(build_assigner(AssignmentOptions(match=match, **options), heads), targets_of(rows_), raw_maps)
        for match in ("fast", "split")
    )
    found, expected = as_dict(fast.extra), as_dict(split.extra)
    clear = {key for key, value in (found | expected).items() if abs(value - extra_iou) > 1e-6}
    assert found.keys() & clear == expected.keys() & clear


def test_a_match_never_crosses_images_though_a_naive_batched_iou_would():
    # Image 0 predicts a perfect box everywhere near the object of image 1, which itself has only poor predictions.
    heads = (Head(((16.0, 16.0),), 16, CLASSES),)
    raw = torch.zeros(2, 1, 4, 4, 8)  # zero: the cell's centre and the anchor's size
    raw[1, ..., 2:4] = -3.0  # image 1 predicts boxes of a pixel
    rows_ = [(1, 0, 0.375, 0.375, 0.25, 0.25)]  # exactly cell (1, 1): centre 24, size 16

    grid = grid_of_maps(heads, [raw])
    scene = AssignmentInput(targets_of(rows_), grid, (raw,))
    boxes = torch.tensor([[24.0 - 8, 24 - 8, 24 + 8, 24 + 8]])
    naive = [predicted_iou(AssignmentInput(targets_of([(b, *rows_[0][1:])]), grid, (raw,)), pairs, "iou").max()
             for b in range(2) for pairs in window_pairs(scene, scene.cells, scene.cells)]  # fmt: skip
    assert naive[0] == 1 and naive[1] < 0.1 and torch.equal(scene.boxes_xyxy, boxes)
    for match in ("pure", "split", "fast"):
        assigner = build_assigner(AssignmentOptions(match=match, candidates="map", iou_t=0.99), heads)
        assert as_dict(match_maps(assigner, targets_of(rows_), [raw]).extra) == {}


def test_sets_may_overlap_in_pure_and_never_do_in_split_and_fast():
    # A prediction equal to the object, from the anchor that also fits it: base, and predicted IoU 1.
    heads = (Head(((16.0, 16.0), (64.0, 64.0)), 16, CLASSES),)
    raw = torch.zeros(1, 2, 4, 4, 8)
    rows_ = [(0, 0, 0.375, 0.375, 0.25, 0.25)]
    slot = (0, 0, 0, 1, 1)
    for match, extra in (("pure", {slot: 1.0}), ("split", {}), ("fast", {})):
        assignment = match_maps(build_assigner(AssignmentOptions(match=match), heads), targets_of(rows_), [raw])
        assert as_dict(assignment.base) == {slot: 1.0} and as_dict(assignment.extra) == extra


def test_fast_reaches_a_cell_that_predicts_beyond_its_border():
    # scale_x_y 2: cell 3 predicts centres down to 2.5. An object of one cell at x = 2.2, a prediction as large at 2.5:
    # IoU 0.7 / 1.3 = 0.538, from a cell whose border is 0.8 cells away.
    heads = (Head(((16.0, 16.0),), 16, CLASSES, scale_x_y=2.0, new_coords=True),)
    raw = torch.zeros(1, 1, 4, 6, 8)
    raw[..., 2:4] = -9.0
    raw[0, 0, 1, 3, :4] = torch.tensor([-20.0, 0.0, 0.0, 0.0])
    targets = targets_of([(0, 0, 2.2 / 6, 1.5 / 4, 1 / 6, 1 / 4)])
    for match in ("fast", "split"):
        assigner = build_assigner(AssignmentOptions(match=match, candidates="map", iou_t=1.0), heads)
        assert as_dict(match_maps(assigner, targets, [raw]).extra) == pytest.approx(
            {(0, 0, 0, 1, 3): 0.7 / 1.3}, abs=1e-5
        )


def test_refilter_leaves_an_object_without_base_match_its_new_ones():
    heads = (Head(((16.0, 16.0),), 16, CLASSES),)
    raw = torch.zeros(1, 1, 4, 4, 8)
    targets = targets_of([(0, 0, 0.375, 0.375, 0.25, 0.25)])  # predicted exactly, by an anchor of exactly its shape
    assigner = build_assigner(AssignmentOptions(match="split", refilter=True, iou_t=1.0), heads)
    assignment = match_maps(assigner, targets, [raw])
    assert as_dict(assignment.base) == {} and as_dict(assignment.extra) == {(0, 0, 0, 1, 1): 1.0}


def logit(p):
    return math.log(p / (1 - p))


def test_refilter_keeps_what_beats_the_worst_base_prediction():
    # One object of 32 x 32 at the centre of cell (1, 1), cells of 16 pixels. Anchors 32x32 (base) and 80x80 (no base:
    # shape IoU 0.16). The base slot predicts 32 x 16: IoU 0.5. The other anchor predicts 32 x 24 (IoU 0.75), and in
    # the cell to the right 32 x 32 moved by 8 (its centre pulled left by half a cell): IoU 24/40 = 0.6.
    heads = (Head(((32.0, 32.0), (80.0, 80.0)), 16, CLASSES),)
    raw = torch.zeros(1, 2, 4, 4, 8)
    raw[..., 2:4] = -6.0
    raw[0, 0, 1, 1, 2:4] = torch.tensor([0.0, math.log(0.5)])
    raw[0, 1, 1, 1, 2:4] = torch.tensor([math.log(0.4), math.log(0.3)])
    raw[0, 1, 1, 2, :4] = torch.tensor([logit(1e-6), 0.0, math.log(0.4), math.log(0.4)])
    targets = targets_of([(0, 0, 0.375, 0.375, 0.5, 0.5)])

    def extra(**options):
        return as_dict(
            match_maps(build_assigner(AssignmentOptions(match="split", **options), heads), targets, [raw]).extra
        )

    best, beside = (0, 0, 1, 1, 1), (0, 0, 1, 1, 2)
    assert extra() == pytest.approx({best: 0.75, beside: 0.6}, abs=1e-4)
    assert extra(refilter=True).keys() == {best, beside}
    assert extra(extra_topk=1).keys() == {best}
    assert extra(assign_rate=0.99).keys() == set()  # one base match: at most 0.99 extra ones
    assert extra(assign_rate=1.0).keys() == {best}
    raw[0, 0, 1, 1, 3] = math.log(0.7)  # the base prediction now has an IoU of 0.7
    assert extra(refilter=True).keys() == {best}


def test_assign_rate_of_100_base_matches_is_exact():
    # 10 x 10 cells, in each an object that its prediction equals and two further anchors that do, too, but are no base
    # matches (their shape IoU is below 0.2): 100 base matches, 200 candidates; 0.29 * 100 is 28.999999999999996.
    heads = (Head(((16.0, 16.0), (64.0, 64.0), (80.0, 80.0)), 16, CLASSES),)
    raw = torch.zeros(1, 3, 10, 10, 8)
    raw[:, 1, ..., 2:4], raw[:, 2, ..., 2:4] = math.log(16 / 64), math.log(16 / 80)
    targets = targets_of([(0, 0, (i + 0.5) / 10, (j + 0.5) / 10, 0.1, 0.1) for j in range(10) for i in range(10)])
    for rate, number in ((0.29, 29), (0.295, 29), (0.5, 50), (0.0, 0)):
        assigner = build_assigner(AssignmentOptions(match="split", candidates="cell", assign_rate=rate), heads)
        assignment = match_maps(assigner, targets, [raw])
        assert (len(assignment.base), len(assignment.extra)) == (100, number)


def test_remove_duplicate_gives_a_slot_to_the_better_object_and_never_a_base_slot():
    # Two objects, 16 x 16 and 16 x 12, in one cell; anchor 0 (16 x 16) fits both, anchor 1 predicts 16 x 13 by itself.
    heads = (Head(((16.0, 16.0), (100.0, 100.0)), 16, CLASSES),)
    raw = torch.zeros(1, 2, 4, 4, 8)
    raw[:, 1, ..., 2:4] = -9.0
    raw[0, 1, 1, 1, 2:4] = torch.tensor([math.log(0.16), math.log(0.13)])
    targets = targets_of([(0, 0, 0.375, 0.375, 0.25, 0.25), (0, 1, 0.375, 0.375, 0.25, 0.1875)])

    def extra(**options):
        return as_dict(
            match_maps(build_assigner(AssignmentOptions(match="fast", **options), heads), targets, [raw]).extra
        )

    # IoU with 16 x 13: 13/16 = 0.8125 for the first, 12/13 = 0.923 for the second.
    both = {(0, 0, 1, 1, 1): 13 / 16, (1, 0, 1, 1, 1): 12 / 13}
    assert extra() == pytest.approx(both, abs=1e-4)
    assert extra(remove_duplicate=True).keys() == {(1, 0, 1, 1, 1)}
    # A threshold that leaves the second object without a base match: anchor 0 is a base match of the first and offers
    # 12/16 = 0.75 to the second, taken as an extra match but not with --remove-duplicate.
    assert extra(iou_t=0.8).keys() == {*both, (1, 0, 0, 1, 1)}
    assert extra(iou_t=0.8, remove_duplicate=True).keys() == {(1, 0, 1, 1, 1)}


@pytest.mark.parametrize("at_once", [1, 50, 1000])
def test_no_chunk_is_larger_than_asked_for_plus_one_target(at_once):
    heads = two_heads()
    raw_maps = random_raw_maps(heads, 3, 1)
    targets = targets_of([(b, n % 3, 0.1 + 0.2 * n, 0.5, 0.1 * n, 0.4) for b in (2, 0, 1) for n in range(5)])
    scene = AssignmentInput(targets, grid_of_maps(heads, raw_maps), tuple(raw_maps))
    for low, high in ((scene.cells - 1, scene.cells + 1), whole_map(scene), cells_that_can_reach(scene, (0.5, 0.5))):
        chunks = list(window_pairs(scene, low, high, at_once))
        per_target = torch.cat([pairs.target for pairs in chunks]).bincount(minlength=len(targets))
        assert all(len(pairs) <= at_once + per_target.max() for pairs in chunks)
        assert len(chunks) >= per_target.sum() / (at_once + per_target.max())


@pytest.mark.parametrize("match", ["pure", "split", "fast", "simota", "tal"])
def test_chunks_change_nothing(match, monkeypatch):
    heads = two_heads()
    raw_maps = random_raw_maps(heads, 3, 1)
    targets = targets_of([(b, n % 3, 0.1 + 0.2 * n, 0.5, 0.3, 0.4) for b in (2, 0, 1) for n in range(5)])
    options = {"candidates": "map", "extra_iou": 0.3} if match in DEFAULT_CANDIDATES else {}
    assigner = build_assigner(AssignmentOptions(match=match, **options), heads)
    whole = match_maps(assigner, targets, raw_maps)
    for limit in (1, 100, 1000):
        monkeypatch.setattr(window_pairs, "__defaults__", (limit,))
        monkeypatch.setattr("models.assignment.simota.NUMBERS_AT_ONCE", limit * (5 + CLASSES))
        parts = match_maps(assigner, targets, raw_maps)
        assert as_dict(parts.base) == pytest.approx(as_dict(whole.base))
        assert as_dict(parts.extra) == pytest.approx(as_dict(whole.extra))
    assert models.assignment.inputs.PAIRS_AT_ONCE >= 100_000
