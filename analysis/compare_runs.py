"""``analyze.py --compare RUN…``: training runs side by side, the seeds of one setting taken together.

A run is the folder that ``train.py`` writes: ``config.yaml`` (flat options) and ``results.csv`` (one line per epoch).
Runs whose options differ only in the seed (and in bookkeeping, :data:`BOOKKEEPING`) are one setting.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import stdtrit

from analysis.mode import Mode, Request
from analysis.output.plots import curves
from analysis.output.result import Cell, Result, Table, mean, share, table_of
from engine.run_folder import Row, epoch_summary, read_config
from utils.config import option
from utils.errors import UserError
from utils.renamed import RENAMED

MAP50, MAP = "metrics/mAP_0.5", "metrics/mAP_0.5:0.95"
POSITIVES, UNMATCHED, OBJECTS = "match/positives_per_object", "match/unmatched", "match/objects"
SCORES = {"mAP@0.5": MAP50, "mAP": MAP}
NAMED_OPTIONS = ("match", "alpha", "epochs")  # have columns of their own in the tables
BOOKKEEPING = {
    "seed",
    "name",
    "device",
    "workers",
    "resume",
    "nosave",
    "notest",
    "cache",
    "hyp",
    "project",
    "exist_ok",
    "save_period",
}
# They say where and how a run was computed, not what was learned; what the recipe ``hyp`` says is in the other options.


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
    statistics = {"last": options.last, "varying_options": varying, "runs": run_rows, "settings": settings}
    labels = [setting["setting"] for setting in settings]
    data = {"runs": [str(run.folder) for run in runs]}
    return Result(
        "compare", data, statistics, _tables(statistics), {"curves": _plot(runs, groups, labels)}, _notes(runs)
    )


def varying_options(runs: Sequence[Run]) -> list[str]:
    """Return the options that are not the same in all runs, in the order of the first run's file."""
    keys = list(dict.fromkeys(key for run in runs for key in run.options))
    return [key for key in keys if key not in BOOKKEEPING and len({repr(run.options.get(key)) for run in runs}) > 1]


def group_by_setting(runs: Sequence[Run]) -> list[list[int]]:
    """Return the indices of the runs of each setting, in order of first appearance."""
    varying = varying_options(runs)
    groups: dict[tuple[str, ...], list[int]] = {}
    for index, run in enumerate(runs):
        groups.setdefault(tuple(repr(run.options.get(key)) for key in varying), []).append(index)
    return list(groups.values())


def setting_label(run: Run, varying: Sequence[str]) -> str:
    """Return the name of a setting: its strategy, α, and the options that differ between the runs."""
    extra = " ".join(f"{key}={_shown(run.options.get(key))}" for key in varying if key not in NAMED_OPTIONS)
    label = f"{run.options.get('match', '?')} α={_shown(run.options.get('alpha', 0))}"
    return " ".join((label, *([f"epochs={run.options.get('epochs')}"] if "epochs" in varying else []), extra)).strip()


def confidence_interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean of n values and half the width of its 95 % confidence interval, None for one value.

    The half width is t(0.975, n - 1) · s / √n, with Student's t and the sample standard deviation s.
    """
    average = float(np.mean(values))
    if len(values) < 2:
        return average, None
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return average, float(stdtrit(len(values) - 1, 0.975)) * error


def _read_history(path: Path) -> list[Row]:
    """Read results.csv; an epoch that appears twice (after a resume) counts as its last line says."""
    by_epoch: dict[float, Row] = {}
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        columns = [RENAMED.get(name.strip(), name.strip()) for name in reader.fieldnames or ()]
        if "epoch" not in columns:
            raise UserError(f"{path}:1: there is no column 'epoch'; train.py writes this file, restore it")
        reader.fieldnames = columns
        for cells in reader:
            row = {}
            for name in columns:
                text = (cells[name] or "").strip()
                try:
                    value = float(text) if text else math.nan
                except ValueError:
                    raise UserError(f"{path}:{reader.line_num}: '{text}' in column '{name}' is no number") from None
                if math.isfinite(value):
                    row[name] = value
            if "epoch" in row:
                by_epoch[row["epoch"]] = row
    if not by_epoch:
        raise UserError(f"{path}: there is no finished epoch in it; let train.py finish one")
    return [by_epoch[epoch] for epoch in sorted(by_epoch)]


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
    )


def _shown_options(run: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={_shown(value)}" for key, value in run["options"].items())


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
            notes.append(f"{run.folder}: no epoch was evaluated (--notest?), so it has no mAP")
        planned = run.options.get("epochs")
        if isinstance(planned, int) and len(run.history) < planned:
            notes.append(f"{run.folder}: {len(run.history)} of {planned} epochs are finished")
    return tuple(notes)


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def run(request: Request) -> Result:
    """Compare the training runs that the flag names."""
    folders = request.chosen["compare"]
    return compare_runs([read_run(folder) for folder in folders], request.options(CompareOptions))


MODE = Mode(
    name="compare",
    text="compare training runs: their folders, such as runs/train/exp",
    run=run,
    groups=(CompareOptions,),
    takes_values=True,
)
