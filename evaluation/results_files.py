"""Files in COCO's results format, from any detector; refused where they are not results of the ground truth."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.overlaps import run_lengths
from evaluation.results import SHAPE_KEYS
from utils.errors import UserError

MOSTLY = 0.5  # share of the boxes that reach out of their image where they are corners by all appearance


@dataclass(frozen=True)
class ResultsColumn:
    """One detector of a comparison: its name and its files, several where it was trained or run several times."""

    name: str
    paths: tuple[Path, ...]


def columns_of(texts: Sequence[str]) -> list[ResultsColumn]:
    """Return the columns that ``--results`` names: ``a.json`` or ``name=a.json``, files of one name in one column.

    Raises:
        UserError: a file does not exist, or two columns would have one name.
    """
    files: dict[str, list[Path]] = {}
    stems: dict[str, str] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals or Path(text).is_file():
            name, path = "", text
        if not Path(path).is_file():
            raise UserError(f"--results {text}: there is no such file")
        if not name:
            name = Path(path).stem
            if stems.setdefault(name, path) != path or (name in files and stems[name] != path):
                raise UserError(f"--results: {stems[name]} and {path} have one name; give one, as in ours={path}")
        files.setdefault(name, []).append(Path(path))
    return [ResultsColumn(name, tuple(paths)) for name, paths in files.items()]


def read_results(path: Path, truth: Mapping[str, Any], kind: str = "bbox") -> list[dict]:
    """Return the results of a file.

    Args:
        path: the file.
        truth: COCO's ground truth.
        kind: a key of :data:`WHAT`.

    Raises:
        UserError: not JSON, not a list of results of this kind, or of other images or categories; names the result.
    """
    try:
        rows = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        place = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise UserError(f"{path}{place}: is not JSON; was it written to its end?") from error
    if isinstance(rows, dict):
        what = "a ground truth" if "annotations" in rows else "a JSON object"
        raise UserError(f"{path}: is {what}, not a list of results in COCO's format")
    if not isinstance(rows, list):
        raise UserError(f"{path}: is no list of results in COCO's format")
    images = {image["id"]: image for image in truth["images"]}
    categories = {category["id"] for category in truth["categories"]}
    for number, row in enumerate(rows):
        problem = _problem(row, kind)
        if problem:
            raise UserError(f"{path}: result {number} {problem}")
    unknown = {row["image_id"] for row in rows} - images.keys()
    if unknown:
        share = sum(row["image_id"] in unknown for row in rows) / len(rows)
        raise UserError(
            f"{path}: {share:.0%} of the results are of images that the ground truth does not have "
            f"(such as {min(unknown)}); are they those of another split?"
        )
    others = {row["category_id"] for row in rows} - categories
    if others:
        raise UserError(
            f"{path}: the category {min(others)} is none of the ground truth's "
            f"({min(categories)} to {max(categories)}); COCO's ids count 1 to 90 with gaps"
        )
    if kind == "bbox":
        _refuse_corners(path, rows, images)
    if kind == "segm":
        _refuse_masks(path, rows, images)
    return rows


def _problem(row: Any, kind: str) -> str:
    """Return what is wrong with a result by itself, "" where nothing is."""
    if not isinstance(row, dict):
        return "is no JSON object"
    for key in ("image_id", "category_id", "score", SHAPE_KEYS[kind]):
        if key not in row:
            return f"has no '{key}'"
    for key in ("image_id", "category_id"):
        if type(row[key]) is not int:
            return f"has a {key} that is no whole number"
    if type(row["score"]) not in (int, float) or not math.isfinite(row["score"]):
        return "has a score that is no finite number"
    return _problem_of_shape(row[SHAPE_KEYS[kind]], kind)


def _problem_of_shape(value: Any, kind: str) -> str:
    """Return what is wrong with the box, mask or key points of a result, "" where nothing is."""
    if kind == "segm":
        return "" if isinstance(value, (dict, list)) else "has no mask in COCO's format"
    count = 4 if kind == "bbox" else len(value) // 3 * 3 if isinstance(value, list) else -1
    if not isinstance(value, list) or len(value) != count or not count:
        return f"has a {SHAPE_KEYS[kind]} that is no list of {'4 numbers' if kind == 'bbox' else 'x, y, visibility'}"
    if not all(type(one) in (int, float) and math.isfinite(one) for one in value):
        return f"has a {SHAPE_KEYS[kind]} with something else than finite numbers"
    if kind == "bbox" and min(value[2:]) < 0:
        return "has a box of negative width or height; COCO's boxes are x, y, width, height"
    return ""


def _refuse_masks(path: Path, rows: Sequence[Mapping], images: Mapping[int, Mapping]) -> None:
    """Refuse masks that cannot be read, or are of another size than their images."""
    sizes_hw = {id_: (image["height"], image["width"]) for id_, image in images.items()}
    for number, row in enumerate(rows):
        try:
            run_lengths(row, sizes_hw)
        except UserError as error:
            raise UserError(f"{path}: result {number}: {error}") from error


def _refuse_corners(path: Path, rows: Sequence[Mapping], images: Mapping[int, Mapping]) -> None:
    """Refuse boxes that are x1 y1 x2 y2 by all appearance: most reach out of their images, and all end behind x1 y1."""
    sized = [(row["bbox"], images[row["image_id"]]) for row in rows if images[row["image_id"]].get("width")]
    out = sum(x + w > image["width"] + 1 or y + h > image["height"] + 1 for (x, y, w, h), image in sized)
    if sized and out > MOSTLY * len(sized) and all(w >= x and h >= y for (x, y, w, h), _ in sized):
        raise UserError(
            f"{path}: {out} of {len(sized)} boxes reach out of their images; they seem to be x1, y1, x2, y2 "
            "where COCO's are x, y, width, height"
        )
