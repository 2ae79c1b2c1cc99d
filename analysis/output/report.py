"""``analyze.py --report``: tables, figures and a browser for single images in one HTML file that needs no network."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from analysis.output.result import Result, Table, as_cell, is_number_column
from utils.config import option
from utils.files import write_text_atomically

TEMPLATE = Path(__file__).with_name("report_template.html")
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
