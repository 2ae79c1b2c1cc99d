"""What one batch says about every object: which slots match it, and how well each slot's prediction fits it.

Everything is a column: a tensor whose first dimension counts the objects of the batch. Nothing is summed over objects
here, so the statistics made of the columns are the same for any order, number of processes and interruption.

Shape letters: B images, S slots of one image, K anchors of all heads, L heads, T objects, N candidates of an object,
Z strategies, Q kinds of IoU, P pairs (object, slot).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from analysis.matching.pairs import MatchedPairs, Predictions
from models.assignment.grid import SlotGrid
from models.assignment.inputs import AssignmentInput
from utils.boxes import shape_iou

NUMBERS_AT_ONCE = 2_000_000  # of objects x candidates x strategies x kinds: bounds the memory of --candidates map
CENTER = 4  # number of the centre's cell among the 3x3 cells, which are counted row by row


@dataclass(frozen=True, eq=False)
class Candidates:
    """The slots C(o) of every object; position ``n`` belongs to the same anchor for all objects."""

    slot: Tensor  # [T N] int64
    valid: Tensor  # [T N] bool, False outside the grid, where ``slot`` names a slot inside that does not count
    anchor: Tensor  # [N] int64, among the anchors of all heads


def neighbour_slots(inputs: AssignmentInput) -> Candidates:
    """Return the slots of the 3x3 cells around each object's centre on every head: N = 9 K, cell by cell in rows."""
    grid = inputs.grid
    step = torch.arange(-1, 2, device=grid.head.device)
    offset = torch.stack((step.repeat(3), step.repeat_interleave(3)), dim=1)  # 9 2 as (x, y)
    # Cells beyond the edge are marked, then moved to the edge, so that every number below is that of a slot.
    cell = inputs.cells[:, None] + offset[:, None]  # T 9 L 2
    valid = ((cell >= 0) & (cell < grid.head_wh)).all(dim=-1)
    cell = cell.clamp(min=0).minimum((grid.head_wh - 1).long())
    # Every anchor takes the cells of its head.
    anchor = torch.arange(grid.num_anchors, device=grid.head.device)
    on_head = cell[..., grid.head, :]  # T 9 K 2
    slot = grid.number(anchor, on_head[..., 1], on_head[..., 0])  # T 9 K
    return Candidates(slot.flatten(1), valid[..., grid.head].flatten(1), anchor.repeat(9))


def center_slots(near: Candidates) -> Candidates:
    """Return the part of the :func:`neighbourhood` that is the cell of the centre: N = K."""
    size = near.slot.shape[1] // 9
    part = slice(CENTER * size, (CENTER + 1) * size)
    return Candidates(near.slot[:, part], near.valid[:, part], near.anchor[part])


NEAR_CANDIDATES: dict[str, Callable[[Candidates], Candidates]] = {  # parts of the neighbourhood
    "cell": center_slots,
    "neighbours": lambda near: near,
}


def all_slots(inputs: AssignmentInput) -> Candidates:
    """Return all slots of each object's image: N = S."""
    grid = inputs.grid
    slot = torch.arange(grid.slots_per_image, device=grid.head.device)
    anchor = grid.locate(slot).anchor
    slot = slot.expand(len(inputs.targets), -1)
    return Candidates(slot, torch.ones(1, 1, dtype=torch.bool, device=slot.device).expand_as(slot), anchor)


def measure(predictions: Predictions, pairs: MatchedPairs, kinds: Sequence[str], candidates: str) -> dict[str, Tensor]:
    """Return the columns of a batch that follow from boxes alone; see docs/analysis.md, *matching-stats*.

    Args:
        predictions: of the batch.
        pairs: what the strategies match.
        kinds: of IoU, Q.
        candidates: which slots are C(o), a key of :data:`models.assignment.candidates.CANDIDATES`.

    Returns:
        Those of :func:`measure_candidates` but ``best_candidate``, and of :func:`positives`; ``best_from_neighbour``
        [T Q], whether a cell around the centre's predicts better than that one and than every candidate; ``shape_iou``
        [T K].
    """
    inputs = predictions.inputs
    # The fit of the 3x3 cells is needed in any case, for best_from_neighbour; C(o) is a part of it, or the whole map.
    near = neighbour_slots(inputs)
    everyone = torch.arange(len(inputs.targets), device=near.slot.device)[:, None]
    near_q = predictions.ious(everyone.expand_as(near.slot), near.slot, kinds)  # T 9K Q
    if candidates == "map":
        columns = _measure_in_parts(predictions, pairs, kinds, all_slots(inputs))
    else:
        chosen = NEAR_CANDIDATES[candidates](near)
        q = near_q if chosen is near else center_of(near_q)
        columns = measure_candidates(q, chosen, is_matched(chosen, pairs, predictions.grid, everyone), inputs.grid)
    # The best fit in the eight cells around the centre's, those outside the grid left out.
    around = near_q.masked_fill(~near.valid[..., None], -math.inf).unflatten(1, (9, -1))
    around = torch.cat((around[:, :CENTER], around[:, CENTER + 1 :]), dim=1).flatten(1, 2).amax(dim=1)  # T Q
    columns["best_from_neighbour"] = (around > columns.pop("best_candidate")) & (around > center_of(near_q).amax(dim=1))
    columns["shape_iou"] = shape_iou(inputs.boxes[:, 2:], inputs.grid.prior_wh)
    return columns | positives(predictions, pairs, kinds)


def center_of(near_q: Tensor) -> Tensor:
    """Return the part [T K Q] of the neighbourhood's [T 9K Q] that belongs to the centre cell."""
    return near_q.unflatten(1, (9, -1))[:, CENTER]


def positives(predictions: Predictions, pairs: MatchedPairs, kinds: Sequence[str]) -> dict[str, Tensor]:
    """Return the columns about all pairs that a strategy matches, inside C(o) or not.

    They are ``base``, ``extra``, ``positives`` and ``contested`` [T Z]: matches of each kind, distinct slots, and those
    of them that another object claims, too; ``common`` [T Z Z]: slots that two strategies both match to the object; and
    ``positives_q`` [T Z Q]: the sum of q over the positives.
    """
    num_targets, member = len(pairs.base), pairs.member.long()
    num_strategies = member.shape[1]
    q = predictions.ious(pairs.target, pairs.slot, kinds)
    # How many objects claim each slot of the batch, by strategy.
    image = predictions.inputs.targets.image[pairs.target]
    slot = predictions.grid.pack(image, pairs.slot)
    distinct, which = torch.unique(slot, return_inverse=True)
    claims = member.new_zeros(len(distinct), num_strategies).index_add_(0, which, member)
    contested = member * (claims[which] > 1)
    common = member[:, :, None] * member[:, None, :]

    def per_object(values: Tensor) -> Tensor:
        return values.new_zeros(num_targets, *values.shape[1:]).index_add_(0, pairs.target, values)

    return {
        "base": pairs.base,
        "extra": pairs.extra,
        "positives": per_object(member),
        "contested": per_object(contested),
        "common": per_object(common),  # T Z Z
        "positives_q": per_object(torch.where(pairs.member[:, :, None], q[:, None, :], 0.0)),  # T Z Q
    }


def is_matched(candidates: Candidates, pairs: MatchedPairs, grid: SlotGrid, target: Tensor) -> Tensor:
    """Return which strategies match each candidate, [t N Z] bool, for some objects.

    Args:
        candidates: t N of them.
        pairs: of all objects of the batch.
        grid: numbers the slots.
        target: [t 1], the objects that the rows of ``candidates`` belong to.
    """
    result = pairs.member.new_zeros(*candidates.slot.shape, pairs.member.shape[1])
    if not len(pairs.target):
        return result
    # Pairs and candidates become numbers of (object, slot); a candidate is matched if its number is among the pairs'.
    wanted = grid.pack(pairs.target, pairs.slot)  # ascending: torch.unique has sorted them
    keys = grid.pack(target, candidates.slot)
    place = torch.searchsorted(wanted, keys).clamp(max=len(wanted) - 1)
    found = (wanted[place] == keys) & candidates.valid
    return pairs.member[place] & found[..., None]


def _measure_in_parts(
    predictions: Predictions, pairs: MatchedPairs, kinds: Sequence[str], candidates: Candidates
) -> dict[str, Tensor]:
    """Return the columns of :func:`measure_candidates`, a few objects at a time: for the candidates of a whole map."""
    count, width = candidates.slot.shape
    step = max(1, NUMBERS_AT_ONCE // max(1, width * len(kinds) * pairs.member.shape[1]))
    parts = []
    for target in torch.arange(count, device=candidates.slot.device).split(step):
        part = Candidates(candidates.slot[target], candidates.valid[target], candidates.anchor)
        rows = target[:, None]
        q = predictions.ious(rows.expand_as(part.slot), part.slot, kinds)
        parts.append(measure_candidates(q, part, is_matched(part, pairs, predictions.grid, rows), predictions.grid))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def measure_candidates(q: Tensor, candidates: Candidates, matched: Tensor, grid: SlotGrid) -> dict[str, Tensor]:
    """Compare matched and unmatched candidates.

    Args:
        q: [T N Q], the fit of every candidate's prediction.
        candidates: T N of them.
        matched: [T N Z] bool, which strategies match each.
        grid: says which anchor belongs to which head.

    Returns:
        ``candidates`` [T K] counts and ``candidates_q`` [T Q K] sums by anchor; likewise ``matched`` [T Z K] and
        ``matched_q`` [T Z Q K]; ``matched_max``, ``matched_min``, ``unmatched_max`` [T Z Q], NaN where the set is
        empty; ``unmatched_anchor``, ``matched_anchor`` [T Z Q], the anchor of the best unmatched and of the worst
        matched candidate, the lowest of several, or -1; ``map_over_max``, ``map_over_min`` [T Z Q L], whether the best
        unmatched candidate of a head beats its best and its worst matched one; ``best_candidate`` [T Q], the highest q.
    """
    # q of the matched and of the unmatched candidates; all others at the infinity that no maximum or minimum takes.
    valid = candidates.valid
    q_all = q[:, :, None, :]  # T N 1 Q
    inside = matched[..., None]  # T N Z 1
    outside = (valid[..., None] & ~matched)[..., None]
    matched_high = torch.where(inside, q_all, -math.inf)  # T N Z Q
    matched_low = torch.where(inside, q_all, math.inf)
    unmatched = torch.where(outside, q_all, -math.inf)

    # Over all candidates of an object; a set that is empty leaves the infinity, which becomes NaN.
    best, worst, other = matched_high.amax(dim=1), matched_low.amin(dim=1), unmatched.amax(dim=1)  # T Z Q
    columns = {
        "best_candidate": torch.where(valid[..., None], q, -math.inf).amax(dim=1),
        "matched_max": best.masked_fill(best.isinf(), math.nan),
        "matched_min": worst.masked_fill(worst.isinf(), math.nan),
        "unmatched_max": other.masked_fill(other.isinf(), math.nan),
        "unmatched_anchor": _lowest_anchor(unmatched == other[:, None], outside, candidates.anchor),
        "matched_anchor": _lowest_anchor(matched_low == worst[:, None], inside, candidates.anchor),
    }
    # The same over the candidates of one head at a time: a pair of an image and a head is a feature map.
    over_max, over_min = [], []
    for index in range(len(grid.heads)):
        on_head = (grid.head[candidates.anchor] == index).nonzero().squeeze(1)
        high, low = matched_high[:, on_head].amax(dim=1), matched_low[:, on_head].amin(dim=1)
        free = unmatched[:, on_head].amax(dim=1)
        over_max.append((free > high) & ~high.isinf())  # without a match, high is -inf, which is no q to beat
        over_min.append(free > low)  # without a match, low is +inf, which nothing beats
    columns["map_over_max"], columns["map_over_min"] = torch.stack(over_max, dim=-1), torch.stack(over_min, dim=-1)
    columns |= _sums_by_anchor(q, candidates, matched, grid.num_anchors)
    return columns


def _sums_by_anchor(q: Tensor, candidates: Candidates, matched: Tensor, num_anchors: int) -> dict[str, Tensor]:
    """Return the counts and the sums of q by anchor, as :func:`measure_candidates` describes them."""
    valid, anchor = candidates.valid, candidates.anchor

    def by_anchor(values: Tensor) -> Tensor:
        """Return the sums of [T N ...] over the candidates of each anchor, [T ... K]."""
        if values.shape[1] != num_anchors:  # else there is one candidate per anchor, in the order of the anchors
            total = values.new_zeros(len(values), num_anchors, *values.shape[2:])
            values = total.index_add_(1, anchor, values)
        return values.movedim(1, -1)

    return {
        "candidates": by_anchor(valid.long()),
        "candidates_q": by_anchor(torch.where(valid[..., None], q, 0.0)),
        "matched": by_anchor(matched.long()),
        "matched_q": by_anchor(torch.where(matched[..., None], q[:, :, None, :], 0.0)),
    }


def _lowest_anchor(is_best: Tensor, within: Tensor, anchor: Tensor) -> Tensor:
    """Return the lowest anchor of the positions [T N Z Q] that hold the best value, [T Z Q]; -1 where there is none."""
    none = torch.iinfo(torch.int64).max  # loses to every anchor
    lowest = torch.where(is_best & within, anchor[:, None, None], none).amin(dim=1)
    return lowest.masked_fill(lowest == none, -1)
