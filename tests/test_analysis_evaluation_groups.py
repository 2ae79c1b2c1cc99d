"""Groups of objects by shape, occlusion and priors: by hand, and as ``analyze.py --anchor-stats`` counts them."""

import numpy as np
import pytest

from analysis.anchor_stats import anchor_stats
from analysis.evaluation_groups import ObjectGroups, Priors
from evaluation.matches import CocoMatcher
from evaluation.results import clean_ground_truth
from tests.test_analysis_anchor_stats import HEADS, annotations_of, options_of

BOXES = [  # corners
    (0, 0, 10, 20),  # elongation 2; the crowd region covers it
    (20, 20, 30, 60),  # 4
    (20, 20, 40, 60),  # 2; covers the one before, which covers half of it: IoU 0.5
    (60, 10, 64, 13),  # 4 / 3; inside the crowd region
    (0, 0, 64, 19),  # a crowd region, of which the first object covers 190 / 1216
    (5, 70, 9, 70),  # no area
]
IMAGE = [0, 0, 0, 0, 0, 0]


@pytest.fixture
def truth():
    annotations = annotations_of(BOXES, IMAGE, crowd=[0, 0, 0, 0, 1, 0], labels=[0, 1, 0, 1, 0, 0])
    return clean_ground_truth(annotations.to_coco())


def members(groups):
    return {group.name: np.flatnonzero(group.is_member).tolist() for group in groups if group.is_member.any()}


def test_shape_and_occlusion_by_hand(truth):
    results = [
        {"image_id": 7, "category_id": 1, "bbox": box, "score": 0.5}
        for box in ([0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 40.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 5.0, 0.0])
    ]
    groups = ObjectGroups(truth).of(CocoMatcher(truth, results))
    assert list(groups) == ["size", "side in pixels", "elongation", "occlusion", "IoU with another object"]
    assert members(groups["elongation"]) == {"below 2": [3], "2 to 4": [0, 2, 4], "4 and more": [1]}
    counted = {group.name: np.flatnonzero(group.is_counted).tolist() for group in groups["elongation"]}
    assert counted == {"below 2": [0], "2 to 4": [], "4 and more": [1, 3]}
    assert members(groups["occlusion"]) == {"below 0.3": [4], "0.5 to 0.7": [2], "0.7 and more": [0, 1, 3]}
    assert members(groups["IoU with another object"]) == {
        "below 0.1": [3],
        "0.1 to 0.3": [0, 4],
        "0.5 and more": [1, 2],
    }
    assert all(group.is_counted is None for group in groups["occlusion"])


def test_positives_by_hand(truth):
    """The anchors are 10x10, 20x40 and 64x64, and a match needs an IoU above 0.2."""
    groups = ObjectGroups(truth, Priors(HEADS, (64, 64), "letterbox"), ["standard"]).of(CocoMatcher(truth, []))
    # 10x20: 0.5 and 0.25. 10x40: 100/400 and 400/800. 20x40: 1 (100/800 is too little). 4x3: 0.12.
    assert members(groups["positives of standard"]) == {"0": [3], "1": [2], "2": [0, 1]}
    assert members(groups["best prior IoU"]) == {"below 0.2": [3], "0.4 to 0.6": [0, 1], "0.8 and more": [2]}


@pytest.mark.parametrize("strategy", ["standard", "ratio", "atss", "darknet"])
@pytest.mark.parametrize("resize", ["letterbox", "stretch"])
def test_positives_are_those_of_the_anchor_statistics(strategy, resize):
    generator = np.random.default_rng(0)
    corner, size = generator.uniform(0, 60, (200, 2)), np.exp(generator.uniform(0, 4, (200, 2)))
    boxes = np.concatenate((corner, np.minimum(corner + size, 63)), axis=1)
    image = np.sort(generator.integers(0, 4, 200))
    annotations = annotations_of(boxes, image, crowd=generator.random(200) < 0.1, image_wh=((64, 64),) * 4)
    truth = clean_ground_truth(annotations.to_coco())
    groups = ObjectGroups(truth, Priors(HEADS, (96, 64), resize), [strategy]).of(CocoMatcher(truth, []))
    of_positives = groups[f"positives of {strategy}"]
    found = anchor_stats(annotations, HEADS, options_of(strategy), (96, 64), resize)
    counts = found.statistics["strategies"][strategy]["positives_per_object"]["counts"]
    bins = np.bincount(np.searchsorted((1, 2, 3, 5), np.arange(len(counts)), side="right"), counts, minlength=5)
    assert [int(group.is_member.sum()) for group in of_positives] == bins.tolist()
    assert sum(bins[1:]) > 50  # there is something to count
