"""The images of an evaluation report: those with the most errors, their objects and confident detections judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.output.pictures import STATES, BoxOnImage, ReportImage
from data.image_files import image_header, read_image
from evaluation.matches import CocoMatcher
from evaluation.operating_point import precision_recall_at_best_f1
from utils.errors import UserError

IOU = 0.5  # from which on a detection finds an object
# Ground truth and results -> the state of each result and of each annotation, keys of STATES.
Judge = Callable[[dict, Sequence[dict]], tuple[Sequence[str], Sequence[str]]]


@dataclass(frozen=True)
class JudgedDetector:
    """The detections of one detector that are shown, and what is right or wrong with them and with the objects."""

    name: str
    confidence: float  # from which on detections are shown and count
    results: list[dict]  # N
    states: Sequence[str]  # N
    object_states: Sequence[str]  # M, of the annotations


def found_or_not(truth: dict, results: Sequence[dict]) -> tuple[list[str], list[str]]:
    """Return for each result "correct", "unmatched" or "ignored", for each annotation "found", "missed" or "crowd".

    Args:
        truth: COCO's ground truth.
        results: COCO's results.
    """
    matcher = CocoMatcher(truth, results)
    matches = matcher.matches(IOU)
    states = np.select([matches.correct, matches.ignored], ["correct", "ignored"], "unmatched")
    objects = np.where(matcher.crowd, "crowd", "missed").astype("<U6")
    objects[matches.annotation[matches.correct]] = "found"
    return states.tolist(), objects.tolist()


def judged(truth: dict, results: Mapping[str, Sequence[dict]], judge: Judge = found_or_not) -> list[JudgedDetector]:
    """Judge the detections of each detector from the confidence on at which its mean F1 is highest.

    Args:
        truth: COCO's ground truth.
        results: COCO's results by the name of the detector.
        judge: tells the states.
    """
    detectors = []
    for name, rows in results.items():
        confidence = max(0.0, precision_recall_at_best_f1(truth, rows).confidence)
        confident = [row for row in rows if row["score"] >= confidence]
        detectors.append(JudgedDetector(name, confidence, confident, *judge(truth, confident)))
    return detectors


def hardest_images(
    truth: dict, detectors: Sequence[JudgedDetector], paths: Mapping[int, str], count: int
) -> list[ReportImage]:
    """Return the images with the most errors of all detectors together, the worst first.

    Args:
        truth: COCO's ground truth.
        detectors: as :func:`judged` returns them.
        paths: id of an image -> file; "" or no entry where it is not on the disk.
        count: how many, at most.
    """
    errors = dict.fromkeys((image["id"] for image in truth["images"]), 0)
    for detector in detectors:
        pairs = (*zip(detector.results, detector.states, strict=True),
                 *zip(truth["annotations"], detector.object_states, strict=True))  # fmt: skip
        for row, state in pairs:
            errors[row["image_id"]] += STATES[state].is_error
    order = sorted(truth["images"], key=lambda image: -errors[image["id"]])[:count]
    boxes: dict[int, list[BoxOnImage]] = {image["id"]: [] for image in order}
    names = {category["id"]: str(category["name"]) for category in truth["categories"]}
    for detector in detectors:
        for row, state in zip(truth["annotations"], detector.object_states, strict=True):
            if row["image_id"] in boxes:
                boxes[row["image_id"]].append(_box(row, names, state, detector.name, f"annotation {row['id']}"))
        for row, state in zip(detector.results, detector.states, strict=True):
            if row["image_id"] in boxes:
                boxes[row["image_id"]].append(_box(row, names, state, detector.name))
    return [_image(image, boxes[image["id"]], paths.get(image["id"], "")) for image in order]


def _box(row: Mapping[str, Any], names: Mapping[int, str], state: str, detector: str, remark: str = "") -> BoxOnImage:
    x, y, width, height = row["bbox"]
    corners = (x, y, x + width, y + height)
    return BoxOnImage(corners, names[row["category_id"]], state, row.get("score"), detector, remark)


def _image(image: Mapping[str, Any], boxes: list[BoxOnImage], path: str) -> ReportImage:
    def read() -> np.ndarray | None:
        try:
            return read_image(path, size_wh, image_header(path).orientation) if path else None
        except (UserError, OSError):
            return None

    size_wh = (image.get("width", 0), image.get("height", 0))
    name = str(image.get("file_name", image["id"]))
    return ReportImage(name, size_wh, boxes, read, f"id {image['id']}")
