"""Class names: files of them, and how a name is written where some of its letters mean something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files import read_text

MAX_CLASSES = 100_000  # ImageNet's largest set has 21,841
MAX_BYTES = 10_000_000  # of a file with so many names


def read_names(path: Path) -> tuple[str, ...]:
    """Read a names file: one class name per line, blank lines at the end ignored.

    Raises:
        UserError: not a text file, a duplicate name, or more names than any data set has.
    """
    lines = read_text(path, MAX_BYTES).rstrip().splitlines()
    if len(lines) > MAX_CLASSES:
        raise UserError(f"{path}:{MAX_CLASSES + 1}: more than {MAX_CLASSES:,} class names; is it another kind of file?")
    seen: dict[str, None] = {}
    for number, line in enumerate(lines, 1):
        name = line.strip()
        if not name:
            raise UserError(f"{path}:{number}: an empty line where a class name is expected")
        if name in seen:
            raise UserError(f"{path}:{number}: duplicate class name '{name:.80}'")
        seen[name] = None
    return tuple(seen)


def is_class_name(value: Any) -> bool:
    """Whether a value of a file can be a class name: text that can be written to a file again."""
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def on_one_line(text: str) -> str:
    """Return a text with a space for every line break, whatever its kind."""
    return " ".join(text.splitlines())


def in_plot(text: str) -> str:
    """Return a text for matplotlib, which would read what stands between two dollar signs as mathematics."""
    return text.replace("$", r"\$")
