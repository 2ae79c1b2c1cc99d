"""Which slots every strategy matches to the objects of a batch: pairs of an object and a slot, each once.

Shape letters: B images, S slots of one image, T objects, Z strategies, Q kinds of IoU, P pairs (object, slot).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.assignment.assigner import Assigner
from models.assignment.grid import SlotGrid, grid_of_maps
from models.assignment.inputs import AssignmentInput
from models.heads import Head, decode_map
from utils.boxes import box_iou, cxcywh_to_xyxy
from utils.devices import synchronised_time
from utils.structures import Assignment, Batch, Matches, Targets


@dataclass(frozen=True, eq=False)
class Predictions:
    """A batch's predictions, decoded once for everything that is measured."""

    inputs: AssignmentInput
    boxes_xyxy: Tensor  # [B S 4] float32, network pixels; slots are numbered as in models.assignment.grid
    objectness: Tensor  # [B S] logits

    @property
    def grid(self) -> SlotGrid:
        """The heads with their grids, which number the slots."""
        return self.inputs.grid

    @staticmethod
    def of(targets: Targets, raw_maps: Sequence[Tensor], heads: tuple[Head, ...]) -> Predictions:
        """Decode the raw maps of a batch, one [B A H W 5+C] per head; its targets are on the same device."""
        boxes = [decode_map(raw, head).flatten(1, 3) * head.stride for raw, head in zip(raw_maps, heads, strict=True)]
        objectness = [raw[..., 4].flatten(1) for raw in raw_maps]
        boxes_xyxy = cxcywh_to_xyxy(torch.cat(boxes, dim=1))
        inputs = AssignmentInput(targets, grid_of_maps(heads, raw_maps), tuple(raw.detach() for raw in raw_maps))
        return Predictions(inputs, boxes_xyxy, torch.cat(objectness, dim=1).float())

    def ious(self, target: Tensor, slot: Tensor, kinds: Sequence[str]) -> Tensor:
        """Return every kind of IoU of targets [...] with the predictions of slots [...] of their images: [... Q]."""
        boxes = self.boxes_xyxy[self.inputs.targets.image[target], slot]
        truth = self.inputs.boxes_xyxy[target]
        return torch.stack([box_iou(boxes, truth, kind, elementwise=True) for kind in kinds], dim=-1)


@dataclass(frozen=True, eq=False)
class MatchedPairs:
    """The pairs that the strategies match, ordered by target, then slot; each is here once, whatever matches it."""

    target: Tensor  # [P] int64
    slot: Tensor  # [P] int64, of the target's image
    member: Tensor  # [P Z] bool, whether the strategy matches the pair
    base: Tensor  # [T Z] int64, base matches of every object
    extra: Tensor  # [T Z] int64, extra matches of every object


def slot_numbers(matches: Matches, grid: SlotGrid) -> Tensor:
    """Return the slot of each match, [M] int64, numbered within its image."""
    return grid.number(grid.anchor_of_matches(matches), matches.row, matches.col)


def match(
    predictions: Predictions, raw_maps: Sequence[Tensor], batch: Batch, assigners: Mapping[str, Assigner]
) -> tuple[MatchedPairs, list[float]]:
    """Let every strategy match a batch; return the pairs, and the seconds [Z] that the strategies took."""
    assignments, seconds = [], []
    device = raw_maps[0].device
    for assigner in assigners.values():
        start = synchronised_time(device)
        assignments.append(assigner.match(batch.targets, predictions.grid, raw_maps, batch.crowd))
        seconds.append(synchronised_time(device) - start)
    return matched_pairs(assignments, predictions.grid, len(batch.targets)), seconds


def matched_pairs(assignments: Sequence[Assignment], grid: SlotGrid, num_targets: int) -> MatchedPairs:
    """Return the distinct pairs of several strategies, one assignment each, over ``num_targets`` objects."""
    keys: list[Tensor] = []
    strategy: list[Tensor] = []
    base: list[Tensor] = []
    extra: list[Tensor] = []
    for number, assignment in enumerate(assignments):
        for matches, counts in ((assignment.base, base), (assignment.extra, extra)):
            counts.append(torch.bincount(matches.target, minlength=num_targets))
            keys.append(grid.pack(matches.target, slot_numbers(matches, grid)))
            strategy.append(torch.full_like(matches.target, number))
    distinct, which = torch.unique(torch.cat(keys), return_inverse=True)
    member = torch.zeros(len(distinct), len(assignments), dtype=torch.bool, device=distinct.device)
    member[which, torch.cat(strategy)] = True
    target, slot = grid.unpack(distinct)
    return MatchedPairs(target, slot, member, torch.stack(base, dim=1), torch.stack(extra, dim=1))


def slots_per_image(predictions: Predictions, pairs: MatchedPairs) -> dict[str, Tensor]:
    """Return ``slots`` and ``shared_slots``, [B Z] each: slots with a match, and those that several objects claim."""
    grid = predictions.grid
    image = predictions.inputs.targets.image[pairs.target]
    distinct, which = torch.unique(grid.pack(image, pairs.slot), return_inverse=True)
    member = pairs.member.long()
    claims = member.new_zeros(len(distinct), member.shape[1]).index_add_(0, which, member)
    owner, _ = grid.unpack(distinct)
    zeros = member.new_zeros(len(predictions.boxes_xyxy), member.shape[1])
    return {
        "slots": zeros.index_add(0, owner, (claims > 0).long()),
        "shared_slots": zeros.index_add(0, owner, (claims > 1).long()),
    }
