"""``analyze.py --report``: tables, plots and a browser for single images in one HTML file that needs no network.

This file prepares plain values; all HTML is in ``report.html.j2``.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from analysis.output.result import Result, Table, as_cell, is_number_column
from utils.config import option
from utils.files import write_text_atomically

TEMPLATE = "report.html.j2"  # beside this file
TABLE_ROWS = 200  # of a table in the report; the CSV has all
LISTING_ROWS = 40


@dataclass(frozen=True)
class ReportOptions:
    """What the report of --report contains."""

    report: bool = option(False, "write the chosen analyses into one HTML file, with a browser for single images")
    report_images: int = option(24, "images in the report's browser, spread evenly over the data")

    def __post_init__(self) -> None:
        if self.report_images < 0:
            raise ValueError(f"--report-images must not be negative, not {self.report_images}")


def write_report(results: Sequence[Result], path: Path, command: str) -> None:
    """Write the report of some analyses.

    Args:
        results: of these analyses; the first one with ``browser`` gives the single images.
        path: of the HTML file.
        command: that makes it again.

    Raises:
        ValueError: the browser's data contain a NaN or an infinity, which JSON does not know.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # for every template: the default looks at the end of the file's name, and ours is .j2
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    text = environment.get_template(TEMPLATE).render(
        command=command,
        sections=[section_values(result) for result in results],
        browser=next((result.browser for result in results if result.browser), None),
    )
    write_text_atomically(path, text)


def section_values(result: Result) -> dict[str, Any]:
    """Return what the template shows of one analysis: its mode, single facts, notes, tables, and plots as data URIs."""
    return {
        "mode": result.mode,
        "facts": {name: value for name, value in result.data.items() if not isinstance(value, (list, tuple, dict))},
        "notes": result.notes,
        "tables": [table_values(table) for table in result.tables],
        "plots": {name: png_uri(figure) for name, figure in result.plots.items()},
    }


def table_values(table: Table) -> dict[str, Any]:
    """Return a table as text: its first rows, which columns hold numbers, and how many rows are left out."""
    limit = LISTING_ROWS if table.listing else TABLE_ROWS
    return {
        "name": table.name,
        "title": table.title,
        "columns": table.columns,
        "is_number": [is_number_column(table, index) for index in range(len(table.columns))],
        "rows": [
            [as_cell(value, column) for value, column in zip(row, table.columns, strict=True)]
            for row in table.rows[:limit]
        ],
        "rows_left_out": max(0, len(table.rows) - limit),
        "is_open": not table.listing and len(table.rows) <= LISTING_ROWS,
    }


def png_uri(figure: Figure) -> str:
    """Return a plot as a data URI that holds a PNG."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=100)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
