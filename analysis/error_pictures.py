"""Images with what is wrong in them, drawn: the errors of a detector by kind, and annotations that deserve a look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from data.image_files import image_header, read_image
from data.labels.annotations import Annotations
from evaluation.error_kinds import (
    BACKGROUND,
    BOTH,
    CLASS,
    CORRECT,
    DETECTION_KINDS,
    DUPLICATE,
    LOCALISATION,
    ErrorKinds,
)
from evaluation.suspicious_labels import Suspicion, confident_scores
from utils.draw import CROWD_COLOR, Color, draw_box, write_image, write_sheet
from utils.errors import UserError

KIND_COLORS: dict[int, Color] = {  # B G R
    CORRECT: (80, 190, 60),
    CLASS: (0, 140, 255),
    LOCALISATION: (255, 150, 40),
    BOTH: (200, 60, 200),
    DUPLICATE: (230, 220, 60),
    BACKGROUND: (60, 60, 230),
}
MISSED_COLOR: Color = (0, 230, 255)
SHEET_TILE = 320  # pixels, the side of a picture on the sheet
CONTEXT = 1.0  # of the longer side of a box, shown on each side of it
SHORTEST_CONTEXT = 40  # pixels


@dataclass(frozen=True)
class ImageSource:
    """Where the pictures of a ground truth are."""

    paths: Mapping[int, str]  # image id -> file; "" where it is not on the disk

    @classmethod
    def of(cls, annotations: Annotations) -> ImageSource:
        """Return where the images of a data set are."""
        return cls(dict(zip(annotations.image_ids.tolist(), annotations.image_paths, strict=True)))

    def read(self, image: Mapping) -> np.ndarray | None:
        """Return an image of a ground truth as uint8 BGR [H W 3], None where it cannot be read."""
        path = self.paths.get(image["id"], "")
        if not path:
            return None
        try:
            return read_image(path, (image["width"], image["height"]), image_header(path).orientation)
        except (UserError, OSError):
            return None


def draw_errors(picture: np.ndarray, truth: dict, detector: ErrorKinds, image: int) -> None:
    """Draw the confident detections of an image in the colours of their kinds, and the objects that none of them finds.

    An object that only a weaker detection finds says with which score.

    Args:
        picture: uint8 BGR [H W 3], drawn into.
        truth: COCO's ground truth.
        detector: what is wrong with its detections.
        image: index of the image in the ground truth.
    """
    matcher = detector.matcher
    names = [str(category["name"]) for category in truth["categories"]]
    is_shown = matcher.scores >= confident_scores(detector)[matcher.category]
    finder = np.full(len(matcher.crowd), -1)
    right = np.flatnonzero(detector.detection == CORRECT)
    finder[detector.matched[right]] = right
    for row in np.flatnonzero(matcher.truth_image == image).tolist():
        name = names[matcher.truth_category[row]]
        if matcher.crowd[row]:
            draw_box(picture, corners(matcher.truth_boxes_xywh[row]), f"{name} crowd", CROWD_COLOR)
        elif finder[row] < 0 or not is_shown[finder[row]]:
            word = "missed" if finder[row] < 0 else f"weak {matcher.scores[finder[row]]:.2f}"
            draw_box(picture, corners(matcher.truth_boxes_xywh[row]), f"{name} {word}", MISSED_COLOR)
    rows = np.flatnonzero((matcher.image == image) & is_shown & ~detector.ignored)
    for row in rows[np.argsort(matcher.scores[rows], kind="stable")].tolist():  # the strongest on top
        kind = int(detector.detection[row])
        word = "" if kind == CORRECT else f" {DETECTION_KINDS[kind]}"
        text = f"{names[matcher.category[row]]} {matcher.scores[row]:.2f}{word}"
        draw_box(picture, corners(matcher.boxes_xywh[row]), text, KIND_COLORS[kind])


def write_worst_images(
    folder: Path, truth: dict, detector: ErrorKinds, images: Sequence[int], source: ImageSource
) -> list[str]:
    """Draw images into a folder, the first as ``01-….jpg``; return the names of the files, "" for those without one."""
    written = []
    for number, image in enumerate(images, start=1):
        about = truth["images"][image]
        picture = source.read(about)
        name = f"{number:02d}-{Path(str(about.get('file_name', about['id']))).stem}.jpg"
        if picture is not None:
            draw_errors(picture, truth, detector, image)
            write_image(folder / name, picture)
        written.append("" if picture is None else name)
    return written


def write_suspicious_sheet(path: Path, truth: dict, suspicions: Sequence[Suspicion], source: ImageSource) -> int:
    """Write one sheet with the surroundings of each place; return how many are on it, and write none where none is."""
    names = [str(category["name"]) for category in truth["categories"]]
    tiles, captions = [], []
    for one in suspicions:
        about = truth["images"][one.image]
        picture = source.read(about)
        if picture is None:
            continue
        label = "" if one.annotation is None else names_of(truth, one.annotation)
        seen = "" if one.category is None else f"{names[one.category]} {one.score:.2f}"
        text = " not ".join(filter(None, (seen, label if one.kind == "wrong class" else ""))) or label
        draw_box(picture, corners(one.box_xywh), "", MISSED_COLOR)
        tiles.append(surroundings(picture, one.box_xywh))
        captions.append(f"{one.kind}: {text}, {about.get('file_name', about['id'])}")
    if tiles:
        write_sheet(path, tiles, captions)
    return len(tiles)


def names_of(truth: dict, annotation: int) -> str:
    """Return the name of an annotation's class."""
    wanted = truth["annotations"][annotation]["category_id"]
    return next(str(category["name"]) for category in truth["categories"] if category["id"] == wanted)


def surroundings(picture: np.ndarray, box_xywh: Sequence[float]) -> np.ndarray:
    """Return the square around a box and some of what is beside it, [320 320 3]; grey beyond the image."""
    x, y, width, height = box_xywh
    side = max(width, height)
    half = side / 2 + max(CONTEXT * side / 2, SHORTEST_CONTEXT)
    scale = SHEET_TILE / (2 * half)
    place = np.array([[scale, 0, (half - x - width / 2) * scale], [0, scale, (half - y - height / 2) * scale]])
    size = (SHEET_TILE, SHEET_TILE)
    return cv2.warpAffine(picture, place, size, flags=cv2.INTER_AREA, borderValue=(114, 114, 114))


def corners(box_xywh: Sequence[float]) -> tuple[float, float, float, float]:
    """Return the two corners of a box x, y, width, height."""
    x, y, width, height = map(float, box_xywh)
    return x, y, x + width, y + height
