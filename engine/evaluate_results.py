"""Evaluating files of results, from any detector: read, compared, printed and written; no network is involved."""

from __future__ import annotations

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
    Compared,
    Difference,
    coco_numbers,
    error_breakdown,
    with_intervals,
)
from evaluation.error_kinds import ERRORS, TIDE_KEYS
from evaluation.parameters import COCO_PARAMETERS, CocoParameters, chosen_parameters
from evaluation.results import as_one_class, clean_ground_truth
from evaluation.results_files import columns_of, read_results
from utils.config import option
from utils.errors import UserError
from utils.files import write_text_atomically
from utils.tables import csv_table, markdown_table, text_table
from utils.words import how_many


@dataclass(frozen=True)
class ResultsOptions:
    """Evaluating files of results, from any detector, instead of a network or beside one."""

    results: tuple[str, ...] = option((), "COCO results; name=file names a column, files of one name are runs of it")
    iou_type: str = option("bbox", "what of the results is compared", tuple(COCO_PARAMETERS))
    resamples: int = option(1000, "resamples of the images for the 95 % intervals; 0: no intervals")
    max_dets: tuple[int, ...] = option((), "strongest detections per image and class that count; default: 1 10 100")
    area: tuple[str, ...] = option((), "NAME=MIN:MAX, square pixels; default: small=0:1024 medium=1024:9216 …")
    iou_thresholds: tuple[str, ...] = option((), "numbers, or FIRST:LAST:STEP; default: 0.5:0.95:0.05")
    class_agnostic: bool = option(False, "localisation alone: all classes as one")

    def __post_init__(self) -> None:
        if self.resamples < 0:
            raise ValueError(f"--resamples must not be negative, not {self.resamples}")
        if self.iou_type != "bbox" and not self.results:
            raise ValueError(
                f"--iou-type {self.iou_type} is for --results; of a network all that it finds is evaluated"
            )
        self.parameters()  # so that a mistake is found before anything else is done

    def parameters(self) -> CocoParameters:
        """Return what is evaluated.

        Raises:
            ValueError: an option cannot be read; names it.
        """
        return chosen_parameters(self.iou_type, self.iou_thresholds, self.area, self.max_dets)

    def is_asked(self) -> bool:
        """Whether there is more to evaluate than COCO's numbers of one network."""
        return bool(self.results) or self.class_agnostic or self.parameters() != COCO_PARAMETERS["bbox"]


@dataclass(frozen=True)
class ResultsComparison:
    """What was found for all columns."""

    parameters: CocoParameters
    class_agnostic: bool
    truth: dict  # COCO's ground truth; its classes are one where they are compared as one
    results: dict[str, list[dict]]  # of the first file of each column
    columns: list[Compared]
    differences: list[Difference]
    breakdowns: dict[str, dict[str, Any]]  # of boxes, by column

    def about(self) -> str:
        """Return a line that says what is not as COCO has it, nothing where all is."""
        others = "" if self.parameters == COCO_PARAMETERS[self.parameters.kind] else str(self.parameters)
        all_as_one = "all classes as one" if self.class_agnostic else ""
        return f"[{'; '.join(filter(None, (all_as_one, others)))}]\n" if others or all_as_one else ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for ``metrics.json``: None where nothing defines a number."""
        names = self.parameters.names
        return {
            "iou_type": self.parameters.kind,
            "parameters": {**self.parameters.to_dict(), "class_agnostic": self.class_agnostic},
            "num_images": len(self.truth["images"]),
            "columns": [
                {
                    "name": column.name,
                    "files": len(column.runs),
                    "numbers": dict(zip(names, map(_plain, column.numbers), strict=True)),
                    "interval_95": _intervals(names, column.interval),
                    "runs": [dict(zip(names, map(_plain, run), strict=True)) for run in column.runs],
                    "over_runs": _spread(names, column.spread()),
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
                    "over_runs": _spread(names, one.spread()),
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
    parameters, kind = options.parameters(), options.iou_type
    of_columns = {
        column.name: [read_results(path, truth, kind) for path in column.paths]
        for column in columns_of(options.results)
    }
    of_columns = {name: [rows] for name, rows in (own or {}).items()} | of_columns
    if options.class_agnostic:
        truth, of_columns = as_one_class(truth, of_columns)
    pairs = [
        (Compared(name, np.array([coco_numbers(truth, results, parameters) for results in files])), files)
        for name, files in of_columns.items()
    ]
    resamples = options.resamples
    with tqdm(total=resamples, desc="resampling", leave=False, disable=None if resamples else True) as bar:
        columns, differences = with_intervals(truth, pairs, resamples, parameters, report=bar.update)
    breakdowns = (
        {name: error_breakdown(truth, files[0]) for name, files in of_columns.items()} if kind == "bbox" else {}
    )
    first = {name: files[0] for name, files in of_columns.items()}
    return ResultsComparison(parameters, options.class_agnostic, truth, first, columns, differences, breakdowns)


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
    number = next((number for number, one in enumerate(truth["annotations"]) if "area" not in one), None)
    if number is not None:
        raise UserError(f"{source}: annotation {number} has no 'area', by which COCO tells sizes apart")
    return truth, annotations


def table(found: ResultsComparison) -> list[list[str]]:
    """Return the rows of the table: a heading, then a number each, with its 95 % interval, by column."""
    rows = [["", *(column.name for column in found.columns)]]
    for index, name in enumerate(found.parameters.names):
        cells = []
        for column in found.columns:
            bounds = None if column.interval is None else column.interval[index]
            cells.append(_shown(column.numbers[index], bounds) + _over_runs(column, index))
        rows.append([name, *cells])
    return rows


def table_of_differences(found: ResultsComparison) -> list[list[str]]:
    """Return the rows of the differences of every two columns; those whose interval holds 0 end with "(0)"."""
    rows = [["", *(f"{one.second} - {one.first}" for one in found.differences)]]
    for index, name in enumerate(found.parameters.names):
        cells = []
        for one in found.differences:
            bounds = None if one.interval is None else one.interval[index]
            zero = " (0)" if one.holds_zero()[index] else ""
            cells.append(_shown(one.numbers[index], bounds, "+") + zero + _over_runs(one, index))
        rows.append([name, *cells])
    return rows


def table_of_errors(found: ResultsComparison) -> list[list[str]]:
    """Return the rows of the error breakdown: what AP50 would gain if all errors of a kind were mended."""
    rows = [["AP50 lost by", *found.breakdowns]]
    for name in (*ERRORS, "missed"):
        rows.append([name, *(f"{one['delta_ap50'][TIDE_KEYS[name]]:.3f}" for one in found.breakdowns.values())])
    errors = [one["calibration_error"] for one in found.breakdowns.values()]
    rows.append(["calibration error", *("-" if error is None else f"{error:.3f}" for error in errors)])
    return rows


def print_tables(found: ResultsComparison, folder: Path) -> None:
    """Print the tables, and write them as Markdown and CSV."""
    tables = [table(found)]
    if found.differences:
        tables.append(table_of_differences(found))
    if found.breakdowns:
        tables.append(table_of_errors(found))
    note = found.about()
    if any(column.interval is not None for column in found.columns):
        images = how_many(len(found.truth["images"]), "image")
        note += f"[{CONFIDENCE:.0%} intervals over {images}, paired; (0): may be no difference]"
    for rows in tables:
        print(text_table(rows) + "\n")
    print(note)
    write_text_atomically(folder / "table.csv", csv_table(row for rows in tables for row in rows))
    in_markdown = [markdown_table(rows, [False] + [True] * (len(rows[0]) - 1)) for rows in tables]
    write_text_atomically(folder / "table.md", "\n\n".join(in_markdown) + f"\n\n{note}\n")


def _shown(number: float, bounds: np.ndarray | None, sign: str = "") -> str:
    """Return a number with its interval, "-" where nothing defines it."""
    if math.isnan(number):
        return "-"
    if bounds is None or np.isnan(bounds).any():
        return f"{number:{sign}.3f}"
    return f"{number:{sign}.3f} [{bounds[0]:{sign}.3f}, {bounds[1]:{sign}.3f}]"


def _over_runs(found: Compared | Difference, index: int) -> str:
    """Return half of the 95 % interval over runs of a number, with how many they are; nothing for one run."""
    spread = found.spread()
    if spread is None or found.runs is None or np.isnan(spread[1][index]):
        return ""
    return f" ± {spread[1][index]:.3f} over {how_many(len(found.runs), 'run')}"


def _plain(number: float) -> float | None:
    return None if math.isnan(number) else float(number)


def _intervals(names: Sequence[str], bounds: np.ndarray | None) -> dict[str, list[float | None]] | None:
    if bounds is None:
        return None
    return {name: list(map(_plain, pair)) for name, pair in zip(names, bounds, strict=True)}


def _spread(
    names: Sequence[str], spread: tuple[np.ndarray, np.ndarray] | None
) -> dict[str, dict[str, float | None]] | None:
    if spread is None:
        return None
    rows = zip(names, *spread, strict=True)
    return {name: {"std": _plain(deviation), "interval_95": _plain(half)} for name, deviation, half in rows}
