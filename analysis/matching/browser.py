"""What the report's browser for single images draws, as plain values."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from analysis.matching.measure import MeasurementPlan
from analysis.matching.views import ImageView
from utils.draw import class_color, class_name

IMAGE_PIXELS = 960  # longest side of an embedded image
JPEG_QUALITY = 80


def jpeg_uri(image_bgr: np.ndarray) -> str:
    """Return an image [H W 3] as a data URI that holds a JPEG, at most IMAGE_PIXELS long."""
    height, width = image_bgr.shape[:2]
    scale = IMAGE_PIXELS / max(height, width)
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        image_bgr = cv2.resize(image_bgr, size, interpolation=cv2.INTER_AREA)
    encoded = cv2.imencode(".jpg", image_bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode("ascii")


def browser_data(views: Sequence[ImageView], names: Sequence[str], plan: MeasurementPlan) -> dict[str, Any]:
    """Return what the browser draws; ``report.html.j2`` reads exactly these keys.

    A slot is [object, head, anchor, row, column, cell, box, q, objectness, base, extra]; the last two are bit masks of
    the strategies. Boxes are [x1, y1, x2, y2] in original pixels.

    Args:
        views: of the images.
        names: of the classes.
        plan: by which the images were viewed.
    """
    return {
        "strategies": list(plan.strategies),
        "kind": plan.kinds[0],
        "heads": [
            {"stride": head.stride, "anchors": [list(wh) for wh in head.anchors_wh]} for head in plan.detector.heads
        ],
        "images": [_image_data(view, names) for view in views],
    }


def _image_data(view: ImageView, names: Sequence[str]) -> dict[str, Any]:
    height, width = view.pixels.shape[:2]
    found = view.detections
    return {
        "id": view.image_id,
        "name": Path(view.path).name,
        "width": width,
        "height": height,
        "jpeg": jpeg_uri(view.pixels),
        "objects": [
            {"box": rounded(box), "name": class_name(label, names), "id": int(number)}
            for box, label, number in zip(view.boxes_xyxy, view.labels, view.annotation_ids, strict=True)
        ],
        "detections": [
            {"box": rounded(box), "name": class_name(label, names), "color": css_color(label), "score": round(score, 3)}
            for box, score, label in zip(
                found.boxes_xyxy.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True
            )
        ],
        "slots": [
            [slot.target, slot.head, slot.anchor, slot.row, slot.col, rounded(slot.cell_xyxy), rounded(slot.box_xyxy),
             round(slot.q, 3), round(slot.objectness, 3), bits(slot.base), bits(slot.extra)]
            for slot in view.slots
        ],
    }  # fmt: skip


def rounded(values: Sequence[float]) -> list[float]:
    """Return numbers with one decimal: pixels to a tenth."""
    return [round(float(value), 1) for value in values]


def bits(flags: Sequence[bool]) -> int:
    """Return flags as a number whose bit ``i`` is flag ``i``."""
    return sum(1 << index for index, flag in enumerate(flags) if flag)


def css_color(label: int) -> str:
    """Return the colour of a class as CSS writes it."""
    blue, green, red = class_color(label)
    return f"#{red:02x}{green:02x}{blue:02x}"
