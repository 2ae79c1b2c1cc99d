"""Darknet's tree files, such as ``9k.tree``: per class a line with its name and the number of the class above or -1."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

from models.darknet.section import Section
from models.heads import ClassTree
from utils.errors import UserError

MAX_BYTES = 10_000_000  # the published tree of YOLO9000 has 140 kB


def read_class_tree(section: Section) -> ClassTree:
    """Read the file that a section's key ``tree`` names.

    It is looked for as written, from the working directory as in Darknet; then from the folders of the cfg and above
    it; then under its bare name beside the cfg.

    Raises:
        UserError: no such file, no tree, or not one line per class; with file and line.
    """
    name, folder = Path(section["tree"]), Path(section.source).parent
    places = (name, folder / name, folder.parent / name, folder / name.name)
    path = next((place for place in places if os.path.isfile(place)), None)  # False for impossible names
    if path is None:
        raise section.error(f"tree={name}: no such file here or beside the cfg; put it there", "tree")
    try:
        if path.stat().st_size > MAX_BYTES:
            raise section.error(f"tree={name}: {path} has more than {MAX_BYTES:,} bytes; is this a tree?", "tree")
        lines = path.read_text(encoding="utf-8", errors="replace").rstrip().split("\n")
    except OSError as error:
        raise section.error(f"tree={name}: {path}: {error.strerror or error}", "tree") from error
    if len(lines) != section["classes"]:
        raise section.error(f"tree={name}: {path} has {len(lines)} lines, not one for each of classes="
                            f"{section['classes']}", "tree")  # fmt: skip
    parents = tuple(_parent(line, number, path) for number, line in enumerate(lines))
    # A group ends where the parent changes, as in Darknet's read_tree (src/tree.c).
    groups = [0]
    for before, parent in pairwise(parents):
        groups.append(groups[-1] + (parent != before))
    return ClassTree(parents, tuple(groups))


def _parent(line: str, number: int, path: Path) -> int:
    """Return the parent that a line names: an earlier class, or -1."""
    words = line.split()
    try:
        parent = int(words[1]) if len(words) > 1 else -1
    except ValueError:
        parent = number
    if not words or not -1 <= parent < number:
        raise UserError(f"{path}:{number + 1}: expected a name and the number of an earlier line, from 0, or -1")
    return parent
