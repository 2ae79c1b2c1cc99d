"""The kinds of errors against tidecv 1.0.1, what it gave when it was last installed, and cases worked by hand."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.comparison import error_breakdown
from evaluation.error_kinds import KINDS, error_kinds, lost_ap50
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
    kinds = error_kinds(truth, results)
    return lost_ap50(kinds, len(truth["categories"])), kinds.counts()


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
        assert error_kinds(truth, results).counts() == tidecv_breakdown(truth, results)[1]


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
    found = error_breakdown(truth, results)
    lost, counts = tidecv_breakdown(truth, results)
    assert found["delta_ap50"] == pytest.approx(lost, abs=1e-9) and found["counts"] == counts


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
def test_worked_by_hand(name):
    objects, detections, expected, gain = BY_HAND[name]
    truth = clean_ground_truth(one_image((7, OBJECT, 0), *objects))
    lost, counts = breakdown(truth, [found(7, OBJECT, 0.9), *detections])
    assert {kind: count for kind, count in counts.items() if count} == expected
    (kind,) = expected
    assert lost[kind] == pytest.approx(gain)
    assert all(value == 0 for other, value in lost.items() if other not in (kind, "FP", "FN"))


def test_only_the_stronger_of_two_is_mended():
    truth = clean_ground_truth(one_image((7, OBJECT, 0)))
    kinds = error_kinds(truth, [found(7, LOW, 0.5), found(7, LOW, 0.6), found(3, OBJECT, 0.4)])
    assert [KINDS[kind] for kind in kinds.kind] == ["Loc", "Loc", "Cls"] and kinds.target.tolist() == [-1, 0, -1]


@pytest.mark.parametrize("objects, results", [((), []), (((7, OBJECT, 0),), []), ((), [found(7, OBJECT, 0.9)])])
def test_nothing_to_mend(objects, results):
    lost, counts = breakdown(clean_ground_truth(one_image(*objects)), results)
    assert lost["Loc"] == lost["Cls"] == lost["Bkg"] == 0 and counts["Miss"] == len(objects)
