"""Test-time augmentation: an image looked at several times, smaller and mirrored, with one suppression for all boxes.

A view of a batch is made of its network input, and its boxes come back to original pixels by way of an ``ImageMeta`` of
its own; so the candidates of all views meet before non-maximum suppression.

Shape letters: B images, H W pixels of the network input, N boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from models.detection_network import DetectionNetwork
from models.detector import Detector, Look
from models.nms_variants import NmsOptions
from utils.config import flag, option
from utils.errors import UserError
from utils.structures import ImageMeta

BORDER = 114.0  # grey level of what fills a view up to whole strides, that of the letterbox
SCALES = (1.0, 0.83, 0.67)  # as ultralytics/yolov5 v7.0, which mirrors the second, too
LARGEST_SCALE = 4.0


@dataclass(frozen=True)
class ViewOptions:
    """Test-time augmentation."""

    augment: bool = option(False, "look at each image several times, smaller and mirrored")
    augment_scales: tuple[float, ...] = option(SCALES, "sizes of these views; every second one is mirrored")

    def __post_init__(self) -> None:
        if not self.augment_scales or not all(0 < scale <= LARGEST_SCALE for scale in self.augment_scales):
            raise ValueError(f"--augment-scales must lie above 0 and not above {LARGEST_SCALE:g}")
        if self.augment_scales != SCALES and not self.augment:
            raise ValueError(f"{flag('augment_scales')} is for {flag('augment')}, which is not given")


@dataclass(frozen=True)
class InputView:
    """One way to look at a network input."""

    scale: float = 1.0
    mirrored: bool = False  # left and right swapped

    def of(self, images: Tensor, metas: Sequence[ImageMeta], stride: int) -> tuple[Tensor, list[ImageMeta]]:
        """Return this view of a batch [B 3 H W], in whole strides, and where its images lie in it."""
        height, width = images.shape[2:]
        new_hw = max(1, round(height * self.scale)), max(1, round(width * self.scale))
        seen = images.flip(3) if self.mirrored else images
        if new_hw != (height, width):
            seen = functional.interpolate(seen.float(), new_hw, mode="bilinear", antialias=True)
            fill = (0, -new_hw[1] % stride, 0, -new_hw[0] % stride)  # on the right and below
            seen = functional.pad(seen, fill, value=BORDER)
        factor = new_hw[1] / width, new_hw[0] / height
        return seen, [self._meta(meta, factor, new_hw[1]) for meta in metas]

    def _meta(self, meta: ImageMeta, factor_xy: tuple[float, float], view_width: int) -> ImageMeta:
        scale_x, scale_y = (scale * factor for scale, factor in zip(meta.scale_xy, factor_xy, strict=True))
        offset_x, offset_y = (offset * factor for offset, factor in zip(meta.offset_xy, factor_xy, strict=True))
        scaled = replace(meta, scale_xy=(scale_x, scale_y), offset_xy=(offset_x, offset_y))
        return MirroredMeta(**vars(scaled), view_width=view_width) if self.mirrored else scaled


@dataclass(frozen=True)
class MirroredMeta(ImageMeta):
    """Where an image lies in a network input whose left and right were swapped."""

    view_width: int = 0  # network pixels

    def to_original(self, boxes_xyxy_net: Tensor, clip: bool = True) -> Tensor:
        """As :meth:`ImageMeta.to_original`."""
        x1, y1, x2, y2 = boxes_xyxy_net.unbind(dim=1)
        swapped = torch.stack((self.view_width - x2, y1, self.view_width - x1, y2), dim=1)
        return super().to_original(swapped, clip)


class AugmentedDetector(Detector):
    """A detector that looks at each image in several views and suppresses boxes across all of them."""

    def __init__(self, network: DetectionNetwork, views: Sequence[InputView], **settings: Any) -> None:
        """As :class:`Detector`, whose other arguments are the settings.

        Raises:
            UserError: the network takes one size only, and a view has another one.
        """
        if network.fixed_size and any(view.scale != 1 for view in views):
            raise UserError(f"--augment: {network.cfg_path} takes one size only; give --augment-scales 1 1")
        super().__init__(network, **settings)
        self.views = tuple(views)
        self.stride = 1 if network.fixed_size else network.max_stride

    def look(self, images: Tensor, metas: Sequence[ImageMeta]) -> list[Look]:
        """Return what the network says of every view."""
        images = images.to(self.device, non_blocking=images.is_pinned())
        seen = (view.of(images, metas, self.stride) for view in self.views)
        return [(self.raw_outputs(view), view_metas) for view, view_metas in seen]


def build_detector(network: DetectionNetwork, nms: NmsOptions, views: ViewOptions, **settings: Any) -> Detector:
    """Return the detector that a command line asks for, which also counts what ``--max-det`` drops.

    Args:
        network: on its device.
        nms: how boxes that overlap are suppressed.
        views: whether each image is looked at several times.
        settings: the other arguments of :class:`Detector`.

    Raises:
        UserError: as :class:`AugmentedDetector`.
    """
    if views.augment:
        chosen = [InputView(scale, number % 2 == 1) for number, scale in enumerate(views.augment_scales)]
        detector: Detector = AugmentedDetector(network, chosen, nms=nms, **settings)
    else:
        detector = Detector(network, nms=nms, **settings)
    detector.counts_dropped = True
    return detector
