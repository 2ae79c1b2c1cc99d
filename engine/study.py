"""``test.py --task study``: one network at several image sizes, AP over the time that an image takes."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from data.labels.annotations import Annotations
from data.loader import LoaderSettings
from engine.evaluate import collect_results, warmed_up, without_unread
from evaluation.coco import evaluate_coco
from evaluation.results import clean_ground_truth
from models.detection_network import DetectionNetwork, check_image_size
from models.detector import Detector
from utils import distributed
from utils.config import option
from utils.errors import UserError
from utils.figures import new_figure
from utils.files import atomic_path, read_text, write_json_atomically, write_text_atomically

SIZES = (256, 640)  # the first and the last, in steps of the network's stride, where the user names none
MAX_BYTES = 1_000_000  # of a study.csv: ten thousand sizes


@dataclass(frozen=True)
class StudyOptions:
    """Evaluating a network at several image sizes (--task study)."""

    study_sizes: tuple[int, ...] = option((), "sides of the input, in pixels; default: 256 to 640 in whole strides")
    study_beside: tuple[str, ...] = option((), "study.csv of other networks, drawn into the same figure")


@dataclass(frozen=True)
class StudyRow:
    """What was found at one size."""

    network: str  # file of the weights
    size: int  # side of the square network input; with rectangular batches the longer side
    ap: float | None  # None where there is no object
    ap50: float | None
    inference_ms: float  # per image
    nms_ms: float
    total_ms: float


def study_sizes(options: StudyOptions, network: DetectionNetwork) -> tuple[int, ...]:
    """Return the sizes to evaluate, each once, from small to large.

    Raises:
        UserError: the network does not work at one of them.
    """
    if not options.study_sizes and network.fixed_size:
        raise UserError(f"--task study: {network.cfg_path} works at one size only")
    first, last = SIZES
    stride = network.max_stride
    sizes = options.study_sizes or tuple(range(math.ceil(first / stride) * stride, last + 1, stride))
    for size in sizes:
        check_image_size(network, size)
    return tuple(sorted(set(sizes)))


def checked_study(options: StudyOptions, is_study: bool, others: Mapping[str, object]) -> dict[str, list[StudyRow]]:
    """Return the studies beside which this one is drawn, by file; refuse options that do not go together.

    Args:
        options: of the command line.
        is_study: whether it asks for a study.
        others: options that a study has no use for, by their names on the command line; empty where they are not given.

    Raises:
        UserError: names the option, or the file.
    """
    if not is_study and (options.study_sizes or options.study_beside):
        raise UserError("--study-sizes and --study-beside are for --task study")
    unused = [name for name, given in others.items() if is_study and given]
    if unused:
        raise UserError(f"{unused[0]} is not for --task study, which evaluates one network at each of --study-sizes")
    return {path: read_study(path) for path in options.study_beside}


def run_study(
    name: str,
    detector: Detector,
    sizes: Sequence[int],
    dataset: Annotations,
    settings: LoaderSettings,
    single_class: bool = False,
    evaluator: str = "auto",
) -> list[StudyRow]:
    """Evaluate at every size, and print a line for each; the rows are those of the main process.

    Args:
        name: of the network.
        detector: of the network.
        sizes: sides of the network input.
        dataset: what to look at.
        settings: how batches are made, at any size.
        single_class: as in :func:`engine.evaluate.collect_results`.
        evaluator: a backend of :mod:`evaluation.coco`.
    """
    rows = []
    ground_truth = clean_ground_truth(dataset.to_coco())
    if distributed.is_main():
        print("".join(f"{title:>14}" for title in ("size", "AP", "AP50", "ms inference", "ms NMS", "ms in all")))
    for size in sizes:
        with warmed_up(detector, dataset, replace(settings, image_hw=(size, size))) as batches:
            detector.boxes_only = True  # whose numbers the table has
            results = collect_results(detector, batches, ground_truth, single_class)
        truth, results = without_unread(ground_truth, results, batches)
        if distributed.is_main():
            metrics, speed = evaluate_coco(truth, results, evaluator).to_dict(), detector.speed()
            times = (speed.inference_ms, speed.nms_ms, speed.total_ms)
            rows.append(StudyRow(name, size, metrics["ap"], metrics["ap50"], *times))
            scores = ("-" if score is None else f"{score:.4f}" for score in (rows[-1].ap, rows[-1].ap50))
            print(f"{size:>14}" + "".join(f"{text:>14}" for text in (*scores, *(f"{time:.1f}" for time in times))))
    return rows


def write_study(
    folder: Path, rows: Sequence[StudyRow], beside: Mapping[str, Sequence[StudyRow]], settings: dict[str, Any]
) -> None:
    """Write, in the main process, study.csv and study.json of the rows, and study.png with those ``beside``, too.

    Args:
        folder: of the run.
        rows: one per size.
        beside: rows of other studies, by their files.
        settings: what study.json says besides.
    """
    if not distributed.is_main():
        return
    names = [field.name for field in fields(StudyRow)]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    write_text_atomically(folder / "study.csv", stream.getvalue())
    write_json_atomically(folder / "study.json", {"rows": [asdict(row) for row in rows], **settings})
    with atomic_path(folder / "study.png") as temporary:
        _figure(_lines(rows, beside)).savefig(temporary, dpi=120)
    print(f"Written to {folder}: study.csv, study.json, study.png")


def read_study(path: str) -> list[StudyRow]:
    """Read the rows of a study.csv.

    Raises:
        UserError: there is no such file, or it is not one; names the line.
    """
    reader = csv.DictReader(io.StringIO(read_text(path, MAX_BYTES)))
    rows = []
    for line in reader:
        try:
            ap, ap50 = (float(line[name]) if line[name] else None for name in ("ap", "ap50"))
            times = [float(line[name]) for name in ("inference_ms", "nms_ms", "total_ms")]
            numbers = [*times, *(score for score in (ap, ap50) if score is not None)]
            if not all(map(math.isfinite, numbers)):
                raise ValueError
            rows.append(StudyRow(line["network"], int(line["size"]), ap, ap50, *times))
        except (KeyError, TypeError, ValueError):
            raise UserError(f"{path}:{reader.line_num}: no line of a study.csv, as --task study writes it") from None
    if not rows:
        raise UserError(f"{path}: holds no study; give a study.csv, as --task study writes it")
    return rows


def _lines(
    rows: Sequence[StudyRow], beside: Mapping[str, Sequence[StudyRow]]
) -> dict[str, list[tuple[float, float, int]]]:
    """Return the points (milliseconds, AP, size) of each line of the figure; its label may name the file, too."""
    lines: dict[str, list[tuple[float, float, int]]] = {}
    for path, study in [("", rows), *beside.items()]:
        taken = set(lines)
        for row in study:
            label = f"{row.network} ({path})" if row.network in taken else row.network
            if row.ap is not None:
                lines.setdefault(label, []).append((row.total_ms, row.ap, row.size))
    return lines


def _figure(lines: Mapping[str, Sequence[tuple[float, float, int]]]) -> Any:
    """Draw AP over milliseconds, a line per network, each point with its size."""
    figure = new_figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for label, points in lines.items():
        axes.plot([time for time, _, _ in points], [ap for _, ap, _ in points], marker=".", label=label)
        for time, ap, size in points:
            axes.annotate(str(size), (time, ap), (3, -9), textcoords="offset points", fontsize=7)
    axes.set_xlabel("ms per image (inference and NMS)")
    axes.set_ylabel("AP")
    axes.grid(alpha=0.3)
    if lines:  # a network without any AP has no line
        axes.legend(loc="lower right")
    return figure
