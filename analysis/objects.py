"""Objects, pairs of objects and anchors: what every statistic is counted over.

Boxes are corners in the pixels of the original image. Shape letters: N images, M objects, P pairs of one block.
A pair is two objects of one image, unordered. Pairs are made block by block, so memory does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.limits import limits_reached
from data.letterbox import scales_and_offsets
from models.heads import Head
from utils.boxes import SIZE_LIMITS

if TYPE_CHECKING:
    from data.labels.annotations import Annotations

PAIRS_PER_BLOCK = 1 << 19  # measured at once: bounds the memory
OCCLUSION_LIMITS = (0.3, 0.5, 0.7)  # of the share of an object that one other box covers


@dataclass(frozen=True)
class Objects:
    """The annotations that a statistic counts, sorted by image."""

    image: np.ndarray  # [M] int64, row of image_wh
    boxes_xyxy: np.ndarray  # [M 4] float64, original pixels
    boxes_wh: np.ndarray  # [M 2] float64, width and height as the label file has them, original pixels
    labels: np.ndarray  # [M] int64
    crowd: np.ndarray  # [M] bool
    areas: np.ndarray  # [M] float64, square pixels: COCO's own where given, else width x height
    image_wh: np.ndarray  # [N 2] int64, pixels
    names: tuple[str, ...]  # of the classes
    source_row: np.ndarray  # [M] int64, row of each object in the Annotations they come from

    def __len__(self) -> int:
        return len(self.image)

    @property
    def num_images(self) -> int:
        """Number of images of the data set, those without objects included."""
        return len(self.image_wh)

    @property
    def sizes(self) -> np.ndarray:
        """COCO's size of every object by its area, [M] index into SIZE_NAMES."""
        return limits_reached(self.areas, SIZE_LIMITS)

    @property
    def elongation(self) -> np.ndarray:
        """``max(w/h, h/w)`` of every object, [M]."""
        width, height = self.boxes_wh.T
        return np.maximum(width / height, height / width)

    @property
    def relative_size(self) -> np.ndarray:
        """``sqrt(wh / WH)``: the side of the square of equal area over that of the image, [M]."""
        return np.sqrt(self.boxes_wh.prod(axis=1) / self.image_wh[self.image].prod(axis=1))


def select_objects(annotations: Annotations, crowd: bool) -> Objects:
    """Return the objects of a data set sorted by image; with ``crowd``, crowd regions are among them."""
    keep = np.ones(len(annotations.box_image), dtype=bool) if crowd else ~annotations.crowd
    rows = np.flatnonzero(keep)
    rows = rows[np.argsort(annotations.box_image[rows], kind="stable")]
    return Objects(
        image=annotations.box_image[rows].astype(np.int64),
        boxes_xyxy=annotations.boxes_xyxy[rows].astype(np.float64),
        boxes_wh=annotations.boxes_wh[rows].astype(np.float64),
        labels=annotations.labels[rows].astype(np.int64),
        crowd=annotations.crowd[rows],
        areas=annotations.areas[rows].astype(np.float64),
        image_wh=np.asarray(annotations.image_wh, dtype=np.int64).reshape(-1, 2),
        names=tuple(annotations.names),
        source_row=rows,
    )


def boxes_in_input(objects: Objects, input_wh: tuple[int, int], resize: str = "letterbox") -> np.ndarray:
    """Return the boxes as the loader places them in the network input: cxcywh relative to it, [M 4] float32.

    Args:
        objects: of the data set.
        input_wh: width and height of the network input, pixels.
        resize: key of :data:`data.letterbox.RESIZES`.
    """
    scale, offset = _places_of_images(objects, input_wh, resize)
    corners = _inside(objects) * np.tile(scale, 2) + np.tile(offset, 2)
    size = corners[:, 2:] - corners[:, :2]
    return (np.concatenate((corners[:, :2] + size / 2, size), axis=1) / (input_wh * 2)).astype(np.float32)


def sizes_in_input(objects: Objects, input_wh: tuple[int, int], resize: str = "letterbox") -> np.ndarray:
    """Return the boxes' width and height in network pixels, [M 2] float64, from those of the label file."""
    inside = _inside(objects)
    whole = (inside == objects.boxes_xyxy).reshape(-1, 2, 2).all(axis=1)  # M 2, by axis: nothing lies outside
    wh = np.where(whole, objects.boxes_wh, inside[:, 2:] - inside[:, :2])
    return wh * _places_of_images(objects, input_wh, resize)[0]


def _inside(objects: Objects) -> np.ndarray:
    """Return the corners clipped to the image, [M 4] original pixels."""
    return np.clip(objects.boxes_xyxy, 0, np.tile(objects.image_wh, 2)[objects.image])


def _places_of_images(objects: Objects, input_wh: tuple[int, int], resize: str) -> tuple[np.ndarray, np.ndarray]:
    """Return scale and offset of the image of every object in the network input, [M 2] each."""
    scale, offset = scales_and_offsets(objects.image_wh, input_wh[::-1], resize)
    return scale[objects.image], offset[objects.image]


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
