"""Pairs of objects, and anchors: what statistics are counted over besides the objects of :mod:`data.objects`.

Boxes are corners in the pixels of the original image. Shape letters: M objects, P pairs of one block.
A pair is two objects of one image, unordered. Pairs are made block by block, so memory does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.objects import Objects
from models.heads import Head

PAIRS_PER_BLOCK = 1 << 19  # measured at once: bounds the memory
OCCLUSION_LIMITS = (0.3, 0.5, 0.7)  # of the share of an object that one other box covers


@dataclass(frozen=True)
class PairBlock:
    """All pairs whose first object is one of ``start .. stop - 1``."""

    start: int
    stop: int
    first: np.ndarray  # [P] int64, rows of Objects, ascending
    second: np.ndarray  # [P] int64, larger than first, of the same image


def pair_blocks(image: np.ndarray, pairs_per_block: int | None = None) -> Iterator[PairBlock]:
    """Yield every pair of rows with equal ``image`` once.

    Args:
        image: [M], sorted.
        pairs_per_block: about so many at a time, PAIRS_PER_BLOCK by default; the pairs of one first row stay together.
    """
    pairs_per_block = pairs_per_block or PAIRS_PER_BLOCK
    count = len(image)
    partners = np.searchsorted(image, image, side="right") - np.arange(count) - 1  # later objects of the same image
    pairs_until = np.cumsum(partners)
    start = 0
    while start < count:
        before = pairs_until[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(pairs_until, before + pairs_per_block, side="right")))
        block = partners[start:stop]
        first = np.repeat(np.arange(start, stop), block)
        place = np.arange(len(first)) - np.repeat(np.cumsum(block) - block, block)  # 0, 1, .. within each first
        yield PairBlock(start, stop, first, first + 1 + place)
        start = stop


@dataclass(frozen=True)
class PairGeometry:
    """How the two boxes of each pair of a block lie to one another, [P] each."""

    gap: np.ndarray  # pixels between the boxes, 0 where they touch or overlap
    center_distance: np.ndarray  # pixels
    intersection: np.ndarray  # square pixels
    area_first: np.ndarray  # square pixels
    area_second: np.ndarray  # square pixels

    @property
    def iou(self) -> np.ndarray:
        """Intersection over union."""
        return self.intersection / (self.area_first + self.area_second - self.intersection)

    @property
    def containment(self) -> np.ndarray:
        """Intersection over the smaller of the two areas."""
        return self.intersection / np.minimum(self.area_first, self.area_second)


def pair_geometry(boxes_xyxy: np.ndarray, block: PairBlock) -> PairGeometry:
    """Measure every pair of a block; the boxes [M 4] must have a positive area."""
    first, second = boxes_xyxy[block.first], boxes_xyxy[block.second]
    between = np.maximum(first[:, :2], second[:, :2]) - np.minimum(first[:, 2:], second[:, 2:])  # negative: overlap
    gap_x, gap_y = np.maximum(between, 0).T
    overlap = np.maximum(-between, 0)
    center_x, center_y = ((first[:, :2] + first[:, 2:]) / 2 - (second[:, :2] + second[:, 2:]) / 2).T
    return PairGeometry(
        gap=np.sqrt(gap_x * gap_x + gap_y * gap_y),
        center_distance=np.sqrt(center_x * center_x + center_y * center_y),
        intersection=overlap[:, 0] * overlap[:, 1],
        area_first=(first[:, 2] - first[:, 0]) * (first[:, 3] - first[:, 1]),
        area_second=(second[:, 2] - second[:, 0]) * (second[:, 3] - second[:, 1]),
    )


def add_occlusion(occlusion: np.ndarray, block: PairBlock, geometry: PairGeometry) -> None:
    """Raise ``occlusion`` [M] to the share of each object's area that a partner in this block covers."""
    np.maximum.at(occlusion, block.first, geometry.intersection / geometry.area_first)
    np.maximum.at(occlusion, block.second, geometry.intersection / geometry.area_second)


def object_occlusion(objects: Objects) -> np.ndarray:
    """Return the largest share of each object's area covered by any other one box of its image, [M] in 0..1."""
    occlusion = np.zeros(len(objects))
    for block in pair_blocks(objects.image):
        add_occlusion(occlusion, block, pair_geometry(objects.boxes_xyxy, block))
    return occlusion


def anchor_rows(heads: Sequence[Head]) -> Iterator[dict[str, Any]]:
    """Yield what identifies each anchor, over all heads in order; width and height are network pixels."""
    for index, head in enumerate(heads):
        for number, (width, height) in enumerate(head.anchors_wh):
            yield {"head": index, "stride": head.stride, "anchor": number, "width": width, "height": height}
