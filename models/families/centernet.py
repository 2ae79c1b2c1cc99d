"""CenterNet: objects as points (arXiv 1904.07850): a heat map of centres per class, and a size and an offset at each.

The backbone is torchvision's ResNet. Three stages with 256, 128 and 64 channels, as many as the paper's, upsample its
last map: a plain 3x3 convolution in place of the deformable one, then a transposed one. Each adds the ResNet's own map
of the size that it reaches, as the paper's DLA does and its ResNets do not: else a small image would have to pass
through a few cells, 4 x 4 of them at 128 pixels. A peak of the heat map is a detection: boxes need no suppression.

Shape letters: B images, C classes, H W pixels of the network input, h w cells of the maps (a quarter of them), T
objects, K detections.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.assignment.options import AssignmentOptions
from models.backbone_source import BackboneSource
from models.exported.required import required
from models.families.named import NamedNetwork
from models.families.own_loss import IMAGES_PER_STEP, refuse_other_rules
from models.learner import BatchLoss, Learner, MapsLearner
from models.loss import LossOptions
from utils.structures import Detections, Targets

STRIDE = 4  # input pixels per cell
SIDE = 512  # of a usual input, pixels
CHANNELS = (256, 128, 64)  # of the upsampled maps
HEAD_CHANNELS = 64  # inside each head
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of RGB in 0..1, as torchvision's backbones were trained
RARE = -2.19  # the heat map begins at sigmoid(-2.19) = 0.1 everywhere
OVERLAP = 0.7  # IoU that a box within the radius still has with its object
ALPHA, BETA = 2, 4  # exponents of the focal loss: of the error, and of the distance from a centre
SIZE_GAIN = 0.1
DETECTIONS = 100  # per image
BACKBONE_PLACES = {  # children of torchvision's ResNet by number; 2 and 3 have no parameters
    "backbone.0.": "conv1.",
    "backbone.1.": "bn1.",
    **{f"backbone.{number + 3}.": f"layer{number}." for number in (1, 2, 3, 4)},
}


class CenterMaps(NamedTuple):
    """What the network says of a batch."""

    heat: Tensor  # [B C h w] logits of a centre
    size: Tensor  # [B 2 h w] width and height, cells
    offset: Tensor  # [B 2 h w] of the centre from the cell's corner, x and y, cells


class Upsampling(nn.Module):
    """Doubles height and width of a map, and adds one of the backbone's that has this size."""

    def __init__(self, before: int, beside: int, after: int) -> None:
        """Take the channels of the map, those of the backbone's, and those that come out."""
        super().__init__()
        self.smooth = nn.Sequential(
            nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()
        )
        transposed = nn.ConvTranspose2d(after, after, 4, stride=2, padding=1, bias=False)
        self.enlarge = nn.Sequential(transposed, nn.BatchNorm2d(after))
        self.lateral = nn.Sequential(nn.Conv2d(beside, after, 1, bias=False), nn.BatchNorm2d(after))

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """Return a map [B after 2h 2w] of one [B before h w] and the backbone's [B beside 2h 2w]."""
        return functional.relu(self.enlarge(self.smooth(coarse)) + self.lateral(fine))


class CenterNet(NamedNetwork):
    """A ResNet, three upsampling stages and three heads."""

    input_wh = (SIDE, SIDE)
    max_stride = 32
    fixed_size = False
    suppresses = False
    mean: Tensor  # [3 1 1]
    std: Tensor

    def __init__(self, name: str, backbone: nn.Module, num_classes: int) -> None:
        """Build the rest of the network around a ResNet.

        Args:
            name: in the table of networks.
            backbone: torchvision's; its classifier is left out.
            num_classes: that are told apart.
        """
        super().__init__()
        self.name = name
        self.backbone_source = BackboneSource(name.removeprefix("centernet_"), BACKBONE_PLACES, left_out=("fc.",))
        channels = int(backbone.fc.in_features)  # type: ignore[union-attr, arg-type]
        self.backbone = nn.Sequential(*list(backbone.children())[:-2])  # without pooling and classifier
        self.upsample = nn.ModuleList(
            Upsampling(before, channels // 2**number, after)
            for number, (before, after) in enumerate(pairwise((channels, *CHANNELS)), 1)
        )
        self.heat, self.size, self.offset = _head(num_classes), _head(2), _head(2)
        bias = _last(self.heat).bias
        assert bias is not None
        nn.init.constant_(bias, RARE)
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)

    @property
    def num_classes(self) -> int:
        """Classes that it tells apart."""
        return _last(self.heat).out_channels

    def forward(self, images: Tensor) -> CenterMaps:
        """Return the three maps of images [B 3 H W], 0..1, RGB."""
        features, finer = (images - self.mean) / self.std, []
        for stage in self.backbone:
            features = stage(features)
            finer.append(features)
        for stage, beside in zip(self.upsample, finer[-2::-1], strict=False):
            features = stage(features, beside)
        return CenterMaps(self.heat(features), self.size(features), self.offset(features))

    def candidates(self, raw: CenterMaps, confidence: float) -> list[Detections]:
        """Return the strongest peaks of each image: cells whose heat none of their eight neighbours exceeds."""
        heat = raw.heat.float().sigmoid()
        peaks = heat.where(functional.max_pool2d(heat, 3, stride=1, padding=1) == heat, 0)
        scores, place = peaks.flatten(1).topk(min(DETECTIONS, peaks[0].numel()))  # B K
        cells = heat.shape[2] * heat.shape[3]
        label, cell = place // cells, place % cells
        size, offset = (
            part.float().flatten(2).gather(2, cell[:, None].expand(-1, 2, -1)).transpose(1, 2)  # B K 2
            for part in (raw.size, raw.offset)
        )
        center = torch.stack((cell % heat.shape[3], cell // heat.shape[3]), dim=2) + offset
        boxes_xyxy = torch.cat((center - size / 2, center + size / 2), dim=2) * STRIDE
        kept = (scores > confidence) & (size > 0).all(dim=2)
        rows = zip(boxes_xyxy, scores, label, kept, strict=True)
        return [Detections(boxes[keep], score[keep], labels[keep]) for boxes, score, labels, keep in rows]

    def learner(self, loss: LossOptions, assignment: AssignmentOptions, input_wh: tuple[int, int]) -> Learner:
        """As :meth:`DetectionNetwork.learner`, with the paper's own rule and loss."""
        refuse_other_rules(self.name, loss, assignment)
        return MapsLearner(self, center_loss)

    def parts(self) -> list[nn.Module]:
        """Return the stages of the backbone, the upsampling stages and the heads."""
        return [*self.backbone, *self.upsample, self.heat, self.size, self.offset]

    def parts_that_predict(self) -> list[int]:
        """Return the heads."""
        last = len(self.parts())
        return [last - 3, last - 2, last - 1]

    def part_of(self, name: str) -> int:
        """As :meth:`DetectionNetwork.part_of`."""
        first, number = name.split(".")[:2]
        if first == "backbone":
            return int(number)
        if first == "upsample":
            return len(self.backbone) + int(number)
        return len(self.backbone) + len(self.upsample) + ("heat", "size", "offset").index(first)

    def depends_on_classes(self, name: str) -> bool:
        """As :meth:`DetectionNetwork.depends_on_classes`."""
        return name.startswith("heat.")

    def with_classes(self, classes: Sequence[int]) -> CenterNet:
        """As :meth:`DetectionNetwork.with_classes`."""
        other = copy.deepcopy(self)
        last, rows = _last(self.heat), list(classes)
        chosen = nn.Conv2d(last.in_channels, len(rows), 1).to(last.weight)
        chosen.load_state_dict({name: tensor[rows] for name, tensor in last.state_dict().items()})
        other.heat[-1] = chosen
        return other


@dataclass(frozen=True)
class CenterTargets:
    """What the maps should say."""

    heat: Tensor  # [B C h w], 1 at centres, less around them
    image: Tensor  # [T] int64, index in the batch
    col: Tensor  # [T] int64, cell of the centre
    row: Tensor  # [T] int64
    size: Tensor  # [T 2] width and height, cells
    offset: Tensor  # [T 2] x and y, cells


def center_loss(raw: CenterMaps, targets: Targets, crowd: Targets) -> BatchLoss:
    """Return the focal loss of the heat map and the L1 losses of size and offset, per object (equations 1 to 4)."""
    with torch.autocast(raw.heat.device.type, enabled=False):
        wanted = center_targets(targets, raw.heat.shape)
        at_centers = wanted.image, slice(None), wanted.row, wanted.col
        objects = max(1, len(wanted.image))
        means = {
            "heat": focal_loss(raw.heat.float(), wanted.heat) / objects,
            "size": SIZE_GAIN * (raw.size.float()[at_centers] - wanted.size).abs().sum() / objects,
            "offset": (raw.offset.float()[at_centers] - wanted.offset).abs().sum() / objects,
        }
    images = len(raw.heat)
    return BatchLoss({name: mean * images for name, mean in means.items()}, share=1 / IMAGES_PER_STEP)


def focal_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """Return the sum over all cells of the penalty-reduced focal loss (equation 1).

    ``-(1 - p)^2 log p`` at centres, ``-(1 - y)^4 p^2 log(1 - p)`` elsewhere.

    Args:
        logits: [B C h w].
        truth: [B C h w], 1 at centres.
    """
    probability = logits.sigmoid()
    positive = -((1 - probability) ** ALPHA) * functional.logsigmoid(logits)
    negative = -((1 - truth) ** BETA) * probability**ALPHA * functional.logsigmoid(-logits)
    return torch.where(truth == 1, positive, negative).sum()


def center_targets(targets: Targets, shape: Sequence[int]) -> CenterTargets:
    """Return what the maps should say of the objects of a batch.

    Around a centre the heat falls as a Gaussian whose standard deviation is a sixth of the diameter
    ``2 radius + 1``, and is 0 beyond the radius; where objects of a class meet, the larger value counts.

    Args:
        targets: of the batch.
        shape: of the heat map, [B C h w].
    """
    height, width = shape[2:]
    cells = targets.boxes_cxcywh * targets.boxes_cxcywh.new_tensor((width, height) * 2)
    usable = (cells[:, 2:] > 0).all(dim=1)
    cells, image, label = cells[usable], targets.image[usable], targets.label[usable]
    col = cells[:, 0].long().clamp(0, width - 1)
    row = cells[:, 1].long().clamp(0, height - 1)
    heat = cells.new_zeros(*shape)
    radius = center_radius(cells[:, 2:]).floor()
    for number, (reach, x, y) in enumerate(zip(radius.long().tolist(), col.tolist(), row.tolist(), strict=True)):
        left, right = max(0, x - reach), min(width, x + reach + 1)
        top, bottom = max(0, y - reach), min(height, y + reach + 1)
        deviation = (2 * reach + 1) / 6
        fall_x = torch.exp(-((torch.arange(left, right, device=heat.device) - x) ** 2) / (2 * deviation**2))
        fall_y = torch.exp(-((torch.arange(top, bottom, device=heat.device) - y) ** 2) / (2 * deviation**2))
        window = heat[image[number], label[number], top:bottom, left:right]
        torch.maximum(window, fall_y[:, None] * fall_x, out=window)
    offset = cells[:, :2] - torch.stack((col, row), dim=1)
    return CenterTargets(heat, image, col, row, cells[:, 2:], offset)


def center_radius(sizes_wh: Tensor) -> Tensor:
    """Return how far the corners of a box may be off so that its IoU with the object is still ``OVERLAP``, [T].

    The rule of CornerNet (arXiv 1808.01244, section 3.2): the smallest of three radii, for a box that is shifted
    along the diagonal, one inside the object and one around it.

    Args:
        sizes_wh: [T 2] of the objects; the radius has their unit.
    """
    total, area = sizes_wh.sum(dim=1), sizes_wh.prod(dim=1)
    shifted = _smaller_root(1.0, total, area * (1 - OVERLAP) / (1 + OVERLAP))
    inside = _smaller_root(4.0, 2 * total, area * (1 - OVERLAP))
    around = (-2 * OVERLAP * total + (4 * OVERLAP**2 * total**2 + 16 * OVERLAP * (1 - OVERLAP) * area).sqrt()) / (
        8 * OVERLAP
    )
    return torch.minimum(torch.minimum(shifted, inside), around)


def _smaller_root(a: float, b: Tensor, c: Tensor) -> Tensor:
    """Return the smaller solution of a r^2 - b r + c = 0."""
    return (b - (b**2 - 4 * a * c).sqrt()) / (2 * a)


def _head(channels: int) -> nn.Sequential:
    hidden = nn.Conv2d(CHANNELS[-1], HEAD_CHANNELS, 3, padding=1)
    return nn.Sequential(hidden, nn.ReLU(inplace=True), nn.Conv2d(HEAD_CHANNELS, channels, 1))


def _last(head: nn.Sequential) -> nn.Conv2d:
    """Return the convolution whose channels are a head's map."""
    last = head[-1]
    assert isinstance(last, nn.Conv2d)
    return last


def build_centernet(depth: int, num_classes: int) -> CenterNet:
    """Return the network with random weights.

    Args:
        depth: of the ResNet, 18 or 50.
        num_classes: that are to be told apart.

    Raises:
        UserError: torchvision, which has the ResNet, cannot be imported.
    """
    name = f"centernet_resnet{depth}"
    package = required("torchvision.models", name, "requirements.txt")
    return CenterNet(name, getattr(package, f"resnet{depth}")(weights=None), num_classes)
