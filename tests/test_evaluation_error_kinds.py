"""The kinds of errors: against tidecv 1.0.1, what it gave when it was last installed, a plain loop and by hand."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.coco import run_hotcoco
from evaluation.comparison import error_breakdown
from evaluation.error_kinds import DETECTION_KINDS, OBJECT_KINDS, TIDE_KEYS, error_kinds
from evaluation.matches import CocoMatcher
from evaluation.results import clean_ground_truth
from tests.test_evaluation_bootstrap import without_ties
from tests.test_evaluation_coco import found, one_image, random_case
from tests.tidecv_referee import tidecv_breakdown

RECORDED = {  # seed -> what tidecv_referee.py prints
    1: (
        {
            "Cls": 0.0,
            "Loc": 0.296729673,
            "Both": 0.0172017202,
            "Dupe": 0.0242149215,
            "Bkg": 0.0280528053,
            "Miss": 0.0275027503,
            "FP": 0.1882688269,
            "FN": 0.0915341534,
        },
        {"Cls": 2, "Loc": 6, "Both": 3, "Dupe": 4, "Bkg": 3, "Miss": 3},
    ),
    2: (
        {
            "Cls": 0.095709571,
            "Loc": 0.2337000367,
            "Both": 0.0,
            "Dupe": 0.0,
            "Bkg": 0.0822882288,
            "Miss": 0.0651815182,
            "FP": 0.2756875688,
            "FN": 0.1795929593,
        },
        {"Cls": 2, "Loc": 9, "Both": 3, "Dupe": 2, "Bkg": 13, "Miss": 3},
    ),
    3: (
        {
            "Cls": 0.0097241867,
            "Loc": 0.2474789146,
            "Both": 0.0269526953,
            "Dupe": 0.0094609461,
            "Bkg": 0.0278760019,
            "Miss": 0.1052569543,
            "FP": 0.1349009901,
            "FN": 0.3553158887,
        },
        {"Cls": 4, "Loc": 8, "Both": 2, "Dupe": 10, "Bkg": 5, "Miss": 8},
    ),
}


def tide_case(seed, crowd_share=0.3, **settings):
    """Made-up objects and detections; no overlap with a crowd region is exactly 1/2, where tidecv and COCO differ."""
    truth, results = random_case(seed, crowd_share=crowd_share, **settings)
    for one in truth["annotations"]:
        if one["iscrowd"]:
            one["bbox"] = [value + 0.1234 for value in one["bbox"]]
    return clean_ground_truth(truth), without_ties(results, seed)


def breakdown(truth, results):
    numbers = error_breakdown(truth, results)
    return numbers["delta_ap50"], numbers["counts"]


def counts_of(truth, results):
    return {TIDE_KEYS[name]: count for name, count in error_kinds(CocoMatcher(truth, results)).counts().items()}


@pytest.mark.parametrize("seed", RECORDED)
def test_equals_what_tidecv_gave(seed):
    lost, counts = breakdown(*tide_case(seed))
    assert lost == pytest.approx(RECORDED[seed][0], abs=1e-9) and counts == RECORDED[seed][1]


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    crowd_share=st.sampled_from([0.0, 0.3]),
    num_classes=st.sampled_from([1, 3, 8]),
    without_area=st.sampled_from(["nothing", "detections", "objects"]),
)
def test_equals_tidecv(seed, crowd_share, num_classes, without_area):
    truth, results = tide_case(seed, crowd_share, num_classes=num_classes)
    for one in {"nothing": [], "detections": results, "objects": truth["annotations"]}[without_area][::5]:
        one["bbox"] = [*one["bbox"][:2], 0.0, one["bbox"][3] + 1]
    if results and not all(one["iscrowd"] for one in truth["annotations"]):
        lost, counts = breakdown(truth, results)
        expected = tidecv_breakdown(truth, results)
        assert lost == pytest.approx(expected[0], abs=1e-9) and counts == expected[1]


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32 - 1))
def test_ties_change_no_kind(seed):
    truth, results = random_case(seed, crowd_share=0.0)
    truth = clean_ground_truth(truth)
    if results and truth["annotations"]:
        assert counts_of(truth, results) == tidecv_breakdown(truth, results)[1]


def test_more_than_a_hundred_detections_equal_tidecv():
    truth, results = tide_case(5)
    many = [{**one, "score": one["score"] / (2 + number)} for number in range(150) for one in results[:3]]
    lost, counts = breakdown(truth, results + many)
    expected = tidecv_breakdown(truth, results + many)
    assert lost == pytest.approx(expected[0], abs=1e-9) and counts == expected[1]


@pytest.mark.parametrize("name", ["yolo-fastest-1.1", "yolo-fastest-1.1-xl"])
def test_real_detections_equal_tidecv(shared, name):
    truth = clean_ground_truth(json.loads((shared / "data/coco/annotations/instances_val2017.json").read_text()))
    results = json.loads((shared / f"oracle/{name}_darknet_val128_results.json").read_text())
    results = [{**one, "score": one["score"] + 1e-9 * number} for number, one in enumerate(results)]  # no ties
    lost, counts = breakdown(truth, results)
    expected = tidecv_breakdown(truth, results)
    assert lost == pytest.approx(expected[0], abs=1e-9) and counts == expected[1]


OBJECT, FAR = [0.0, 0.0, 10.0, 10.0], [60.0, 60.0, 10.0, 10.0]
LOW, FAR_LOW = [0.0, 0.0, 10.0, 3.0], [60.0, 60.0, 10.0, 3.0]  # IoU 0.3 with these
# Besides an object of class 7 and the detection of score 0.9 that finds it: further objects, further detections, what
# kinds there are, and what mending the first of them gives. 51 of the 101 points lie at a recall of 1/2 or below.
BY_HAND = {
    # Of class 7 precision 1/2, of class 3 nothing; mended both are perfect.
    "class": ([(3, FAR, 0)], [found(7, FAR, 0.95)], {"Cls": 1}, 0.75),
    "localisation": ([(7, FAR, 0)], [found(7, FAR_LOW, 0.5)], {"Loc": 1}, 50 / 101),
    "both": ([], [found(3, LOW, 0.95)], {"Both": 1}, 0.0),  # of a class without objects
    # Right, twice wrong, right: precision 1 up to recall 1/2, then 2/4.
    "duplicate": ([(7, FAR, 0)], [found(7, OBJECT, 0.8), found(7, OBJECT, 0.7), found(7, FAR, 0.5)],
                  {"Dupe": 2}, 25 / 101),
    "background": ([], [found(7, FAR, 0.95)], {"Bkg": 1}, 0.5),
    "missed": ([(7, FAR, 0)], [], {"Miss": 1}, 50 / 101),
    "in a crowd region": ([(7, FAR, 1)], [found(7, FAR, 0.95)], {"Bkg": 1}, 0.0),
    "near an object in a crowd region": ([(7, FAR, 0), (7, [50, 50, 40, 40], 1)], [found(7, FAR_LOW, 0.95)],
                                         {"Loc": 1}, 50 / 101),
    "two of one object": ([(7, FAR, 0)], [found(7, FAR_LOW, 0.5), found(7, FAR_LOW, 0.4)], {"Loc": 2}, 50 / 101),
}  # fmt: skip


@pytest.mark.parametrize("name", BY_HAND)
def test_gains_by_hand(name):
    objects, detections, expected, gain = BY_HAND[name]
    truth = clean_ground_truth(one_image((7, OBJECT, 0), *objects))
    lost, counts = breakdown(truth, [found(7, OBJECT, 0.9), *detections])
    assert {kind: count for kind, count in counts.items() if count} == expected
    (kind,) = expected
    assert lost[kind] == pytest.approx(gain)
    assert all(value == 0 for other, value in lost.items() if other not in (kind, "FP", "FN"))


def test_only_the_stronger_of_two_is_mended():
    truth = clean_ground_truth(one_image((7, OBJECT, 0)))
    of_detections, of_objects, kinds = kinds_of(truth, [found(7, LOW, 0.5), found(7, LOW, 0.6), found(3, OBJECT, 0.4)])
    assert of_detections == ["localisation", "localisation", "class"] and of_objects == ["explained"]
    assert kinds.target.tolist() == [-1, 0, -1]


@pytest.mark.parametrize("objects, results", [((), []), (((7, OBJECT, 0),), []), ((), [found(7, OBJECT, 0.9)])])
def test_nothing_to_mend(objects, results):
    lost, counts = breakdown(clean_ground_truth(one_image(*objects)), results)
    assert lost["Loc"] == lost["Cls"] == lost["Bkg"] == 0 and counts["Miss"] == len(objects)


def truth_of(*objects):
    """One image of 200 x 200 and two classes; an object is (category, box xywh) and, for a crowd region, True."""
    annotations = [
        {"id": n, "image_id": 1, "category_id": one[0], "bbox": list(map(float, one[1])), "iscrowd": int(len(one) > 2)}
        for n, one in enumerate(objects, start=1)
    ]
    return clean_ground_truth(
        {"images": [{"id": 1, "width": 200, "height": 200}], "annotations": annotations}
        | {"categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]}
    )


def detections(*rows):
    return [{"image_id": 1, "category_id": c, "bbox": list(map(float, box)), "score": score} for c, box, score in rows]


def kinds_of(truth, results):
    found = error_kinds(CocoMatcher(truth, results))
    names = [DETECTION_KINDS[kind] for kind in found.detection], [OBJECT_KINDS[kind] for kind in found.annotation]
    return *names, found


SQUARE = (0, 0, 100, 100)
KINDS_BY_HAND = [  # objects, detections, kinds of the detections, kinds of the objects
    ([(1, SQUARE)], [(1, SQUARE, 0.9)], ["correct"], ["found"]),
    ([(1, SQUARE)], [(1, (0, 0, 100, 50), 0.9)], ["correct"], ["found"]),  # IoU 0.5 is enough
    ([(1, SQUARE)], [(1, (0, 0, 100, 49), 0.9)], ["localisation"], ["explained"]),
    ([(1, SQUARE)], [(1, (0, 0, 100, 10), 0.9)], ["localisation"], ["explained"]),  # IoU 0.1
    ([(1, SQUARE)], [(1, (0, 0, 100, 9), 0.9)], ["background"], ["missed"]),
    ([(1, SQUARE)], [(2, SQUARE, 0.9)], ["class"], ["explained"]),
    ([(1, SQUARE)], [(2, (0, 0, 100, 50), 0.9)], ["class"], ["explained"]),
    ([(1, SQUARE)], [(2, (0, 0, 100, 40), 0.9)], ["both"], ["missed"]),
    ([(1, SQUARE)], [(2, (0, 0, 100, 10), 0.9)], ["background"], ["missed"]),  # IoU 0.1 with another class
    ([(1, SQUARE)], [(1, SQUARE, 0.8), (1, (0, 0, 100, 90), 0.9)], ["duplicate", "correct"], ["found"]),
    ([(1, SQUARE)], [(1, (120, 120, 50, 50), 0.9)], ["background"], ["missed"]),
    ([], [(1, SQUARE, 0.9)], ["background"], []),
    ([(1, SQUARE)], [], [], ["missed"]),
    # A second detection of the right class at a low IoU is one of localisation, though the object is found.
    ([(1, SQUARE)], [(1, SQUARE, 0.9), (1, (0, 0, 100, 30), 0.8)], ["correct", "localisation"], ["found"]),
    # A duplicate that also lies on an object of another class: class is asked first.
    ([(1, SQUARE), (2, SQUARE)], [(1, SQUARE, 0.9), (1, SQUARE, 0.8)], ["correct", "class"], ["found", "explained"]),
    # In a crowd region or near it, and never missed.
    ([(1, SQUARE, True)], [(1, (0, 0, 10, 10), 0.9)], ["background"], ["crowd"]),
    ([(1, SQUARE, True)], [(1, (90, 0, 50, 50), 0.9)], ["background"], ["crowd"]),
    ([(1, SQUARE, True)], [(2, SQUARE, 0.9)], ["background"], ["crowd"]),
]  # fmt: skip


@pytest.mark.parametrize("objects, rows, of_detections, of_objects", KINDS_BY_HAND)
def test_kinds_by_hand(objects, rows, of_detections, of_objects):
    found = kinds_of(truth_of(*objects), detections(*rows))
    assert list(found[:2]) == [of_detections, of_objects]


def test_what_ap_ignores_has_a_kind_nevertheless():
    truth = truth_of((1, SQUARE, True), (1, (0, 0, 100, 20)))
    kinds, objects, found = kinds_of(truth, detections((1, (0, 0, 100, 60), 0.9), (1, (150, 150, 9, 9), 0.8)))
    assert kinds == ["localisation", "background"] and objects == ["crowd", "explained"]
    assert found.ignored.tolist() == [True, False] and found.matched.tolist() == [0, -1]


def test_the_nearest_annotations_and_what_touches_what():
    truth = truth_of((1, SQUARE), (2, (0, 0, 100, 50)), (1, (150, 150, 40, 40)), (2, (0, 0, 200, 200), True))
    *_, found = kinds_of(truth, detections((1, (0, 0, 100, 80), 0.9), (2, (100, 100, 20, 20), 0.8)))
    assert found.matched.tolist() == [0, 3]
    assert found.same_class.annotation.tolist() == [0, -1] and found.same_class.iou.tolist() == [0.8, 0]
    assert found.other_class.annotation.tolist() == [1, -1] and found.other_class.iou.tolist() == [5 / 8, 0]
    assert found.any_overlap.tolist() == [1, 1]  # both lie in the crowd region
    assert found.nearest_detection.tolist() == [0.8, 5 / 8, 0, 0]


def test_the_first_of_two_equal_annotations_is_the_nearest():
    *_, found = kinds_of(truth_of((1, SQUARE), (1, SQUARE)), detections((1, (0, 0, 100, 40), 0.9)))
    assert found.same_class.annotation.tolist() == [0]


def test_more_than_a_hundred_detections_of_a_class_have_no_kind():
    rows = detections(*((1, (150, 150, 40, 40), 0.9 - n / 1000) for n in range(102)))
    kinds, _, found = kinds_of(truth_of((1, SQUARE)), rows)
    assert kinds == ["background"] * 100 + ["beyond the limit"] * 2
    assert found.ignored.tolist() == [False] * 100 + [True] * 2


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_counts_are_hotcocos_where_there_is_no_crowd_region(seed):
    truth, results = random_case(seed, crowd_share=0)
    truth = clean_ground_truth(truth)
    if results and truth["annotations"]:
        assert counts_of(truth, results) == run_hotcoco(truth, results).tide_errors()["counts"]


def iou_of(a, b, is_crowd=False):
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    inside = max(width, 0) * max(height, 0)
    whole = a[2] * a[3] if is_crowd else a[2] * a[3] + b[2] * b[3] - inside
    return inside / whole if whole > 0 else 0.0


def kinds_by_a_loop(truth, results):
    """Return the kind of every detection by the rules in words, one detection at a time."""
    found = [""] * len(results)
    taken = set()
    for row in sorted(range(len(results)), key=lambda row: -results[row]["score"]):
        one = results[row]
        of_image = [a for a in truth["annotations"] if a["image_id"] == one["image_id"]]
        objects = [a for a in of_image if not a["iscrowd"]]
        same = [a for a in objects if a["category_id"] == one["category_id"]]
        free = [(iou_of(one["bbox"], a["bbox"]), a["id"]) for a in same if a["id"] not in taken]
        best, chosen = max(free, default=(0, 0))
        same_iou = max((iou_of(one["bbox"], a["bbox"]) for a in same), default=0)
        others = [a for a in objects if a["category_id"] != one["category_id"]]
        other_iou = max((iou_of(one["bbox"], a["bbox"]) for a in others), default=0)
        if best >= 0.5:
            taken.add(chosen)
            found[row] = "correct"
        elif 0.1 <= same_iou <= 0.5:
            found[row] = "localisation"
        elif other_iou >= 0.5:
            found[row] = "class"
        elif same_iou > 0.5:
            found[row] = "duplicate"
        else:
            found[row] = "background" if other_iou <= 0.1 else "both"
    return found


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), crowd_share=st.sampled_from([0.0, 0.3, 1.0]))
def test_a_plain_loop_gives_the_same_kinds(seed, crowd_share):
    truth, results = random_case(seed, crowd_share=crowd_share)
    truth = clean_ground_truth(truth)
    assert kinds_of(truth, results)[0] == kinds_by_a_loop(truth, results)
