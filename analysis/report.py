"""``analyze.py --report``: tables, figures and a browser for single images in one HTML file that needs no network."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib.figure import Figure

from analysis.image_views import ImageView
from analysis.matching_stats import Plan
from analysis.tables import Result, Table, as_cell, is_number_column
from utils.config import option
from utils.draw import class_color, class_name
from utils.files import write_text_atomically

TEMPLATE = Path(__file__).with_name("report_template.html")
IMAGE_PIXELS = 960  # longest side of an embedded image
JPEG_QUALITY = 80
TABLE_ROWS = 200  # of a table in the report; the CSV has all
LISTING_ROWS = 40


@dataclass(frozen=True)
class ReportOptions:
    """What the report of --report holds."""

    report: bool = option(False, "write the chosen analyses into one HTML file, with a browser for single images")
    report_images: int = option(24, "images in the report's browser, spread evenly over the data")

    def __post_init__(self) -> None:
        if self.report_images < 0:
            raise ValueError(f"--report-images must not be negative, not {self.report_images}")


def write_report(results: Sequence[Result], path: Path, command: str) -> None:
    """Write the report of some analyses.

    Args:
        results: what they found; the first one that has a browser gives the single images.
        path: of the HTML file.
        command: that makes it again.
    """
    browser = next((result.browser for result in results if result.browser), None)
    parts = {
        "COMMAND": html.escape(command),
        "NAVIGATION": "".join(f'<a href="#{result.mode}">{html.escape(result.mode)}</a>' for result in results),
        "SECTIONS": "\n".join(section(result) for result in results),
        # "</" could end the script element that holds the data.
        "DATA": json.dumps(browser, allow_nan=False, separators=(",", ":")).replace("</", "<\\/"),
    }
    text = TEMPLATE.read_text(encoding="utf-8")
    pieces = text.split("%%")  # every second piece is a key: nothing that is filled in is looked at again
    filled = [parts[piece] if index % 2 else piece for index, piece in enumerate(pieces)]
    write_text_atomically(path, "".join(filled))


def section(result: Result) -> str:
    """Return the HTML of one analysis."""
    facts = "".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(str(value))}</dd>"
        for name, value in result.data.items()
        if not isinstance(value, (list, tuple, dict))
    )
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in result.notes)
    figures = "".join(
        f'<figure><img alt="{html.escape(name)}" src="{png_uri(figure)}" loading="lazy" tabindex="0"></figure>'
        for name, figure in result.plots.items()
    )
    tables = "\n".join(as_html(table) for table in result.tables)
    return (
        f'<section id="{html.escape(result.mode)}"><h2>{html.escape(result.mode)}</h2><dl>{facts}</dl>'
        f'<ul class="notes">{notes}</ul>{tables}<div class="figures">{figures}</div></section>'
    )


def as_html(table: Table) -> str:
    """Return a table that folds; long ones are cut and say so."""
    limit = LISTING_ROWS if table.listing else TABLE_ROWS
    right = [is_number_column(table, index) for index in range(len(table.columns))]
    classes = [' class="n"' if one else "" for one in right]
    head = "".join(f"<th{one}>{html.escape(name)}</th>" for name, one in zip(table.columns, classes, strict=True))
    body = "".join(
        "<tr>"
        + "".join(
            f"<td{one}>{html.escape(value if isinstance(value, str) else as_cell(value, column))}</td>"
            for value, column, one in zip(row, table.columns, classes, strict=True)
        )
        + "</tr>"
        for row in table.rows[:limit]
    )
    more = len(table.rows) - limit
    cut = f"<p>{more} more rows in {html.escape(table.name)}.csv</p>" if more > 0 else ""
    is_open = "" if table.listing or len(table.rows) > LISTING_ROWS else " open"
    grid = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    title = html.escape(table.title)
    return f'<details{is_open}><summary>{title}</summary><div class="wide">{grid}</div>{cut}</details>'


def png_uri(figure: Figure) -> str:
    """Return a picture as a data URI."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=100)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def jpeg_uri(image_bgr: np.ndarray) -> str:
    """Return an image [H W 3] as a data URI, made smaller where it is large."""
    height, width = image_bgr.shape[:2]
    scale = IMAGE_PIXELS / max(height, width)
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        image_bgr = cv2.resize(image_bgr, size, interpolation=cv2.INTER_AREA)
    encoded = cv2.imencode(".jpg", image_bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode("ascii")


def browser_data(views: Sequence[ImageView], names: Sequence[str], plan: Plan) -> dict[str, Any]:
    """Return what the browser draws; ``report_template.html`` reads exactly these keys.

    A slot is [object, head, anchor, row, column, cell, box, q, objectness, std, new]; the last two are bit masks of
    the strategies. Boxes are [x1, y1, x2, y2] in original pixels.
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
            for box, score, label in zip(*(one.tolist() for one in vars(view.detections).values()), strict=True)
        ],
        "slots": [
            [slot.target, slot.head, slot.anchor, slot.row, slot.col, rounded(slot.cell_xyxy), rounded(slot.box_xyxy),
             round(slot.q, 3), round(slot.objectness, 3), bits(slot.std), bits(slot.new)]
            for slot in view.slots
        ],
    }  # fmt: skip


def rounded(values: Sequence[float]) -> list[float]:
    """Return numbers with one decimal: a tenth of a pixel."""
    return [round(float(value), 1) for value in values]


def bits(flags: Sequence[bool]) -> int:
    """Return flags as a number whose bit ``i`` is flag ``i``."""
    return sum(1 << index for index, flag in enumerate(flags) if flag)


def css_color(label: int) -> str:
    """Return the colour of a class as CSS writes it."""
    blue, green, red = class_color(label)
    return f"#{red:02x}{green:02x}{blue:02x}"
