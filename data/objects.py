"""The objects of a data set that a statistic counts, and where they lie in the input of a network.

Boxes are corners in the pixels of the original image. Shape letters: N images, M objects.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from data.letterbox import scales_and_offsets
from utils.boxes import SIZE_LIMITS
from utils.limits import limits_reached

if TYPE_CHECKING:
    from data.labels.annotations import Annotations


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
