"""The one place that turns the result of an analysis into JSON, Markdown, CSV and PNG files.

Every analysis returns a :class:`Result`; ``docs/analysis.md`` documents each field of its statistics.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.output.pictures import ReportImage
from data.labels.annotations import Annotations, summarise_problems
from utils.files import atomic_path, write_json_atomically, write_text_atomically
from utils.tables import csv_table, markdown_table, markdown_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure  # takes half a second, and not every table has a plot

SCHEMA = "yolo-lab-analysis-2"
CONSOLE_ROWS = 24  # longer tables are cut on the console, not in the files
LISTING_ROWS = 8  # of a listing, on the console and in Markdown


@dataclass(frozen=True)
class Table:
    """Rows under named columns; a column whose name begins with "share" holds 0..1 and is shown in percent."""

    name: str  # file stem of the CSV
    title: str  # heading, with the unit where the columns do not say it
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]  # str, int, float, or None for "undefined"
    listing: bool = False  # single objects, perhaps thousands: a few rows in the Markdown, all in the CSV
    explanations: Mapping[str, str] = field(default_factory=dict)  # column -> what it holds; else as in the glossary


Cell = str | Callable[[Mapping[str, Any]], Any]  # how to get a value of a row: a key, keys as "outer/inner", a function


def table_of(
    name: str, title: str, rows: Iterable[Mapping[str, Any]], columns: Mapping[str, Cell], listing: bool = False
) -> Table:
    """Return a table of rows that are mappings, perhaps nested ones.

    Args:
        name: as in :class:`Table`.
        title: as in :class:`Table`.
        rows: of the statistics.
        columns: heading of a column -> how to get its value of a row.
        listing: as in :class:`Table`.

    Raises:
        KeyError: a row lacks a key. A value that is undefined must be None in the row: if a missing key meant this, a
            misspelt one would, too.
    """
    cells = tuple(tuple(value_at(row, where) for where in columns.values()) for row in rows)
    return Table(name, title, tuple(columns), cells, listing)


def value_at(row: Mapping[str, Any], where: Cell) -> Any:
    """Return one value of a row that is a mapping, perhaps a nested one.

    Raises:
        KeyError: the row lacks a key.
    """
    if callable(where):
        return where(row)
    value: Any = row
    for key in where.split("/"):
        value = value[key]
    return value


def rows_of(entries: Mapping[str, Mapping[str, Any]], heading: str) -> Iterator[dict[str, Any]]:
    """Yield the entries of a mapping as rows, each with its key under ``heading`` before its own values."""
    for key, entry in entries.items():
        yield {heading: key, **entry}


@dataclass(frozen=True)
class Plot:
    """A plot with its title."""

    title: str
    figure: Figure
    explanation: str = ""


@dataclass(frozen=True)
class ReportSection:
    """One part of a report."""

    title: str
    explanation: str = ""  # a few sentences; a blank line begins a paragraph
    tables: Sequence[Table] = ()
    plots: Sequence[Plot] = ()
    images: Sequence[ReportImage] = ()  # the most important first: they are put in until the page is full
    facts: Mapping[str, Any] = field(default_factory=dict)  # name -> single value
    notes: Sequence[str] = ()
    has_csv: bool = False  # each table has a file of its name beside the report


@dataclass(frozen=True)
class Result:
    """What one analysis found."""

    mode: str  # dataset-stats, anchor-stats, ...
    data: dict[str, Any]  # what was analysed: files, counts, settings
    statistics: dict[str, Any]  # the numbers, under the schema of docs/analysis.md
    tables: tuple[Table, ...]
    plots: Mapping[str, Figure] = field(default_factory=dict)  # file stem -> plot
    notes: tuple[str, ...] = ()  # sentences for the reader, warnings first
    folder: Path | None = None  # where the analysis has written files while it ran; None: a folder is made afterwards
    browser: dict[str, Any] | None = None  # single images with their matches, for --report
    sections: tuple[ReportSection, ...] = ()  # what --report shows; empty: what is above


def with_problems(result: Result, annotations: Annotations) -> Result:
    """Return the result with a note for each kind of label problem: how many, and the first one's file and line."""
    lines = [f"labels: {line}" for line in summarise_problems(annotations.problems)]
    return replace(result, notes=(*lines, *result.notes))


def plain(value: Any) -> Any:
    """Return ``value`` in the types of JSON: numpy becomes Python, tuples become lists, what is not finite, None."""
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(one) for one in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def share(part: float, whole: float) -> float | None:
    """Return ``part / whole``, or None where ``whole`` is 0."""
    return float(part) / float(whole) if whole else None


def mean(values: np.ndarray) -> float | None:
    """Return the mean of [M] values, or None where there are none."""
    return float(np.mean(values)) if len(values) else None


def counted(flags: np.ndarray) -> dict[str, Any]:
    """Return how many of some objects are marked, [M] bool, and their share; None for the share of no objects."""
    return {"objects": int(flags.sum()), "object_share": share(flags.sum(), len(flags))}


def distribution(counts: np.ndarray) -> dict[str, Any]:
    """Return mean and maximum of a count per object, [M] int, and how many objects have each count, from 0 on."""
    return {
        "mean": share(counts.sum(), len(counts)),
        "max": int(counts.max(initial=0)),
        "counts": np.bincount(counts, minlength=1).tolist() if len(counts) else [],
    }


def as_markdown(table: Table, max_rows: int | None = None) -> str:
    """Return a table under its title; beyond ``max_rows`` rows, a last line says how many more the CSV has."""
    shown = table.rows if max_rows is None else table.rows[:max_rows]
    cells = [[as_cell(value, column) for value, column in zip(row, table.columns, strict=True)] for row in shown]
    text = markdown_table([table.columns, *cells], [is_number_column(table, i) for i in range(len(table.columns))])
    if len(shown) < len(table.rows):
        text += f"\n\n{len(table.rows) - len(shown)} more rows in {table.name}.csv"
    return f"### {markdown_text(table.title)}\n\n{text}\n"


def as_csv(table: Table) -> str:
    """Return a table as CSV with a header line; shares stay numbers in 0..1, an undefined value is an empty cell."""
    return csv_table([table.columns, *map(plain, table.rows)])


def as_document(result: Result, command: str) -> dict[str, Any]:
    """Return the content of ``results.json``."""
    return {
        "schema": SCHEMA,
        "mode": result.mode,
        "command": command,
        "data": plain(result.data),
        "statistics": plain(result.statistics),
        "notes": list(result.notes),
    }


def write_result(result: Result, folder: Path, command: str) -> None:
    """Write results.json, tables.md, one CSV per table and one PNG per plot into ``folder``; make it if needed."""
    folder.mkdir(parents=True, exist_ok=True)
    for table in result.tables:
        write_text_atomically(folder / f"{table.name}.csv", as_csv(table))
    for stem, figure in result.plots.items():
        with atomic_path(folder / f"{stem}.png") as temporary:
            figure.savefig(temporary, dpi=110)
    head = f"# {result.mode}\n\n`{command}`\n"
    tables = (as_markdown(table, LISTING_ROWS if table.listing else None) for table in result.tables)
    parts = [head, *tables, *(f"- {markdown_text(note)}\n" for note in result.notes)]
    write_text_atomically(folder / "tables.md", "\n".join(parts))
    write_json_atomically(folder / "results.json", as_document(result, command))


def print_result(result: Result) -> None:
    """Print the tables and notes for a reader at the console."""
    for table in result.tables:
        print(as_markdown(table, LISTING_ROWS if table.listing else CONSOLE_ROWS))
    for note in result.notes:
        print(f"- {note}")


def is_number_column(table: Table, index: int) -> bool:
    """Whether a column holds numbers only, so that it is aligned to the right."""
    return all(row[index] is None or isinstance(row[index], (int, float, np.number)) for row in table.rows)


def as_cell(value: Any, column: str) -> str:
    """Return a value as tables show it to a reader; ``column`` is the heading of its column."""
    value = plain(value)
    if value is None:
        return "-"
    if isinstance(value, float):
        if column.startswith("share"):
            return f"{value * 100:.2f} %"
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.1f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)
