"""Darknet's own loss of ``[region]`` and ``[Gaussian_yolo]`` heads: its gradient is Darknet's delta, sign reversed.

Darknet writes down no loss, only what it calls delta, minus the gradient with respect to a layer's input
(src/region_layer.c and src/gaussian_yolo_layer.c of AlexeyAB/darknet 59596d7). docs/assignment.md has the formulas.

Shape letters: B images, A anchors per cell, H W grid rows and columns, C classes, M matches of one head, E pairs of a
match and a class of its branch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from models.assignment.grid import SlotGrid, constant
from models.gaussian_loss import gaussian_parts
from models.head_matches import HeadMatches, last_of_each, matches_per_head, sum_of_parts
from models.heads import GaussianRule, Head, RegionRule
from utils.boxes import box_iou, cxcywh_to_xyxy
from utils.errors import UserError
from utils.structures import Assignment, Targets

WARM_UP_IMAGES = 12_800  # as long a run's boxes are also pulled to their anchors
WARM_UP_SCALE = 0.01


def refuse_other_heads(heads: Sequence[Head], match: str) -> None:
    """Refuse what Darknet's loss cannot do.

    Raises:
        UserError: a head without such a loss, or another matching than Darknet's.
    """
    if any(head.rule is None for head in heads):
        raise UserError("--loss darknet is that of [region] and [Gaussian_yolo] heads; for [yolo] leave it out")
    if match != "darknet":
        raise UserError(f"--loss darknet includes Darknet's matching: for --match {match} add --loss alpha")


def darknet_parts(
    raw_maps: Sequence[Tensor], assignment: Assignment, targets: Targets, grid: SlotGrid, warm_up: bool
) -> dict[str, Tensor]:
    """Return the parts box, obj and cls, summed over the images of a batch.

    Args:
        raw_maps: one [B A H W 5+C] per head, each of which has a rule.
        assignment: matches and ignored slots by Darknet's strategy.
        targets: the objects.
        grid: the slots of the maps.
        warm_up: whether the boxes of a ``[region]`` are also pulled to their anchors, as in the first 12,800 images.
    """
    found = []
    for matches in matches_per_head(raw_maps, assignment, targets, grid):
        if isinstance(matches.head.rule, GaussianRule):
            found.append(gaussian_parts(matches, matches.head.rule))
        else:
            assert isinstance(matches.head.rule, RegionRule)
            found.append(region_parts(matches, matches.head.rule, warm_up))
    return sum_of_parts(found)


def region_parts(matches: HeadMatches, rule: RegionRule, warm_up: bool) -> dict[str, Tensor]:
    """Return the parts of a ``[region]``: squared errors, and the cross-entropy of the classes.

    Where several objects want a slot, it learns from the last of them.
    """
    classes = rule.class_scale * _class_loss(matches, rule)
    last = matches.select(last_of_each(matches.slots, matches.target))
    raw = matches.raw
    matched = torch.zeros(raw.shape[:4], dtype=torch.bool, device=raw.device)
    matched[last.place] = True

    rows = last.rows
    wanted = torch.cat((last.offset_xy, last.log_size_wh), dim=1)
    box = rule.coord_scale * _half_square(wanted - _position(rows)).sum()
    if warm_up:
        at_anchor = constant((0.5, 0.5, 0.0, 0.0), raw.device)
        pull = _half_square(at_anchor - _position(raw)).sum(dim=-1).masked_fill(matched, 0)
        box = box + WARM_UP_SCALE * pull.sum()

    probability = raw[..., 4].float().sigmoid()
    truth, weight = torch.zeros_like(probability), torch.full_like(probability, rule.noobject_scale)
    if matches.ignore is not None:
        weight = weight.masked_fill(matches.ignore, 0)
    weight[last.place] = rule.object_scale
    truth[last.place] = _overlap(last) if rule.rescore else torch.ones_like(last.offset_xy[:, 0])
    objectness = (weight * _half_square(truth - probability)).sum()
    return {"box": box, "obj": objectness, "cls": classes}


def _position(raw: Tensor) -> Tensor:
    """Return the numbers that a ``[region]`` compares: the centre in its cell, and the logarithms of the sizes."""
    return torch.cat((raw[..., :2].float().sigmoid(), raw[..., 2:4].float()), dim=-1)


def _half_square(error: Tensor) -> Tensor:
    return error.square() / 2


def _overlap(matches: HeadMatches) -> Tensor:
    """Return the IoU of each match's prediction with its object, [M], without gradient."""
    with torch.no_grad():
        predicted = cxcywh_to_xyxy(matches.predicted_cxcywh())
        return box_iou(predicted, cxcywh_to_xyxy(matches.boxes_cxcywh), elementwise=True)


def _class_loss(matches: HeadMatches, rule: RegionRule) -> Tensor:
    """Return the sum of the cross-entropies of the matched slots' classes."""
    if rule.tree is not None:
        return _tree_loss(matches, rule.tree.parents, rule.tree.groups)
    last = matches.select(last_of_each(matches.slots, matches.target))
    logits = last.rows[:, last.head.class_columns]
    if rule.softmax:
        return -functional.logsigmoid(logits.gather(1, last.label[:, None])).sum()
    truth = functional.one_hot(last.label, last.head.num_classes).float()
    return functional.binary_cross_entropy_with_logits(logits, truth, reduction="sum")


def _tree_loss(matches: HeadMatches, parents: tuple[int, ...], groups: tuple[int, ...]) -> Tensor:
    """Return the cross-entropies of the groups along each object's branch.

    Of several objects in a slot, the last that says anything about a group teaches it.
    """
    device = matches.label.device
    parent_of, group_of = constant(parents, device, torch.int64), constant(groups, device, torch.int64)
    # Every class on the branch of each match: E entries, the object's own class first, then up to the top.
    entry, node = torch.arange(len(matches), device=device), matches.label
    entries, nodes = [entry], [node]
    while len(node):
        node = parent_of[node]
        entry, node = entry[node >= 0], node[node >= 0]
        entries.append(entry)
        nodes.append(node)
    entry, node = torch.cat(entries), torch.cat(nodes)
    key = matches.slots[entry] * len(parents) + group_of[node]
    keep = last_of_each(key, matches.target[entry])
    entry, node = entry[keep], node[keep]
    log_probability = functional.logsigmoid(matches.rows[:, matches.head.class_columns])
    # What a group's softmax gives: the probability of the class over that of the one above it, which is 1 at the top.
    above = parent_of[node]
    of_parent = log_probability[entry, above.clamp(min=0)].masked_fill(above < 0, 0)
    return (of_parent - log_probability[entry, node]).sum()
