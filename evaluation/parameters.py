"""What COCO's evaluation is asked: IoU thresholds, ranges of areas and limits, and the numbers that follow from them.

They are pycocotools' ``iouThrs``, ``areaRng`` and ``maxDets``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

COCO_IOUS = tuple(np.linspace(0.5, 0.95, 10).tolist())
COCO_AREAS = (  # in square pixels, both ends included
    ("all", 0.0, 1e10),
    ("small", 0.0, 32.0**2),
    ("medium", 32.0**2, 96.0**2),
    ("large", 96.0**2, 1e10),
)
ALL = "all"  # the area of the numbers that are not of one size
LARGEST_LIMIT = 1_000_000
MOST_THRESHOLDS = 1000


@dataclass(frozen=True)
class Number:
    """One of the numbers, as a place in the arrays of precision and recall."""

    name: str  # as the tables show it, such as AP50
    is_precision: bool
    iou: int | None  # index of the threshold; None: the mean over all of them
    area: int
    limit: int


@dataclass(frozen=True)
class CocoParameters:
    """How results are compared with ground truth."""

    kind: str  # bbox, segm or keypoints: of what the IoU is
    ious: tuple[float, ...] = COCO_IOUS
    areas: tuple[tuple[str, float, float], ...] = COCO_AREAS  # name, lowest and highest area; the first is "all"
    limits: tuple[int, ...] = (1, 10, 100)  # strongest detections per image and class, rising

    @property
    def numbers(self) -> tuple[Number, ...]:
        """The numbers in the order of pycocotools: AP, of single thresholds and sizes, and the same of AR.

        Those of single thresholds are there where the thresholds are (0.50, 0.75). All but the AR of a lower limit
        count the detections within the highest limit.
        """
        of_people = self.kind == "keypoints"
        last = len(self.limits) - 1
        at = {text: place for text, iou in (("50", 0.5), ("75", 0.75)) if (place := self._place(iou)) is not None}
        sizes = [(_suffix(name), area) for area, (name, *_) in enumerate(self.areas)][1:]
        numbers = [Number("AP", True, None, 0, last)]
        numbers += [Number(f"AP{text}", True, place, 0, last) for text, place in at.items()]
        numbers += [Number(f"AP{size}", True, None, area, last) for size, area in sizes]
        lower = self.limits[:-1] if of_people else self.limits
        numbers += [Number(f"AR{limit}", False, None, 0, place) for place, limit in enumerate(lower)]
        if of_people:
            numbers.append(Number("AR", False, None, 0, last))
            numbers += [Number(f"AR{text}", False, place, 0, last) for text, place in at.items()]
        return (*numbers, *(Number(f"AR{size}", False, None, area, last) for size, area in sizes))

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the numbers."""
        return tuple(number.name for number in self.numbers)

    def of_hotcoco(self) -> dict[str, Any]:
        """Return the parameters under the names that hotcoco has for them."""
        return {
            "iou_thrs": list(self.ious),
            "area_rng": [[low, high] for _, low, high in self.areas],
            "area_rng_lbl": [name for name, *_ in self.areas],
            "max_dets": list(self.limits),
        }

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for ``metrics.json``."""
        return {
            "iou_thresholds": list(self.ious),
            "areas": {name: [low, high] for name, low, high in self.areas},
            "max_dets": list(self.limits),
        }

    def __str__(self) -> str:
        ious = ", ".join(f"{iou:.4g}" for iou in self.ious)
        areas = ", ".join(f"{name} {low:.10g} to {high:.10g}" for name, low, high in self.areas)
        limits = ", ".join(map(str, self.limits))
        return f"IoU {ious}; areas in square pixels: {areas}; detections per image and class: {limits}"

    def _place(self, iou: float) -> int | None:
        return next((place for place, one in enumerate(self.ious) if math.isclose(one, iou, abs_tol=1e-9)), None)


COCO_PARAMETERS = {
    "bbox": CocoParameters("bbox"),
    "segm": CocoParameters("segm"),
    "keypoints": CocoParameters("keypoints", areas=(COCO_AREAS[0], *COCO_AREAS[2:]), limits=(20,)),
}


def chosen_parameters(
    kind: str, iou_thresholds: Sequence[str], areas: Sequence[str], max_dets: Sequence[int]
) -> CocoParameters:
    """Return COCO's parameters with those replaced that a user gave.

    Args:
        kind: a key of :data:`COCO_PARAMETERS`.
        iou_thresholds: numbers, or ranges FIRST:LAST:STEP with both ends; () for COCO's.
        areas: NAME=MIN:MAX in square pixels; () for COCO's. "all" is added where it is not among them.
        max_dets: detections per image and class, in any order; () for COCO's.

    Raises:
        ValueError: one of them cannot be read, or is there twice; the message names it.
    """
    coco = COCO_PARAMETERS[kind]
    ious = tuple(sorted(iou for text in iou_thresholds for iou in _thresholds(text)))
    if len(ious) > MOST_THRESHOLDS:
        raise ValueError(f"--iou-thresholds: {len(ious)} are too many, give {MOST_THRESHOLDS} at most")
    if any(not 1 <= limit <= LARGEST_LIMIT for limit in max_dets):
        raise ValueError(f"--max-dets must be between 1 and {LARGEST_LIMIT}, not {' '.join(map(str, max_dets))}")
    ranges = [_area(text) for text in areas]
    for name, values in (
        ("--iou-thresholds", ious),
        ("--max-dets", max_dets),
        ("--area", [_suffix(name) for name, *_ in ranges]),
    ):
        if len(set(values)) < len(values):
            raise ValueError(f"{name}: {' '.join(map(str, values))} names one of them twice")
    ranges.sort(key=lambda one: one[0] != ALL)  # stable: the others as given
    if ranges and ranges[0][0] != ALL:
        ranges.insert(0, COCO_AREAS[0])
    return CocoParameters(kind, ious or coco.ious, tuple(ranges) or coco.areas, tuple(sorted(max_dets)) or coco.limits)


def _thresholds(text: str) -> list[float]:
    """Return the numbers that "0.5" or "0.5:0.95:0.05" stands for."""
    try:
        first, last, step = [*map(float, text.split(":"))] if ":" in text else (float(text), float(text), 1.0)
    except ValueError:
        first = last = step = math.nan
    if not (0 < first <= last <= 1 and step > 0 and (last - first) / step <= MOST_THRESHOLDS):
        raise ValueError(
            f"--iou-thresholds {text}: give numbers above 0 and up to 1, such as 0.5 0.75, or FIRST:LAST:STEP such as "
            "0.5:0.95:0.05"
        )
    # As pycocotools makes its own, so that 0.5:0.95:0.05 has the same bits.
    count = round((last - first) / step) + 1
    if not math.isclose(first + (count - 1) * step, last, abs_tol=1e-6):
        raise ValueError(f"--iou-thresholds {text}: steps of {step:g} from {first:g} do not reach {last:g}")
    return np.linspace(first, last, count).tolist()


def _area(text: str) -> tuple[str, float, float]:
    """Return the name and the bounds that "small=0:1024" stands for."""
    name, _, bounds = text.partition("=")
    try:
        low, high = map(float, bounds.split(":"))
    except ValueError:
        low = high = math.nan
    if not name or not 0 <= low < high < math.inf:
        raise ValueError(f"--area {text}: give NAME=MIN:MAX in square pixels, such as small=0:1024")
    return name, low, high


def _suffix(area: str) -> str:
    """Return what the names of an area's numbers end with: s, m or l for COCO's sizes, else its name."""
    return area[0] if area in ("small", "medium", "large") else f"_{area}"
