"""Counts at the thresholds of the statistics, against exact arithmetic with the decimals of the label files."""

import json
from fractions import Fraction
from itertools import combinations

import cv2
import numpy as np
import pytest

from analysis.anchor_stats import anchor_stats
from analysis.dataset_stats import DatasetStatsOptions, dataset_stats
from analysis.strategies import StrategyOptions
from data.labels.read import read_dataset
from data.splits import open_data
from models.heads import Head
from utils.limits import above, at_least, below, limits_reached


def coco_of(folder, images):
    """A COCO JSON whose numbers are the given texts: of each image, boxes ``(x, y, w, h)``."""
    rows = [(image, box) for image, boxes in enumerate(images, 1) for box in boxes]
    template = '{{"id": {}, "image_id": {}, "category_id": 1, "iscrowd": 0, "bbox": [{}]}}'
    notes = ",".join(template.format(number, image, ", ".join(box)) for number, (image, box) in enumerate(rows, 1))
    entries = [{"id": i, "width": 640, "height": 480, "file_name": f"{i}.jpg"} for i in range(1, len(images) + 1)]
    path = folder / "made.json"
    path.write_text(
        f'{{"images": {json.dumps(entries)}, "categories": [{{"id": 1, "name": "a"}}], "annotations": [{notes}]}}'
    )
    return read_dataset(open_data(str(path)), "train", need_images=False)


def texts(*numbers):
    """Hundredths of a pixel, as decimals with two places."""
    return tuple(f"{int(number) // 100}.{int(number) % 100:02d}" for number in numbers)


def exact_counts(images, options):
    """The kinds of pairs and the elongated objects, in rational numbers of the texts."""
    near, overlap, containment, coincident, elongation = (
        Fraction(str(getattr(options, name)))
        for name in ("near_gap", "overlap_iou", "containment", "coincident", "elongation")
    )
    counts = dict.fromkeys(("near", "overlapping", "contained", "coincident", "elongated"), 0)
    for boxes in images:
        boxes = [tuple(map(Fraction, box)) for box in boxes]
        counts["elongated"] += sum(max(w / h, h / w) >= elongation for _, _, w, h in boxes)
        for (ax, ay, aw, ah), (bx, by, bw, bh) in combinations(boxes, 2):
            gap_x, gap_y = (max(ax, bx) - min(ax + aw, bx + bw)), (max(ay, by) - min(ay + ah, by + bh))
            intersection = max(-gap_x, 0) * max(-gap_y, 0)
            gap = max(gap_x, 0) ** 2 + max(gap_y, 0) ** 2
            distance = (ax + aw / 2 - bx - bw / 2) ** 2 + (ay + ah / 2 - by - bh / 2) ** 2
            counts["near"] += gap < near**2
            counts["overlapping"] += intersection / (aw * ah + bw * bh - intersection) > overlap
            counts["contained"] += intersection / min(aw * ah, bw * bh) > containment
            counts["coincident"] += distance < coincident**2
    return counts


def counted(annotations, options):
    statistics = dataset_stats(annotations, options).statistics
    pairs = {kind: statistics[kind]["pairs"] for kind in ("near", "overlapping", "contained", "coincident")}
    return pairs | {"elongated": statistics["elongated"]["objects"]}


def boundary_images(rng, count):
    """Images whose boxes lie exactly on a threshold, a hundredth of a pixel below it, or one above."""
    images = []
    for step in rng.integers(-1, 2, count):
        x, y, h = rng.integers((1, 1, 200), (20000, 20000, 6000))
        images.append([texts(x, y, 4 * h + step, h), texts(x + 40000, y, h, 4 * h)])  # ratio 4
        side = 5 * rng.integers(40, 2000)
        images.append([texts(x, y, side, side), texts(x + side // 4, y, side, side + step)])  # IoU 3/5
        images.append([texts(x, y, side, side), texts(x + side * 2 // 5, y, side + step, 2 * side)])  # 3/5 contained
        images.append([texts(x, y, side, h), texts(x + side + 600 + step, y + h + 800, side, h)])  # gap 10
        images.append([texts(x, y, side, h), texts(x + 600, y + 800 + step, side, h)])  # centres 10 apart
    return images


@pytest.mark.parametrize("seed", range(4))
def test_decimals_at_a_threshold_count_as_in_exact_arithmetic(tmp_path, seed):
    images = boundary_images(np.random.default_rng(seed), 400)
    options = DatasetStatsOptions()
    expected = exact_counts(images, options)
    assert counted(coco_of(tmp_path, images), options) == expected
    # The case is worth its name: corners alone, in float64, give other numbers.
    corners = coco_of(tmp_path, images).boxes_xyxy
    wh = corners[:, 2:] - corners[:, :2]
    assert (np.maximum(wh[:, 0] / wh[:, 1], wh[:, 1] / wh[:, 0]) >= 4).sum() != expected["elongated"]


@pytest.mark.parametrize("elongation, overlap", [(1.1, 0.3), (2.7, 0.7), (3.3, 0.05)])
def test_thresholds_that_are_no_binary_numbers_are_met_exactly(tmp_path, elongation, overlap):
    rng = np.random.default_rng(1)
    tenths = round(elongation * 10)
    shapes = [(h * tenths + step, h * 10) for h, step in zip(rng.integers(20, 900, 300), range(-1, 299), strict=True)]
    images = [[texts(100, 100, *shape)] for shape in shapes]
    # A strip of the first box: IoU is its share of the height, exactly the threshold or a hundredth of a pixel beside.
    share = Fraction(str(overlap))
    for k in rng.integers(5, 200, 300):
        side = share.denominator * int(k)
        images.append([texts(123, 77, side, side), texts(123, 77, side, share.numerator * int(k) + k % 3 - 1)])
    options = DatasetStatsOptions(elongation=elongation, overlap_iou=overlap)
    assert counted(coco_of(tmp_path, images), options) == exact_counts(images, options)


def test_random_decimals_count_as_in_exact_arithmetic(tmp_path):
    rng = np.random.default_rng(5)
    images = [
        [texts(*row) for row in rng.integers((1, 1, 300, 300), (2000, 2000, 3000, 3000), (8, 4))] for _ in range(60)
    ]
    options = DatasetStatsOptions(elongation=2.0, overlap_iou=0.3, containment=0.4)
    assert counted(coco_of(tmp_path, images), options) == exact_counts(images, options)


def yolo_set(folder, rows, image_wh):
    (folder / "images").mkdir()
    (folder / "labels").mkdir()
    for number, row in enumerate(rows):
        cv2.imwrite(str(folder / f"images/{number}.png"), np.zeros((image_wh[1], image_wh[0], 3), np.uint8))
        (folder / f"labels/{number}.txt").write_text(f"0 {' '.join(row)}\n")
    return read_dataset(open_data(str(folder)), "train")


def test_relative_sizes_at_a_threshold_count_as_in_exact_arithmetic(tmp_path):
    # In an image of 100 x 70 pixels, widths and heights in thousandths; ratio 4 is w x 100 = 4 h x 70.
    wh = [(w, h) for h in range(5, 90, 5) for w in (14 * h // 5 - 1, 14 * h // 5, 14 * h // 5 + 1)]
    rows = [("0.5", "0.5", f"0.{w:03d}", f"0.{h:03d}") for w, h in wh]
    annotations = yolo_set(tmp_path, rows, (100, 70))
    sizes = [(Fraction(w) * 100, Fraction(h) * 70) for _, _, w, h in rows]
    statistics = dataset_stats(annotations, DatasetStatsOptions()).statistics
    assert statistics["elongated"]["objects"] == sum(max(w / h, h / w) >= 4 for w, h in sizes)


def test_the_areas_of_relative_sizes_at_coco_s_limits(tmp_path):
    # 0.07 x 100 is 7.000000000000001 in binary numbers, 0.29 x 100 is 28.999999999999996; 32 x 32 is medium, not small.
    shapes = [("0.32", "0.32"), ("0.64", "0.16"), ("0.3199", "0.32"), ("0.96", "0.96"), ("0.9599", "0.96")]
    statistics = dataset_stats(yolo_set(tmp_path, [("0.5", "0.5", *wh) for wh in shapes], (100, 100)),
                               DatasetStatsOptions()).statistics  # fmt: skip
    assert [statistics["sizes"][name]["objects"] for name in ("small", "medium", "large")] == [1, 3, 1]


def voc_set(folder, boxes):
    (folder / "JPEGImages").mkdir()
    (folder / "Annotations").mkdir()
    for number, (x1, y1, x2, y2) in enumerate(boxes):
        cv2.imwrite(str(folder / f"JPEGImages/{number}.png"), np.zeros((480, 640, 3), np.uint8))
        (folder / f"Annotations/{number}.xml").write_text(
            "<annotation><size><width>640</width><height>480</height></size><object><name>a</name><bndbox>"
            f"<xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object></annotation>"
        )
    return read_dataset(open_data(str(folder / "JPEGImages")), "train")


def test_whole_corners_and_decimal_corners_of_voc(tmp_path):
    boxes = [("10", "10", "50", "20"), ("10", "10", "49", "20"), ("10.1", "10.3", "50.1", "20.3"),
             ("0.7", "0.1", "40.3", "10"), ("0.7", "0.1", "40.29", "10")]  # fmt: skip
    exact = [[Fraction(value) for value in box] for box in boxes]
    expected = sum((x2 - x1) / (y2 - y1) >= 4 for x1, y1, x2, y2 in exact)
    assert expected == 3
    statistics = dataset_stats(voc_set(tmp_path, boxes), DatasetStatsOptions()).statistics
    assert statistics["elongated"]["objects"] == expected


def test_the_recall_of_anchors_at_its_thresholds(tmp_path):
    # Anchor 10.3 x 20.7; boxes of its height whose width is a fifth or four times its width, or a hundredth beside.
    # At 640 px the image is not scaled. The narrow ones have shape IoU w / 10.3.
    widths = (205, 206, 207, 4119, 4120, 4121)
    annotations = coco_of(tmp_path, [[texts(1003, 1009, width, 2070)] for width in widths])
    head = Head(((10.3, 20.7),), 32, 1, all_anchors_wh=((10.3, 20.7),), mask=(0,), ignore_thresh=0.7)
    strategies = StrategyOptions(iou_t=0.2, anchor_t=4.0).for_strategies(["standard", "ratio"])
    recall = anchor_stats(annotations, (head,), strategies, (640, 640)).statistics["best_possible_recall"]
    iou = [min(Fraction(w), 1030) / max(Fraction(w), 1030) for w in widths]
    assert recall["by_iou"] == sum(one > Fraction(1, 5) for one in iou) / 6 == 4 / 6
    assert recall["by_ratio"] == sum(1 / one < 4 for one in iou) / 6 == 1 / 6


def test_comparisons_with_a_limit():
    values = np.array([0.1 + 0.2, 0.3, np.nextafter(0.3, 0), 0.3 + 1e-9, 0.3 - 1e-9])
    assert at_least(values, 0.3).tolist() == [True, True, True, True, False]
    assert above(values, 0.3).tolist() == [False, False, False, True, False]
    assert below(values, 0.3).tolist() == [False, False, False, False, True]
    assert limits_reached(values, (0.1, 0.3)).tolist() == [2, 2, 2, 2, 1]
    assert not above(np.array([1e-14]), 0).any() and not below(np.array([0.0]), 0).any()  # touching boxes, no gap
