"""Rows of cells as aligned text, as a table in Markdown and as CSV; the first row is the heading."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from typing import Any

from utils.class_names import on_one_line

Rows = Sequence[Sequence[str]]


def text_table(rows: Rows) -> str:
    """Return rows as text, every column as wide as its widest cell and aligned to the right."""
    widths = _widths(rows)
    return "\n".join("  ".join(_padded(row, widths, [True] * len(row))).rstrip() for row in rows)


def markdown_table(rows: Rows, right: Sequence[bool]) -> str:
    """Return rows as a table in Markdown that can be read as text, too.

    Args:
        rows: the heading and what follows.
        right: for each column, whether it is aligned to the right.
    """
    escaped = [[markdown_text(cell).replace("|", "\\|") for cell in row] for row in rows]
    widths = [max(3, width) for width in _widths(escaped)]
    lines = ["| " + " | ".join(_padded(row, widths, right)) + " |" for row in escaped]
    rule = ("-" * (width + 1) + (":" if is_right else "-") for width, is_right in zip(widths, right, strict=True))
    return "\n".join([lines[0], "|" + "|".join(rule) + "|", *lines[1:]])


def csv_table(rows: Iterable[Sequence[Any]]) -> str:
    """Return rows as CSV; None is an empty cell."""
    text = io.StringIO()
    # A carriage return alone would not be put in quotes, though readers take it for the end of the row.
    csv.writer(text, lineterminator="\n").writerows(
        [cell.replace("\r", " ") if isinstance(cell, str) else cell for cell in row] for row in rows
    )
    return text.getvalue()


def markdown_text(text: str) -> str:
    """Return a text on one line that holds no HTML: the start of a comment would hide the rest of the file."""
    return re.sub(r"<(?=[A-Za-z/!?])", r"\\<", on_one_line(text))


def _widths(rows: Rows) -> list[int]:
    return [max(map(len, column)) for column in zip(*rows, strict=True)]


def _padded(row: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> list[str]:
    return [
        cell.rjust(width) if is_right else cell.ljust(width)
        for cell, width, is_right in zip(row, widths, right, strict=True)
    ]
