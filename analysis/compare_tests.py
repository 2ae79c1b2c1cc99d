"""``analyze.py --compare`` for runs of ``test.py``: the difference of every two settings, and how sure it is."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from analysis.output.result import Cell, Result, Table, mean, table_of
from analysis.paired_differences import (
    Interval,
    PairedDifference,
    common_seeds,
    confidence_interval,
    holds_zero,
    over_seeds_and_images,
    paired_by_seed,
)
from analysis.settings import group_by_setting, shown_value, varying_options
from analysis.tested_runs import NAMES, TestedRun
from evaluation.bootstrap import ResampledNumbers, resample
from evaluation.comparison import percentiles
from utils.words import how_many

Row = dict[str, Any]


@dataclass(frozen=True)
class TestedSetting:
    """The runs of one setting."""

    name: str
    runs: tuple[TestedRun, ...]

    @property
    def seeds(self) -> list[Hashable]:
        """The seeds of the runs, None where one is not known."""
        return [run.seed for run in self.runs]

    def at(self, seeds: Sequence[Hashable]) -> list[TestedRun]:
        """Return the runs of some seeds, in their order."""
        return [self.runs[self.seeds.index(seed)] for seed in seeds]

    def average(self, number: str) -> float | None:
        """Return the mean of a number over the runs that have it, None without any."""
        return mean(np.array([value for run in self.runs if (value := run.numbers.get(number)) is not None]))


def compare_tests(runs: Sequence[TestedRun], resamples: int) -> Result:
    """Summarise every setting, and compare every two of them; docs/analysis.md defines the statistics.

    Args:
        runs: of ``test.py``.
        resamples: of the images, for the runs that left their detections; 0: no intervals over images.
    """
    varying = varying_options(runs)
    settings = [
        TestedSetting(_label(runs[members[0]], varying), tuple(runs[number] for number in members))
        for members in group_by_setting(runs)
    ]
    numbers = list(dict.fromkeys(name for run in runs for name in run.numbers))
    drawn, notes = _drawn_numbers(runs, resamples)
    differences = [row for pair in combinations(settings, 2) for row in _differences(*pair, numbers, drawn)]
    names = [run.name for run in runs]
    statistics = {
        "varying_options": varying,
        "runs": [
            {"run": run.name if names.count(run.name) == 1 else f"{run.metrics.parent}: {run.name}"}
            | {"metrics": str(run.metrics), "setting": setting.name, "seed": run.seed}
            | {name: run.numbers.get(name) for name in numbers}
            for setting in settings
            for run in setting.runs
        ],
        "settings": [_setting_statistics(setting, numbers) for setting in settings],
        "differences": differences,
    }
    data = {"runs": [str(run.metrics) for run in runs], "resamples": resamples}
    notes = [*notes, *_notes(settings)]
    return Result("compare", data, statistics, _tables(statistics, numbers), notes=tuple(notes))


def _label(run: TestedRun, varying: Sequence[str]) -> str:
    """Return the name of a run's setting: its column, and the options that differ between the runs."""
    known = [key for key in varying if key in run.options and key != "column"]
    words = [f"{key.removeprefix('test.')}={shown_value(run.options[key])}" for key in known]
    column = run.options.get("column")
    return " ".join(([column] if column else []) + words) or str(run.options.get("weights"))


def _setting_statistics(setting: TestedSetting, numbers: Sequence[str]) -> Row:
    found: Row = {"setting": setting.name, "runs": [run.name for run in setting.runs], "seeds": setting.seeds}
    for name in numbers:
        values = [value for run in setting.runs if (value := run.numbers.get(name)) is not None]
        average, half = confidence_interval(values) if values else (None, None)
        found[name] = {"mean": average, "interval_95": half}
    return found


def _differences(
    first: TestedSetting, second: TestedSetting, numbers: Sequence[str], drawn: Mapping[Path, np.ndarray]
) -> list[Row]:
    """Return the second setting minus the first in each number, from the runs of equal seeds where there are any."""
    seeds = common_seeds(first.seeds, second.seeds)
    paired = [setting.at(seeds) if seeds else setting.runs for setting in (first, second)]
    resampled = _drawn_difference(paired[0], paired[1], drawn)
    rows = []
    for name in numbers:
        averages = first.average(name), second.average(name)
        if averages[0] is None or averages[1] is None:
            continue
        by_seed = paired_by_seed(*(_by_seed(setting, seeds, name) for setting in (first, second)))
        column = None if resampled is None or name not in NAMES else resampled[:, NAMES.index(name)]
        over_images = _over_images_of_columns(paired[0], paired[1], name) if column is None else _bounds(column)
        rows.append({"of": second.name, "minus": first.name, "number": name}
                    | {"difference": by_seed.average if by_seed else averages[1] - averages[0]}
                    | sureness(by_seed, over_images))  # fmt: skip
    return rows


def _by_seed(setting: TestedSetting, seeds: Sequence[Hashable], name: str) -> dict[Hashable, float]:
    found = zip(seeds, setting.at(seeds), strict=True)
    return {seed: value for seed, run in found if (value := run.numbers.get(name)) is not None}


def sureness(by_seed: PairedDifference | None, over_images: Interval | None = None) -> Row:
    """Return the fields of a difference that say how sure it is."""
    over_seeds = by_seed.interval if by_seed else None
    over_both = over_seeds_and_images(by_seed, over_images) if by_seed and over_images else None
    widest = over_both or over_seeds or over_images
    return {
        "seeds": by_seed.seeds if by_seed else 0,
        "std": by_seed.deviation if by_seed else None,
        "over_seeds": over_seeds,
        "over_images": over_images,
        "over_both": over_both,
        "may_be_none": None if widest is None else holds_zero(widest),
        "seeds_needed": by_seed.seeds_needed if by_seed else None,
    }


def _bounds(drawn: np.ndarray) -> Interval | None:
    """Return the 95 % interval of resamples [R], None where too few of them define the number."""
    low, high = percentiles(drawn[:, None])[0].tolist()
    return None if math.isnan(low) else (low, high)


def _over_images_of_columns(first: Sequence[TestedRun], second: Sequence[TestedRun], number: str) -> Interval | None:
    """Return the interval over images that a metrics.json has of two of its columns, None unless of all these runs."""
    minus, of = (str(runs[0].options.get("column")) for runs in (first, second))
    stored = first[0].differences
    for key, sign, files in (((minus, of), 1, (first, second)), ((of, minus), -1, (second, first))):
        if key in stored and stored[key]["files"] == tuple(len(runs) for runs in files):
            bounds = stored[key]["interval_95"].get(number)
            if bounds and None not in bounds and all(run.metrics == first[0].metrics for run in (*first, *second)):
                low, high = sorted(sign * bound for bound in bounds)
                return low, high
    return None


def _drawn_numbers(runs: Sequence[TestedRun], resamples: int) -> tuple[dict[Path, np.ndarray], list[str]]:
    """Return the twelve numbers in the same resamples of the images [R 12], by the file of the run, and notes.

    Of the runs that left their detections, those count that have the ground truth of the first one.
    """
    networks = [run for run in runs if "column" not in run.options]
    if not resamples or not networks:
        return {}, []
    left = [run for run in networks if run.truth is not None]
    same = [run for run in left if run.truth == left[0].truth]
    notes = [f"{run.metrics.parent}: was tested on other objects than {left[0].metrics.parent}, so these two are not "
             "paired by images" for run in left if run not in same]  # fmt: skip
    if len(left) < len(networks):
        count = how_many(len(networks) - len(left), "run")
        notes.append(f"{count} left no detections.json, so nothing is said of other images; run test.py --save-json")
    truth = same[0].truth if same else None
    if truth is None or len(truth["images"]) < 2:
        return {}, notes
    detectors = [ResampledNumbers(truth, run.results()) for run in same]
    with tqdm(total=resamples, desc="resampling", leave=False, disable=None) as bar:
        drawn = resample(detectors, resamples, 0, bar.update)
    return {run.metrics: drawn[:, number] for number, run in enumerate(same)}, notes


def _drawn_difference(
    first: Sequence[TestedRun], second: Sequence[TestedRun], drawn: Mapping[Path, np.ndarray]
) -> np.ndarray | None:
    """Return the mean of the second runs minus that of the first ones in each resample [R 12], None without them."""
    if any(run.metrics not in drawn or "column" in run.options for run in (*first, *second)):
        return None
    means = (np.mean([drawn[run.metrics] for run in runs], axis=0) for runs in (second, first))
    return np.subtract(*means)


def _tables(statistics: Mapping[str, Any], numbers: Sequence[str]) -> tuple[Table, ...]:
    of_setting: dict[str, Cell] = {"setting": "setting", "runs": lambda setting: len(setting["runs"])}
    for name in numbers:
        of_setting |= {name: f"{name}/mean", f"{name} ±": f"{name}/interval_95"}
    title = "Settings: mean over the runs ± half of the 95 % interval (Student's t)"
    return (
        table_of("runs", "Runs", statistics["runs"], {key: key for key in ("run", "setting", "seed", *numbers)}),
        table_of("settings", title, statistics["settings"], of_setting),
        differences_table(statistics["differences"], ("seeds", "images", "both")),
    )


def differences_table(rows: Sequence[Mapping[str, Any]], over: Sequence[str]) -> Table:
    """Return the table of differences of settings with the intervals over seeds, images or both."""
    columns: dict[str, Cell] = {
        "setting": "of",
        "minus": "minus",
        "number": "number",
        "difference": "difference",
        "seeds": "seeds",
    }
    for what in over:
        for end, place in (("from", 0), ("to", 1)):
            columns[f"over {what} {end}"] = partial(_end_of, key=f"over_{what}", place=place)
    columns |= {"may be none": _told, "seeds needed": "seeds_needed"}
    title = "Differences of every two settings, 95 % intervals; how many seeds would tell, if it is as large as seen"
    return table_of("differences", title, rows, columns)


def _told(row: Mapping[str, Any]) -> str | None:
    return None if row["may_be_none"] is None else "yes" if row["may_be_none"] else "no"


def _end_of(row: Mapping[str, Any], key: str, place: int) -> float | None:
    return None if row[key] is None else row[key][place]


def _notes(settings: Sequence[TestedSetting]) -> list[str]:
    notes = []
    for setting in settings:
        known = [seed for seed in setting.seeds if seed is not None]
        if len(set(known)) < len(known):
            names = ", ".join(str(run.metrics.parent) for run in setting.runs)
            notes.append(f"runs of one setting with the same seed, which are not paired: {names}")
        if len(known) < len(setting.runs):
            notes.append(f"{setting.name}: the training is not known, and so no seed")
    for first, second in combinations(settings, 2):
        several = max(len(first.runs), len(second.runs)) > 1
        if several and not common_seeds(first.seeds, second.seeds):
            notes.append(f"{first.name}, {second.name}: fewer than two seeds in common, so not paired by seed")
    return notes
