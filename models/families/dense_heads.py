"""RetinaNet and FCOS as grids of slots: levels are heads, their numbers raw maps; any assignment for their loss.

The numbers, the losses and the boxes are torchvision's own; which slot learns from which object is decided by
``models/assignment``. torchvision lists the slots of an image by level, row, column and anchor.

Shape letters: B images, H W pixels of the network input, N slots of an image in torchvision's order, T objects, M
matches; A anchors per cell, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from models.assignment.assigner import build_assigner
from models.assignment.counts import count_matches
from models.assignment.grid import SlotGrid, slot_grid
from models.assignment.inputs import AssignmentInput, ranks
from models.assignment.options import AssignmentOptions
from models.assignment.strategies import makes_extra_matches, strategies_for
from models.families.own_loss import IMAGES_PER_STEP
from models.heads import DenseRule, Head, cell_grid, priors_wh
from models.learner import BatchLoss, Learner
from models.loss import LossOptions
from utils.boxes import box_iou, xyxy_to_cxcywh
from utils.config import flag
from utils.errors import UserError
from utils.structures import Assignment, Matches, Targets

FINEST_STRIDE = 8  # of the first level; each further one has twice the stride of the one before
SQUARE = 8  # strides, the side of what an FCOS measures boxes in here: the square that ATSS gives it (arXiv 1912.02424)
BACKGROUND, UNDECIDED = -1, -2  # what torchvision writes for slots without an object
# Options that say what its loss does with matches, instead of which there are.
LOSS_IS_OWN = ("alpha", "normalise", "tobj")
IGNORING = ("ignore_thresh", "ignore_crowd")


def dense_heads(model: Any, num_classes: int, has_anchors: bool) -> tuple[Head, ...]:
    """Return the levels of a RetinaNet or an FCOS, finest first.

    Args:
        model: torchvision's.
        num_classes: that it tells apart.
        has_anchors: False for FCOS.
    """
    heads = []
    for level, anchors in enumerate(model.anchor_generator.cell_anchors):  # [A 4] corners around 0
        stride = FINEST_STRIDE << level
        sizes_wh = (anchors[:, 2:] - anchors[:, :2]).tolist() if has_anchors else [[float(SQUARE * stride)] * 2]
        heads.append(Head(tuple(map(tuple, sizes_wh)), stride, num_classes, rule=DenseRule(has_anchors)))
    return tuple(heads)


@dataclass(frozen=True, eq=False)
class DenseOutputs:
    """What the network says of a batch."""

    numbers: dict[str, Tensor]  # [B N ...] each, by torchvision's names
    anchors_xyxy: Tensor  # [N 4] float32, network pixels; of FCOS squares with the side of a stride
    shapes: tuple[tuple[int, int], ...]  # rows and columns of each level

    def in_float32(self) -> DenseOutputs:
        """Return the same, whatever the type in which it was computed."""
        return DenseOutputs({name: part.float() for name, part in self.numbers.items()}, self.anchors_xyxy, self.shapes)


def look(model: Any, images: Tensor) -> DenseOutputs:
    """Let torchvision's model look at images [B 3 H W], 0..1, RGB, as far as to the numbers of its heads."""
    prepared, _ = model.transform(list(images))
    features = list(model.backbone(prepared.tensors).values())
    anchors = model.anchor_generator(prepared, [feature.float() for feature in features])[0]
    return DenseOutputs(model.head(features), anchors, tuple(tuple(feature.shape[2:]) for feature in features))


def decoded(model: Any, numbers: Tensor, anchors_xyxy: Tensor) -> Tensor:
    """Return the boxes [M 4], corners in network pixels, that the numbers [M 4] of some slots stand for."""
    coder = model.box_coder
    return getattr(coder, "decode_single", coder.decode)(numbers, anchors_xyxy)


@torch.no_grad()
def raw_maps(model: Any, outputs: DenseOutputs, heads: tuple[Head, ...]) -> list[Tensor]:
    """Return one raw map [B A H W 5+C] per head, without gradient, that decodes to the boxes of the network.

    Objectness and class probability multiply to the score. RetinaNet has no objectness: it is 1. The score of FCOS is
    the root of class probability x centre-ness, so that both have their roots in the map.
    """
    logits = outputs.numbers["cls_logits"][..., : heads[0].num_classes].float()
    numbers = outputs.numbers["bbox_regression"].float()
    images = len(numbers)
    boxes = decoded(model, numbers.flatten(0, 1), outputs.anchors_xyxy.repeat(images, 1)).view_as(numbers)
    if "bbox_ctrness" in outputs.numbers:
        objectness = outputs.numbers["bbox_ctrness"].float().sigmoid().sqrt().logit()
        logits = logits.sigmoid().sqrt().logit()
    else:
        objectness = torch.full_like(logits[..., :1], torch.inf)
    maps, start = [], 0
    for head, (rows, cols) in zip(heads, outputs.shapes, strict=True):
        stop = start + rows * cols * head.num_anchors
        shape = (images, rows, cols, head.num_anchors, -1)
        center, size = (xyxy_to_cxcywh(boxes[:, start:stop]) / head.stride).view(shape).split(2, dim=-1)  # in cells
        prior_wh = priors_wh(head, boxes.device)  # A 2
        center = (center - cell_grid(rows, cols, boxes.device)[:, :, None]) / prior_wh
        scores = (part[:, start:stop].view(shape) for part in (objectness, logits))
        maps.append(torch.cat((center, (size / prior_wh).log(), *scores), dim=-1).permute(0, 3, 1, 2, 4))
        start = stop
    return maps


class DenseLearner(Learner):
    """A RetinaNet or an FCOS with its own loss, for the matches of any strategy."""

    def __init__(self, network: nn.Module, assignment: AssignmentOptions) -> None:
        """Put both together.

        Args:
            network: with torchvision's ``model`` and its ``heads``.
            assignment: options that :func:`refuse_options` lets pass.

        Raises:
            UserError: the strategy is for other heads.
        """
        super().__init__(network)
        self.assigner = build_assigner(assignment, network.heads)  # type: ignore[arg-type]

    def forward(self, images: Tensor, targets: Targets, crowd: Targets) -> BatchLoss:
        """As :meth:`Learner.forward`; objects without area are left out."""
        with self.part("forward"), self.mixed_precision(images):
            outputs = look(self.network.model, images)
        with self.part("loss"), torch.autocast(images.device.type, enabled=False):
            return self._loss(outputs.in_float32(), len(images), targets, crowd)

    def _loss(self, outputs: DenseOutputs, images: int, targets: Targets, crowd: Targets) -> BatchLoss:
        model, heads = self.network.model, self.network.heads
        grid = slot_grid(heads, outputs.shapes, outputs.anchors_xyxy.device)
        boxes_xyxy = AssignmentInput(targets, grid).boxes_xyxy
        usable = (boxes_xyxy[:, 2:] > boxes_xyxy[:, :2]).all(dim=1)
        targets, boxes_xyxy = _select(targets, usable), boxes_xyxy[usable]
        if self.assigner.reads_predictions:
            maps = raw_maps(model, outputs, heads)
        else:  # whose shapes say how many images and slots there are
            shapes = zip(heads, outputs.shapes, strict=True)
            maps = [boxes_xyxy.new_zeros(()).expand(images, head.num_anchors, *shape, 5) for head, shape in shapes]
        assignment = self.assigner.match(targets, grid, maps, crowd)

        place = slot_places(assignment.base, grid)
        chosen = (assignment.base.image, place)
        predicted = decoded(model, outputs.numbers["bbox_regression"][chosen].detach(), outputs.anchors_xyxy[place])
        iou = box_iou(predicted, boxes_xyxy[assignment.base.target], elementwise=True)
        counts = count_matches(assignment, targets, grid, iou, iou[:0])

        indices = object_of_slots(assignment, targets, boxes_xyxy, grid, outputs)
        mine = [targets.image == image for image in range(images)]
        wanted = [{"boxes": boxes_xyxy[rows], "labels": targets.label[rows]} for rows in mine]
        anchors = [outputs.anchors_xyxy] * images
        losses = model.head.compute_loss(wanted, outputs.numbers, anchors, list(indices))
        return BatchLoss({name: loss * images for name, loss in losses.items()}, counts, share=1 / IMAGES_PER_STEP)


def slot_places(matches: Matches, grid: SlotGrid) -> Tensor:
    """Return where torchvision lists the slot of each match among those of its image, [M] int64."""
    anchors = torch.tensor([head.num_anchors for head in grid.heads], device=grid.head.device)[matches.head]
    cell = matches.row * grid.head_wh[matches.head, 0].long() + matches.col
    return grid.first_slot[grid.head_start[matches.head]] + cell * anchors + matches.anchor


def object_of_slots(
    assignment: Assignment, targets: Targets, boxes_xyxy: Tensor, grid: SlotGrid, outputs: DenseOutputs
) -> Tensor:
    """Return what torchvision's loss asks for, [B N] int64: the object of each slot, counted within its image.

    A slot that several objects want learns from the one with the highest IoU of the match, of equal ones by label, then
    box. Slots without an object are background, or left out where the assignment ignores them.

    Args:
        assignment: the matches, by ``maps`` of as many images as there are.
        targets: the objects, T.
        boxes_xyxy: theirs, network pixels, [T 4].
        grid: the slots.
        outputs: what the network says.
    """
    matches = assignment.base
    images = len(outputs.numbers["cls_logits"])
    place = slot_places(matches, grid)
    order = AssignmentInput(targets, grid).target_rank[matches.target]
    keep = ranks(matches.image * grid.slots_per_image + place, -matches.iou, order) == 0
    if not grid.heads[0].has_anchors:
        # A point outside of its object, if only by rounding, has no centre-ness.
        points = (outputs.anchors_xyxy[place, :2] + outputs.anchors_xyxy[place, 2:]) / 2
        boxes = boxes_xyxy[matches.target]
        keep &= ((points > boxes[:, :2]) & (points < boxes[:, 2:])).all(dim=1)
    result = torch.full((images, grid.slots_per_image), BACKGROUND, device=place.device)
    if assignment.ignore[0] is not None:
        ignored = [mask.permute(0, 2, 3, 1).flatten(1) for mask in assignment.ignore if mask is not None]
        result[torch.cat(ignored, dim=1)] = UNDECIDED
    number = ranks(targets.image, torch.arange(len(targets), device=place.device))  # of each object in its image
    result[matches.image[keep], place[keep]] = number[matches.target[keep]]
    return result


def refuse_options(name: str, loss: LossOptions, assignment: AssignmentOptions, heads: tuple[Head, ...]) -> None:
    """Refuse options that the loss of a RetinaNet or an FCOS has no place for.

    Raises:
        UserError: names the first.
    """
    has_anchors = heads[0].has_anchors
    if makes_extra_matches(assignment.match):
        usable = ", ".join(other for other in strategies_for(has_anchors) if not makes_extra_matches(other))
        why = f"makes extra matches, which the loss of {name} has no part for"
        raise UserError(f"--match {assignment.match}: {why}; use one of {usable}")
    unused = LOSS_IS_OWN if has_anchors else (*LOSS_IS_OWN, *IGNORING)
    for options, names in ((assignment, unused), (loss, tuple(item.name for item in fields(loss)))):
        for item in fields(options):
            if item.name in names and getattr(options, item.name) != item.default:
                raise UserError(f"{flag(item.name)}: leave it out; the loss of {name} is its own")


def _select(targets: Targets, rows: Tensor) -> Targets:
    """Return some of the objects."""
    return Targets(targets.image[rows], targets.label[rows], targets.boxes_cxcywh[rows])
