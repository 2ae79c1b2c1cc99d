"""The α-weighted loss: raw maps and objects in, the box, objectness and class parts out.

docs/assignment.md, *The loss*, has the formulas and a worked example. The parts of :class:`LossResult` are ready to be
summed and back-propagated: they carry the gains and, as in ultralytics/yolov3 v7 and ultralytics/yolov5 v7.0, the
number of images of the batch — here and nowhere else. See :data:`GAINS`.

Shape letters: B images, A anchors per cell, H W grid rows and columns, C classes, M matches.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional

from models.assignment.assigner import build_assigner
from models.assignment.counts import MatchCounts, count_matches
from models.assignment.grid import SlotGrid, constant, grid_of_maps
from models.assignment.options import AssignmentOptions
from models.assignment.strategies import makes_extra_matches
from models.darknet_loss import WARM_UP_IMAGES, darknet_parts, refuse_other_heads
from models.heads import Head, decode_boxes
from models.learner import BatchLoss
from models.raw_maps import gather_predictions, row_numbers
from utils import distributed
from utils.boxes import IOU_KINDS, box_iou, cxcywh_to_xyxy
from utils.config import flag, option
from utils.errors import UserError
from utils.structures import Assignment, Matches, Targets

log = logging.getLogger(__name__)

MIN_WRONG = 1e-7  # the focal factor's base is at least this: with a gamma below 1 its slope at 0 is infinite
FOCAL_ALPHA = 0.25  # weight of the positives in the focal loss, 1 - 0.25 of the negatives (arXiv 1708.02002)


@dataclass(frozen=True)
class Gains:
    """The gains of one codebase, and how it scales them."""

    box: float
    obj: float
    cls: float
    balance: tuple[float, ...]  # objectness weight of the heads, finest first
    images: int  # the loss is multiplied by the batch size over this
    per_head: bool  # box, obj and cls are divided by the number of heads over 3, obj multiplied by (size / 640)^2


# Of ultralytics/yolov3 v7 (cfg era: 2019-2020) and ultralytics/yolov5 v7.0. In both, cls is given for 80 classes and
# scaled by classes / 80.
GAINS = {
    "yolov3": Gains(box=3.54, obj=64.3, cls=37.4, balance=(), images=64, per_head=False),
    "yolov5": Gains(box=0.05, obj=1.0, cls=0.5, balance=(4.0, 1.0, 0.25, 0.06, 0.02), images=1, per_head=True),
}
BALANCE_OF_THREE = (4.0, 1.0, 0.4)  # that of ultralytics/yolov5 v7.0 for exactly three heads


@dataclass(frozen=True)
class LossOptions:
    """How the matches become a loss."""

    loss: str = option(
        "alpha", "the α-weighted loss, or Darknet's own of [region] and [Gaussian_yolo] heads", ("alpha", "darknet")
    )
    gains: str = option("yolov3", "whose gains: default values and scaling with classes, heads, size", tuple(GAINS))
    box: float | None = option(None, "gain of the box loss (yolov3: 3.54, yolov5: 0.05)")
    obj: float | None = option(None, "gain of the objectness loss (yolov3: 64.3, yolov5: 1.0)")
    cls: float | None = option(None, "gain of the class loss at 80 classes (yolov3: 37.4, yolov5: 0.5)")
    box_loss: str = option("giou", "IoU that the box loss pulls up and the objectness learns", tuple(IOU_KINDS))
    gr: float = option(1.0, "objectness target of a match is (1 - gr) + gr * IoU of its prediction")
    cls_pw: float = option(1.0, "weight of the positives in the class loss")
    obj_pw: float = option(1.0, "weight of the positives in the objectness loss")
    fl_gamma: float = option(0.0, "gamma of the focal loss; 0 is plain cross-entropy")
    label_smoothing: float = option(0.0, "class targets are 1 - eps/2 and eps/2")
    balance: tuple[float, ...] | None = option(None, "objectness weight of each head, finest first (yolov5: 4 1 0.4)")

    def __post_init__(self) -> None:
        for name in ("gr", "label_smoothing"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{flag(name)} must be between 0 and 1, not {getattr(self, name)}")
        for name in ("box", "obj", "cls", "cls_pw", "obj_pw", "fl_gamma"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"{flag(name)} must not be negative, not {getattr(self, name)}")
        if self.loss == "darknet":
            for item in fields(self):
                if item.name not in ("loss", "gains") and getattr(self, item.name) != item.default:
                    raise ValueError(
                        f"{flag(item.name)} is not used by --loss darknet: its factors are keys of the cfg"
                    )


@dataclass(frozen=True, kw_only=True)
class LossResult(BatchLoss):
    """The loss of one batch, in the parts "box", "obj" and "cls", and the matches that it comes from."""

    assignment: Assignment
    counts: MatchCounts


def build_loss(
    options: LossOptions, assignment: AssignmentOptions, heads: tuple[Head, ...], img_size: float | None = None
) -> DetectionLoss:
    """Return the loss of a network's heads.

    Args:
        img_size: the size that YOLOv5's objectness gain scales with, in pixels: the side of the square that has as
            many as the input; None takes each batch's longer side.

    Raises:
        UserError: ``--balance`` has not one number per head; Darknet's loss is asked for where it cannot be.
    """
    if options.loss == "darknet":
        refuse_other_heads(heads, assignment.match)
    if assignment.alpha and not makes_extra_matches(assignment.match) and distributed.is_main():
        log.warning("--alpha %g has no effect: --match %s makes no extra matches", assignment.alpha, assignment.match)
    return DetectionLoss(options, assignment, tuple(heads), img_size)


class DetectionLoss:
    """``loss(raw_maps, targets, crowd)`` matches a batch and returns :class:`LossResult`.

    ``images_seen`` counts the images of a run, the first of which Darknet treats otherwise; None: nothing is trained.
    """

    images_seen: int | None = None

    def __init__(
        self,
        options: LossOptions,
        assignment: AssignmentOptions,
        heads: tuple[Head, ...],
        img_size: float | None = None,
    ) -> None:
        self.options, self.heads, self.img_size = options, heads, img_size
        self.num_classes = heads[0].num_classes
        self.assigner = build_assigner(assignment, heads)
        self.normalise = assignment.normalise
        self.is_of_outputs = options.loss != "darknet"  # Darknet's are gradients, and numbers of training only
        self.alpha = assignment.alpha if makes_extra_matches(assignment.match) else 0.0
        self.tobj = (assignment.tobj or "base+extra").split("+")
        self.gains = GAINS[options.gains]
        self.balance = _balance(options, heads)

    def __call__(self, raw_maps: Sequence[Tensor], targets: Targets, crowd: Targets | None = None) -> LossResult:
        """Return the loss of a batch, with gradient.

        Args:
            raw_maps: one [B A H W 5+C] per head.
            targets: the objects, on the device of the maps.
            crowd: crowd regions, used where the options ignore predictions inside them.
        """
        with torch.autocast(raw_maps[0].device.type, enabled=False):
            return self._loss(raw_maps, targets, crowd)

    def _loss(self, raw_maps: Sequence[Tensor], targets: Targets, crowd: Targets | None) -> LossResult:
        grid = grid_of_maps(self.heads, raw_maps)
        assignment = self.assigner.match(targets, grid, raw_maps, crowd)
        objectness, base_rows, extra_rows = gather_predictions(raw_maps, assignment)
        base = self.compare(assignment.base, base_rows, targets, grid)
        extra = self.compare(assignment.extra, extra_rows, targets, grid)
        counts = count_matches(assignment, targets, grid, base.plain_iou, extra.plain_iou)
        if self.options.loss == "darknet":
            sums = darknet_parts(raw_maps, assignment, targets, grid, self._warms_up(len(raw_maps[0])))
            scaled = {name: part / self.gains.images for name, part in sums.items()}
            return LossResult(parts=scaled, assignment=assignment, counts=counts)

        box = class_loss = objectness[0].new_zeros(())
        sizes = self._sizes(base, extra, is_trained=raw_maps[0].requires_grad)
        for part, share, size in zip((base, extra), (1 - self.alpha, self.alpha), sizes, strict=True):
            if share == 0 or len(part.matches) == 0:
                continue  # 0 x NaN is not 0: what has no share must not be computed
            box = box + share * part.mean(1 - part.iou, size)
            if self.num_classes > 1:
                class_loss = class_loss + share * part.mean(self.class_cross_entropy(part), size)
        objectness_loss = self.objectness_loss(objectness, assignment.ignore, base, extra)

        parts = {"box": box, "obj": objectness_loss, "cls": class_loss}
        return LossResult(parts=self._scaled(parts, raw_maps), assignment=assignment, counts=counts)

    def _sizes(
        self, base: MatchedPredictions, extra: MatchedPredictions, is_trained: bool
    ) -> Sequence[Sequence[float] | Tensor]:
        """Return by what the sums over base and over extra matches are divided, once or per head.

        It is their number, at least 1; in training the mean number over all processes, whose gradients are averaged, so
        that several processes learn what one with all images would.
        """
        counts = [part.sizes(self.normalise) for part in (base, extra)]
        if not is_trained or distributed.world_size() == 1:
            return [[max(1, count) for count in part] for part in counts]
        total = distributed.sum_over_processes(torch.tensor(counts, dtype=torch.float32, device=base.iou.device))
        return total.clamp(min=1).div(distributed.world_size()).unbind()

    def _warms_up(self, images: int) -> bool:
        """Count a batch, and say whether it belongs to the first images of a run."""
        if self.images_seen is None:
            return False
        self.images_seen += images * distributed.world_size()
        return self.images_seen < WARM_UP_IMAGES

    def compare(self, matches: Matches, rows: Tensor, targets: Targets, grid: SlotGrid) -> MatchedPredictions:
        """Decode the raw numbers ``rows`` [M 5+C] of the matches' slots and compare the boxes with their targets."""
        classes = self.heads[0].class_columns
        prior_wh = (grid.prior_wh / grid.stride[:, None])[grid.anchor_of_matches(matches)]  # M 2, in cells
        cell_xy = torch.stack((matches.col, matches.row), dim=1).float()
        columns = (rows[:, :4], cell_xy, prior_wh)
        per_head = zip(*(column.split(matches.per_head) for column in columns), self.heads, strict=True)
        predicted = torch.cat([decode_boxes(raw, xy, wh, head) for raw, xy, wh, head in per_head])  # M 4, in cells
        wanted = targets.boxes_cxcywh[matches.target] * grid.head_wh[matches.head].repeat(1, 2)
        predicted, wanted = cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(wanted)
        kind = self.options.box_loss
        iou = box_iou(predicted, wanted, kind, elementwise=True)
        with torch.no_grad():
            plain_iou = iou if kind == "iou" else box_iou(predicted, wanted, "iou", elementwise=True)
        return MatchedPredictions(matches, iou, plain_iou.detach(), rows[:, classes], targets.label[matches.target])

    def class_cross_entropy(self, part: MatchedPredictions) -> Tensor:
        """Return the cross-entropy of each match, the mean over classes, [M]."""
        smooth = self.options.label_smoothing / 2
        truth = torch.full_like(part.class_logits, smooth).scatter_(1, part.label[:, None], 1 - smooth)
        return self._cross_entropy(part.class_logits, truth, self.options.cls_pw).mean(dim=1)

    def objectness_loss(
        self,
        objectness: Sequence[Tensor],
        ignore: Sequence[Tensor | None],
        base: MatchedPredictions,
        extra: MatchedPredictions,
    ) -> Tensor:
        """Return the sum over heads of the balance times the mean cross-entropy over slots.

        Args:
            objectness: logits, one [B A H W] per head.
            ignore: one [B A H W] bool per head, or None; an ignored slot that no match wrote adds nothing, but is
                counted in the mean.
            base: the base matches.
            extra: the extra matches; ``--tobj`` says which of the two write the objectness target.
        """
        truths = [torch.zeros_like(logits) for logits in objectness]  # B A H W each
        written = [None if mask is None else torch.zeros_like(mask) for mask in ignore]  # slots with a match
        for name, part in (("base", base), ("extra", extra)):
            if name not in self.tobj:
                continue
            values = part.objectness_target(self.options.gr).split(part.matches.per_head)
            for index, place in enumerate(part.matches.place_per_head()):
                write_largest(truths[index], place, values[index])
                mask = written[index]
                if mask is not None:
                    mask[place] = True
        total = objectness[0].new_zeros(())
        per_head = zip(objectness, truths, ignore, written, self.balance, strict=True)
        for logits, truth, mask, positive, balance in per_head:
            loss = self._cross_entropy(logits, truth, self.options.obj_pw)
            if mask is not None and positive is not None:
                loss = loss.masked_fill(mask & ~positive, 0)
            total = total + balance * loss.mean()
        return total

    def _cross_entropy(self, logits: Tensor, truth: Tensor, positive_weight: float) -> Tensor:
        """Return the binary cross-entropy of every logit, with the focal factor where ``--fl-gamma`` is above 0."""
        weight = None if positive_weight == 1 else constant((positive_weight,), logits.device)
        loss = functional.binary_cross_entropy_with_logits(logits, truth, pos_weight=weight, reduction="none")
        if self.options.fl_gamma == 0:
            return loss
        probability = logits.sigmoid()
        of_truth = truth * probability + (1 - truth) * (1 - probability)  # 1 where the prediction is right
        alpha = truth * FOCAL_ALPHA + (1 - truth) * (1 - FOCAL_ALPHA)
        wrong = (1 - of_truth).clamp(min=MIN_WRONG)
        return loss * alpha * wrong**self.options.fl_gamma

    def _scaled(self, parts: dict[str, Tensor], raw_maps: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the parts times their gains and the number of images."""
        given = {name: getattr(self.options, name) for name in parts}
        gain = {name: getattr(self.gains, name) if value is None else value for name, value in given.items()}
        gain["cls"] *= self.num_classes / 80
        if self.gains.per_head:
            size = self.img_size or max(raw_maps[0].shape[2:4]) * self.heads[0].stride
            gain = {name: value * 3 / len(self.heads) for name, value in gain.items()}
            gain["obj"] *= (size / 640) ** 2
        images = len(raw_maps[0]) / self.gains.images
        return {name: value * (gain[name] * images) for name, value in parts.items()}


@dataclass(frozen=True)
class MatchedPredictions:
    """The base or the extra matches of all heads, with what the network predicts at their slots."""

    matches: Matches
    iou: Tensor  # [M] of the predicted box with the object, of the kind of the box loss, with gradient
    plain_iou: Tensor  # [M] plain IoU of the same boxes, without gradient: for the counts, whatever the box loss
    class_logits: Tensor  # [M C]
    label: Tensor  # [M] int64, class of the object

    def sizes(self, normalise: str) -> Sequence[int]:
        """Return the number of matches: "head" in each head, "batch" in all."""
        return [len(self.matches)] if normalise == "batch" else self.matches.per_head

    def mean(self, values: Tensor, sizes: Sequence[float] | Tensor) -> Tensor:
        """Return the sum of ``values`` times the matches' weights, divided by the number of matches.

        Args:
            values: one per match, [M].
            sizes: that number; or one per head, by which the sums within each head are divided.
        """
        weighted = values * self.matches.weight
        if len(sizes) == 1:
            return weighted.sum() / sizes[0]
        parts = weighted.split(self.matches.per_head)
        return torch.stack([part.sum() / size for part, size in zip(parts, sizes, strict=True)]).sum()

    def objectness_target(self, gr: float) -> Tensor:
        """Return (1 − gr) + gr · max(IoU, 0), [M], without gradient."""
        return (1 - gr) + gr * self.iou.detach().clamp(min=0)


def write_largest(truth: Tensor, place: tuple[Tensor, ...], values: Tensor) -> None:
    """Write values [M] into a map [B A H W] at ``place``; where a place occurs several times, the largest value stays.

    So the order of the matches does not matter, on any device.
    """
    # A view in memory order: the map has the layout of the logits, which need not be that of its dimensions.
    flat = truth.flatten() if truth.is_contiguous() else truth.as_strided((truth.numel(),), (1,))
    flat.scatter_reduce_(0, row_numbers(truth.stride(), *place), values.to(flat.dtype), "amax")


def _balance(options: LossOptions, heads: tuple[Head, ...]) -> tuple[float, ...]:
    """Return the objectness weight of each head, in the heads' order; options list them from the finest head on."""
    weights = options.balance
    if weights is None:
        weights = GAINS[options.gains].balance or (1.0,) * len(heads)
        weights = BALANCE_OF_THREE if options.gains == "yolov5" and len(heads) == 3 else weights[: len(heads)]
    if len(weights) != len(heads):
        raise UserError(f"--balance has {len(weights)} numbers, but the network has {len(heads)} heads")
    finest_first = sorted(range(len(heads)), key=lambda index: heads[index].stride)
    return tuple(weights[finest_first.index(index)] for index in range(len(heads)))
