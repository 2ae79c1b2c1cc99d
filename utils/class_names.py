"""Files of class names."""

from __future__ import annotations

from pathlib import Path

from utils.errors import UserError


def read_names(path: Path) -> tuple[str, ...]:
    """Read a names file: one class name per line, blank lines at the end ignored.

    Raises:
        UserError: not a text file, or a duplicate name.
    """
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().splitlines()]
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not a UTF-8 text file") from error
    for line, name in enumerate(names, 1):
        if not name:
            raise UserError(f"{path}:{line}: an empty line where a class name is expected")
        if names.index(name) != line - 1:
            raise UserError(f"{path}:{line}: duplicate class name '{name}'")
    return tuple(names)
