"""Anchors that fit: the statistics by hand and by double loop, every method against scipy and the published anchors."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.cluster import vq

from data.description import DataDescription
from data.labels.read import read_dataset
from data.objects import boxes_in_input, select_objects
from models.anchor_fit import METHODS, AnchorFitOptions, count_sizes, fit_anchors, iou_lloyd, measure, recall_rule
from utils.errors import UserError

YOLOV3 = np.array([10, 13, 16, 30, 33, 23, 30, 61, 62, 45, 59, 119, 116, 90, 156, 198, 373, 326], float).reshape(-1, 2)
OPTIONS = AnchorFitOptions(generations=300)


def test_statistics_by_hand():
    # Anchors 10x10 and 40x20. Boxes: 10x10 twice (IoU 1), 5x40 (area 200: 50/250 and 100/900, so .2 with the first,
    # ratios 4 and 8: neither recall, both limits are exclusive), 20x20 (100/400 = .25, 400/800 = .5: second anchor).
    sizes = count_sizes(np.array([(10, 10), (5, 40), (20, 20), (10, 10)], float))
    fit = measure(sizes, np.array([(10, 10), (40, 20)], float), AnchorFitOptions(iou_t=0.2, anchor_t=4.0))
    assert len(sizes) == 3
    assert fit.mean_iou == pytest.approx((1 + 1 + 0.2 + 0.5) / 4)
    assert fit.recall_iou == 3 / 4
    assert fit.recall_ratio == 3 / 4
    assert fit.boxes_per_anchor == (3, 1)


@pytest.mark.parametrize("seed", range(5))
def test_statistics_agree_with_a_double_loop(seed):
    rng = np.random.default_rng(seed)
    boxes, anchors = rng.integers(1, 60, (50, 2)).astype(float), rng.integers(1, 60, (4, 2)).astype(float)
    fit = measure(count_sizes(boxes), anchors, AnchorFitOptions(iou_t=0.5, anchor_t=2.0))
    best, wins, recalled = [], [0] * 4, [0, 0]
    for w, h in boxes:
        ious = [min(w, aw) * min(h, ah) / (w * h + aw * ah - min(w, aw) * min(h, ah)) for aw, ah in anchors]
        best.append(max(ious))
        wins[int(np.argmax(ious))] += 1
        recalled[0] += max(ious) > 0.5
        recalled[1] += min(max(w / aw, aw / w, h / ah, ah / h) for aw, ah in anchors) < 2.0
    assert fit.mean_iou == pytest.approx(sum(best) / 50, rel=1e-6)
    assert fit.boxes_per_anchor == tuple(wins)
    assert (fit.recall_iou * 50, fit.recall_ratio * 50) == pytest.approx(recalled)


def test_sizes_are_counted_and_rounded_only_where_there_are_many():
    boxes = np.array([(3.4, 7.6), (3.4, 7.6), (3.3, 7.6), (0.2, 5.0)])
    exact = count_sizes(boxes)
    assert sorted(zip(exact.wh.tolist(), exact.counts.tolist(), strict=True))[1:] == [
        ([pytest.approx(3.3), pytest.approx(7.6)], 1),
        ([pytest.approx(3.4), pytest.approx(7.6)], 2),
    ]
    whole = count_sizes(boxes, max_exact=3)
    assert sorted(zip(whole.wh.tolist(), whole.counts.tolist(), strict=True)) == [([1, 5], 1), ([3, 8], 3)]
    assert exact.total == whole.total == 4


def boxes_wh_of(path, split, img_size=416):
    description = DataDescription(path, 0, (), {split: (str(path),)})
    objects = select_objects(read_dataset(description, split, need_images=False), crowd=False)
    return boxes_in_input(objects, (img_size, img_size))[:, 2:] * img_size


@pytest.fixture(scope="module", params=["coco", "bccd"])
def real_boxes_wh(request, shared):
    if request.param == "coco":
        return boxes_wh_of(shared / "data/coco/annotations/instances_train2017.json", "train")
    return boxes_wh_of(shared / "data/bccd/ImageSets/Main/train.txt", "train")


def scipy_of_20_restarts(boxes_wh, num):
    np.random.seed(0)
    return vq.kmeans(boxes_wh.astype(np.float64), num, iter=20)[0]


@pytest.mark.parametrize("match", ["standard", "ratio"])
def test_evolve_is_at_least_scipy_and_better_than_the_published_anchors(real_boxes_wh, match):
    options = AnchorFitOptions(match=match)
    sizes = count_sizes(real_boxes_wh)
    found = measure(sizes, fit_anchors(sizes, 9, options), options)
    scipys = measure(sizes, scipy_of_20_restarts(real_boxes_wh, 9), options)
    published = measure(sizes, YOLOV3, options)
    for other in (scipys, published):
        assert found.mean_iou > other.mean_iou
        assert found.recall_iou >= other.recall_iou
        assert found.recall_ratio >= other.recall_ratio


def test_iou_kmeans_beats_scipy_in_mean_iou(real_boxes_wh):
    sizes = count_sizes(real_boxes_wh)
    found = measure(sizes, fit_anchors(sizes, 9, replace(OPTIONS, method="iou")), OPTIONS)
    assert found.mean_iou > measure(sizes, scipy_of_20_restarts(real_boxes_wh, 9), OPTIONS).mean_iou


def test_euclidean_kmeans_is_as_near_as_scipys(real_boxes_wh):
    sizes = count_sizes(real_boxes_wh)
    ours = fit_anchors(sizes, 5, replace(OPTIONS, method="kmeans"))
    distance = [vq.vq(real_boxes_wh, centers)[1].mean() for centers in (ours, scipy_of_20_restarts(real_boxes_wh, 5))]
    assert distance[0] <= distance[1] * 1.005


def clusters(seed, count=400):
    rng = np.random.default_rng(seed)
    return np.abs(rng.normal(0, 60, (count, 2)) * rng.choice([0.2, 1, 3], (count, 1))) + 2


@pytest.mark.parametrize("method", METHODS)
def test_anchors_are_reproducible_sorted_and_finite(method):
    sizes = count_sizes(clusters(1))
    options = replace(OPTIONS, method=method, seed=5)
    anchors = fit_anchors(sizes, 9, options)
    assert anchors.shape == (9, 2)
    assert np.isfinite(anchors).all()
    assert (anchors > 0).all()
    assert (np.diff(anchors.prod(axis=1)) >= 0).all()
    assert np.array_equal(anchors, np.round(anchors, 2))  # as they are written
    assert np.array_equal(anchors, fit_anchors(sizes, 9, options))


@pytest.mark.parametrize("method", ["kmeans", "iou", "evolve"])
def test_other_seeds_give_other_starts_but_similar_fits(method):
    sizes = count_sizes(clusters(2))
    fits = [measure(sizes, fit_anchors(sizes, 6, replace(OPTIONS, method=method, seed=s)), OPTIONS) for s in (0, 1)]
    assert fits[0].mean_iou == pytest.approx(fits[1].mean_iou, abs=0.02)


@pytest.mark.parametrize("method", ["kmeans", "iou", "evolve"])
def test_clear_clusters_are_found(method):
    # Three sizes, each 30 times with a jitter of one pixel: every cluster has its centre within one pixel.
    rng = np.random.default_rng(0)
    centers = np.array([(20, 20), (60, 120), (200, 100)], float)
    boxes = np.repeat(centers, 30, axis=0) + rng.uniform(-1, 1, (90, 2))
    anchors = fit_anchors(count_sizes(boxes), 3, replace(OPTIONS, method=method))
    np.testing.assert_allclose(anchors, centers, atol=1.0)


@pytest.mark.parametrize("method", ["kmeans", "iou", "evolve"])
def test_many_boxes_are_sampled_for_restarts_and_polished_on_all(method, monkeypatch):
    boxes = clusters(3, 3000)
    whole = measure(count_sizes(boxes), fit_anchors(count_sizes(boxes), 6, replace(OPTIONS, method=method)), OPTIONS)
    monkeypatch.setattr("models.anchor_fit.MAX_RESTART_SIZES", 300)
    sizes = count_sizes(boxes, max_exact=1000)
    assert len(sizes) > 300
    sampled = measure(count_sizes(boxes), fit_anchors(sizes, 6, replace(OPTIONS, method=method)), OPTIONS)
    assert sampled.mean_iou == pytest.approx(whole.mean_iou, abs=0.02)


def test_evolve_trades_little_iou_for_recall(shared):
    boxes_wh = boxes_wh_of(shared / "data/coco/annotations/instances_train2017.json", "train")
    sizes, options = count_sizes(boxes_wh), AnchorFitOptions(iou_t=0.5, iou_slack=0.02)
    start = measure(sizes, fit_anchors(sizes, 9, replace(options, method="iou")), options)
    found = measure(sizes, fit_anchors(sizes, 9, options), options)
    assert found.recall_iou > start.recall_iou + 0.01
    assert found.mean_iou >= start.mean_iou - 0.02
    strict = measure(sizes, fit_anchors(sizes, 9, replace(options, iou_slack=0.0)), options)
    assert strict.mean_iou >= start.mean_iou
    assert strict.recall_iou >= start.recall_iou


def test_evolve_without_a_recall_rule_raises_mean_iou():
    sizes, options = count_sizes(clusters(7)), replace(OPTIONS, match="darknet", generations=600)
    start = measure(sizes, fit_anchors(sizes, 5, replace(options, method="iou")), options)
    found = measure(sizes, fit_anchors(sizes, 5, options), options)
    assert found.mean_iou > start.mean_iou


def plain_lloyd(boxes, anchors, iterations):
    """k-means with 1 - IoU, one box at a time; return the mean best IoU of every iteration's anchors."""
    scores = []
    for _ in range(iterations):
        groups, total = [[] for _ in anchors], 0.0
        for w, h in boxes:
            ious = [min(w, aw) * min(h, ah) / (w * h + aw * ah - min(w, aw) * min(h, ah)) for aw, ah in anchors]
            groups[int(np.argmax(ious))].append((w, h))
            total += max(ious)
        scores.append(total / len(boxes))
        anchors = [np.mean(group, axis=0) for group in groups]
    return scores


@pytest.mark.parametrize("seed", range(6))
def test_iou_kmeans_keeps_the_best_it_has_seen(seed):
    """The mean of a group does not maximise its IoU, so the last anchors need not be the best."""
    boxes = clusters(seed, 80)
    start = np.quantile(boxes, (0.1, 0.5, 0.9), axis=0)
    score, anchors = iou_lloyd(count_sizes(boxes), start)
    scores = plain_lloyd(boxes, start.tolist(), 40)
    assert score == pytest.approx(max(scores), abs=1e-6)
    assert measure(count_sizes(boxes), anchors, OPTIONS).mean_iou == pytest.approx(score, abs=1e-6)


def test_linear_and_geometric_sizes_by_hand():
    # sqrt(wh) of the boxes: 10 and 90, quantiles 0 and 1. Linear, three sizes: 10, 50, 90; geometric: 10, 30, 90.
    # An aspect ratio of 4 keeps the area and makes w = 2 s, h = s / 2.
    sizes = count_sizes(np.array([(10, 10), (180, 45)], float).repeat(4, axis=0) + np.zeros((8, 2)))
    options = replace(OPTIONS, ratios=(1.0, 4.0), size_quantiles=(0.0, 1.0))
    many = count_sizes(np.concatenate((sizes.wh.numpy(), [(20, 20), (30, 30), (40, 40), (50, 50)])))
    linear = fit_anchors(many, 6, replace(options, method="linear"))
    assert linear.tolist() == [[10, 10], [20, 5], [50, 50], [100, 25], [90, 90], [180, 45]]
    geometric = fit_anchors(many, 6, replace(options, method="geometric"))
    assert geometric.tolist() == [[10, 10], [20, 5], [30, 30], [60, 15], [90, 90], [180, 45]]
    with pytest.raises(UserError, match="no multiple of 2"):
        fit_anchors(many, 5, replace(options, method="linear"))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        (np.zeros((0, 2)), "no box"),
        (np.array([(5.0, 6.0)]), "1 boxes have only 1 distinct sizes, too few for 3 anchors"),
        (np.array([(5.0, 6.0), (7.0, 8.0)] * 10), "only 2 distinct sizes"),
    ],
)
def test_too_few_boxes_are_an_error_with_a_remedy(method, boxes, message):
    with pytest.raises(UserError, match=message):
        fit_anchors(count_sizes(boxes), 3, replace(OPTIONS, method=method))


@pytest.mark.parametrize("method", ["kmeans", "iou", "evolve"])
def test_as_many_sizes_as_anchors_gives_the_sizes(method):
    boxes = np.array([(5, 6), (70, 20), (30, 90)], float)
    anchors = fit_anchors(count_sizes(np.repeat(boxes, 5, axis=0)), 3, replace(OPTIONS, method=method))
    assert anchors.tolist() == [[5, 6], [70, 20], [30, 90]]
    assert fit_anchors(count_sizes(boxes[:1]), 1, replace(OPTIONS, method=method)).tolist() == [[5, 6]]


def test_recall_rule_of_a_strategy():
    assert recall_rule("standard") == recall_rule("fast") == recall_rule("standard+ratio") == "iou"
    assert recall_rule("ratio") == "ratio"
    assert recall_rule("darknet") == recall_rule("tal") == ""


@pytest.mark.parametrize(
    "wrong", [{"num": -1}, {"iou_t": 1.0}, {"anchor_t": 1.0}, {"ratios": (0.0,)}, {"match": "best"}, {"restarts": 0}]
)
def test_contradictory_options_are_refused(wrong):
    with pytest.raises(ValueError):
        AnchorFitOptions(**wrong)
