"""The folder of one run: its configuration, its log and its curves; and which run is the newest."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from data.labels.annotations import Annotations
from evaluation.coco import Metrics
from models.checkpoints.format import read_checkpoint
from utils import distributed
from utils.errors import UserError
from utils.figures import new_figure
from utils.files import atomic_path, remove_unfinished, write_text_atomically
from utils.renamed import with_current_names
from utils.yaml_file import read_yaml

BAR_FORMAT = "{desc} {percentage:3.0f}%|{bar:10}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]"  # of progress bars
TRAINING_RUNS = "runs/train"
CHECKPOINTS = ("best.pt", "last.pt")  # of a run; the first that is there is taken
Row = dict[str, float]


def shared_run_folder(parent: str | Path, name: str, exist_ok: bool = False) -> Path:
    """Return a new run's folder in all processes; the main one makes it, see :func:`new_run_folder`."""
    return Path(distributed.broadcast(str(new_run_folder(parent, name, exist_ok)) if distributed.is_main() else ""))


def new_run_folder(parent: str | Path, name: str, exist_ok: bool = False) -> Path:
    """Create and return ``parent/name``, or ``parent/name2``, ``name3``, … if that is taken and not ``exist_ok``.

    Raises:
        UserError: the name leads out of ``parent``, or the folder cannot be written.
    """
    parent = Path(parent)
    if not name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise UserError(f"--name {name}: must be the name of a folder inside {parent}")
    number = 1
    while True:
        folder = parent / (name if number == 1 else f"{name}{number}")
        try:
            folder.mkdir(parents=True, exist_ok=exist_ok)
            # Only a file shows that files can be written.
            (folder / ".writable").touch()
            (folder / ".writable").unlink(missing_ok=True)  # another process may be here, too
            remove_unfinished(parent.rglob(".*"))  # of earlier runs
            return folder
        except FileExistsError:
            if not folder.is_dir():
                raise UserError(
                    f"{folder}: a file stands where the run's folder should be; choose another --name"
                ) from None
            number += 1
        except OSError as error:
            raise UserError(
                f"{folder}: cannot write here ({error.strerror}); run in a folder that you may write"
            ) from error


def save_config(folder: Path, values: dict[str, Any]) -> None:
    """Write the resolved options of a run as ``config.yaml``; the file is itself a recipe that ``--hyp`` accepts."""
    write_text_atomically(folder / "config.yaml", yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


def save_results_csv(path: Path, history: Sequence[Row]) -> None:
    """Write one line per epoch; columns are the union of all rows' keys in order of first appearance."""
    columns = list(dict.fromkeys(name for row in history for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _plain(value) for name, value in row.items()} for row in history)
    write_text_atomically(path, text.getvalue())


def _plain(value: float) -> str | int:
    return value if isinstance(value, int) else f"{value:.6g}"


def weighted_ap(ap50: float, ap: float) -> float:
    """Return the fitness of an epoch: 0.1 mAP@0.5 + 0.9 mAP@0.5:0.95.

    The weights are those of ultralytics/yolov5 v7.0 (utils/metrics.py, fitness).
    """
    return 0.1 * ap50 + 0.9 * ap


def fitness(metrics: Metrics | None, losses: dict[str, float]) -> float | None:
    """Return what decides which epoch is the best, 0 to 1; None where it was not tested.

    Where there was no object to find, the epoch with the lowest training loss is the best.
    """
    if metrics is None:
        return None
    if metrics.num_instances == 0:
        return 1 / (1 + sum(losses.values()))
    return weighted_ap(metrics.ap50, metrics.ap)


def epoch_summary(history: Sequence[Row], column: str, last: int | None = None) -> dict[str, float]:
    """Return statistics of a column over the epochs that have it, the ``last`` ones only where that is given.

    Returns:
        ``max``, ``mean``, ``std`` (the population's standard deviation), ``best_epoch`` (from 1) and ``epochs`` (their
        number); nothing where no epoch has the column.
    """
    rows = [row for row in history if column in row][-last if last else 0 :]
    if not rows:
        return {}
    values = [row[column] for row in rows]
    best = max(rows, key=lambda row: row[column])
    return {
        "max": max(values),
        "mean": statistics.fmean(values),
        "std": statistics.pstdev(values),
        "best_epoch": int(best["epoch"]),
        "epochs": len(values),
    }


LOSSES = {"box": "box", "obj": "objectness", "cls": "class"}  # parts by other names keep theirs
PANELS = {  # title -> columns of results.csv
    "precision and recall": ("metrics/precision", "metrics/recall"),
    "mAP": ("metrics/mAP_0.5", "metrics/mAP_0.5:0.95"),
    "positives per object": ("match/positives_per_object",),
    "mean IoU of positives": ("match/base_iou", "match/extra_iou"),
    "learning rate": ("lr",),
}


def plot_results(path: Path, history: Sequence[Row]) -> None:
    """Draw the curves of ``results.csv``, one panel per kind of number that there is."""
    known = {column: None for row in history for column in row}
    parts = [column.removeprefix("train/") for column in known if column.startswith("train/")]
    losses = {f"loss: {LOSSES.get(part, part)}": (f"train/{part}", f"val/{part}") for part in parts}
    panels = {title: columns for title, columns in (losses | PANELS).items() if known.keys() & set(columns)}
    rows = math.ceil(len(panels) / 4)
    figure = new_figure(figsize=(15, 3.5 * rows), layout="constrained")
    grid = figure.subplots(rows, 4, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, (title, columns) in zip(grid.flat, panels.items(), strict=False):
        for column in columns:
            points = [(row["epoch"], row[column]) for row in history if column in row]
            if points:
                label = column if title in losses else column.split("/")[-1]
                axes.plot(*zip(*points, strict=True), marker=".", markersize=4, label=label)
        axes.set_title(title)
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        if len(axes.lines) > 1:
            axes.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=100)


def draw_labels(path: Path, annotations: Annotations) -> None:
    """Draw how the labels of a data set are distributed, crowd regions left out."""
    objects = annotations.select_boxes(~annotations.crowd)
    image_wh = objects.image_wh[objects.box_image]
    corners = objects.boxes_xyxy.reshape(-1, 2, 2)  # M corner xy
    sizes_wh = corners[:, 1] - corners[:, 0]
    plot_labels(path, objects.labels, corners.mean(axis=1) / image_wh, sizes_wh / image_wh, objects.names)


def plot_labels(
    path: Path, labels: np.ndarray, centers_xy: np.ndarray, sizes_wh: np.ndarray, names: Sequence[str]
) -> None:
    """Draw how the training labels are distributed: classes, centres and sizes.

    Args:
        path: the PNG to write.
        labels: [M] class indices.
        centers_xy: [M 2], relative to the image.
        sizes_wh: [M 2], relative to the image.
        names: class names.
    """
    figure = new_figure(figsize=(13, 4.2), layout="constrained")
    classes, centers, sizes = figure.subplots(1, 3)
    classes.bar(range(len(names)), np.bincount(np.asarray(labels, dtype=int), minlength=len(names)))
    if len(names) <= 30:
        classes.set_xticks(range(len(names)), names, rotation=90 if len(names) > 8 else 0)
    classes.set_title("objects per class")
    for axes, points, title in ((centers, centers_xy, "centres"), (sizes, sizes_wh, "sizes")):
        x, y = np.asarray(points, dtype=float).reshape(-1, 2).T
        axes.hist2d(x, y, bins=50, range=((0, 1), (0, 1)), cmin=1)
        axes.set_title(f"{title}, relative to the image")
    centers.invert_yaxis()  # y grows downwards, as in images
    sizes.set_xlabel("width")
    sizes.set_ylabel("height")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=100)


def newest_run(runs: str | Path = TRAINING_RUNS) -> Path | None:
    """Return the folder of the run that wrote last, None where there is no run.

    This one rule decides whose weights test.py, detect.py and analyze.py take, and whose data and cfg analyze.py looks
    at. A run wrote when its ``best.pt`` or ``last.pt`` did, the later of the two: a run that is resumed becomes the
    newest again, one that has no trained weights (yet) is passed over. Where no run has any, the newest ``config.yaml``
    decides.
    """
    weights = [path for name in CHECKPOINTS for path in Path(runs).glob(f"*/{name}")]
    for path in sorted(weights, key=lambda path: path.stat().st_mtime, reverse=True):
        if weights_of_run(path.parent):
            return path.parent
    configs = Path(runs).glob("*/config.yaml")
    newest = max(configs, key=lambda path: path.stat().st_mtime, default=None)
    return newest.parent if newest else None


def weights_of_run(folder: Path | None) -> Path | None:
    """Return ``best.pt`` of a run, ``last.pt`` where it has no best one, None without a run or trained weights."""
    paths = [folder / name for name in CHECKPOINTS] if folder else []
    return next((path for path in paths if path.is_file() and _is_trained(path)), None)


def _is_trained(path: Path) -> bool:
    """Whether a checkpoint is another one than the ``last.pt`` that a run writes before its first epoch."""
    if path.name == "best.pt":
        return True
    try:
        return read_checkpoint(path).get("epoch") != 0
    except UserError:  # whoever uses the file says what is wrong with it
        return True


def find_newest_checkpoint(runs: str | Path = TRAINING_RUNS) -> Path:
    """Return the weights of the newest run.

    Raises:
        UserError: there is no run with weights; says to train one.
    """
    found = weights_of_run(newest_run(runs))
    if found is None:
        raise UserError(f"no trained network in {runs}/; run train.py first, or name one with --weights")
    return found


def options_of_run(folder: Path | None) -> dict[str, Any]:
    """Return the flat options in a run's ``config.yaml``, nothing where there is no run or no such file."""
    if folder is None or not (folder / "config.yaml").is_file():
        return {}
    return read_config(folder)


def read_config(folder: Path) -> dict[str, Any]:
    """Return the options in a run's ``config.yaml``, under their present names.

    Raises:
        UserError: the file is missing, no YAML or no mapping.
    """
    path = folder / "config.yaml"
    try:
        return with_current_names(read_yaml(path).values)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    except UserError as error:
        raise UserError(f"{error}; the run wrote this file, restore it") from error
