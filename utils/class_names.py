"""Files of class names, and lists of names compared with each other."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utils.errors import UserError, suggestion
from utils.files import read_text

MAX_CLASSES = 100_000  # ImageNet's largest set has 21,841
MAX_BYTES = 10_000_000  # of a file with so many names

# Darknet's words for COCO's classes (its data/coco.names); "pottedplant" and "diningtable" differ by a space only.
OTHER_WORDS = {"motorbike": "motorcycle", "aeroplane": "airplane", "sofa": "couch", "tvmonitor": "tv"}


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


def places_in(names: Sequence[str], others: Sequence[str]) -> list[int | None]:
    """Return for each name the index of the same class in the other list, None where that has no such class.

    Names are the same without regard to capitals, spaces, hyphens and underscores, and in COCO's words as in Darknet's.
    Names of one list that differ in nothing else are only compared letter by letter.
    """
    counts = [Counter(map(_plain, of_list)) for of_list in (names, others)]

    def key(name: str) -> str:
        return name if any(count[_plain(name)] > 1 for count in counts) else _plain(name)

    places = {key(name): index for index, name in enumerate(others)}
    return [places.get(key(name)) for name in names]


def first_moved(names: Sequence[str], others: Sequence[str]) -> int | None:
    """Return the index of the first name that stands at another place of the other list.

    None: as far as the lists have names in common these stand at the same places, so that two lists of one length are
    the same order of classes, perhaps in other words.
    """
    places = enumerate(places_in(names, others))
    return next((index for index, place in places if place not in (None, index)), None)


def are_numbers(names: Sequence[str]) -> bool:
    """Whether the names are but the index of each class, as "0" and "class 0" are where nobody named the classes."""
    return all(_plain(name) in (str(index), f"class{index}") for index, name in enumerate(names))


def class_numbers(wanted: Sequence[str | int], names: Sequence[str]) -> list[int]:
    """Return the class indices that the user means by names or numbers.

    Raises:
        UserError: there is no such class.
    """
    numbers = []
    for text in map(str, wanted):
        if text in names:
            numbers.append(list(names).index(text))
        elif text.isdecimal() and len(text) < 10 and int(text) < len(names):
            numbers.append(int(text))
        else:
            raise UserError(f"--classes {text}: not a class of this network{suggestion(text, names)}")
    return numbers


def _plain(name: str) -> str:
    """Return what names of the same class have in common."""
    letters = re.sub(r"[\s_-]+", "", name.casefold())
    return OTHER_WORDS.get(letters, letters)


def on_one_line(text: str) -> str:
    """Return a text with a space for every line break, whatever its kind."""
    return " ".join(text.splitlines())
