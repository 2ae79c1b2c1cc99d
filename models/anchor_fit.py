"""Anchors that fit the boxes of a data set: five ways to find them and the statistics that judge them.

Sizes and anchors are (width, height) in network pixels, after letterboxing. Shape letters: K distinct sizes, A anchors,
M boxes. Many boxes of a data set have the same size, so everything works on distinct sizes with counts; above
MAX_EXACT_SIZES boxes the sizes are rounded to whole pixels first, so that a million boxes have about 100,000 of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from models.assignment.prior import Ratio, Standard
from models.assignment.strategies import strategies_of
from utils.boxes import shape_iou
from utils.config import option
from utils.errors import UserError
from utils.limits import above, below

MAX_EXACT_SIZES = 50_000  # boxes
MAX_RESTART_SIZES = 20_000  # with more distinct sizes, restarts and mutations run on a sample of so many boxes
MAX_ITERATIONS = 300  # of k-means with 1 - IoU, which usually stops long before
DECIMALS = 2  # of the anchors in the cfg; they are judged as they are written


@dataclass(frozen=True)
class AnchorFitOptions:
    """How anchors are found."""

    num: int = option(0, "number of anchors; 0: as many as the cfg has")
    method: str = option(
        "evolve",
        "kmeans: Euclidean on (w, h); iou: 1 - IoU, Darknet's; evolve: mutation of the better of the two, maximising "
        "the recall that --match asks for; linear, geometric: equally or geometrically spaced sizes x --ratios",
        choices=("kmeans", "iou", "evolve", "linear", "geometric"),
    )
    iou_t: float = option(Standard.iou_t, "an anchor recalls a box when their shape IoU is above this")
    anchor_t: float = option(Ratio.anchor_t, "an anchor recalls a box when no ratio of their sides reaches this")
    match: str = option("standard", "the strategy whose recall rule evolve maximises")
    restarts: int = option(20, "starting points of kmeans and iou, the best is kept")
    generations: int = option(2000, "mutations that evolve tries")
    iou_slack: float = option(0.01, "mean best IoU that evolve may lose for recall")
    ratios: tuple[float, ...] = option((0.5, 1.0, 2.0), "aspect ratios w/h of linear and geometric")
    size_quantiles: tuple[float, ...] = option((0.05, 0.95), "smallest and largest size of linear and geometric")
    seed: int = option(0, "the same seed gives the same anchors")

    def __post_init__(self) -> None:
        strategies_of(self.match)
        if self.num < 0 or self.restarts < 1 or self.generations < 0:
            raise ValueError("--num and --generations must be 0 or more, --restarts 1 or more")
        if not 0 <= self.iou_t < 1 or self.anchor_t <= 1:
            raise ValueError(f"--iou-t {self.iou_t} must be in 0..1 and --anchor-t {self.anchor_t} above 1")
        if not self.ratios or min(self.ratios) <= 0:
            raise ValueError("--ratios must be numbers above 0")
        if len(self.size_quantiles) != 2 or not 0 <= self.size_quantiles[0] <= self.size_quantiles[1] <= 1:
            raise ValueError("--size-quantiles must be two numbers in 0..1, the smaller first")


@dataclass(frozen=True)
class BoxSizes:
    """Distinct box sizes and how many boxes have each."""

    wh: Tensor  # [K 2] network pixels, float32; float64 where thresholds are to be met exactly
    counts: Tensor  # [K] float64

    def __len__(self) -> int:
        return len(self.wh)

    @property
    def total(self) -> float:
        """Number of boxes."""
        return float(self.counts.sum())

    def mean(self, values: Tensor) -> float:
        """Return the mean over the boxes of a value per distinct size [K]."""
        return float(torch.dot(values.double(), self.counts) / self.counts.sum())


@dataclass(frozen=True)
class Fit:
    """How well anchors fit the boxes."""

    mean_iou: float  # over boxes, of the best anchor's shape IoU
    recall_iou: float  # share of boxes with an anchor of shape IoU > iou_t
    recall_ratio: float  # share of boxes with an anchor whose sides' ratios stay below anchor_t
    boxes_per_anchor: tuple[int, ...]  # boxes to which each anchor is the best by shape IoU


def count_sizes(boxes_wh: np.ndarray, max_exact: int = MAX_EXACT_SIZES) -> BoxSizes:
    """Return the distinct sizes of boxes [M 2]; above ``max_exact`` boxes, of their sizes in whole pixels (>= 1)."""
    if len(boxes_wh) > max_exact:
        boxes_wh = np.maximum(np.rint(boxes_wh), 1)
    boxes_wh = boxes_wh.astype(np.float32)
    # Width and height become the halves of one integer: equal sizes are equal numbers, which sort fast. The bits of
    # positive floats have the order of the floats.
    keys = np.ascontiguousarray(boxes_wh).view(np.uint32).astype(np.uint64)
    unique, counts = np.unique(keys[:, 0] << np.uint64(32) | keys[:, 1], return_counts=True)
    wh = np.stack((unique >> np.uint64(32), unique & np.uint64(0xFFFFFFFF)), axis=1).astype(np.uint32).view(np.float32)
    return BoxSizes(torch.from_numpy(wh), torch.from_numpy(counts.astype(np.float64)))


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread: on small tensors a second one gains little and, on a busy machine, costs much time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def side_ratio(boxes_wh: Tensor, anchors_wh: Tensor) -> Tensor:
    """Return ``max(w/pw, pw/w, h/ph, ph/h)`` of sizes [K 2] and anchors [A 2], [K A]."""
    ratio = boxes_wh[:, None] / anchors_wh[None]
    return torch.maximum(ratio, 1 / ratio).amax(dim=2)


def measure(sizes: BoxSizes, anchors_wh: np.ndarray, options: AnchorFitOptions) -> Fit:
    """Return how well anchors [A 2] fit all boxes."""
    anchors = torch.as_tensor(np.asarray(anchors_wh), dtype=sizes.wh.dtype)
    best_iou, nearest = shape_iou(sizes.wh, anchors).max(dim=1)
    return Fit(
        mean_iou=sizes.mean(best_iou),
        recall_iou=sizes.mean(above(best_iou, options.iou_t)),
        recall_ratio=sizes.mean(below(side_ratio(sizes.wh, anchors).amin(dim=1), options.anchor_t)),
        boxes_per_anchor=tuple(torch.bincount(nearest, sizes.counts, len(anchors)).round().int().tolist()),
    )


def fit_anchors(sizes: BoxSizes, num: int, options: AnchorFitOptions) -> np.ndarray:
    """Find anchors with the method that the options name, one of :data:`METHODS`.

    Returns:
        [num 2] float64, the smallest area first, rounded to DECIMALS as they are written into the cfg.

    Raises:
        UserError: there are no boxes, fewer distinct sizes than anchors, or ``num`` does not suit the method.
    """
    if not len(sizes):
        raise UserError("there is no box to fit anchors to; look at the labels of --data")
    if len(sizes) < num:
        raise UserError(
            f"{int(sizes.total)} boxes have only {len(sizes)} distinct sizes, too few for {num} anchors; "
            f"use --num {len(sizes)} or less, or more data"
        )
    rng = np.random.default_rng(options.seed)
    with one_thread():
        return sorted_by_area(rounded(METHODS[options.method](sizes, num, options, rng)))


def sorted_by_area(anchors_wh: np.ndarray) -> np.ndarray:
    """Return the anchors [A 2] with the smallest area first; of equal areas, the narrowest."""
    return anchors_wh[np.lexsort((anchors_wh[:, 0], anchors_wh.prod(axis=1)))]


def rounded(anchors_wh: np.ndarray) -> np.ndarray:
    """Return the anchors [A 2] with DECIMALS decimals, as they are written, and never 0."""
    return np.maximum(np.round(np.asarray(anchors_wh, dtype=np.float64), DECIMALS), 10.0**-DECIMALS)


def euclidean_kmeans(sizes: BoxSizes, num: int, options: AnchorFitOptions, rng: np.random.Generator) -> np.ndarray:
    """Return the anchors of scipy's k-means on (w, h): the restart with the lowest distortion, continued on all boxes.

    The distortion is the mean distance of the boxes from the nearest anchor, in pixels.
    """
    from scipy.cluster import vq  # takes a third of a second, which no other method needs

    sample = _sample(sizes, rng)
    distinct, points = sample.wh.double().numpy(), _points(sample)
    best, lowest = None, math.inf
    for _ in range(options.restarts):
        start = distinct[rng.choice(len(distinct), num, replace=False)]
        centers, distortion = vq.kmeans(points, start)
        if len(centers) == num and distortion < lowest:  # scipy drops a centre that loses all its points
            best, lowest = centers, distortion
    if best is None:  # every restart lost a centre: the sizes of some boxes, drawn at random, are anchors, too
        return start
    # The best restart knows the sample only. Should a centre be lost on all boxes, the restart's result stays.
    polished = vq.kmeans(_points(sizes), best)[0] if len(sample) < len(sizes) else best
    return polished if len(polished) == num else best


def iou_kmeans(sizes: BoxSizes, num: int, options: AnchorFitOptions, rng: np.random.Generator) -> np.ndarray:
    """Return the anchors of k-means with the distance 1 - IoU: the restart with the highest mean best IoU.

    The distance is that of YOLOv2 (arXiv 1612.08242, *Dimension Clusters*) and of Darknet. One of the starting points
    is the Euclidean result, and the best anchors on the way are kept, so that the mean best IoU is never below that of
    :func:`euclidean_kmeans`.
    """
    euclidean = euclidean_kmeans(sizes, num, options, rng)
    sample = _sample(sizes, rng)
    # The restarts run on the sample; the best of them and the Euclidean result then go on with all boxes.
    best = max((iou_lloyd(sample, _spread_start(sample, num, rng)) for _ in range(options.restarts)), key=_mean_iou)
    return max((iou_lloyd(sizes, start) for start in (best[1], rounded(euclidean))), key=_mean_iou)[1]


def evolve(sizes: BoxSizes, num: int, options: AnchorFitOptions, rng: np.random.Generator) -> np.ndarray:
    """Mutate the anchors of :func:`iou_kmeans`; a mutation is kept if recall rises, or mean best IoU at equal recall.

    Recall is that of the rule of ``options.match``. No mutation may go below one of three floors: either recall and the
    mean best IoU of the Euclidean k-means, and the mean best IoU of the start minus ``options.iou_slack``.
    """
    euclidean = rounded(euclidean_kmeans(sizes, num, options, rng))
    start = rounded(iou_kmeans(sizes, num, options, np.random.default_rng(options.seed)))  # what --method iou gives
    sample = _sample(sizes, rng)
    # The floors, and a start that keeps them: where IoU k-means has the lower recall, only the Euclidean result does.
    floor = list(_statistics(measure(sample, euclidean, options)))
    statistics = _statistics(measure(sample, start, options))
    if all(value >= minimum for value, minimum in zip(statistics, floor, strict=True)):
        floor[0] = max(floor[0], statistics[0] - options.iou_slack)
    else:
        start = euclidean
    population = _Population(sample, options, start, floor)
    for _ in tqdm(range(options.generations), desc="evolve", unit=" mutants", disable=None, leave=False):
        # One or two anchors are scaled, each side by a factor of its own. The standard deviation of its logarithm is
        # drawn, too, between 0.003 and 0.5: large steps find new arrangements, small ones improve what is there.
        which = rng.choice(num, size=min(num, int(rng.integers(1, 3))), replace=False)
        factors = np.exp(rng.normal(0, 10 ** rng.uniform(-2.5, -0.3), (len(which), 2)))
        population.try_anchors(which, rounded(population.anchors[which] * factors))
    # On a sample the floors were those of the sample; whether the result keeps them is decided on all boxes.
    floor = list(_statistics(measure(sizes, euclidean, options)))
    evolved = _statistics(measure(sizes, population.anchors, options))
    good = all(value >= minimum for value, minimum in zip(evolved, floor, strict=True))
    return population.anchors if good else start


def linear_sizes(sizes: BoxSizes, num: int, options: AnchorFitOptions, rng: np.random.Generator) -> np.ndarray:
    """Return anchors of equally spaced sizes, each in every aspect ratio; ``rng`` is not used."""
    return _spaced_anchors(sizes, num, options, np.linspace)


def geometric_sizes(sizes: BoxSizes, num: int, options: AnchorFitOptions, rng: np.random.Generator) -> np.ndarray:
    """Return anchors of geometrically spaced sizes, each in every aspect ratio; ``rng`` is not used."""
    return _spaced_anchors(sizes, num, options, np.geomspace)


METHODS = {
    "kmeans": euclidean_kmeans,
    "iou": iou_kmeans,
    "evolve": evolve,
    "linear": linear_sizes,
    "geometric": geometric_sizes,
}


# The options that each method reads besides the thresholds and the seed; the script refuses one that has no effect.
METHOD_OPTIONS = {
    "kmeans": {"restarts"},
    "iou": {"restarts"},
    "evolve": {"restarts", "generations", "iou_slack", "match"},
    "linear": {"ratios", "size_quantiles"},
    "geometric": {"ratios", "size_quantiles"},
}


class _Population:
    """The anchors of :func:`evolve` so far.

    The fit of every anchor to every size is kept, [A K]: a mutation of one anchor then costs one row, not a new matrix.
    """

    def __init__(
        self, sizes: BoxSizes, options: AnchorFitOptions, anchors_wh: np.ndarray, floor: Sequence[float]
    ) -> None:
        self.sizes, self.options, self.floor = sizes, options, floor
        self.anchors = anchors_wh
        self.iou, self.ratio = self._rows(anchors_wh)  # [A K]
        self.objective = self._objective(_statistics(measure(sizes, anchors_wh, options)))

    def try_anchors(self, which: np.ndarray, anchors_wh: np.ndarray) -> None:
        """Replace the anchors of the indices ``which`` [n] by ``anchors_wh`` [n 2] if the result is better.

        Better means: the objective rises, and no statistic falls below its floor.
        """
        # The best fit to every size comes from the anchors that stay and from the new ones.
        iou, ratio = self._rows(anchors_wh)
        index = torch.from_numpy(which)
        others = torch.ones(len(self.anchors), dtype=torch.bool).index_fill_(0, index, False)
        best_iou = torch.cat((self.iou[others], iou)).amax(dim=0)
        best_ratio = torch.cat((self.ratio[others], ratio)).amin(dim=0)
        statistics = (
            self.sizes.mean(best_iou),
            self.sizes.mean(best_iou > self.options.iou_t),
            self.sizes.mean(best_ratio < self.options.anchor_t),
        )
        allowed = all(value >= minimum for value, minimum in zip(statistics, self.floor, strict=True))
        if allowed and self._objective(statistics) > self.objective:
            self.anchors = self.anchors.copy()  # the array of the start belongs to the caller
            self.anchors[which] = anchors_wh
            self.iou[index], self.ratio[index] = iou, ratio
            self.objective = self._objective(statistics)

    def _rows(self, anchors_wh: np.ndarray) -> tuple[Tensor, Tensor]:
        anchors = torch.as_tensor(anchors_wh, dtype=torch.float32)
        return shape_iou(anchors, self.sizes.wh), side_ratio(anchors, self.sizes.wh)

    def _objective(self, statistics: Sequence[float]) -> tuple[float, float]:
        """Return recall by the strategy's rule, 0 where it has none, and mean best IoU: compared in this order."""
        mean_iou, recall_iou, recall_ratio = statistics
        recall = {"iou": recall_iou, "ratio": recall_ratio}.get(recall_rule(self.options.match), 0.0)
        return recall, mean_iou


def _statistics(fit: Fit) -> tuple[float, float, float]:
    return fit.mean_iou, fit.recall_iou, fit.recall_ratio


def recall_rule(match: str) -> str:
    """Return by which rule a strategy may leave a box without an anchor: "iou", "ratio", or "" where it never does."""
    return strategies_of(match)[0].anchor_rule


def _sample(sizes: BoxSizes, rng: np.random.Generator) -> BoxSizes:
    """Return at most MAX_RESTART_SIZES distinct sizes: all, or those of so many boxes drawn at random."""
    if len(sizes) <= MAX_RESTART_SIZES:
        return sizes
    rows = rng.choice(len(sizes), MAX_RESTART_SIZES, p=(sizes.counts / sizes.counts.sum()).numpy())
    return count_sizes(sizes.wh.numpy()[rows])


def _points(sizes: BoxSizes) -> np.ndarray:
    """Return one row per box, float64."""
    return np.repeat(sizes.wh.double().numpy(), sizes.counts.long().numpy(), axis=0)


def _mean_iou(candidate: tuple[float, np.ndarray]) -> float:
    return candidate[0]


def _spread_start(sizes: BoxSizes, num: int, rng: np.random.Generator) -> np.ndarray:
    """Draw starting anchors [num 2] one by one, more likely where those before fit badly.

    This is k-means++ with the distance 1 - IoU: the probability of a box is proportional to the square of its distance
    from the nearest anchor so far. The first is any box.
    """
    best_iou = torch.zeros(len(sizes))
    rows: list[int] = []
    for _ in range(num):
        chance = ((1 - best_iou).double().square() * sizes.counts).numpy()
        rows.append(int(rng.choice(len(sizes), p=chance / chance.sum())))
        best_iou = torch.maximum(best_iou, shape_iou(sizes.wh, sizes.wh[rows[-1:]])[:, 0])
    return sizes.wh[rows].numpy()


def iou_lloyd(sizes: BoxSizes, start_wh: np.ndarray) -> tuple[float, np.ndarray]:
    """Run k-means with the distance 1 - IoU from the anchors ``start_wh`` [A 2].

    Returns:
        The highest mean best IoU on the way, and the anchors [A 2] float64 that had it. With this distance the mean of
        the sizes is not the best centre, so the mean best IoU may fall from one iteration to the next.
    """
    anchors = torch.as_tensor(start_wh, dtype=torch.float32)
    best, best_anchors, previous = -1.0, anchors, None
    for _ in range(MAX_ITERATIONS):
        # Every size belongs to the anchor with the highest IoU; the state before the move is judged.
        fit, nearest = shape_iou(sizes.wh, anchors).max(dim=1)
        score = sizes.mean(fit)
        if score > best:
            best, best_anchors = score, anchors
        if previous is not None and torch.equal(nearest, previous):
            break
        previous = nearest
        # Every anchor moves to the mean size of its boxes.
        weight = torch.bincount(nearest, sizes.counts, len(anchors))
        sums = torch.zeros(len(anchors), 2, dtype=torch.float64).index_add_(
            0, nearest, sizes.wh * sizes.counts[:, None]
        )
        anchors = (sums / weight.clamp(min=1)[:, None]).float()
        empty = weight == 0
        if empty.any():  # an anchor without boxes goes to a size that fits worst
            anchors[empty] = sizes.wh[fit.topk(int(empty.sum()), largest=False).indices]
    return best, best_anchors.double().numpy()


def _spaced_anchors(sizes: BoxSizes, num: int, options: AnchorFitOptions, spacing: Callable[..., Any]) -> np.ndarray:
    """Return sizes spaced between the quantiles of sqrt(wh), each in every aspect ratio with the area kept.

    Raises:
        UserError: ``num`` is no multiple of the number of ratios.
    """
    if num % len(options.ratios):
        raise UserError(
            f"--method {options.method} makes a whole number of sizes for {len(options.ratios)} --ratios; "
            f"--num {num} is no multiple of {len(options.ratios)}"
        )
    sides = np.repeat(sizes.wh.double().prod(dim=1).sqrt().numpy(), sizes.counts.long().numpy())
    low, high = np.quantile(sides, options.size_quantiles)
    # w = side * sqrt(ratio) and h = side / sqrt(ratio): w / h is the ratio, w * h the square of the side.
    side = spacing(low, high, num // len(options.ratios))[:, None]
    root = np.sqrt(np.asarray(options.ratios))[None]
    return np.stack((side * root, side / root), axis=-1).reshape(-1, 2)
