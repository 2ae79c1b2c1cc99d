"""Statistics of the annotations: a case worked by hand, and a double loop over random data."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from analysis.dataset_stats import ASPECT_EDGES, DatasetStatsOptions, dataset_stats, histogram
from analysis.objects import object_occlusion, pair_blocks
from data.labels.annotations import Annotations, Problem
from data.objects import select_objects

NAMES = ("cat", "dog", "none")


def annotations_of(images, image_wh=(200, 100), problems=()):
    """Build Annotations from a list of images, each a list of (x1, y1, x2, y2, label, crowd)."""
    rows = [(index, *row) for index, image in enumerate(images) for row in image]
    table = np.array(rows, dtype=np.float64).reshape(-1, 7)
    boxes = table[:, 1:5]
    return Annotations(
        image_paths=[""] * len(images),
        image_ids=np.arange(len(images)) + 100,
        image_wh=np.tile(np.array(image_wh, dtype=np.int32), (len(images), 1)),
        box_image=table[:, 0].astype(np.int32),
        boxes_xyxy=boxes,
        labels=table[:, 5].astype(np.int32),
        crowd=table[:, 6] > 0,
        areas=(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
        annotation_ids=np.arange(len(table)) + 1,
        names=NAMES,
        category_ids=(1, 2, 3),
        problems=tuple(problems),
    )


BY_HAND = [
    # A and B touch (gap 0); A and C: intersection 10 x 5 = 50, IoU 50 / 150, 50 / 100 of the smaller, centres 5 apart;
    # B and C touch in the line x = 10, centres (15, 5) and (5, 10): sqrt(125) = 11.2 apart. 3 near pairs, 1 coincident.
    [(0, 0, 10, 10, 0, 0), (10, 0, 20, 10, 0, 0), (0, 5, 10, 15, 1, 0)],
    # 40 x 10 is elongated (exactly 4), 40 x 9 too (4.4). IoU 360 / 400 = 0.9, contained wholly, centres 0.5 apart.
    [(0, 0, 40, 10, 0, 0), (0, 0, 40, 9, 0, 1)],
    [],
    # Gap: x 20..26 = 6, y overlaps: near. The third is far from both: gaps sqrt(40²+40²) and sqrt(30²+30²).
    [(10, 10, 20, 20, 0, 0), (26, 18, 30, 30, 0, 0), (60, 60, 70, 70, 1, 0)],
    # Gap sqrt(6² + 8²) = 10 exactly: not near.
    [(0, 0, 10, 10, 0, 0), (16, 18, 20, 20, 0, 0)],
    # Five boxes around one centre: 10 coincident pairs, at least 7: crowded. Sides 10, 20, 30, 40, 50: the smaller lies
    # in the larger (10 contained); IoU 1/4, 1/9, .., 4/9, 4/16, .., 9/16, 9/25, 16/25: only 16/25 = 0.64 is above 0.6.
    [(50 - s, 50 - s, 50 + s, 50 + s, 1, 0) for s in (5, 10, 15, 20, 25)],
    # A single object, 4 of 5 pixels: no pair.
    [(0, 0, 150, 80, 1, 0)],
]


def test_every_statistic_by_hand():
    statistics = dataset_stats(annotations_of(BY_HAND), DatasetStatsOptions()).statistics

    assert statistics["images"] == {"total": 7, "annotated": 6, "without_objects": 1}
    assert statistics["objects"] == {"total": 16, "crowd": 1}
    assert statistics["pairs"]["total"] == 3 + 1 + 3 + 1 + 10
    # Near: 3 (first image) + 1 + 1 + 0 + 10.
    assert statistics["near"] == {
        "threshold": 10,
        "pairs": 15,
        "pair_share": 15 / 18,
        "images": 4,
        "image_share": 4 / 6,
    }
    assert (statistics["overlapping"]["pairs"], statistics["overlapping"]["images"]) == (2, 2)
    assert (statistics["contained"]["pairs"], statistics["contained"]["images"]) == (11, 2)
    assert (statistics["coincident"]["pairs"], statistics["coincident"]["images"]) == (12, 3)
    assert statistics["crowded"] == {"threshold": 7, "images": 1, "image_share": 1 / 6}
    assert statistics["elongated"]["objects"] == 2
    assert statistics["elongated"]["images"] == 1
    # Occlusion: A 0.5, B 0, C 0.5; the flat ones 0.9 and 1; 0 0 0; 0 0; of the five nested boxes 1 1 1 1 and, for the
    # largest, 16/25; the single object 0. Mean (0.5 + 0.5 + 0.9 + 1 + 4 + 0.64) / 16.
    assert statistics["occlusion"]["mean"] == pytest.approx(7.54 / 16)
    assert [one["objects"] for one in statistics["occlusion"]["at_least"].values()] == [9, 9, 6]
    # Areas: all below 32² = 1024 but 1600 and 2500 (sides 40, 50; 30 has 900) are medium and 12000 is large.
    assert [statistics["sizes"][name]["objects"] for name in ("small", "medium", "large")] == [13, 2, 1]
    assert statistics["objects_per_image"]["mean"] == pytest.approx(16 / 6)
    assert statistics["objects_per_image"]["median"] == 2.5  # 1 2 2 3 3 5
    assert statistics["objects_per_image"]["max"] == 5
    cat, dog, none = statistics["classes"]
    assert (cat["objects"], cat["images"], cat["crowd"], cat["elongated"], cat["small"]) == (8, 4, 1, 2, 8)
    assert (dog["objects"], dog["images"], dog["medium"], dog["large"]) == (8, 4, 2, 1)
    assert (none["objects"], none["images"], none["mean_relative_size"]) == (0, 0, None)


def test_without_crowd_regions():
    statistics = dataset_stats(annotations_of(BY_HAND), DatasetStatsOptions(crowd=False)).statistics
    # The 40 x 9 box is gone, and with it the pair of the second image.
    assert statistics["objects"] == {"total": 15, "crowd": 0}
    assert statistics["pairs"]["total"] == 17
    assert statistics["overlapping"]["pairs"] == 1
    assert statistics["elongated"]["objects"] == 1


def test_thresholds_are_options():
    options = DatasetStatsOptions(
        near_gap=10.1, overlap_iou=0.3, containment=0.4, coincident=12, crowded_pairs=3, elongation=4.2
    )
    statistics = dataset_stats(annotations_of(BY_HAND), options).statistics
    assert statistics["near"]["pairs"] == 16  # the gap of exactly 10 now counts
    # Above 0.3: A and C, the flat pair, and of the five nested boxes 4/9, 9/16, 9/25, 16/25.
    assert statistics["overlapping"]["pairs"] == 6
    assert statistics["contained"]["pairs"] == 12  # A and C too
    assert statistics["coincident"]["pairs"] == 14  # B and C too, and A and B, whose centres are exactly 10 apart
    assert statistics["crowded"]["images"] == 2  # the first image has 3 now
    assert statistics["elongated"]["objects"] == 1


def double_loop(annotations, options):
    """The definitions once more, one pair at a time."""
    count = dict.fromkeys(("near", "overlapping", "contained", "coincident"), 0)
    images = {key: set() for key in count}
    coincident_in = {}
    rows = [i for i in range(len(annotations.box_image)) if options.crowd or not annotations.crowd[i]]
    occlusion = dict.fromkeys(rows, 0.0)
    pairs = 0
    for first in rows:
        for second in rows:
            image = int(annotations.box_image[first])
            if second <= first or image != annotations.box_image[second]:
                continue
            pairs += 1
            ax1, ay1, ax2, ay2 = map(float, annotations.boxes_xyxy[first])
            bx1, by1, bx2, by2 = map(float, annotations.boxes_xyxy[second])
            gap_x, gap_y = max(0.0, bx1 - ax2, ax1 - bx2), max(0.0, by1 - ay2, ay1 - by2)
            inter = max(0.0, min(ax2, bx2) - max(ax1, bx1)) * max(0.0, min(ay2, by2) - max(ay1, by1))
            area_a, area_b = (ax2 - ax1) * (ay2 - ay1), (bx2 - bx1) * (by2 - by1)
            distance = math.sqrt(((ax1 + ax2 - bx1 - bx2) / 2) ** 2 + ((ay1 + ay2 - by1 - by2) / 2) ** 2)
            true = {
                "near": math.sqrt(gap_x**2 + gap_y**2) < options.near_gap,
                "overlapping": inter / (area_a + area_b - inter) > options.overlap_iou,
                "contained": inter / min(area_a, area_b) > options.containment,
                "coincident": distance < options.coincident,
            }
            for key, value in true.items():
                count[key] += value
                images[key] |= {image} if value else set()
            coincident_in[image] = coincident_in.get(image, 0) + true["coincident"]
            occlusion[first] = max(occlusion[first], inter / area_a)
            occlusion[second] = max(occlusion[second], inter / area_b)
    crowded = sum(n >= options.crowded_pairs for n in coincident_in.values())
    return SimpleNamespace(count=count, images=images, crowded=crowded, pairs=pairs, occlusion=list(occlusion.values()))


def random_annotations(seed):
    """Boxes on whole pixels, so that many values fall exactly on a threshold."""
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(int(rng.integers(1, 7))):
        x1, y1 = rng.integers(0, 40, (2, int(rng.integers(0, 12))))
        width, height = rng.integers(1, 40, (2, len(x1)))
        labels, crowd = rng.integers(0, 3, len(x1)), rng.random(len(x1)) < 0.1
        images.append(list(zip(x1, y1, x1 + width, y1 + height, labels, crowd, strict=True)))
    return annotations_of(images)


@pytest.mark.parametrize("seed", range(25))
def test_agrees_with_a_double_loop(seed, monkeypatch):
    monkeypatch.setattr("analysis.objects.PAIRS_PER_BLOCK", 7)  # no effect on results, only on the number of blocks
    annotations = random_annotations(seed)
    options = DatasetStatsOptions(crowd=bool(seed % 2), crowded_pairs=2)
    statistics = dataset_stats(annotations, options).statistics
    expected = double_loop(annotations, options)

    assert statistics["pairs"]["total"] == expected.pairs
    for kind, number in expected.count.items():
        assert statistics[kind]["pairs"] == number, kind
        assert statistics[kind]["images"] == len(expected.images[kind]), kind
    assert statistics["crowded"]["images"] == expected.crowded
    occlusion = object_occlusion(select_objects(annotations, options.crowd))
    assert occlusion.tolist() == expected.occlusion  # to the last bit
    for limit in (0.3, 0.5, 0.7):
        objects = statistics["occlusion"]["at_least"][str(limit)]["objects"]
        assert objects == sum(share >= limit for share in expected.occlusion)
    kept = [i for i in range(len(annotations.box_image)) if options.crowd or not annotations.crowd[i]]
    sides = [(float(x2 - x1), float(y2 - y1)) for x1, y1, x2, y2 in (annotations.boxes_xyxy[i].tolist() for i in kept)]
    assert statistics["elongated"]["objects"] == sum(max(w / h, h / w) >= 4 for w, h in sides)
    assert statistics["sizes"]["small"]["objects"] == sum(w * h < 1024 for w, h in sides)
    assert statistics["relative_size"]["mean"] == pytest.approx(
        sum(math.sqrt(w * h / 20000) for w, h in sides) / len(sides) if sides else None
    )
    for row in statistics["classes"]:
        members = [i for i in kept if NAMES[annotations.labels[i]] == row["name"]]
        assert row["objects"] == len(members)
        assert row["images"] == len({int(annotations.box_image[i]) for i in members})


@pytest.mark.parametrize("pairs_per_block", [1, 3, 1000])
def test_blocks_hold_every_pair_once(pairs_per_block):
    image = np.array([0, 0, 0, 2, 3, 3])
    pairs = [
        (int(a), int(b))
        for block in pair_blocks(image, pairs_per_block)
        for a, b in zip(block.first, block.second, strict=True)
    ]
    assert pairs == [(0, 1), (0, 2), (1, 2), (4, 5)]


@pytest.mark.parametrize("images", [[[]], [[], []], [[(0, 0, 5, 5, 0, 0)]], [[(0, 0, 5, 5, 0, 1)], []]])
def test_nothing_or_one_object(images):
    result = dataset_stats(annotations_of(images), DatasetStatsOptions())
    statistics = result.statistics
    assert statistics["pairs"]["total"] == 0
    assert statistics["near"]["pair_share"] is None  # of no pairs there is no share
    objects = sum(map(len, images))
    assert statistics["objects"]["total"] == objects
    assert (statistics["near"]["image_share"] is None) == (objects == 0)
    assert any("no object" in note for note in result.notes) == (objects == 0)


def test_areas_of_the_file_decide_the_size():
    annotations = annotations_of([[(0, 0, 100, 100, 0, 0)] * 4])
    annotations.areas[:] = (1023.9, 1024, 9215.9, 9216)  # masks cover less than the box; limits 32² and 96²
    sizes = dataset_stats(annotations, DatasetStatsOptions()).statistics["sizes"]
    assert [sizes[name]["objects"] for name in ("small", "medium", "large")] == [1, 2, 1]


def test_problems_are_counted_by_kind_and_listed():
    problems = [Problem("a.txt", 3, "zero size", "0 x 5"), Problem("b.txt", 1, "not finite", "nan")]
    problems.append(Problem("b.txt", 2, "zero size", ""))
    result = dataset_stats(annotations_of(BY_HAND, problems=problems), DatasetStatsOptions())
    assert result.statistics["problems"] == {"total": 3, "by_kind": {"zero size": 2, "not finite": 1}}
    listing = next(table for table in result.tables if table.name == "problems")
    assert listing.rows[0] == ("a.txt", 3, "zero size", "0 x 5")
    assert len(listing.rows) == 3


def test_histogram_keeps_what_lies_outside_in_the_end_bins():
    # 0.01 is below the first edge 1/16, 100 above the last edge 16; 1 lies in [1, sqrt 2).
    counts = histogram(np.array([0.01, 1.0, 100.0]), ASPECT_EDGES)["counts"]
    assert (counts[0], counts[8], counts[-1], sum(counts)) == (1, 1, 1, 3)
