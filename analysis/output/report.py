"""Reports: tables, plots and images with boxes in one HTML file that needs no network.

This file prepares plain values; HTML, style and programs are in the folder ``page``.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from analysis.output.glossary import explained
from analysis.output.pictures import JpegBudget, images_data
from analysis.output.result import Plot, ReportSection, Result, Table, as_cell, is_number_column, plain
from utils.config import option
from utils.files import write_text_atomically
from utils.words import how_many

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE = Path(__file__).parent / "page"
TEMPLATE = "report.html.j2"
STYLE = "report.css"
PROGRAMS = ("tables.js", "stage.js", "matches.js", "detections.js", "start.js")  # in this order
TABLE_ROWS = 200  # of a table in the report; the CSV has all
LISTING_ROWS = 40
# A number as the tables write it, perhaps with its interval, its spread over runs, and the mark of a difference
# that may be none.
NUMBER = re.compile(
    r"(?P<number>[-+−]?\d[\d,]*(\.\d+)?(e[-+]?\d+)?)( ?%)?( ± [\d.]+[^\[\]]*)?( \[[^\[\]]*\])?( ± [^\[\]]*)?( \(0\))?"
)
UNDEFINED = ("-", "")


@dataclass(frozen=True)
class ReportOptions:
    """One file with all that was found, for a browser."""

    report: bool = option(False, "write report.html: tables, plots, and single images with their boxes, in one file")
    report_images: int = option(24, "images in the report, the most difficult first")

    def __post_init__(self) -> None:
        if self.report_images < 0:
            raise ValueError(f"--report-images must not be negative, not {self.report_images}")


def write_report(results: Sequence[Result], path: Path, command: str) -> None:
    """Write the report of some analyses.

    Args:
        results: of these analyses; the first one with ``browser`` gives the single images with their matches.
        path: of the HTML file.
        command: that makes it again.

    Raises:
        ValueError: the browser's data contain a NaN or an infinity, which JSON does not know.
    """
    sections = [section for result in results for section in sections_of(result)]
    matches = next((result.browser for result in results if result.browser), None)
    numbers = {result.mode: plain(result.statistics) for result in results if result.sections}
    write_page(path, "Analysis report", command, sections, matches, numbers)


def sections_of(result: Result) -> Sequence[ReportSection]:
    """Return what a report shows of one analysis: its own sections, else single facts, notes, tables and plots."""
    if result.sections:
        return result.sections
    single = {name: value for name, value in result.data.items() if not isinstance(value, (list, tuple, dict))}
    plots = [Plot(name, figure) for name, figure in result.plots.items()]
    return [ReportSection(result.mode, "", result.tables, plots, facts=single, notes=result.notes, has_csv=True)]


def write_page(
    path: Path,
    title: str,
    command: str,
    sections: Sequence[ReportSection],
    matches: dict[str, Any] | None = None,
    numbers: Any = None,
) -> None:
    """Write one HTML file that holds all it shows.

    Args:
        path: of the file.
        title: of the page.
        command: that makes it again.
        sections: in the order of the page.
        matches: images with the slots that strategies match, as ``analysis/matching/browser.py`` makes them.
        numbers: anything that JSON can hold; it is put into the page for programs, and not shown.

    Raises:
        ValueError: what is to be JSON contains a NaN or an infinity.
    """
    environment = Environment(
        loader=FileSystemLoader(PAGE),
        autoescape=True,  # for every template: the default looks at the end of the file's name, and ours is .j2
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    budget = JpegBudget()
    names = unique_names([section.title for section in sections])
    images = {
        name: images_data(section.images, budget)
        for name, section in zip(names, sections, strict=True)
        if section.images
    }
    text = environment.get_template(TEMPLATE).render(
        title=title,
        command=command,
        style=Markup((PAGE / STYLE).read_text(encoding="utf-8")),
        program=Markup("\n".join((PAGE / name).read_text(encoding="utf-8") for name in PROGRAMS)),
        sections=[section_values(section, name, images) for section, name in zip(sections, names, strict=True)],
        has_matches=bool(matches and matches["images"]),
        data={"matches": matches, "images": images, "numbers": numbers},
    )
    write_text_atomically(path, text)


def unique_names(titles: Sequence[str]) -> list[str]:
    """Return a name for the address of each section, of letters, digits and hyphens, no two alike."""
    names: list[str] = []
    for title in titles:
        stem = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "section"
        name, number = stem, 2
        while name in names or name == "browser":
            name, number = f"{stem}-{number}", number + 1
        names.append(name)
    return names


def section_values(section: ReportSection, name: str, images: dict[str, Any]) -> dict[str, Any]:
    """Return what the template shows of a section, whose name in the address is given."""
    shown = images.get(name)
    return {
        "name": name,
        "title": section.title,
        "paragraphs": [part for part in section.explanation.split("\n\n") if part],
        "facts": section.facts,
        "notes": [*section.notes, *(image_notes(shown) if shown else ())],
        "tables": [table_values(table, section.has_csv) for table in section.tables],
        "plots": [
            {
                "title": plot.title,
                "explanation": plot.explanation,
                "uri": png_uri(plot.figure),
                "is_captioned": not section.has_csv,  # those of the analyses bear their titles
            }
            for plot in section.plots
        ],
        "has_images": bool(shown and shown["images"]),
    }


def image_notes(shown: dict[str, Any]) -> list[str]:
    """Return sentences about images that are not in the page."""
    notes = []
    if shown["unreadable"]:
        notes.append(f"not shown: {how_many(shown['unreadable'], 'image')} not on the disk, or not to be read")
    if shown["left_out"]:
        notes.append(f"left out: {how_many(shown['left_out'], 'image')}, so that this file does not grow too large")
    return notes


def table_values(table: Table, has_csv: bool = True) -> dict[str, Any]:
    """Return a table as text: its first rows, what its columns hold, and how many rows are left out."""
    limit = LISTING_ROWS if table.listing and has_csv else TABLE_ROWS
    shown = table.rows[:limit]
    columns = [[row[index] for row in shown] for index in range(len(table.columns))]
    keys = [sorting_keys(values) for values in columns]
    explanations = [table.explanations.get(name) or explained(name) for name in table.columns]
    left_out = len(table.rows) - len(shown)
    where = f"in {table.name}.csv" if has_csv else "are left out here"
    return {
        "title": table.title,
        "columns": [
            {"name": name, "explanation": text, "is_number": is_number_column(table, index) or keys[index] is not None}
            for index, (name, text) in enumerate(zip(table.columns, explanations, strict=True))
        ],
        "rows": [
            [
                cell_values(value, column, None if key is None else key[place])
                for value, column, key in zip(row, table.columns, keys, strict=True)
            ]
            for place, row in enumerate(shown)
        ],
        "rest": f"{left_out:,} more rows {where}" if left_out else "",
        "is_open": not table.listing and len(table.rows) <= LISTING_ROWS,
    }


def cell_values(value: Any, column: str, key: float | None) -> dict[str, Any]:
    """Return a value as text, what stands smaller beside it (the interval of a number), and the number to sort by."""
    # Text stays as it is: as_cell would escape "|" for Markdown.
    text = value if isinstance(value, str) else as_cell(value, column)
    number, _, rest = text.partition(" ") if key is not None and " [" in text else (text, "", "")
    return {"text": number, "rest": rest, "key": key}


def sorting_keys(values: Sequence[Any]) -> list[float | None] | None:
    """Return the number by which each cell of a column is sorted, None for an undefined one; None for a column of text.

    A number with its interval, as ``0.159 [0.141, 0.194]``, is sorted by the number.
    """
    keys: list[float | None] = []
    for value in plain(list(values)):
        found = NUMBER.fullmatch(value) if isinstance(value, str) else None
        if value is None or (isinstance(value, str) and value in UNDEFINED):
            keys.append(None)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            keys.append(value)
        elif found:
            keys.append(float(found["number"].replace(",", "").replace("−", "-")))
        else:
            return None
    return keys if any(key is not None for key in keys) else None


def png_uri(figure: Figure) -> str:
    """Return a plot as a data URI that holds a PNG."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=100)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
