"""Detectors side by side: COCO's numbers of each, how sure they are, and how sure their differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from scipy.special import stdtrit

from evaluation.bootstrap import ResampledNumbers, resample
from evaluation.coco import hotcoco_arrays, mean_of_defined, run_hotcoco
from evaluation.error_kinds import TIDE_KEYS, error_kinds, lost_ap50
from evaluation.matches import CocoMatcher
from evaluation.parameters import COCO_PARAMETERS, CocoParameters
from utils.errors import UserError

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Compared:
    """One column: each number is the mean over the column's files, NaN where nothing defines it."""

    name: str
    runs: np.ndarray  # [S n] the numbers of each of its S files
    interval: np.ndarray | None = None  # [n 2] over images; None: not asked for

    @property
    def numbers(self) -> np.ndarray:
        """The mean over the files, [n]."""
        return self.runs.mean(axis=0)

    def spread(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the sample standard deviation over the files and half the width of their 95 % interval, [n] each.

        None for a single file. The interval is Student's: t(0.975, S - 1) s / sqrt(S).
        """
        return _spread(self.runs)


@dataclass(frozen=True)
class Difference:
    """The second of two columns minus the first, over the same images."""

    first: str
    second: str
    numbers: np.ndarray  # [n]
    interval: np.ndarray | None = None  # [n 2] over images; None: not asked for
    runs: np.ndarray | None = None  # [S n] of the columns' first files, second ones, …; None: other numbers of files

    def holds_zero(self) -> np.ndarray:
        """Return [n] bool: the interval holds 0, or is undefined; these images cannot tell the two apart.

        Where there is none over images, it is that over runs.
        """
        interval = self.interval
        if interval is None:
            half = np.full(len(self.numbers), np.nan) if (spread := self.spread()) is None else spread[1]
            interval = np.stack((self.numbers - half, self.numbers + half), axis=1)
        return ~((interval[:, 0] > 0) | (interval[:, 1] < 0))

    def spread(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the same as :meth:`Compared.spread` of the differences of the runs, paired in the order given."""
        return None if self.runs is None else _spread(self.runs)


def _spread(runs: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Return standard deviation and half of Student's interval of the numbers of some runs [S n], None for one run."""
    count = len(runs)
    if count < 2:
        return None
    deviation = runs.std(axis=0, ddof=1)
    return deviation, stdtrit(count - 1, (1 + CONFIDENCE) / 2) * deviation / np.sqrt(count)


def coco_numbers(
    truth: dict, results: Sequence[dict], parameters: CocoParameters = COCO_PARAMETERS["bbox"]
) -> np.ndarray:
    """Return the parameters' numbers [n], NaN where nothing defines one.

    Args:
        truth: COCO's ground truth, whole: with masks or key points where these are evaluated.
        results: COCO's results of the parameters' kind.
        parameters: say what is evaluated, and so which numbers there are.

    Raises:
        UserError: hotcoco cannot read the masks or key points.
    """
    try:
        precision, recall = hotcoco_arrays(truth, results, parameters)
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        kind = parameters.kind
        raise UserError(f"the {kind} of the ground truth or the results cannot be read: {error!s:.200}") from error
    numbers = []
    for one in parameters.numbers:
        values = (precision if one.is_precision else recall)[..., one.area, one.limit]
        numbers.append(mean_of_defined(values if one.iou is None else values[one.iou]))
    return np.array([np.nan if number < 0 else number for number in numbers])


def coco_table(numbers: np.ndarray, parameters: CocoParameters) -> str:
    """Return the parameters' numbers [n] in the lines that pycocotools prints; -1 where nothing defines one."""
    ends = f"{parameters.ious[0]:.2f}:{parameters.ious[-1]:.2f}"
    lines = []
    for one, number in zip(parameters.numbers, np.nan_to_num(numbers, nan=-1.0), strict=True):
        title, short = ("Average Precision", "(AP)") if one.is_precision else ("Average Recall", "(AR)")
        iou = ends if one.iou is None else f"{parameters.ious[one.iou]:.2f}"
        area, limit = parameters.areas[one.area][0], parameters.limits[one.limit]
        lines.append(f" {title:<18} {short} @[ IoU={iou:<9} | area={area:>6s} | maxDets={limit:>3d} ] = {number:0.3f}")
    return "\n".join(lines)


def with_intervals(
    truth: dict,
    columns: Sequence[tuple[Compared, Sequence[Sequence[dict]]]],
    resamples: int,
    parameters: CocoParameters = COCO_PARAMETERS["bbox"],
    seed: int = 0,
    report: Callable[[int], object] = lambda _: None,
) -> tuple[list[Compared], list[Difference]]:
    """Return columns with the intervals of their numbers, and the difference of every two of them.

    The intervals are percentiles of a paired bootstrap over images: every resample is the same for all columns.

    Args:
        truth: COCO's ground truth.
        columns: each with the results of its files.
        resamples: how many; 0, or a single image: no intervals over images, and no differences but those of runs.
        parameters: of the columns' numbers.
        seed: of the resamples.
        report: is called with 1 after each resample.
    """
    pairs = list(combinations([column for column, _ in columns], 2))
    if not resamples or len(truth["images"]) < 2:  # of one image, every resample is that image
        differences = (_difference(first, second) for first, second in pairs)
        return [column for column, _ in columns], [one for one in differences if one.spread() is not None]
    detectors = [ResampledNumbers(truth, results, parameters) for _, of_files in columns for results in of_files]
    drawn = resample(detectors, resamples, seed, report)  # R, files of all columns, n
    ends = np.cumsum([len(of_files) for _, of_files in columns])
    of_columns = [part.mean(axis=1) for part in np.split(drawn, ends[:-1], axis=1)]  # each R n
    found = [
        Compared(column.name, column.runs, percentiles(values))
        for (column, _), values in zip(columns, of_columns, strict=True)
    ]
    return found, [
        _difference(first, second, percentiles(of_second - of_first))
        for (first, second), (of_first, of_second) in zip(pairs, combinations(of_columns, 2), strict=True)
    ]


def _difference(first: Compared, second: Compared, interval: np.ndarray | None = None) -> Difference:
    runs = second.runs - first.runs if len(first.runs) == len(second.runs) else None
    return Difference(first.name, second.name, second.numbers - first.numbers, interval, runs)


def percentiles(values: np.ndarray) -> np.ndarray:
    """Return the bounds [n 2] between which 95 % of the resampled values [R n] lie; NaN where fewer are defined."""
    low, high = (1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2
    bounds = np.full((values.shape[1], 2), np.nan)
    for number, column in enumerate(values.T):
        defined = column[~np.isnan(column)]
        if len(defined) >= CONFIDENCE * len(column):
            bounds[number] = np.quantile(defined, (low, high))
    return bounds


def error_breakdown(truth: dict, results: Sequence[dict]) -> dict[str, Any]:
    """Return TIDE's breakdown of the errors at IoU 0.5 and 0.1, and hotcoco's calibration of the scores.

    hotcoco's own breakdown leaves out the detections in crowd regions, which tidecv counts.

    Args:
        truth: COCO's ground truth.
        results: COCO's results.

    Returns:
        ``delta_ap50`` and ``counts`` by kind of error (arXiv 2008.08115), ``calibration_error`` 0..1, None without
        detections, and its bins.
    """
    found, calibration = error_kinds(CocoMatcher(truth, results)), run_hotcoco(truth, results).calibration()
    return {
        "delta_ap50": {TIDE_KEYS[name]: value for name, value in lost_ap50(found).items()},
        "counts": {TIDE_KEYS[name]: value for name, value in found.counts().items()},
        "calibration_error": calibration["ece"] if calibration["num_detections"] else None,
        "calibration_bins": [dict(one) for one in calibration["bins"]],
    }
