"""Evaluating files of results, from any detector: read, compared, printed and written; no network is involved."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data.labels.annotations import Annotations
from data.splits import open_data, open_split
from evaluation.comparison import (
    CONFIDENCE,
    NAMES,
    Compared,
    Difference,
    coco_numbers,
    error_breakdown,
    with_intervals,
)
from evaluation.results import clean_ground_truth
from evaluation.results_files import columns_of, read_results
from utils.config import option
from utils.errors import UserError
from utils.files import write_text_atomically
from utils.words import how_many


@dataclass(frozen=True)
class ResultsOptions:
    """Evaluating files of results, from any detector, instead of a network or beside one."""

    results: tuple[str, ...] = option((), "COCO results; name=file names a column, files of one name are runs of it")
    iou_type: str = option("bbox", "what of the results is compared", tuple(NAMES))
    resamples: int = option(1000, "resamples of the images for the 95 % intervals of boxes; 0: no intervals")

    def __post_init__(self) -> None:
        if self.resamples < 0:
            raise ValueError(f"--resamples must not be negative, not {self.resamples}")
        if self.iou_type != "bbox" and not self.results:
            raise ValueError(f"--iou-type {self.iou_type} is for --results: the networks here detect boxes")


@dataclass(frozen=True)
class ResultsComparison:
    """What was found for all columns."""

    kind: str
    num_images: int
    columns: list[Compared]
    differences: list[Difference]
    breakdowns: dict[str, dict[str, Any]]  # of boxes, by column
    results: dict[str, list[dict]]  # of the first file of each column

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for ``metrics.json``: None where nothing defines a number."""
        names = NAMES[self.kind]
        return {
            "iou_type": self.kind,
            "num_images": self.num_images,
            "columns": [
                {
                    "name": column.name,
                    "files": len(column.runs),
                    "numbers": dict(zip(names, map(_plain, column.numbers), strict=True)),
                    "interval_95": _intervals(names, column.interval),
                    "runs": [dict(zip(names, map(_plain, run), strict=True)) for run in column.runs],
                    "over_runs": _spread(names, column),
                    **self.breakdowns.get(column.name, {}),
                }
                for column in self.columns
            ],
            "differences": [
                {
                    "of": one.second,
                    "minus": one.first,
                    "numbers": dict(zip(names, map(_plain, one.numbers), strict=True)),
                    "interval_95": _intervals(names, one.interval),
                }
                for one in self.differences
            ],
        }


def compare_results(
    options: ResultsOptions, truth: dict, own: dict[str, list[dict]] | None = None
) -> ResultsComparison:
    """Evaluate every file, and say how sure the numbers and their differences are.

    Args:
        options: which files, and what of them.
        truth: COCO's ground truth, as :func:`ground_truth_of` reads it.
        own: results of a network of ours by the name of their column.

    Raises:
        UserError: a file cannot be read, or is not of this ground truth.
    """
    kind = options.iou_type
    of_columns = {
        column.name: [read_results(path, truth, kind) for path in column.paths]
        for column in columns_of(options.results)
    }
    of_columns = {name: [rows] for name, rows in (own or {}).items()} | of_columns
    pairs = [
        (Compared(name, np.array([coco_numbers(truth, results, kind) for results in files])), files)
        for name, files in of_columns.items()
    ]
    resamples = options.resamples if kind == "bbox" else 0
    with tqdm(total=resamples, desc="resampling", leave=False, disable=None if resamples else True) as bar:
        columns, differences = with_intervals(truth, pairs, resamples, report=bar.update)
    breakdowns = (
        {name: error_breakdown(truth, files[0]) for name, files in of_columns.items()} if kind == "bbox" else {}
    )
    first = {name: files[0] for name, files in of_columns.items()}
    return ResultsComparison(kind, len(truth["images"]), columns, differences, breakdowns, first)


def ground_truth_of(data: str, split: str, val_fraction: float, kind: str) -> tuple[dict, Annotations]:
    """Return COCO's ground truth of a split, the whole file where masks or key points are evaluated, and what was read.

    Raises:
        UserError: the data set cannot be read, or has no masks or key points.
    """
    annotations = open_split(data, split, need_images=False, val_fraction=val_fraction)
    if kind == "bbox":
        return clean_ground_truth(annotations.to_coco()), annotations
    (source,) = open_data(data, val_fraction).sources(split)[:1]
    if source.suffix.lower() != ".json" or val_fraction:
        raise UserError(f"{data}: --iou-type {kind} needs a COCO JSON with the masks or key points")
    truth = json.loads(source.read_bytes())
    if not any(one.get("segmentation" if kind == "segm" else "keypoints") for one in truth["annotations"]):
        raise UserError(f"{source}: has no {'masks' if kind == 'segm' else 'key points'} to compare with")
    return truth, annotations


def table(found: ResultsComparison) -> list[list[str]]:
    """Return the rows of the table: a heading, then a number each, with its 95 % interval, by column."""
    rows = [["", *(column.name for column in found.columns)]]
    for index, name in enumerate(NAMES[found.kind]):
        cells = []
        for column in found.columns:
            spread = column.spread()
            bounds = None if column.interval is None else column.interval[index]
            over_runs = "" if spread is None else f" ± {spread[1][index]:.3f} over {how_many(len(column.runs), 'run')}"
            cells.append(_shown(column.numbers[index], bounds) + over_runs)
        rows.append([name, *cells])
    return rows


def table_of_differences(found: ResultsComparison) -> list[list[str]]:
    """Return the rows of the differences of every two columns; those whose interval holds 0 end with "(0)"."""
    rows = [["", *(f"{one.second} - {one.first}" for one in found.differences)]]
    for index, name in enumerate(NAMES[found.kind]):
        cells = [
            _shown(one.numbers[index], one.interval[index], "+") + (" (0)" if one.holds_zero()[index] else "")
            for one in found.differences
        ]
        rows.append([name, *cells])
    return rows


def table_of_errors(found: ResultsComparison) -> list[list[str]]:
    """Return the rows of the error breakdown: what AP50 would gain if all errors of a kind were mended."""
    kinds = {"Cls": "class", "Loc": "localisation", "Both": "both", "Dupe": "duplicate", "Bkg": "background",
             "Miss": "missed"}  # fmt: skip
    rows = [["AP50 lost by", *found.breakdowns]]
    for key, name in kinds.items():
        rows.append([name, *(f"{one['delta_ap50'][key]:.3f}" for one in found.breakdowns.values())])
    rows.append(["calibration error", *(f"{one['calibration_error']:.3f}" for one in found.breakdowns.values())])
    return rows


def text_of(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as aligned text."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def markdown_of(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as a table in Markdown; the first is the heading."""
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def print_tables(found: ResultsComparison, folder: Path) -> None:
    """Print the tables, and write them as Markdown and CSV."""
    tables = [table(found)]
    if found.differences:
        tables.append(table_of_differences(found))
    if found.breakdowns:
        tables.append(table_of_errors(found))
    note = ""
    if any(column.interval is not None for column in found.columns):
        images = how_many(found.num_images, "image")
        note = f"[{CONFIDENCE:.0%} intervals over {images}, paired; (0): may be no difference]"
    for rows in tables:
        print(text_of(rows) + "\n")
    print(note)
    stream = io.StringIO()
    csv.writer(stream).writerows(row for rows in tables for row in rows)
    write_text_atomically(folder / "table.csv", stream.getvalue())
    write_text_atomically(folder / "table.md", "\n\n".join(map(markdown_of, tables)) + f"\n\n{note}\n")


def _shown(number: float, bounds: np.ndarray | None, sign: str = "") -> str:
    """Return a number with its interval, "-" where nothing defines it."""
    if math.isnan(number):
        return "-"
    if bounds is None or np.isnan(bounds).any():
        return f"{number:{sign}.3f}"
    return f"{number:{sign}.3f} [{bounds[0]:{sign}.3f}, {bounds[1]:{sign}.3f}]"


def _plain(number: float) -> float | None:
    return None if math.isnan(number) else float(number)


def _intervals(names: Sequence[str], bounds: np.ndarray | None) -> dict[str, list[float | None]] | None:
    if bounds is None:
        return None
    return {name: list(map(_plain, pair)) for name, pair in zip(names, bounds, strict=True)}


def _spread(names: Sequence[str], column: Compared) -> dict[str, dict[str, float | None]] | None:
    spread = column.spread()
    if spread is None:
        return None
    rows = zip(names, *spread, strict=True)
    return {name: {"std": _plain(deviation), "interval_95": _plain(half)} for name, deviation, half in rows}
