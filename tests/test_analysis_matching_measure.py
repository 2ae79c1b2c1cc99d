"""The statistics of --matching-stats: cases worked by hand, and a plain-Python implementation on random scenes."""

import math
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch

from analysis.matching.options import BREAKDOWNS
from analysis.matching.statistics import groups_of, statistics, statistics_of
from models.assignment.candidates import CANDIDATES
from models.assignment.options import AssignmentOptions
from models.heads import Head
from tests.analysis_scenes import (
    candidate_slots,
    match_sets,
    measured,
    plain_iou,
    quiet_maps,
    random_scene,
    read_slots,
    say,
    targets_of,
)
from utils.boxes import IOU_KINDS
from utils.structures import Targets

ONE_HEAD = (Head(((32.0, 32.0), (16.0, 16.0), (64.0, 64.0)), 32, 1),)  # a 2x2 grid in 64x64
STRATEGIES = ("standard", "pure", "split", "fast", "ratio", "atss", "simota", "tal")


def hand_scene():
    """One object of 32x32 in the first cell of ONE_HEAD, and what the three slots of that cell predict.

    Shape IoU with the anchors: 1, 16²/32² = 0.25, 32²/64² = 0.25; above 0.3 only the first matches.
    Predictions 32x16, 32x24 and 16x16, all inside the object: IoU 1/2, 3/4, 1/4.
    """
    raw_maps = quiet_maps(ONE_HEAD, 1, (64, 64))
    for anchor, box in enumerate(((0, 0, 32, 16), (0, 0, 32, 24), (0, 0, 16, 16))):
        say(raw_maps, ONE_HEAD, (0, 0, anchor, 0, 0), box)
    return raw_maps, targets_of([(0, 0, 0, 0, 32, 32)], (64, 64)), {"standard": AssignmentOptions(iou_t=0.3)}


def test_an_unmatched_anchor_that_predicts_better_than_every_matched_one():
    raw_maps, targets, strategies = hand_scene()
    one = statistics(measured(ONE_HEAD, raw_maps, targets, strategies), {})["strategies"]["standard"]
    of_iou = one["iou"]["iou"]
    assert one["positives"] == one["base"] == 1 and one["extra"] == 0
    assert one["without_match"] == {"objects": 0, "object_share": 0.0}
    assert one["collisions"] == {"contested_positives": 0, "contested_share": 0.0, "slots": 1, "shared_slots": 0,
                                 "shared_slot_share": 0.0}  # fmt: skip
    # M = {1/2}, U = {3/4, 1/4}: max U = 3/4 is above min M = max M = 1/2.
    assert of_iou["objects_with_both"] == 1
    assert of_iou["unmatched_over_min"]["objects"] == of_iou["unmatched_over_max"]["objects"] == 1
    # One annotated image x one head, and it is such a map in both senses.
    assert of_iou["feature_maps"] == {"total": 1, "over_max": 1, "over_max_share": 1.0, "over_min": 1,
                                      "over_min_share": 1.0}  # fmt: skip
    assert of_iou["mean_q_of_positives"] == pytest.approx(0.5)
    matched, free, small = of_iou["anchors"]
    assert (matched["objects"], matched["matches"], matched["object_share"]) == (1, 1, 1.0)
    assert matched["mean_matched_q"] == pytest.approx(0.5) and matched["mean_shape_iou"] == 1.0
    assert matched["mean_candidate_q"] == pytest.approx(0.5)
    assert free["objects"] == 0 and free["mean_matched_q"] is None and free["mean_shape_iou"] is None
    assert free["mean_candidate_q"] == pytest.approx(0.75) and small["mean_candidate_q"] == pytest.approx(0.25)
    # The second anchor held the best unmatched prediction, its only unmatched candidate; the first the worst matched.
    assert [row["best_unmatched"] for row in of_iou["misassigned_anchors"]] == [0, 1, 0]
    assert [row["unmatched_share"] for row in of_iou["misassigned_anchors"]] == [None, 1.0, 0.0]
    assert [row["worst_matched"] for row in of_iou["misassigned_anchors"]] == [1, 0, 0]
    assert [row["matched_share"] for row in of_iou["misassigned_anchors"]] == [1.0, None, None]


def test_better_than_the_worst_but_not_than_the_best_match():
    # From 0.2 on all three match; with the middle one at iou_t 0.3 left out we need two matched anchors: a 64x32 object
    # has shape IoU 1/2 with 32x32 (1024/2048), 256/2048 = 1/8 with 16x16, 2048/4096 = 1/2 with 64x64.
    # Predictions 1/4 (32x16 of 64x32), 1/2 (32x32) and 3/4 (64x24): M = {1/4, 3/4}, U = {1/2}.
    raw_maps = quiet_maps(ONE_HEAD, 1, (64, 64))
    for anchor, box in enumerate(((0, 0, 32, 16), (0, 0, 32, 32), (0.5, 0, 62.5, 24))):
        say(raw_maps, ONE_HEAD, (0, 0, anchor, 0, 0), box)
    targets = targets_of([(0, 0, 0, 0, 63.9, 32)], (64, 64))  # the centre stays in the first cell
    strategies = {"standard": AssignmentOptions(iou_t=0.3)}
    one = statistics(measured(ONE_HEAD, raw_maps, targets, strategies), {})
    of_iou = one["strategies"]["standard"]["iou"]["iou"]
    assert (of_iou["unmatched_over_min"]["objects"], of_iou["unmatched_over_max"]["objects"]) == (1, 0)
    assert (of_iou["feature_maps"]["over_min"], of_iou["feature_maps"]["over_max"]) == (1, 0)
    assert [row["best_unmatched"] for row in of_iou["misassigned_anchors"]] == [0, 0, 0]


def test_an_object_without_a_match_is_counted_and_has_no_sets_to_compare():
    # A 2x60 object: shape IoU 64/1080, 32/344, 120/4096, all below 0.2.
    raw_maps = quiet_maps(ONE_HEAD, 1, (64, 64))
    targets = targets_of([(0, 0, 10, 2, 12, 62)], (64, 64))
    result = statistics(measured(ONE_HEAD, raw_maps, targets, {"standard": None}), {})
    one = result["strategies"]["standard"]
    assert one["without_match"] == {"objects": 1, "object_share": 1.0}
    assert one["iou"]["iou"]["objects_with_both"] == 0
    assert one["iou"]["iou"]["unmatched_over_min"] == {"objects": 0, "object_share": None}
    assert one["iou"]["iou"]["mean_q_of_positives"] is None


def test_the_best_prediction_comes_from_a_neighbouring_cell():
    # The object 20..52 x 0..32 has its centre (36, 16) in the second cell, where nothing predicts better than 1/4
    # (16x16 inside 32x32). The first cell's slot says 14..46 x 0..32, centre (30, 16): overlap 26x32, union 38x32.
    raw_maps = quiet_maps(ONE_HEAD, 1, (64, 64))
    for anchor in range(3):
        say(raw_maps, ONE_HEAD, (0, 0, anchor, 0, 1), (28, 8, 44, 24))
    say(raw_maps, ONE_HEAD, (0, 0, 0, 0, 0), (14, 0, 46, 32))
    targets = targets_of([(0, 0, 20, 0, 52, 32)], (64, 64))
    result = measured(ONE_HEAD, raw_maps, targets, {"standard": None})
    assert result.objects["best_from_neighbour"].tolist() == [[True]]
    assert result.objects["best_q"][0, 0] == pytest.approx(26 / 38)
    # The centre cell now holds a perfect prediction: no neighbour beats it.
    say(raw_maps, ONE_HEAD, (0, 0, 2, 0, 1), (20, 0, 52, 32))
    assert measured(ONE_HEAD, raw_maps, targets, {"standard": None}).objects["best_from_neighbour"].tolist() == [
        [False]
    ]


def test_collisions_and_agreement_by_hand():
    # Two equal 32x32 objects in the first cell: with iou_t 0.3 both want the slot of the first anchor.
    # fast: that slot predicts both with IoU 1/2 (base already), the second anchor's 32x24 with 3/4 (extra, for both).
    raw_maps, _, strategies = hand_scene()
    targets = targets_of([(0, 0, 0, 0, 32, 32)] * 2, (64, 64))
    strategies |= {"fast": AssignmentOptions(match="fast", iou_t=0.3)}
    result = statistics(measured(ONE_HEAD, raw_maps, targets, strategies), {})
    standard, fast = result["strategies"].values()
    assert (standard["positives"], standard["collisions"]["slots"], standard["collisions"]["shared_slots"]) == (2, 1, 1)
    assert standard["collisions"]["contested_positives"] == 2
    assert (fast["base"], fast["extra"], fast["positives"], fast["collisions"]["slots"]) == (2, 2, 4, 2)
    assert fast["positives_per_object"] == {"mean": 2.0, "max": 2, "counts": [0, 0, 2]}
    assert fast["iou"]["iou"]["mean_q_of_positives"] == pytest.approx((1 / 2 + 3 / 4) / 2)
    # Two pairs in common out of four: 1/2.
    assert result["agreement"] == {"standard": {"standard": 1.0, "fast": 0.5}, "fast": {"standard": 0.5, "fast": 1.0}}


def oracle(heads, raw_maps, rows, sets, kind, candidates):
    """Statistics of docs/analysis.md, *matching-stats*, for each strategy, one object and one slot at a time.

    sets: name -> {(target, slot)}.
    """
    slots = {}
    for image in range(len(raw_maps[0])):
        slots |= read_slots(heads, raw_maps, image)
    anchor_names = [(index, anchor) for index, head in enumerate(heads) for anchor in range(head.num_anchors)]
    result = {}
    for name, pairs in sets.items():
        claims = Counter(slot for _, slot in pairs)
        f = defaultdict(float, slots=len(claims), shared=sum(n > 1 for n in claims.values()))
        f["mean_q"], f["own"] = [], []
        f["maps"], f["anchors"] = {"max": set(), "min": set()}, [defaultdict(float) for _ in anchor_names]
        for target, (image, _, *box) in enumerate(rows):
            q = {
                slot: plain_iou(slots[slot][0], box, kind)
                for slot in candidate_slots(heads, raw_maps, image, box, "map")
            }
            own = {slot for owner, slot in pairs if owner == target}
            inside, near, centre = (
                candidate_slots(heads, raw_maps, image, box, one) for one in (candidates, "neighbours", "cell")
            )
            f["positives"] += len(own)
            f["own"].append(len(own))
            if own & set(inside):
                f["mean_q"].append(sum(q[slot] for slot in inside if slot in own) / len(own & set(inside)))
            f["contested"] += sum(claims[slot] > 1 for slot in own)
            f["without_match"] += not own
            f["without_candidate_match"] += not own & set(inside)
            f["q_sum"] += sum(q[slot] for slot in own)
            best_near = max(near, key=q.get)
            f["neighbour"] += best_near not in centre and q[best_near] > max(q[slot] for slot in inside)
            add_anchors(f["anchors"], anchor_names, heads, box, (inside, own, q))
            add_comparison(f, anchor_names, inside, own, q)
        result[name] = f
    return result


def add_anchors(anchors, anchor_names, heads, box, candidates):
    """Add an object's candidates, and its matches among them, to the anchor they belong to."""
    inside, own, q = candidates
    for number, (index, anchor) in enumerate(anchor_names):
        mine = [slot for slot in inside if slot[1:3] == (index, anchor)]
        row = anchors[number]
        row["candidates"] += len(mine)
        row["candidates_q"] += sum(q[slot] for slot in mine)
        row["matches"] += sum(slot in own for slot in mine)
        row["matched_q"] += sum(q[slot] for slot in mine if slot in own)
        if own & set(mine):
            (aw, ah), w, h = heads[index].anchors_wh[anchor], box[2] - box[0], box[3] - box[1]
            overlap = min(w, aw) * min(h, ah)
            row["objects"] += 1
            row["prior"] += overlap / (w * h + aw * ah - overlap)


def add_comparison(f, anchor_names, inside, own, q):
    """Compare an object's matched candidates with its unmatched ones, over all heads and on each."""
    m, u = [slot for slot in inside if slot in own], [slot for slot in inside if slot not in own]
    for index in {index for index, _ in anchor_names}:
        on_m, on_u = ([q[slot] for slot in part if slot[1] == index] for part in (m, u))
        if on_m and on_u:
            place = (inside[0][0], index)
            f["maps"]["max"] |= {place} if max(on_u) > max(on_m) else set()
            f["maps"]["min"] |= {place} if max(on_u) > min(on_m) else set()
    if m and u:
        f["both"] += 1
        best_u, best_m, worst_m = max(u, key=q.get), max(m, key=q.get), min(m, key=q.get)
        f["over_min"] += q[best_u] > q[worst_m]
        if q[best_u] > q[best_m]:
            f["over_max"] += 1
            f["anchors"][anchor_names.index(best_u[1:3])]["best_unmatched"] += 1
            f["anchors"][anchor_names.index(worst_m[1:3])]["worst_matched"] += 1


@pytest.mark.parametrize("candidates", CANDIDATES)
@pytest.mark.parametrize("seed", range(3))
def test_every_statistic_equals_a_plain_python_implementation(seed, candidates):
    heads, raw_maps, targets, rows = random_scene(seed)
    options = {name: AssignmentOptions(match=name, **({"extra_iou": 0.3} if name in ("pure", "split", "fast") else {}))
               for name in STRATEGIES}  # fmt: skip
    kinds = tuple(IOU_KINDS)
    result = statistics(measured(heads, raw_maps, targets, options, kinds, candidates=candidates), {})
    sets = {name: match_sets(heads, raw_maps, targets, one) for name, one in options.items()}
    contradictions = 0
    for kind in kinds:
        expected = oracle(heads, raw_maps, rows, sets, kind, candidates)
        for name, one in result["strategies"].items():
            wanted, of_kind = expected[name], one["iou"][kind]
            assert one["positives"] == wanted["positives"] == len(sets[name])
            assert one["without_match"]["objects"] == wanted["without_match"]
            assert one["without_candidate_match"]["objects"] == wanted["without_candidate_match"]
            collisions = one["collisions"]
            assert collisions["contested_positives"] == wanted["contested"]
            assert (collisions["slots"], collisions["shared_slots"]) == (wanted["slots"], wanted["shared"])
            assert result["best_from_neighbour"][kind]["objects"] == wanted["neighbour"]
            assert of_kind["objects_with_both"] == wanted["both"]
            assert of_kind["unmatched_over_min"]["objects"] == wanted["over_min"]
            assert of_kind["unmatched_over_max"]["objects"] == wanted["over_max"]
            maps = of_kind["feature_maps"]
            assert (maps["over_max"], maps["over_min"]) == tuple(len(wanted["maps"][key]) for key in ("max", "min"))
            assert maps["total"] == len({row[0] for row in rows}) * len(heads)
            if wanted["positives"]:
                assert of_kind["mean_q_of_positives"] == pytest.approx(wanted["q_sum"] / wanted["positives"], abs=1e-5)
            for key, numbers in (("mean_matched_q", wanted["mean_q"]), ("matches", wanted["own"])):
                moment = of_kind["moments"][key]
                assert moment["objects"] == len(numbers)
                assert moment["mean"] == (pytest.approx(np.mean(numbers), abs=1e-5) if numbers else None)
                assert moment["std"] == (pytest.approx(np.std(numbers), abs=1e-5) if numbers else None)
            for k, (anchor, blamed) in enumerate(zip(of_kind["anchors"], of_kind["misassigned_anchors"], strict=True)):
                row = wanted["anchors"][k]
                assert (anchor["objects"], anchor["matches"]) == (row["objects"], row["matches"])
                assert (blamed["best_unmatched"], blamed["worst_matched"]) == (
                    row["best_unmatched"], row["worst_matched"])  # fmt: skip
                for key, part, whole in (("mean_matched_q", "matched_q", "matches"),
                                         ("mean_candidate_q", "candidates_q", "candidates"),
                                         ("mean_shape_iou", "prior", "objects")):  # fmt: skip
                    mean = row[part] / row[whole] if row[whole] else None
                    assert anchor[key] == (None if mean is None else pytest.approx(mean, abs=1e-5))
            contradictions += wanted["over_max"]
    assert contradictions  # the scenes do ask the question
    for a in sets:
        for b in sets:
            union = len(sets[a] | sets[b])
            assert result["agreement"][a][b] == (len(sets[a] & sets[b]) / union if union else None)


def test_a_batch_says_what_its_images_say_alone():
    heads, raw_maps, targets, _ = random_scene(11, images=4)
    strategies = {"standard": None, "fast": None}
    together = measured(heads, raw_maps, targets, strategies)
    for image in range(4):
        rows = (targets.image == image).nonzero().squeeze(1)
        one = Targets(torch.zeros_like(rows), targets.label[rows], targets.boxes_cxcywh[rows])
        alone = measured(heads, [raw[image : image + 1] for raw in raw_maps], one, strategies)
        for name, values in alone.objects.items():
            if name not in ("row", "image"):
                np.testing.assert_allclose(values, together.objects[name][rows.numpy()], rtol=1e-6, err_msg=name)
        for name in ("slots", "shared_slots", "merged_pairs"):
            assert alone.images[name].tolist() == together.images[name][image : image + 1].tolist()


@pytest.mark.parametrize("at_once", [1, 150])
def test_looking_at_a_few_objects_at_a_time_changes_nothing(monkeypatch, at_once):
    heads, raw_maps, targets, _ = random_scene(12)
    settings = {"candidates": "map", "score_candidates": "map"}
    strategies, kinds = {"standard": None, "fast": None}, ("iou", "giou")
    whole = measured(heads, raw_maps, targets, strategies, kinds, **settings)
    monkeypatch.setattr("analysis.matching.quality.NUMBERS_AT_ONCE", at_once)
    monkeypatch.setattr("analysis.matching.scores.PAIRS_AT_ONCE", at_once)
    parts = measured(heads, raw_maps, targets, strategies, kinds, **settings)
    for name, values in whole.objects.items():
        np.testing.assert_array_equal(parts.objects[name], values, err_msg=name)


def test_without_any_object_every_statistic_is_there_and_undefined():
    raw_maps = quiet_maps(ONE_HEAD, 2, (64, 64))
    found = measured(ONE_HEAD, raw_maps, Targets.empty(), {"standard": None, "fast": None})
    result = statistics(found, {})
    one = result["strategies"]["standard"]
    assert result["objects"] == 0 and one["without_match"] == {"objects": 0, "object_share": None}
    assert one["iou"]["iou"]["feature_maps"]["total"] == 0 and result["agreement"]["fast"]["standard"] is None
    assert result["scores"]["iou"]["objectness"]["mean_q_ratio"] is None
    assert not any(math.isnan(value) for value in _numbers(result))


def _numbers(value):
    if isinstance(value, dict):
        return [number for one in value.values() for number in _numbers(one)]
    if isinstance(value, list):
        return [number for one in value for number in _numbers(one)]
    return [value] if isinstance(value, float) else []


def test_groups_add_up_to_the_whole():
    heads, raw_maps, targets, rows = random_scene(3, objects=30)
    found = measured(heads, raw_maps, targets, {"standard": None, "split": None})
    group = np.array([row[1] for row in rows])
    whole = statistics(found, {"class": (("a", "b", "c"), group)})
    parts = list(whole["by"]["class"].values())
    assert sum(part["objects"] for part in parts) == whole["objects"] == 30
    for name in ("standard", "split"):
        for path in (("positives",), ("without_match", "objects"), ("collisions", "contested_positives"),
                     ("iou", "iou", "objects_with_both"), ("iou", "iou", "unmatched_over_max", "objects")):  # fmt: skip
            assert sum(_at(part["strategies"][name], path) for part in parts) == _at(whole["strategies"][name], path)
    assert statistics_of(found, group == 1)["objects"] == int((group == 1).sum())


def _at(statistics, path):
    for key in path:
        statistics = statistics[key]
    return statistics


def test_groups_of_objects():
    from data.labels.annotations import Annotations

    # 20x20 (small), 40x40 inside 100x100 (all of it covered), 100x100 (0.16 of it covered: 1600/10000), 10x50 (5:1).
    boxes = np.array([[200, 0, 220, 20], [30, 30, 70, 70], [0, 0, 100, 100], [150, 50, 160, 100]], dtype=np.float64)
    crowd = np.array([[0, 60, 50, 100]], dtype=np.float64)  # covers 50x40 = 2000 of the large one: 0.2
    boxes = np.concatenate((crowd, boxes))
    annotations = Annotations(
        [""], np.array([7]), np.array([[300, 200]], dtype=np.int32), np.zeros(5, np.int32), boxes,
        np.array([0, 0, 1, 1, 0], dtype=np.int32), np.array([True, False, False, False, False]),
        (boxes[:, 2:] - boxes[:, :2]).prod(axis=1), np.arange(1, 6), ("a", "b"), (1, 2),
    )  # fmt: skip
    # Matches of two strategies at three anchors: those of the first one count, 0, 2, 3 and 1 + 4.
    matched = np.array([[0, 0, 0], [1, 0, 1], [1, 1, 1], [1, 0, 4]])
    objects = {"row": np.array([1, 2, 3, 4]), "matched": np.stack((matched, np.ones_like(matched)), axis=1)}
    groups = groups_of(annotations, objects, BREAKDOWNS)

    def named(breakdown):
        return [groups[breakdown][0][index] for index in groups[breakdown][1]]

    assert named("class") == ["a", "b", "b", "a"]
    assert named("size") == ["small", "medium", "large", "small"]  # areas 400, 1600, 10000 (above 96²), 500
    assert named("elongation") == ["below 2", "below 2", "below 2", "4 and more"]
    assert named("occlusion") == ["below 0.3", "0.7 and more", "below 0.3", "below 0.3"]
    assert named("matches") == ["0", "2", "3 to 4", "5 and more"]
