"""What defines a format with one label file per image: where its files lie, and the function that reads one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from data.labels.annotations import Problem

IMAGE_FOLDERS = ("images", "JPEGImages")  # the last of these in an image's path gives way to the labels' folder


class LabelRows(NamedTuple):
    """The K objects of one label file."""

    boxes: np.ndarray  # [K 4] float64: relative cxcywh where ``relative``, else corners in pixels
    labels: list[str] | np.ndarray  # K class names, or [K] class indices
    lines: np.ndarray  # [K] int64, from 1
    crowd: np.ndarray  # [K] bool
    relative: bool
    wh: tuple[int, int]  # the image's size in pixels, (0, 0) where the file does not say
    problems: list[Problem]
    unlearnable: LabelRows | None = None  # boxes among the problems: without size or outside, but they can be missed
    lengths: tuple[int, ...] = ()  # columns of each line that has more than a box, where the format allows it


@dataclass(frozen=True)
class LabelFormat:
    """One entry of :data:`data.labels.formats.FORMATS`."""

    suffix: str  # of its files, such as ".txt"
    folder: str  # that takes the place of the images' folder; label files may lie beside the images, too
    read: Callable[[str], LabelRows]  # of the file at a path; ValueError where it cannot be read
