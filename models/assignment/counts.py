"""Counts of an epoch's matches: objects without a match, collisions, the share of extra matches.

All sums stay tensors on the device until the summary is asked for, so that counting does not wait for a GPU.

Shape letters: T targets, M matches.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from models.assignment.grid import SlotGrid
from models.assignment.inputs import marked
from utils.boxes import SIZE_LIMITS, SIZE_NAMES
from utils.structures import Assignment, Targets


@dataclass(frozen=True)
class MatchCounts:
    """Sums over batches; ``a + b`` adds them."""

    objects: Tensor  # [3] small, medium, large
    unmatched: Tensor  # [3] objects with no match, base or extra
    unmatched_base: Tensor  # [3] objects with no base match
    base: Tensor  # [] base matches
    extra: Tensor  # [] extra matches
    base_iou: Tensor  # [] sum of the plain IoU of the base matches' predictions, whatever the box loss
    extra_iou: Tensor  # [] likewise of the extra matches
    collisions: Tensor  # [] slots wanted by several objects
    lost_slots: Tensor  # [3] slots that an object lost to another one, by the size of the loser
    lost_all_slots: Tensor  # [3] matched objects that lost every slot they wanted

    def __add__(self, other: MatchCounts) -> MatchCounts:
        return MatchCounts(*(getattr(self, item.name) + getattr(other, item.name) for item in fields(self)))

    def summary(self) -> dict[str, float]:
        """Return the statistics for the log, as plain numbers."""
        # All sums as one tensor, so that a GPU is waited for once.
        flat = torch.cat([getattr(self, item.name).reshape(-1).double() for item in fields(self)]).tolist()
        value, start = {}, 0
        for item in fields(self):
            size = getattr(self, item.name).numel()
            value[item.name] = flat[start : start + size]
            start += size
        objects, matches = sum(value["objects"]), value["base"][0] + value["extra"][0]
        statistics = {
            "positives_per_object": _share(matches, objects),
            "base_per_object": _share(value["base"][0], objects),
            "extra_share": _share(value["extra"][0], matches),
            "base_iou": _share(value["base_iou"][0], value["base"][0]),
            "extra_iou": _share(value["extra_iou"][0], value["extra"][0]),
            "objects": objects,
            "unmatched": sum(value["unmatched"]),
            "collisions": value["collisions"][0],
            "lost_slots": sum(value["lost_slots"]),
            "lost_all_slots": sum(value["lost_all_slots"]),
        }
        for name in ("objects", "unmatched", "lost_slots", "lost_all_slots"):
            statistics |= {f"{name}_{size}": number for size, number in zip(SIZE_NAMES, value[name], strict=True)}
        return statistics

    def line(self) -> str:
        """Return the statistics as one line for the console."""
        statistics = self.summary()
        sizes = "/".join(f"{statistics[f'unmatched_{size}']:.0f}" for size in SIZE_NAMES)
        return (
            f"matches: {statistics['positives_per_object']:.2f} per object, {statistics['extra_share']:.0%} extra, "
            f"mean IoU {statistics['base_iou']:.3f} base {statistics['extra_iou']:.3f} extra; "
            f"{statistics['unmatched']:.0f} of {statistics['objects']:.0f} objects without a match (S/M/L {sizes}); "
            f"{statistics['collisions']:.0f} slots wanted by several, "
            f"{statistics['lost_all_slots']:.0f} objects lost all of theirs"
        )


def _share(part: float, whole: float) -> float:
    """Return part / whole, or 0 where there is no whole."""
    return part / whole if whole else 0.0


def size_of(targets: Targets, grid: SlotGrid) -> Tensor:
    """Return each target's size by its area in network pixels, [T] int64: 0 small, 1 medium, 2 large."""
    pixels = grid.shapes[0][0] * grid.shapes[0][1] * grid.heads[0].stride ** 2
    area = targets.boxes_cxcywh[:, 2] * targets.boxes_cxcywh[:, 3] * pixels
    return (area >= SIZE_LIMITS[0]).long() + (area >= SIZE_LIMITS[1]).long()


@torch.no_grad()
def count_matches(
    assignment: Assignment, targets: Targets, grid: SlotGrid, base_iou: Tensor, extra_iou: Tensor
) -> MatchCounts:
    """Count one batch's matches.

    Args:
        assignment: the matches.
        targets: the objects that were matched.
        grid: the slots of the heads at the batch's size.
        base_iou: plain IoU of the prediction of each base match with its object, [M].
        extra_iou: likewise of the extra matches.
    """
    base, extra = assignment.base, assignment.extra
    size = size_of(targets, grid)
    per_size = torch.nn.functional.one_hot(size, 3).double()  # T 3
    has_base = marked(base.target, len(targets))
    has_any = has_base | marked(extra.target, len(targets))
    target = torch.cat((base.target, extra.target))
    slot = torch.cat((grid.number_of_matches(base), grid.number_of_matches(extra)))
    loses, repeated, collisions = losing_matches(slot, target, torch.cat((base_iou, extra_iou)))
    keeps_one = torch.zeros_like(size).index_add_(0, target, (~loses).long()) > 0

    def by_size(flags: Tensor, values: Tensor = per_size) -> Tensor:
        return (values * flags[:, None]).sum(0)

    return MatchCounts(
        objects=per_size.sum(0),
        unmatched=by_size(~has_any),
        unmatched_base=by_size(~has_base),
        base=base_iou.new_full((), len(base), dtype=torch.float64),
        extra=base_iou.new_full((), len(extra), dtype=torch.float64),
        base_iou=base_iou.sum(dtype=torch.float64),
        extra_iou=extra_iou.sum(dtype=torch.float64),
        collisions=collisions,
        lost_slots=by_size(loses & ~repeated, per_size[target]),
        lost_all_slots=by_size(has_any & ~keeps_one),
    )


def losing_matches(slot: Tensor, target: Tensor, quality: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Find the matches whose slot goes to another object, which has a higher IoU with the slot's prediction.

    Args:
        slot: [M] number of each match's slot.
        target: [M] its object; an object may have a slot twice (as base and as extra match), which is no collision.
        quality: [M] IoU of the slot's prediction with the object.

    Returns:
        [M] bool, True for a losing match; [M] bool, True for the second of a repeated pair; and how many slots several
        objects want, as a scalar. Of equal IoUs, the object that comes first in the batch wins.
    """
    if not len(slot):
        nothing = torch.zeros_like(slot, dtype=torch.bool)
        return nothing, nothing, quality.new_zeros((), dtype=torch.float64)
    # Sort by slot, within a slot the best first, among equals by target: stable sorts, the last key first.
    order = torch.argsort(target, stable=True)
    order = order[torch.argsort(quality[order], descending=True, stable=True)]
    order = order[torch.argsort(slot[order], stable=True)]
    slot, target = slot[order], target[order]
    # The matches of a slot now follow one another. ``start`` [M] is where those of each match's slot begin: the winner.
    first = torch.ones_like(slot, dtype=torch.bool)
    first[1:] = slot[1:] != slot[:-1]
    start = torch.where(first, torch.arange(len(slot), device=slot.device), 0).cummax(dim=0).values
    loses = target != target[start]
    # A repeated pair has the same IoU twice, so its two matches are neighbours here.
    repeated = torch.zeros_like(loses)
    repeated[1:] = ~first[1:] & (target[1:] == target[:-1])
    # A slot is counted once, at its start, if any of its matches loses.
    collided = torch.zeros_like(slot).scatter_reduce_(0, start, loses.long(), "amax")
    # Back to the order of the arguments: match i stands at back[i] in the sorted one.
    back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    return loses[back], repeated[back], collided.sum(dtype=torch.float64)
