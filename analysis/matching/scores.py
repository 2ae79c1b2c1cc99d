"""Is the most confident slot the one that fits best? Per object, over the slots whose prediction overlaps it.

Two scores are compared with the fit ``q``: objectness, and objectness x the probability of the object's own class.
Equal scores are no mismatch: of the slots with the highest score, the one that fits best counts.

Shape letters: B images, S slots of one image, T objects, Q kinds of IoU, P pairs (object, slot), ordered by object.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from analysis.matching.pairs import Predictions
from analysis.matching.quality import NEAR_CANDIDATES, Candidates, neighbour_slots
from models.raw_maps import gather_numbers
from utils.boxes import xyxy_to_cxcywh

PAIRS_AT_ONCE = 300_000  # objects x slots that are compared at once: as many as a processor's cache holds
OF_OBJECTNESS = {  # columns that say nothing where the heads have none
    "q_of_objectness", "best_objectness", "objectness_of_best", "objectness_mismatch", "area_confident",
    "offset_confident",
}  # fmt: skip
ROUNDING = 1e-5  # relative; far above the rounding error of an intersection and two areas in float32


def score_columns(
    predictions: Predictions, raw_maps: Sequence[Tensor], kinds: Sequence[str], candidates: str, min_q: float
) -> dict[str, Tensor]:
    """Return the columns about scores, [T Q] each; for objects that no slot overlaps NaN, or False where they are bool.

    ``best_q`` and ``best_objectness`` are the highest ones; ``objectness_of_best`` belongs to the slot of the best q,
    ``q_of_objectness`` and ``q_of_score`` to the slots with the highest objectness and score. ``objectness_mismatch``
    and ``score_mismatch`` (bool): another slot has a higher one than the slot of the best q. ``area_*`` and
    ``offset_*`` are the area of a predicted box and the distance of its centre from the object's, in cells of its head,
    for the slot of the best q (``_best``) and of the highest objectness (``_confident``). Those in ``OF_OBJECTNESS``
    are left out where the heads have no objectness.

    Args:
        predictions: of the batch.
        raw_maps: the maps they were decoded from.
        kinds: of IoU.
        candidates: which slots are looked at, a key of :data:`models.assignment.candidates.CANDIDATES`.
        min_q: slots that fit worse are left out.
    """
    # One list of pairs serves all kinds of IoU; each then keeps those whose own q reaches min_q.
    target, slot = overlapping(predictions, candidates, min_q)
    q = predictions.ious(target, slot, kinds)
    objectness = predictions.objectness[predictions.inputs.targets.image[target], slot]
    score = objectness.sigmoid() * class_logits(predictions, raw_maps, target, slot).sigmoid()
    columns = []
    for index in range(len(kinds)):
        keep = (q[:, index] >= min_q).nonzero().squeeze(1)
        columns.append(
            _columns_of_kind(predictions, target[keep], slot[keep], q[keep, index], objectness[keep], score[keep])
        )
    left_out = set() if predictions.grid.heads[0].has_objectness else OF_OBJECTNESS
    return {name: torch.stack([part[name] for part in columns], dim=1) for name in columns[0] if name not in left_out}


def overlapping(predictions: Predictions, candidates: str, min_q: float) -> tuple[Tensor, Tensor]:
    """Return object and slot [P] of all candidates whose plain IoU reaches ``min_q``, by object, then slot.

    No other kind of IoU is larger than the plain one, so that the slots of every kind are among these. On the whole
    map, so are a few slots that miss ``min_q`` by a rounding error.
    """
    if candidates == "map":
        return _overlapping_anywhere(predictions, min_q)
    near = neighbour_slots(predictions.inputs)
    return _overlapping_of(predictions, NEAR_CANDIDATES[candidates](near), min_q)


def _overlapping_anywhere(predictions: Predictions, min_q: float) -> tuple[Tensor, Tensor]:
    """Compare every object with all slots of its image, a bounded number of pairs at a time and without a division."""
    inputs = predictions.inputs
    x1, y1, x2, y2 = predictions.boxes_xyxy.permute(2, 0, 1).contiguous()  # each B S, read row by row
    area = (x2 - x1) * (y2 - y1)
    # i / (a + b - i) >= q, for an intersection i and areas a and b, is i (1 + q) / q >= a + b.
    share = (1 + min_q) / min_q * (1 + ROUNDING)
    found = []
    step = max(1, PAIRS_AT_ONCE // inputs.grid.slots_per_image)
    for rows in torch.arange(len(inputs.targets), device=area.device).split(step):
        image = inputs.targets.image[rows]
        left, top, right, bottom = inputs.boxes_xyxy[rows].t()[:, :, None]  # each t 1, against t S
        width = torch.minimum(x2[image], right).sub_(torch.maximum(x1[image], left)).clamp_(min=0)
        height = torch.minimum(y2[image], bottom).sub_(torch.maximum(y1[image], top)).clamp_(min=0)
        areas = area[image].add_((right - left) * (bottom - top))
        row, slot = (width.mul_(height).mul_(share) >= areas).nonzero(as_tuple=True)
        found.append((rows[row], slot))
    target, slot = (torch.cat(part) for part in zip(*found, strict=True))
    return target, slot


def _overlapping_of(predictions: Predictions, candidates: Candidates, min_q: float) -> tuple[Tensor, Tensor]:
    """Compare every object with its candidates; they come cell by cell, so that the pairs are sorted at the end."""
    target = torch.arange(len(candidates.slot), device=candidates.slot.device)[:, None].expand_as(candidates.slot)
    q = predictions.ious(target, candidates.slot, ("iou",))[..., 0]
    keep = (q >= min_q) & candidates.valid
    return predictions.grid.unpack(torch.sort(predictions.grid.pack(target[keep], candidates.slot[keep])).values)


def class_logits(predictions: Predictions, raw_maps: Sequence[Tensor], target: Tensor, slot: Tensor) -> Tensor:
    """Return the class logit of each slot for the class of its object, [P] float32.

    Args:
        predictions: of the batch.
        raw_maps: the maps they were decoded from.
        target: [P], the objects.
        slot: [P], of their images.
    """
    grid, targets = predictions.grid, predictions.inputs.targets
    place = grid.locate(slot)
    image, column = targets.image[target], targets.label[target] + 5
    result = predictions.objectness.new_zeros(len(slot))
    for index, raw in enumerate(raw_maps):
        on = (grid.head[place.anchor] == index).nonzero().squeeze(1)
        anchor = grid.anchor[place.anchor[on]]
        result[on] = gather_numbers(raw, column[on], image[on], anchor, place.row[on], place.col[on])
    return result


def _columns_of_kind(
    predictions: Predictions, target: Tensor, slot: Tensor, q: Tensor, objectness: Tensor, score: Tensor
) -> dict[str, Tensor]:
    """Return the columns [T] of one kind of IoU.

    Args:
        predictions: of the batch.
        target: [p], the objects of the pairs whose q reaches min_q.
        slot: [p].
        q: [p].
        objectness: [p], logits.
        score: [p], objectness x probability of the object's class.
    """
    count = len(predictions.inputs.targets)
    # Among equals the other quantity decides: a tie is then no mismatch.
    best = strongest(target, slot, (q, objectness), count)
    confident = strongest(target, slot, (objectness, q), count)
    sure = strongest(target, slot, (score, q), count)
    columns = {
        "best_q": _taken(q, best),
        "q_of_objectness": _taken(q, confident),
        "q_of_score": _taken(q, sure),
        "best_objectness": _taken(objectness.sigmoid(), confident),
        "objectness_of_best": _taken(objectness.sigmoid(), best),
        "objectness_mismatch": _below(objectness, best, confident),
        "score_mismatch": _below(score, best, sure),
    }
    for name, pair in (("best", best), ("confident", confident)):
        columns |= {f"{key}_{name}": value for key, value in _geometry(predictions, slot, pair).items()}
    return columns


def strongest(target: Tensor, slot: Tensor, keys: tuple[Tensor, ...], count: int) -> Tensor:
    """Return the pair of each object with the highest first key, then the next ones, then the lowest slot.

    Args:
        target: [P], the object of each pair.
        slot: [P].
        keys: [P] each.
        count: number of objects, T.

    Returns:
        [T] int64 index of a pair, -1 for an object without any.
    """
    # Key by key, only the pairs remain that have their object's highest value of it.
    left = torch.arange(len(target), device=target.device)
    for key in keys:
        value, owner = key[left], target[left]
        highest = value.new_full((count,), float("-inf")).scatter_reduce_(0, owner, value, "amax")
        left = left[value == highest[owner]]
    # Of the pairs that are equal in all keys, the lowest slot remains, one per object.
    largest = torch.iinfo(torch.int64).max
    lowest = slot.new_full((count,), largest).scatter_reduce_(0, target[left], slot[left], "amin")
    left = left[slot[left] == lowest[target[left]]]
    return torch.full_like(lowest, -1).scatter_(0, target[left], left)


def _taken(values: Tensor, pair: Tensor) -> Tensor:
    """Return the values of the chosen pairs, [T]; NaN where there is none."""
    padded = torch.cat((values, values.new_full((1,), float("nan"))))  # index -1, no pair, reads the NaN
    return padded[pair]


def _below(score: Tensor, pair: Tensor, strongest_pair: Tensor) -> Tensor:
    """Return whether the score of one pair is below that of another, [T] bool; False where there is none."""
    return _taken(score, pair) < _taken(score, strongest_pair)


def _geometry(predictions: Predictions, slot: Tensor, pair: Tensor) -> dict[str, Tensor]:
    """Return area of the chosen pairs' predictions and distance of their centres from the objects', [T], in cells."""
    inputs, grid = predictions.inputs, predictions.grid
    there = (pair >= 0).nonzero().squeeze(1)
    chosen = slot[pair[there]]
    stride = grid.stride[grid.locate(chosen).anchor]
    boxes = xyxy_to_cxcywh(predictions.boxes_xyxy[inputs.targets.image[there], chosen]) / stride[:, None]
    area = boxes.new_full((len(pair),), float("nan"))
    offset = area.clone()
    area[there] = boxes[:, 2] * boxes[:, 3]
    offset[there] = (boxes[:, :2] - inputs.boxes[there, :2] / stride[:, None]).square().sum(dim=1).sqrt()
    return {"area": area, "offset": offset}
