"""Where the images of an evaluation are, and a sheet of the annotations that deserve a look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from data.image_files import image_header, read_image
from data.labels.annotations import Annotations
from evaluation.suspicious_labels import Suspicion
from utils.draw import Color, draw_box, write_sheet
from utils.errors import UserError

BOX_COLOR: Color = (0, 230, 255)
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
        draw_box(picture, corners(one.box_xywh), "", BOX_COLOR)
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
