"""The images of an evaluation report: those that cost most AP50, their objects and confident detections judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from analysis.error_pictures import ImageSource, corners
from analysis.output.pictures import BoxOnImage, ReportImage
from evaluation.error_kinds import CORRECT, DETECTION_KINDS, EXPLAINED, FOUND, MISSED, OBJECT_KINDS, ErrorKinds
from evaluation.suspicious_labels import Suspicion, confident_scores


def hardest_images(
    truth: dict,
    detectors: Mapping[str, ErrorKinds],
    ap50_lost: Mapping[str, np.ndarray],
    source: ImageSource,
    count: int,
) -> list[ReportImage]:
    """Return the images that cost most AP50 with all detectors together, the worst first.

    Args:
        truth: COCO's ground truth.
        detectors: what is wrong with each detector's detections.
        ap50_lost: [I] of each detector, by image.
        source: finds the pictures.
        count: how many, at most.
    """
    lost = np.sum([*ap50_lost.values()], axis=0)
    order = np.argsort(-lost, kind="stable")[:count].tolist()
    boxes: dict[int, list[BoxOnImage]] = {image: [] for image in order}
    names = [str(category["name"]) for category in truth["categories"]]
    for name, detector in detectors.items():
        for image, found in boxes_of_detector(truth, name, detector, names, order).items():
            boxes[image] += found
    return [image_of(truth, source, row, boxes[row], f", AP50 lost {lost[row]:.4f}") for row in order]


def boxes_of_detector(
    truth: dict, name: str, detector: ErrorKinds, names: Sequence[str], images: Sequence[int]
) -> dict[int, list[BoxOnImage]]:
    """Return the boxes of some images: what is annotated, and what a detector confidently finds, each with its state.

    An object that only a weaker detection finds is missed, and says with which score it would be found.

    Args:
        truth: COCO's ground truth.
        name: of the detector.
        detector: what is wrong with its detections.
        names: [K] of the classes.
        images: indices in the ground truth.
    """
    matcher = detector.matcher
    is_shown = matcher.scores >= confident_scores(detector)[matcher.category]
    finder = np.full(len(matcher.crowd), -1)
    right = np.flatnonzero(detector.detection == CORRECT)
    finder[detector.matched[right]] = right
    is_weak = finder >= 0
    is_weak[is_weak] = ~is_shown[finder[is_weak]]
    is_explained = np.isin(np.arange(len(finder)), detector.target[is_shown])
    states = np.where(is_weak | (detector.annotation == EXPLAINED), MISSED, detector.annotation)
    states[is_explained & (states != FOUND)] = EXPLAINED
    boxes: dict[int, list[BoxOnImage]] = {}
    for image in images:
        found = boxes.setdefault(image, [])
        for row in np.flatnonzero(matcher.truth_image == image).tolist():
            remark = f"annotation {truth['annotations'][row]['id']}"
            if is_weak[row]:
                remark += f", found with score {matcher.scores[finder[row]]:.2f}"
            state, box = OBJECT_KINDS[states[row]], corners(matcher.truth_boxes_xywh[row])
            found.append(BoxOnImage(box, names[matcher.truth_category[row]], state, None, name, remark))
        for row in np.flatnonzero((matcher.image == image) & is_shown).tolist():
            state = "ignored" if detector.ignored[row] else DETECTION_KINDS[detector.detection[row]]
            class_name, score = names[matcher.category[row]], float(matcher.scores[row])
            found.append(BoxOnImage(corners(matcher.boxes_xywh[row]), class_name, state, score, name))
    return boxes


def suspicious_images(truth: dict, suspicions: Sequence[Suspicion], source: ImageSource) -> list[ReportImage]:
    """Return the images of annotations that are probably wrong, each with all of these that are given."""
    names = {category["id"]: str(category["name"]) for category in truth["categories"]}
    boxes: dict[int, list[BoxOnImage]] = {}
    for one in suspicions:
        seen = "" if one.category is None else str(truth["categories"][one.category]["name"])
        label, remark = "", ""
        if one.annotation is not None:
            annotation = truth["annotations"][one.annotation]
            label, remark = names[annotation["category_id"]], f"annotation {annotation['id']}"
        text = f"{seen}, labelled {label}" if seen and label else seen or label
        box = BoxOnImage(corners(one.box_xywh), text, one.kind, one.score, "", remark)
        boxes.setdefault(one.image, []).append(box)
    return [image_of(truth, source, row, of_image) for row, of_image in boxes.items()]


def image_of(truth: dict, source: ImageSource, row: int, boxes: Sequence[BoxOnImage], remark: str = "") -> ReportImage:
    """Return an image of the ground truth with boxes."""
    image: Mapping[str, Any] = truth["images"][row]
    size_wh = (image.get("width", 0), image.get("height", 0))
    name = str(image.get("file_name", image["id"]))
    return ReportImage(name, size_wh, boxes, lambda: source.read(image), f"id {image['id']}{remark}")
