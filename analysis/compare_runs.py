"""``analyze.py --compare RUN…``: training runs side by side, the seeds of one setting taken together.

A run is the folder that ``train.py`` writes: ``config.yaml`` (flat options) and ``results.csv`` (one line per epoch).
Runs whose options differ only in the seed (and in bookkeeping, :data:`analysis.settings.BOOKKEEPING`) are one setting.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from analysis.compare_tests import compare_tests, differences_table, sureness
from analysis.mode import Mode, Request
from analysis.output.plots import curves
from analysis.output.result import Cell, Result, Table, mean, share, table_of
from analysis.paired_differences import common_seeds, confidence_interval, paired_by_seed
from analysis.settings import group_by_setting, shown_value, varying_options
from analysis.tested_runs import is_tested, read_tested
from engine.evaluate_results import ResultsOptions
from engine.run_folder import Row, epoch_summary, read_config
from engine.search.results import runs_in
from utils.config import option
from utils.errors import UserError
from utils.files import read_text
from utils.renamed import RENAMED
from utils.words import how_many

MAX_BYTES = 100_000_000  # of results.csv: 300 epochs have 50 kB
LARGEST_NUMBER, LARGEST_EPOCH = 1e30, 10**9  # beyond, a file is damaged
RESTORE = "train.py writes this file, restore it"
MAP50, MAP = "metrics/mAP_0.5", "metrics/mAP_0.5:0.95"
POSITIVES, UNMATCHED, OBJECTS = "match/positives_per_object", "match/unmatched", "match/objects"
SCORES = {"mAP@0.5": MAP50, "mAP": MAP}
NAMED_OPTIONS = ("match", "alpha", "epochs")  # have columns of their own in the tables


@dataclass(frozen=True)
class CompareOptions:
    """Options of --compare."""

    last: int = option(0, "mean and std over the last N evaluated epochs; 0: over all")

    def __post_init__(self) -> None:
        if self.last < 0:
            raise ValueError(f"--last {self.last} must be 0 (all epochs) or more")


@dataclass(frozen=True)
class Run:
    """One training run, as its folder describes it."""

    folder: Path
    options: dict[str, Any]  # of config.yaml, under their current names
    history: tuple[Row, ...]  # of results.csv, one per epoch; a number that the epoch does not have is absent

    @property
    def seed(self) -> Any:
        """The seed in the run's options, or None."""
        return self.options.get("seed")


def read_run(folder: str | Path) -> Run:
    """Read a run's folder, or the folder of a file such as ``best.pt``; names from before a change become current ones.

    Raises:
        UserError: the folder or one of its files is missing, unreadable or holds no finished epoch.
    """
    folder = Path(folder)
    folder = folder.parent if folder.is_file() else folder
    if not folder.is_dir():
        raise UserError(f"{folder}: no such run; give folders that train.py wrote, such as runs/train/exp")
    config, results = folder / "config.yaml", folder / "results.csv"
    for path in (config, results):
        if not path.is_file():
            raise UserError(f"{path}: missing, so {folder} is no training run (or it has not finished an epoch yet)")
    return Run(folder, read_config(folder), tuple(_read_history(results)))


def compare_runs(runs: Sequence[Run], options: CompareOptions) -> Result:
    """Summarise every run and every setting; docs/analysis.md defines the statistics."""
    varying = varying_options(runs)
    names = [run.folder.name for run in runs]
    names = names if len(set(names)) == len(names) else [str(run.folder) for run in runs]
    run_rows = [
        {"run": name, **_run_statistics(run, varying, options.last or None)}
        for name, run in zip(names, runs, strict=True)
    ]
    groups = group_by_setting(runs)
    settings = [
        {"setting": setting_label(runs[members[0]], varying), **_setting_statistics([run_rows[i] for i in members])}
        for members in groups
    ]
    labels = [setting["setting"] for setting in settings]
    of_settings = [(label, [run_rows[i] for i in members]) for label, members in zip(labels, groups, strict=True)]
    statistics = {
        "last": options.last,
        "varying_options": varying,
        "runs": run_rows,
        "settings": settings,
        "differences": [row for pair in combinations(of_settings, 2) for row in _differences(*pair)],
    }
    data = {"runs": [str(run.folder) for run in runs]}
    return Result(
        "compare", data, statistics, _tables(statistics), {"curves": _plot(runs, groups, labels)}, _notes(runs)
    )


def setting_label(run: Run, varying: Sequence[str]) -> str:
    """Return the name of a setting: its strategy, α, and the options that differ between the runs."""
    extra = " ".join(f"{key}={shown_value(run.options.get(key))}" for key in varying if key not in NAMED_OPTIONS)
    label = f"{run.options.get('match', '?')} α={shown_value(run.options.get('alpha', 0))}"
    return " ".join((label, *([f"epochs={run.options.get('epochs')}"] if "epochs" in varying else []), extra)).strip()


def _read_history(path: Path) -> list[Row]:
    """Read results.csv; an epoch that appears twice (after a resume) counts as its last line says."""
    by_epoch: dict[float, Row] = {}
    lines = read_text(path, MAX_BYTES).splitlines()
    columns = [RENAMED.get(name.strip(), name.strip()) for name in (lines[0] if lines else "").split(",")]
    if "epoch" not in columns or len(set(columns)) < len(columns):
        raise UserError(f"{path}:1: there is no column 'epoch', or one twice; {RESTORE}")
    for number, line in enumerate(lines[1:], 2):
        row = _row_of(line.split(","), columns, f"{path}:{number}") if line.strip() else {}
        if "epoch" in row:
            by_epoch[row["epoch"]] = row
    if not by_epoch:
        raise UserError(f"{path}: there is no finished epoch in it; let train.py finish one")
    return [by_epoch[epoch] for epoch in sorted(by_epoch)]


def _row_of(cells: Sequence[str], columns: Sequence[str], place: str) -> Row:
    """Return the finite numbers of a line of results.csv by column; an empty cell is a number that was not taken."""
    if len(cells) > len(columns):
        raise UserError(f"{place}: {len(cells)} cells for {len(columns)} columns; {RESTORE}")
    row = {}
    for name, cell in zip(columns, cells, strict=False):
        text = cell.strip()
        try:
            value = float(text) if text else math.nan
        except ValueError:
            raise UserError(f"{place}: '{text:.40}' in column '{name:.40}' is no number") from None
        if abs(value) > LARGEST_NUMBER and math.isfinite(value):
            raise UserError(f"{place}: {text:.40} in column '{name:.40}' is no result; {RESTORE}")
        if math.isfinite(value):
            row[name] = value
    if not 0 <= row.get("epoch", 0) <= LARGEST_EPOCH or row.get("epoch", 0) % 1:
        raise UserError(f"{place}: {row['epoch']:g} is no number of an epoch; {RESTORE}")
    return row


def _run_statistics(run: Run, varying: Sequence[str], last: int | None) -> dict[str, Any]:
    statistics: dict[str, Any] = {
        "folder": str(run.folder),
        "match": run.options.get("match"),
        "alpha": run.options.get("alpha"),
        "seed": run.seed,
        "options": {key: run.options.get(key) for key in varying if key not in NAMED_OPTIONS},
        "epochs": len(run.history),
        "epochs_planned": run.options.get("epochs"),
    }
    for name, column in SCORES.items():
        summary = epoch_summary(run.history, column, last)
        statistics[name] = {key: summary.get(key) for key in ("max", "mean", "std", "best_epoch", "epochs")}
    statistics["positives_per_object"] = mean(_last(run, (POSITIVES,), last)[:, 0])
    unmatched, objects = _last(run, (UNMATCHED, OBJECTS), last).sum(axis=0)
    statistics["unmatched_share"] = share(unmatched, objects)
    return statistics


def _last(run: Run, columns: tuple[str, ...], last: int | None) -> np.ndarray:
    """Return some columns of the last epochs that have them all, [epochs columns]."""
    rows = [[row[column] for column in columns] for row in run.history if all(column in row for column in columns)]
    return np.array(rows[-last if last else 0 :], dtype=np.float64).reshape(-1, len(columns))


def _setting_statistics(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    statistics: dict[str, Any] = {"runs": [row["run"] for row in rows], "seeds": [row["seed"] for row in rows]}
    for name in SCORES:
        statistics[name] = {}
        for key in ("max", "mean"):
            values = [row[name][key] for row in rows if row[name][key] is not None]
            average, half = confidence_interval(values) if values else (None, None)
            statistics[name][key] = {"mean": average, "interval_95": half, "runs": len(values)}
    positives = [row["positives_per_object"] for row in rows if row["positives_per_object"] is not None]
    statistics["positives_per_object"] = float(np.mean(positives)) if positives else None
    return statistics


def _differences(
    first: tuple[str, Sequence[Mapping[str, Any]]], second: tuple[str, Sequence[Mapping[str, Any]]]
) -> list[dict[str, Any]]:
    """Return the differences of two settings, each its label and the statistics of its runs, paired by seed."""
    seeds = common_seeds(*([row["seed"] for row in rows] for _, rows in (first, second)))
    found = []
    for name, key in ((name, key) for name in SCORES for key in ("max", "mean")):
        values = (
            {row["seed"]: row[name][key] for row in rows if row["seed"] in seeds and row[name][key] is not None}
            for _, rows in (first, second)
        )
        paired = paired_by_seed(*values)
        if paired is not None:
            found.append(
                {
                    "of": second[0],
                    "minus": first[0],
                    "number": f"{name} {key}",
                    "difference": paired.average,
                    **sureness(paired),
                }
            )
    return found


def _tables(statistics: Mapping[str, Any]) -> tuple[Table, ...]:
    run_columns: dict[str, Cell] = {
        "run": "run",
        "match": "match",
        "α": "alpha",
        "options": _shown_options,
        "seed": "seed",
        "epochs": "epochs",
        **{
            f"{name} {key.replace('_', ' ')}": f"{name}/{key}"
            for name in SCORES
            for key in ("max", "mean", "std", "best_epoch")
        },
        "positives per object": "positives_per_object",
        "share without a match": "unmatched_share",
    }
    setting_columns: dict[str, Cell] = {
        "setting": "setting",
        "runs": lambda setting: len(setting["runs"]),
        **{
            f"{name} {key}{mark}": f"{name}/{key}/{part}"
            for name in SCORES
            for key in ("max", "mean")
            for mark, part in (("", "mean"), (" ±", "interval_95"))
        },
        "positives per object": "positives_per_object",
    }
    over = f"the last {statistics['last']} evaluated epochs" if statistics["last"] else "all evaluated epochs"
    return (
        table_of("runs", f"Runs: max, mean and std over {over}", statistics["runs"], run_columns),
        table_of(
            "settings",
            f"Settings: mean over the seeds ± half of the 95 % interval (Student's t) of each run's value over {over}",
            statistics["settings"],
            setting_columns,
        ),
        *([differences_table(statistics["differences"], ("seeds",))] if statistics["differences"] else []),
    )


def _shown_options(run: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={shown_value(value)}" for key, value in run["options"].items())


def _plot(runs: Sequence[Run], groups: Sequence[Sequence[int]], labels: Sequence[str]) -> Any:
    panels = {
        name: {
            label: [_curve(runs[index], column) for index in members]
            for label, members in zip(labels, groups, strict=True)
        }
        for name, column in SCORES.items()
    }
    return curves(panels, "epoch")


def _curve(run: Run, column: str) -> tuple[np.ndarray, np.ndarray]:
    points = [(row["epoch"], row[column]) for row in run.history if column in row]
    x, y = np.array(points, dtype=float).reshape(-1, 2).T
    return x, y


def _notes(runs: Sequence[Run]) -> tuple[str, ...]:
    notes = []
    for members in group_by_setting(runs):
        seeds = [runs[index].seed for index in members]
        if len(set(map(repr, seeds))) < len(seeds):
            folders = ", ".join(str(runs[index].folder) for index in members)
            notes.append(f"runs of one setting with the same seed, so their interval says too little: {folders}")
    for run in runs:
        if not any(MAP50 in row for row in run.history):
            notes.append(
                f"{run.folder}: no epoch was evaluated (--notest?) or there was no object to find, so it has no mAP"
            )
        planned = run.options.get("epochs")
        if isinstance(planned, int) and len(run.history) < planned:
            notes.append(f"{run.folder}: {len(run.history)} of {how_many(planned, 'epoch')} are finished")
    return tuple(notes)


def run(request: Request) -> Result:
    """Compare the runs that the flag names, of train.py or of test.py; the folder of a study stands for its runs.

    Raises:
        UserError: some are of the one and some of the other.
    """
    folders = [run for folder in request.chosen["compare"] for run in runs_in(folder)]
    options = request.options(CompareOptions)
    tested = [folder for folder in folders if is_tested(folder)]
    if not tested:
        return compare_runs([read_run(folder) for folder in folders], options)
    if others := [folder for folder in folders if folder not in tested]:
        raise UserError(f"--compare: {tested[0]} is a run of test.py, {others[0]} is none; compare runs of one kind")
    if options.last:
        raise UserError(f"--last {options.last}: a run of test.py has no epochs; leave it out")
    return compare_tests(read_tested(folders), request.options(ResultsOptions).resamples)


MODE = Mode(
    name="compare",
    text="compare runs of train.py, all those of a study, or runs of test.py: their folders, such as runs/train/exp",
    run=run,
    groups=(CompareOptions,),
    reads=frozenset({"resamples"}),
    takes_values=True,
)
