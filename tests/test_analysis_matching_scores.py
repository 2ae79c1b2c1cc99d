"""IoU and confidence, and objects that NMS loses: cases worked by hand, and plain-Python implementations."""

import math

import numpy as np
import pytest
import torch

from analysis.matching.scores import OF_OBJECTNESS
from analysis.matching.statistics import statistics
from analysis.matching.suppression import SuppressionRule
from analysis.matching.tables import all_tables, notes_of
from models.assignment.candidates import CANDIDATES
from models.heads import DenseRule, Head
from tests.analysis_scenes import (
    candidate_slots,
    measured,
    plain_iou,
    quiet_maps,
    random_scene,
    read_slots,
    say,
    sigmoid,
    targets_of,
)
from utils.boxes import IOU_KINDS

HEADS = (Head(((32.0, 32.0), (16.0, 16.0)), 32, 2), Head(((12.0, 12.0),), 16, 2))  # 2x2 and 4x4 cells in 64x64


def test_the_most_confident_slot_is_not_the_best_one():
    # An object of class 1, 0..32 x 0..32. Slot A (first head): 32x24 of it, q = 3/4, objectness logit 0 (1/2), class
    # logit 0 (1/2). Slot B (second head, row 0, col 1): 16x16 around (16.5, 8.5), clipped nowhere: 8.5..24.5 x
    # 0.5..16.5, all inside, q = 1/4; objectness logit ln 3 (3/4), class logit -ln 9 (1/10).
    # By objectness B wins: mismatch, ratio (1/4)/(3/4) = 1/3. By score A has 1/4, B 0.075: no mismatch, ratio 1.
    raw_maps = quiet_maps(HEADS, 1, (64, 64))
    say(raw_maps, HEADS, (0, 0, 0, 0, 0), (0, 0, 32, 24), 0.0, (5.0, 0.0))
    say(raw_maps, HEADS, (0, 1, 0, 0, 1), (8.5, 0.5, 24.5, 16.5), math.log(3), (5.0, -math.log(9)))
    # All other slots: too far away or, in the same cells, made too small to overlap by 0.1.
    for slot in ((0, 0, 1, 0, 0), (0, 1, 0, 0, 0), (0, 1, 0, 1, 0), (0, 1, 0, 1, 1)):
        _, _, _, row, col = slot
        stride = HEADS[slot[1]].stride
        x, y = (col + 0.5) * stride, (row + 0.5) * stride
        say(raw_maps, HEADS, slot, (x - 1, y - 1, x + 1, y + 1), 6.0)
    result = measured(HEADS, raw_maps, targets_of([(0, 1, 0, 0, 32, 32)], (64, 64)), {"standard": None})
    one = statistics(result, {})["scores"]["iou"]
    assert one["objects"] == 1
    assert one["objectness"]["objects"] == 1 and one["objectness"]["mean_q_ratio"] == pytest.approx(1 / 3, abs=1e-5)
    assert one["score"]["objects"] == 0 and one["score"]["mean_q_ratio"] == pytest.approx(1)
    columns = {name: float(values[0, 0]) for name, values in result.objects.items() if values.shape == (1, 1)}
    assert columns["best_q"] == pytest.approx(3 / 4) and columns["q_of_objectness"] == pytest.approx(1 / 4)
    assert columns["best_objectness"] == pytest.approx(3 / 4) and columns["objectness_of_best"] == pytest.approx(1 / 2)
    # Areas in cells: 32*24/32² = 3/4 and 16*16/16² = 1. Offsets of the centres from (16, 16): (0, -4) pixels = 1/8
    # cell of 32; (0.5, -7.5) pixels of a cell of 16.
    assert columns["area_best"] == pytest.approx(3 / 4) and columns["area_confident"] == pytest.approx(1)
    assert columns["offset_best"] == pytest.approx(1 / 8, abs=1e-5)
    assert columns["offset_confident"] == pytest.approx(math.hypot(0.5, 7.5) / 16, abs=1e-5)
    moments = statistics(result, {})["scores"]["iou"]["moments"]
    assert moments["area_ratio"] == {"mean": pytest.approx(3 / 4), "std": 0.0, "objects": 1}


def test_without_objectness_what_is_about_it_is_undefined():
    """A level of a RetinaNet: the box of the best fit, around its corner of a cell, is not that of the best class."""
    heads = (Head(((32.0, 32.0), (16.0, 16.0)), 32, 2, rule=DenseRule()),)
    raw = torch.zeros(1, 2, 2, 2, 7)
    raw[..., 4], raw[..., 5:] = math.inf, -9.0
    raw[0, 0, 1, 1, 6], raw[0, 1, 1, 1, 6] = -1.0, 1.0  # predict 16..48 and 24..40, both ways
    found = measured(heads, [raw], targets_of([(0, 1, 16, 16, 48, 48)], (64, 64)), {"maxiou": None})
    assert not OF_OBJECTNESS & found.objects.keys()
    result = statistics(found, {})
    scores = result["scores"]["iou"]
    assert scores["objectness"] == {"objects": None, "object_share": None, "mean_q_ratio": None}
    assert scores["score"]["objects"] == 1 and scores["score"]["mean_q_ratio"] == pytest.approx(1 / 4)
    undefined = {"mean": None, "std": None, "objects": 0}
    assert scores["moments"]["best_objectness"] == scores["moments"]["area_ratio"] == undefined
    assert scores["moments"]["best_q"]["mean"] == pytest.approx(1)
    assert sum("no objectness" in note for note in notes_of(result)) == 1
    tables = {table.name: table for table in all_tables(result)}
    assert [row[1] for row in tables["scores"].rows] == ["score"]


def test_equal_scores_are_no_mismatch():
    # Two slots with the very same objectness; one fits better. Nothing tells them apart, so the better one counts.
    raw_maps = quiet_maps(HEADS, 1, (64, 64))
    say(raw_maps, HEADS, (0, 0, 0, 0, 0), (0, 0, 32, 24), 2.0, (1.0, 1.0))
    say(raw_maps, HEADS, (0, 0, 1, 0, 0), (0, 0, 32, 16), 2.0, (1.0, 1.0))
    result = measured(HEADS, raw_maps, targets_of([(0, 0, 0, 0, 32, 32)], (64, 64)), {"standard": None})
    one = statistics(result, {})["scores"]["iou"]
    assert one["objectness"]["objects"] == one["score"]["objects"] == 0
    assert one["objectness"]["mean_q_ratio"] == pytest.approx(1)


def test_an_object_that_no_prediction_overlaps_is_left_out():
    raw_maps = quiet_maps(HEADS, 1, (64, 64))
    targets = targets_of([(0, 0, 1, 1, 3, 3)], (64, 64))  # 2x2: at most 4/144 of any predicted box
    result = measured(HEADS, raw_maps, targets, {"standard": None})
    one = statistics(result, {})
    assert one["scores"]["iou"].pop("moments")["best_q"] == {"mean": None, "std": None, "objects": 0}
    nothing = {"objects": 0, "object_share": None, "mean_q_ratio": None}
    assert one["scores"]["iou"] == {"objects": 0, "objectness": nothing, "score": nothing}


def oracle(heads, raw_maps, rows, kind, candidates, min_q):
    """One dict per object that some slot overlaps: its mismatch and its moments in docs/analysis.md."""
    found = []
    for image, label, *box in rows:
        slots = read_slots(heads, raw_maps, image)
        seen = []
        for name in candidate_slots(heads, raw_maps, image, box, candidates):
            predicted, objectness, classes = slots[name]
            q = plain_iou(predicted, box, kind)
            if q >= min_q:
                score = sigmoid(objectness) * sigmoid(classes[label])
                seen.append((q, objectness, score, predicted, heads[name[1]].stride))
        if not seen:
            continue
        best = max(seen, key=lambda one: one[0])
        sure, scored = max(seen, key=lambda one: one[1]), max(seen, key=lambda one: one[2])

        def offset(one, box=box):
            (x1, y1, x2, y2), stride = one[3], one[4]
            return math.hypot(x1 + x2 - box[0] - box[2], y1 + y2 - box[1] - box[3]) / 2 / stride

        def area(one):
            (x1, y1, x2, y2), stride = one[3], one[4]
            return (x2 - x1) * (y2 - y1) / stride**2

        found.append({
            "mismatch": best is not sure, "score_mismatch": best is not scored,
            "ratio": sure[0] / best[0], "score_ratio": scored[0] / best[0],
            "best_q": best[0], "q_of_objectness": sure[0], "q_of_score": scored[0],
            "best_objectness": sigmoid(sure[1]), "objectness_of_best": sigmoid(best[1]),
            "area_best": area(best), "area_confident": area(sure), "area_ratio": area(best) / area(sure),
            "offset_best": offset(best), "offset_confident": offset(sure),
        })  # fmt: skip
    return found


@pytest.mark.parametrize("candidates", CANDIDATES)
@pytest.mark.parametrize("seed", range(4))
def test_scores_and_moments_equal_a_plain_python_implementation(seed, candidates):
    heads, raw_maps, targets, rows = random_scene(seed + 20)
    kinds = tuple(IOU_KINDS)
    result = measured(heads, raw_maps, targets, {"standard": None}, kinds, score_candidates=candidates)
    result = statistics(result, {})
    mismatches = 0
    for kind in kinds:
        wanted = oracle(heads, raw_maps, rows, kind, candidates, 0.1)
        one = result["scores"][kind]
        assert one["objects"] == len(wanted)
        assert one["objectness"]["objects"] == sum(row["mismatch"] for row in wanted)
        assert one["score"]["objects"] == sum(row["score_mismatch"] for row in wanted)
        mismatches += one["score"]["objects"]
        if wanted:
            for score, key in (("objectness", "ratio"), ("score", "score_ratio")):
                assert one[score]["mean_q_ratio"] == pytest.approx(np.mean([row[key] for row in wanted]), abs=1e-4)
        moments = one["moments"]
        for name, values in moments.items():
            if wanted and name in wanted[0]:
                numbers = [row[name] for row in wanted]
                assert values["mean"] == pytest.approx(np.mean(numbers), rel=1e-4, abs=1e-5), name
                assert values["std"] == pytest.approx(np.std(numbers), rel=1e-3, abs=1e-4), name
    assert mismatches


WIDE = (Head(((64.0, 64.0),), 32, 2),)  # 4x2 cells in 128x64
LIKELY, UNLIKELY = 4.0, -9.0


def lost(rows, said, **rule):
    """Columns about suppression of objects (label, box) when slots (col, row) say (box, objectness, class)."""
    raw_maps = quiet_maps(WIDE, 1, (128, 64))
    for (col, row), (box, objectness, label) in said.items():
        classes = [LIKELY if index == label else UNLIKELY for index in range(2)]
        say(raw_maps, WIDE, (0, 0, 0, row, col), box, objectness, classes)
    targets = targets_of([(0, label, *box) for label, box in rows], (128, 64))
    result = measured(WIDE, raw_maps, targets, {"standard": None}, suppression=SuppressionRule(**rule))
    return result


def test_an_object_whose_prediction_another_objects_box_removes():
    # Two people, 0..60 and 12..72 wide, 60 high: IoU 48/72 = 2/3. Both are predicted exactly (slots of the columns 0
    # and 1, centres 30 and 42), the second with less confidence: NMS at 0.6 drops it, and with it the second person.
    people = [(0, (0, 1, 60, 61)), (0, (12, 1, 72, 61))]
    said = {(0, 0): (people[0][1], 3.0, 0), (1, 0): (people[1][1], 1.0, 0)}
    objects = lost(people, said).objects
    assert objects["found"].tolist() == [True, True] and objects["detected"].tolist() == [True, False]
    assert objects["suppressed"].tolist() == [False, True] and objects["removed_by_none"].tolist() == [False, False]
    # Each IoU of the kept box reaches 0.5 (1 and 2/3) and it covers 48/60 of the second: one detection for both.
    assert objects["merged"].tolist() == [1, 1]
    # NMS at 0.7 keeps both; nothing is lost.
    objects = lost(people, said, nms_iou=0.7).objects
    assert objects["detected"].tolist() == [True, True]
    assert not objects["suppressed"].any() and not objects["merged"].any()
    # Another class does not suppress.
    other = {(0, 0): (people[0][1], 3.0, 1), (1, 0): (people[1][1], 1.0, 0)}
    objects = lost([(1, people[0][1]), people[1]], other).objects
    assert objects["detected"].tolist() == [True, True] and not objects["suppressed"].any()


def test_a_prediction_removed_by_a_box_that_belongs_to_no_object():
    # The person 40..80 x 1..61 is predicted as 40..84 (IoU 40/44), objectness 1. A stronger box 52..98 overlaps the
    # person by 28/58 = 0.48, so it belongs to no object, and the prediction by 32/58 = 0.55: NMS at 0.5 drops that.
    person = [(0, (40, 1, 80, 61))]
    said = {(1, 0): ((40, 1, 84, 61), 1.0, 0), (2, 0): ((52, 1, 98, 61), 3.0, 0)}
    objects = lost(person, said, nms_iou=0.5).objects
    assert objects["found"].tolist() == [True] and objects["detected"].tolist() == [False]
    assert objects["suppressed"].tolist() == [False] and objects["removed_by_none"].tolist() == [True]


def test_one_detection_around_two_neighbours():
    # Two people side by side, 10..40 and 44..74; one detection 12..72 covers 28/30 and 28/30 of them. Its IoU with the
    # box around both, 10..74, is 60/64; with either 28/62. Neither has a detection of its own.
    people = [(0, (10, 1, 40, 61)), (0, (44, 1, 74, 61))]
    result = lost(people, {(1, 0): ((12, 1, 72, 61), 3.0, 0)})
    assert result.objects["merged"].tolist() == [1, 1] and result.images["merged_pairs"].tolist() == [1]
    assert not result.objects["found"].any() and not result.objects["suppressed"].any()
    # A person in front of another one's box: 10..100 is detected exactly, 44..54 x 30..61 is simply missed.
    people = [(0, (10, 1, 100, 61)), (0, (44, 30, 54, 61))]
    result = lost(people, {(1, 0): ((10, 1, 100, 61), 3.0, 0)})
    assert result.objects["merged"].tolist() == [0, 0] and result.objects["detected"].tolist() == [True, False]


def suppression_oracle(heads, raw_maps, rows, rule, classes):
    """Textbook NMS and the definitions of analysis/matching/suppression.py, one box at a time."""
    wanted = [dict.fromkeys(("found", "detected", "suppressed", "removed_by_none"), False) for _ in rows]
    merged = set()
    for image in range(len(raw_maps[0])):
        boxes = []
        for box, objectness, logits in read_slots(heads, raw_maps, image).values():
            label = max(range(classes), key=lambda index, logits=logits: logits[index])
            boxes.append((sigmoid(objectness) * sigmoid(logits[label]), label, box))
        boxes = sorted((one for one in boxes if one[0] > rule.confidence), key=lambda one: -one[0])
        kept = []
        for one in boxes:
            if all(one[1] != k[1] or plain_iou(one[2], k[2], "iou") <= rule.nms_iou for k in kept):
                kept.append(one)
        mine = [t for t, row in enumerate(rows) if row[0] == image]
        for t in mine:
            own = [one for one in boxes if _owner(one, rows, mine, rule) == t]
            wanted[t]["found"] = bool(own)
            wanted[t]["detected"] = any(_owner(one, rows, mine, rule) == t for one in kept)
            if own and not wanted[t]["detected"]:
                stronger = [k for k in kept if k[1] == own[0][1] and k[0] >= own[0][0]]
                by = _owner(max(stronger, key=lambda k, own=own: plain_iou(k[2], own[0][2], "iou")), rows, mine, rule)
                wanted[t]["suppressed" if by is not None else "removed_by_none"] = True
        pairs = [(a, b) for a in mine for b in mine if a < b and not (wanted[a]["detected"] and wanted[b]["detected"])]
        merged |= {(a, b) for a, b in pairs if any(_stands_for(one, rows[a], rows[b], rule) for one in kept)}
    return wanted, merged


def _owner(one, rows, mine, rule):
    fits = [(plain_iou(one[2], rows[t][2:], "iou"), -t) for t in mine if rows[t][1] == one[1]]
    return -max(fits)[1] if fits and max(fits)[0] >= rule.own_iou else None


def _stands_for(detection, first, second, rule):
    _, label, box = detection
    if not label == first[1] == second[1]:
        return False
    one, two = first[2:], second[2:]
    if min(_covered(one, box), _covered(two, box)) < rule.covered:
        return False
    hull = (*map(min, one[:2], two[:2]), *map(max, one[2:], two[2:]))
    around, of_one, of_two = (plain_iou(box, other, "iou") for other in (hull, one, two))
    return min(of_one, of_two) >= rule.own_iou or (around >= rule.own_iou and around > max(of_one, of_two))


def _covered(box, by):
    width = max(0, min(box[2], by[2]) - max(box[0], by[0]))
    height = max(0, min(box[3], by[3]) - max(box[1], by[1]))
    return width * height / ((box[2] - box[0]) * (box[3] - box[1]))


@pytest.mark.parametrize("seed", range(12))
def test_lost_objects_equal_a_plain_python_implementation(seed):
    heads, raw_maps, targets, rows = random_scene(seed + 40, objects=24, classes=2)
    rule = SuppressionRule(confidence=0.1, nms_iou=0.3, own_iou=0.3, covered=0.3)
    result = measured(heads, raw_maps, targets, {"standard": None}, suppression=rule)
    wanted, merged = suppression_oracle(heads, raw_maps, rows, rule, 2)
    for name in ("found", "detected", "suppressed", "removed_by_none"):
        assert result.objects[name].tolist() == [row[name] for row in wanted], name
    assert result.objects["merged"].tolist() == [sum(t in pair for pair in merged) for t in range(len(rows))]
    assert result.images["merged_pairs"].sum() == len(merged)


def test_the_random_scenes_do_lose_objects():
    totals = {"suppressed": 0, "removed_by_none": 0, "merged": 0}
    for seed in range(12):
        heads, raw_maps, targets, _ = random_scene(seed + 40, objects=24, classes=2)
        rule = SuppressionRule(confidence=0.1, nms_iou=0.3, own_iou=0.3, covered=0.3)
        result = measured(heads, raw_maps, targets, {"standard": None}, suppression=rule)
        totals = {name: count + int(result.objects[name].sum()) for name, count in totals.items()}
    assert all(totals.values()), totals


def test_detections_without_any_object():
    raw_maps = [torch.full_like(raw, 3.0) for raw in quiet_maps(WIDE, 2, (128, 64))]
    result = measured(WIDE, raw_maps, targets_of([], (128, 64)), {"standard": None})
    assert result.images["merged_pairs"].tolist() == [0, 0] and len(result.objects["suppressed"]) == 0
