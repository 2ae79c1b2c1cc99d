"""Pascal VOC labels: one XML file per image.

Coordinates are taken as they stand (``x1 = xmin, x2 = xmax``). Objects marked ``difficult`` are read as crowd regions:
VOC's own evaluation counts them neither as missed nor, where they are detected, as false.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat

import numpy as np

from data.labels.annotations import Problem
from data.labels.label_format import LabelFormat, LabelRows

MAX_DEPTH = 50  # of elements; an annotation has five
CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass
class VocObject:
    """One ``<object>``; ``values`` are the texts of its box, by tag."""

    line: int
    name: str = ""
    difficult: bool = False
    values: dict[str, str] = field(default_factory=dict)

    def corners(self) -> tuple[float, float, float, float] | None:
        """Return the box in pixels, or None where a corner is missing or not a number."""
        try:
            x1, y1, x2, y2 = (float(self.values[tag]) for tag in CORNERS)
        except (KeyError, ValueError):
            return None
        return x1, y1, x2, y2


@dataclass
class VocFile:
    """One annotation file; a width or height of 0 means that it does not say."""

    width: int = 0
    height: int = 0
    filename: str = ""
    objects: list[VocObject] = field(default_factory=list)


def parse_voc(data: bytes) -> VocFile:
    """Parse one XML file.

    Raises:
        ValueError: not well-formed XML, or not a VOC annotation; the message begins with the line.
    """
    result = VocFile()
    path: list[str] = []  # tags of the elements that are open, from the root
    texts: list[str] = []  # what stands in the innermost one, in pieces
    parser = expat.ParserCreate()
    parser.buffer_text = True

    def start(tag: str, _attributes: dict) -> None:
        path.append(tag)
        if len(path) > MAX_DEPTH:
            raise ValueError(f"{parser.CurrentLineNumber}: elements nested more than {MAX_DEPTH} deep")
        texts.clear()
        if path[1:] == ["object"]:
            result.objects.append(VocObject(parser.CurrentLineNumber))

    def end(_tag: str) -> None:
        _store(result, path[1:], "".join(texts).strip())
        path.pop()
        texts.clear()

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = texts.append
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise ValueError(f"{error.lineno}: not well-formed XML ({expat.ErrorString(error.code)})") from error
    return result


def _store(result: VocFile, path: list[str], text: str) -> None:
    """Keep the text of one closed element; ``<part>`` boxes inside objects have a longer path and are passed over."""
    if path == ["filename"]:
        result.filename = text
    elif path == ["size", "width"]:
        result.width = _side(text)
    elif path == ["size", "height"]:
        result.height = _side(text)
    elif path == ["object", "name"]:
        result.objects[-1].name = text
    elif path == ["object", "difficult"]:
        result.objects[-1].difficult = text == "1"
    elif path[:2] == ["object", "bndbox"] and len(path) == 3:
        result.objects[-1].values[path[2]] = text


def _side(text: str) -> int:
    """Return a side of the image in pixels, 0 where the text does not say a usable one."""
    try:
        side = float(text)
    except ValueError:
        return 0
    return int(side) if 0 < side < 2**31 else 0


def read_voc(path: str) -> LabelRows:
    """Read an annotation file: class names and corners in pixels; difficult objects are crowd regions."""
    voc = parse_voc(Path(path).read_bytes())
    problems, kept = [], []
    for item in voc.objects:
        corners = item.corners()
        if corners is None:
            problems.append(Problem(path, item.line, "object without four numbers in <bndbox>", item.name))
        else:
            kept.append((item, corners))
    boxes = np.array([corners for _, corners in kept], dtype=np.float64).reshape(-1, 4)
    lines = np.array([item.line for item, _ in kept], dtype=np.int64)
    crowd = np.array([item.difficult for item, _ in kept], dtype=bool)
    return LabelRows(boxes, [item.name for item, _ in kept], lines, crowd, False, (voc.width, voc.height), problems)


FORMAT = LabelFormat(".xml", "Annotations", read_voc)
