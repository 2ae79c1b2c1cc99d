"""Images with boxes for the report: what a box on an image is, and the values that the page draws."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from utils.files import printable

IMAGE_PIXELS = 1280  # longest side of an embedded image
JPEG_QUALITY = 80
IMAGE_BYTES = 24_000_000  # of all images of a page together; base64 makes a third more of it


@dataclass(frozen=True)
class BoxState:
    """What a box on an image says: how it is drawn, and what it means."""

    title: str
    explanation: str
    color: str  # as CSS writes it
    is_error: bool = True
    is_object: bool = False  # an object of the ground truth, drawn dashed; else a detection


STATES = {
    "correct": BoxState("correct", "a detection that finds an object of its class", "#12b886", is_error=False),
    "class": BoxState("class", "a detection on an object of another class", "#b07cff"),
    "localisation": BoxState("localisation", "a detection of the right class, too far off", "#2f9bff"),
    "both": BoxState("class and localisation", "a detection of another class, and too far off", "#ff6ad5"),
    "duplicate": BoxState("duplicate", "a further detection of an object that is found already", "#d9c400"),
    "background": BoxState("background", "a detection where no object is", "#ffa600"),
    "missed": BoxState("missed", "an object that no detection finds", "#ff4d5e", is_object=True),
    "explained": BoxState("explained", "an object that is not found, but meant by a wrong detection", "#ff8c69",
                          is_object=True),
    "found": BoxState("found object", "an object that is found", "#c3ccd4", is_error=False, is_object=True),
    "crowd": BoxState("crowd", "a region of many objects, which counts neither way", "#8d99a5", is_error=False,
                      is_object=True),
    "unlabelled": BoxState("unlabelled", "a confident detection where no annotation is", "#ffa600"),
    "wrong class": BoxState("wrong class", "an annotation that is confidently taken for another class", "#b07cff",
                            is_object=True),
    "never found": BoxState("never found", "an annotation that no detection touches", "#ff4d5e", is_object=True),
    "ignored": BoxState("ignored", "a detection that counts neither way", "#8d99a5", is_error=False),
}  # fmt: skip


@dataclass(frozen=True)
class BoxOnImage:
    """An object or a detection, and what is right or wrong with it."""

    box_xyxy: Sequence[float]  # original pixels
    class_name: str
    state: str  # key of STATES
    score: float | None = None  # of a detection
    detector: str = ""  # whose detections were judged; a box of one detector is not shown with another one
    remark: str = ""  # more about this box


@dataclass(frozen=True)
class ReportImage:
    """One image and its boxes."""

    name: str
    size_wh: tuple[int, int]  # original pixels
    boxes: Sequence[BoxOnImage]
    read: Callable[[], np.ndarray | None]  # the pixels, uint8 BGR [H W 3]; None where they cannot be read
    remark: str = ""


class JpegBudget:
    """Counts the bytes of the images that are put into a page."""

    def __init__(self, limit: int = IMAGE_BYTES) -> None:
        self.left = limit

    def uri(self, image_bgr: np.ndarray) -> str | None:
        """Return an image [H W 3] as a data URI, None where it is too large for what is left."""
        text = jpeg_uri(image_bgr)
        if len(text) * 3 // 4 > self.left:
            return None
        self.left -= len(text) * 3 // 4
        return text


def jpeg_uri(image_bgr: np.ndarray) -> str:
    """Return an image [H W 3] as a data URI that holds a JPEG, at most IMAGE_PIXELS long."""
    height, width = image_bgr.shape[:2]
    scale = IMAGE_PIXELS / max(height, width)
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        image_bgr = cv2.resize(image_bgr, size, interpolation=cv2.INTER_AREA)
    encoded = cv2.imencode(".jpg", image_bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode("ascii")


def images_data(images: Iterable[ReportImage], budget: JpegBudget) -> dict[str, Any]:
    """Return what the page draws of some images; ``page/detections.js`` reads exactly these keys.

    A box is [x1, y1, x2, y2, class, state, score, detector, remark], its class and detector as places in the lists of
    names; the score is None for an object.

    Args:
        images: the most important first; those for which nothing is left of the budget are left out and counted.
        budget: of the page.
    """
    detectors: dict[str, int] = {}
    classes: dict[str, int] = {}
    used: set[str] = set()
    values: list[dict[str, Any]] = []
    unreadable = left_out = 0
    for image in images:
        pixels = image.read()
        uri = None if pixels is None else budget.uri(pixels)
        if uri is None:
            unreadable += pixels is None
            left_out += pixels is not None
            continue
        boxes = []
        for box in image.boxes:
            used.add(box.state)
            label = classes.setdefault(box.class_name, len(classes))
            detector = detectors.setdefault(box.detector, len(detectors))
            score = None if box.score is None else round(box.score, 3)
            boxes.append([*rounded(box.box_xyxy), label, box.state, score, detector, box.remark])
        width, height = image.size_wh
        values.append({"name": printable(image.name), "width": width, "height": height, "jpeg": uri, "boxes": boxes,
                       "remark": image.remark})  # fmt: skip
    return {
        "images": values,
        "classes": list(classes),
        "detectors": list(detectors),
        "states": {
            name: {"title": state.title, "text": state.explanation, "color": state.color,
                   "is_error": state.is_error, "is_object": state.is_object}
            for name, state in STATES.items() if name in used
        },
        "unreadable": unreadable,
        "left_out": left_out,
    }  # fmt: skip


def rounded(values: Sequence[float]) -> list[float]:
    """Return numbers with one decimal: pixels to a tenth."""
    return [round(float(value), 1) for value in values]
