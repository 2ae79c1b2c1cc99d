"""What the report's browser for single images draws, as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analysis.matching.measure import MeasurementPlan
from analysis.matching.views import ImageView
from analysis.output.pictures import JpegBudget, rounded
from utils.draw import class_color, class_name


def browser_data(views: Sequence[ImageView], names: Sequence[str], plan: MeasurementPlan) -> dict[str, Any]:
    """Return what the browser draws; ``analysis/output/page/matches.js`` reads exactly these keys.

    A slot is [object, head, anchor, row, column, cell, box, q, objectness, base, extra]; the last two are bit masks of
    the strategies, and objectness is null where the heads have none. Boxes are [x1, y1, x2, y2] in original pixels.

    Args:
        views: of the images; those for which the page has no room are left out.
        names: of the classes.
        plan: by which the images were viewed.
    """
    budget = JpegBudget()
    pictures = [(view, budget.uri(view.pixels)) for view in views]
    return {
        "strategies": list(plan.strategies),
        "kind": plan.kinds[0],
        "heads": [
            {"stride": head.stride, "anchors": [list(wh) for wh in head.anchors_wh]} for head in plan.detector.heads
        ],
        "images": [_image_data(view, uri, names) for view, uri in pictures if uri],
    }


def _image_data(view: ImageView, uri: str, names: Sequence[str]) -> dict[str, Any]:
    height, width = view.pixels.shape[:2]
    found = view.detections
    return {
        "id": view.image_id,
        "name": Path(view.path).name,
        "width": width,
        "height": height,
        "jpeg": uri,
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
             round(slot.q, 3), slot.objectness and round(slot.objectness, 3), bits(slot.base), bits(slot.extra)]
            for slot in view.slots
        ],
    }  # fmt: skip


def bits(flags: Sequence[bool]) -> int:
    """Return flags as a number whose bit ``i`` is flag ``i``."""
    return sum(1 << index for index, flag in enumerate(flags) if flag)


def css_color(label: int) -> str:
    """Return the colour of a class as CSS writes it."""
    blue, green, red = class_color(label)
    return f"#{red:02x}{green:02x}{blue:02x}"
