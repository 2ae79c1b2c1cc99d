"""Large images looked at in tiles, and as a whole, so that small objects are not lost when the image is shrunk.

A tile sees an object that lies on its border in part. The rule for these cut boxes is in :func:`merge_views`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.nms_variants import LOWERING, NmsRule, suppress
from utils.config import option
from utils.errors import UserError
from utils.structures import Detections

CUT_PIXELS = 2.0  # a box that comes so near to a border of its tile inside the image is taken for cut
MOST_COVERED = 0.5  # share of a cut box that may lie in another box of its class


@dataclass(frozen=True)
class TileOptions:
    """How large images are looked at."""

    tile: int = option(0, "side of square tiles in pixels, in which larger images are looked at besides the whole")
    overlap: float = option(0.2, "share of its side by which a tile overlaps the next one at least")

    def check_finds(self, finds: frozenset[str]) -> None:
        """Refuse tiles for a network that finds more than boxes, of which pieces are not joined.

        Raises:
            UserError: names the option.
        """
        if self.tile and finds:
            raise UserError(f"--tile: leave it out; it is for boxes, and this network finds {' and '.join(finds)}, too")

    def check_nms(self, kind: str) -> None:
        """Refuse tiles together with a kind of suppression that cannot be applied to its own results.

        Raises:
            UserError: names both options.
        """
        if self.tile and kind in LOWERING:
            raise UserError(f"--nms {kind} would lower scores in each tile and once more over all; leave out --tile")

    def __post_init__(self) -> None:
        if self.tile and self.tile < 32:
            raise ValueError("--tile must be at least 32 pixels; 0 looks at whole images only")
        if not 0 <= self.overlap <= 0.9:
            raise ValueError("--overlap must lie between 0 and 0.9")


@dataclass(frozen=True)
class View:
    """A part of an image."""

    left: int
    top: int
    right: int
    bottom: int


def tiles_of(image_wh: tuple[int, int], tile: int, overlap: float) -> list[View]:
    """Return the tiles of an image, row by row; none where it fits into one.

    The fewest that overlap enough are spread evenly, the last ones end at the image's border.
    """
    if max(image_wh) <= tile:
        return []
    lefts, tops = (_starts(side, tile, overlap) for side in image_wh)
    width, height = image_wh
    return [View(x, y, min(x + tile, width), min(y + tile, height)) for y in tops for x in lefts]


def _starts(side: int, tile: int, overlap: float) -> list[int]:
    """Return where tiles begin along one side of an image."""
    if side <= tile:
        return [0]
    step = max(1, int(tile * (1 - overlap)))
    count = 1 + -(-(side - tile) // step)
    return [round(index * (side - tile) / (count - 1)) for index in range(count)]


def detect_in_tiles(
    detect: Callable[[Sequence[np.ndarray]], list[Detections]],
    image_bgr: np.ndarray,
    options: TileOptions,
    rule: NmsRule,
    batch_size: int = 1,
) -> Detections:
    """Return what is found in an image [h w 3] as a whole and in its tiles, merged; on the CPU.

    Args:
        detect: of some images.
        image_bgr: any size; one that fits into a tile is looked at once, as without tiles.
        options: size of the tiles.
        rule: how boxes suppress one another.
        batch_size: views that are looked at together.
    """
    height, width = image_bgr.shape[:2]
    views = [View(0, 0, width, height), *tiles_of((width, height), options.tile, options.overlap)]
    found: list[Detections] = []
    for part in (views[start : start + batch_size] for start in range(0, len(views), batch_size)):
        images = [image_bgr[view.top : view.bottom, view.left : view.right] for view in part]
        found += [detections.cpu() for detections in detect(images)]
    return found[0] if len(views) == 1 else merge_views(found, views, (width, height), rule)


def merge_views(
    found: Sequence[Detections], views: Sequence[View], image_wh: tuple[int, int], rule: NmsRule
) -> Detections:
    """Merge what was found in views of one image, in pixels of the view, into detections of the image.

    Whole boxes suppress one another as in a single view: NMS of the same kind over all views. A cut box is one that
    reaches a border of its view which is not the image's. The strongest first, it is kept only if no kept box of its
    class covers more than MOST_COVERED of it: so it goes where another view shows the object whole, and stays where
    none does. Pieces of an object that no view shows whole are not joined.
    """
    boxes, cut = [], []
    for one, view in zip(found, views, strict=True):
        shifted = one.boxes_xyxy + one.boxes_xyxy.new_tensor([view.left, view.top, view.left, view.top])
        boxes.append(shifted)
        cut.append(_is_cut(shifted, view, image_wh))
    every = Detections(
        torch.cat(boxes), torch.cat([one.scores for one in found]), torch.cat([one.labels for one in found])
    )
    is_cut = torch.cat(cut)
    whole, pieces = every.select(~is_cut), every.select(is_cut)
    merged = suppress(whole, rule)
    for index in pieces.scores.argsort(descending=True, stable=True).tolist():
        piece = pieces.select(torch.tensor([index]))
        same_class = (
            torch.ones_like(merged.labels, dtype=torch.bool) if rule.agnostic else merged.labels == piece.labels
        )
        if not (same_class & (_covered_share(piece.boxes_xyxy[0], merged.boxes_xyxy) > MOST_COVERED)).any():
            merged = _joined(merged, piece)
    return merged.select(merged.scores.argsort(descending=True, stable=True)[: rule.max_detections])


def _is_cut(boxes_xyxy: Tensor, view: View, image_wh: tuple[int, int]) -> Tensor:
    """Return which boxes [N 4], in pixels of the image, reach a border of their view inside the image; [N] bool."""
    width, height = image_wh
    x1, y1, x2, y2 = boxes_xyxy.unbind(dim=1)
    cut = torch.zeros(len(boxes_xyxy), dtype=torch.bool)
    if view.left > 0:
        cut |= x1 < view.left + CUT_PIXELS
    if view.top > 0:
        cut |= y1 < view.top + CUT_PIXELS
    if view.right < width:
        cut |= x2 > view.right - CUT_PIXELS
    if view.bottom < height:
        cut |= y2 > view.bottom - CUT_PIXELS
    return cut


def _covered_share(box_xyxy: Tensor, others_xyxy: Tensor) -> Tensor:
    """Return which share of a box [4] lies in each other box [N 4]; [N], 0..1."""
    corner_1 = torch.maximum(box_xyxy[:2], others_xyxy[:, :2])
    corner_2 = torch.minimum(box_xyxy[2:], others_xyxy[:, 2:])
    area = (box_xyxy[2:] - box_xyxy[:2]).prod().clamp(min=1e-9)
    return (corner_2 - corner_1).clamp(min=0).prod(dim=1) / area


def _joined(first: Detections, second: Detections) -> Detections:
    return Detections(
        torch.cat((first.boxes_xyxy, second.boxes_xyxy)),
        torch.cat((first.scores, second.scores)),
        torch.cat((first.labels, second.labels)),
    )
