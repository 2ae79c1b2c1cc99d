"""Is the strongest of an object's boxes the one that fits best? Over the boxes of its class that overlap it.

docs/analysis.md, *score-mismatch*, defines every statistic. Of equal scores the box that fits best counts, as in
:mod:`analysis.matching.scores`.

Shape letters: T objects, N boxes, P pairs of a box and an object of its class, D boxes that overlap an object.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from analysis.matching.scores import strongest
from analysis.matching.suppression import same_group
from analysis.output.result import counted, mean, share
from analysis.score_mismatch.boxes import FoundBoxes, ObjectBoxes, groups_of_boxes
from utils.boxes import box_iou

BINS = 20  # of the score and of the IoU, in the histogram


@dataclass(frozen=True)
class ComparedScores:
    """How the scores of the boxes of some objects compare with their IoU."""

    num_boxes: np.ndarray  # [T] int64, boxes that overlap the object
    best_iou: np.ndarray  # [T] float64, NaN without a box
    iou_of_strongest: np.ndarray  # [T] float64, likewise
    is_mismatch: np.ndarray  # [T] bool: another box than the best one has a higher score
    box_object: np.ndarray  # [D] int64, the object that each box overlaps most, 0 to T - 1
    box_score: np.ndarray  # [D] float64
    box_iou: np.ndarray  # [D] float64

    @staticmethod
    def joined(parts: Sequence[ComparedScores]) -> ComparedScores:
        """Return what was measured of the objects of all parts."""
        starts = np.cumsum([0, *(len(part.best_iou) for part in parts)])
        shifted = [part.box_object + start for part, start in zip(parts, starts, strict=False)]
        columns = ("num_boxes", "best_iou", "iou_of_strongest", "is_mismatch", "box_score", "box_iou")
        values = {name: np.concatenate([getattr(part, name) for part in parts]) for name in columns}
        return ComparedScores(**values, box_object=np.concatenate(shifted))


def compare_scores(objects: ObjectBoxes, found: FoundBoxes, min_iou: float, num_classes: int) -> ComparedScores:
    """Compare score and IoU of all boxes with IoU of at least ``min_iou`` with an object of their class and image."""
    box, target, iou = overlapping_pairs(objects, found, min_iou, num_classes)
    score = found.scores[box]
    # Among equals the other quantity decides: a tie is then no mismatch.
    best = strongest(target, box, (iou, score), len(objects))
    sure = strongest(target, box, (score, iou), len(objects))
    nearest = strongest(box, target, (iou,), len(found))
    nearest = nearest[nearest >= 0]
    has_box = best >= 0
    nothing = torch.full((len(objects),), float("nan"), dtype=torch.float64)
    best_iou, iou_of_strongest = nothing.clone(), nothing.clone()
    best_iou[has_box], iou_of_strongest[has_box] = iou[best[has_box]], iou[sure[has_box]]
    is_mismatch = torch.zeros(len(objects), dtype=torch.bool)
    is_mismatch[has_box] = score[best[has_box]] < score[sure[has_box]]
    num_boxes = torch.bincount(target, minlength=len(objects))
    columns = (num_boxes, best_iou, iou_of_strongest, is_mismatch, target[nearest], score[nearest], iou[nearest])
    return ComparedScores(*(column.numpy() for column in columns))


def overlapping_pairs(
    objects: ObjectBoxes, found: FoundBoxes, min_iou: float, num_classes: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return box, object and IoU [P] of the boxes and objects of one class that overlap by at least ``min_iou``."""
    box, target = same_group(groups_of_boxes(found, num_classes), groups_of_boxes(objects, num_classes))
    iou = box_iou(found.boxes_xyxy[box], objects.boxes_xyxy[target], elementwise=True)
    near = iou >= min_iou
    return box[near], target[near], iou[near]


def score_statistics(compared: ComparedScores, chosen: np.ndarray) -> dict[str, Any]:
    """Return the statistics of the objects where ``chosen`` [T] is True."""
    has_box = chosen & (compared.num_boxes > 0)
    several = chosen & (compared.num_boxes > 1)
    mismatches = compared.is_mismatch & chosen
    of_chosen = chosen[compared.box_object]
    best, of_strongest = compared.best_iou[has_box], compared.iou_of_strongest[has_box]
    return {
        "objects": int(chosen.sum()),
        "with_box": counted(has_box[chosen]),
        "with_several": counted(several[chosen]),
        "mismatch": counted(compared.is_mismatch[has_box]) | {"several_share": share(mismatches.sum(), several.sum())},
        "mean_iou_ratio": mean(of_strongest / best),
        "mean_best_iou": mean(best),
        "mean_iou_of_strongest": mean(of_strongest),
        "boxes": int(of_chosen.sum()),
        "rank_correlation": rank_correlation(compared.box_score[of_chosen], compared.box_iou[of_chosen]),
    }


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float | None:
    """Return Spearman's rank correlation of two columns [D], equal values with their mean rank; None without one."""
    if not len(first) or first.min() == first.max() or second.min() == second.max():
        return None
    return float(np.corrcoef(mean_ranks(first), mean_ranks(second))[0, 1])


def mean_ranks(values: np.ndarray) -> np.ndarray:
    """Return the rank of every value, [D] from 1; equal values have the mean of their ranks."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[place]


def histogram(compared: ComparedScores) -> dict[str, Any]:
    """Return how many boxes there are by score (rows) and IoU (columns); scores beyond 0..1 are in the outer rows."""
    edges = np.linspace(0, 1, BINS + 1)
    counts = np.histogram2d(np.clip(compared.box_score, 0, 1), compared.box_iou, bins=(edges, edges))[0]
    return {"edges": edges, "counts": counts.astype(np.int64)}


def reliability(compared: ComparedScores) -> list[dict[str, Any]]:
    """Return mean score and mean IoU of the boxes in each bin of the score."""
    number = np.minimum((np.clip(compared.box_score, 0, 1) * BINS).astype(np.int64), BINS - 1)
    return [
        {
            "from": index / BINS,
            "to": (index + 1) / BINS,
            "boxes": int((number == index).sum()),
            "mean_score": mean(compared.box_score[number == index]),
            "mean_iou": mean(compared.box_iou[number == index]),
        }
        for index in range(BINS)
    ]
