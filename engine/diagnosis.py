"""What test.py finds out on request: counts at a working point, and with --report confusion, curves and reliability."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.evaluation_plots import confidence_plots, confusion_plot, precision_recall_plot, reliability_plot
from evaluation.confusion import BACKGROUND, confusion_matrix, normalised
from evaluation.curves import RECALLS, Curves, curves_of, mean_of_classes
from evaluation.working_point import working_point
from utils.config import option
from utils.errors import UserError
from utils.files import atomic_path, write_json_atomically, write_text_atomically
from utils.tables import csv_table, markdown_table, text_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONSOLE_ROWS = 24  # a longer table of thresholds is cut on the console, not in the files
POINTS = (0, 11, 101)
Columns = Mapping[str, Sequence[dict]]  # name of a detector -> its results


@dataclass(frozen=True)
class DiagnosisOptions:
    """Counts at one confidence and IoU, and a report of where the detections go wrong; of boxes."""

    at_conf: float | None = option(None, "TP, FP and FN above this confidence, as darknet detector map counts (0.25)")
    at_iou: float | None = option(None, "IoU of these counts and their mAP (0.5), and of the confusion matrix (0.45)")
    points: int | None = option(None, "recalls that this mAP is over: 11 (VOC 2007), 101 (COCO), 0: area under it (0)")
    report: bool = option(False, "confusion matrix, curves over the confidence with the best thresholds, reliability")

    def __post_init__(self) -> None:
        if self.at_conf is not None and not 0 <= self.at_conf < 1:
            raise ValueError(f"--at-conf must lie between 0 and 1, not {self.at_conf}")
        if self.at_iou is not None and not 0 < self.at_iou < 1:
            raise ValueError(f"--at-iou must lie between 0 and 1, not {self.at_iou}")
        if self.points not in (None, *POINTS):
            raise ValueError(f"--points must be 0, 11 or 101, not {self.points}")

    @property
    def counts(self) -> bool:
        """Whether counts at a working point are asked for."""
        return (self.at_conf, self.at_iou, self.points) != (None, None, None)

    def confidence_and_iou(self, confidence: float, iou: float) -> tuple[float, float]:
        """Return what was asked for, else these."""
        return (
            confidence if self.at_conf is None else self.at_conf,
            iou if self.at_iou is None else self.at_iou,
        )


def refuse_masks(options: DiagnosisOptions, kind: str) -> None:
    """Refuse what can be found out for boxes only.

    Raises:
        UserError: masks or key points are evaluated, and more than their numbers is asked for.
    """
    if kind != "bbox" and (options.counts or options.report):
        raise UserError(f"--at-conf, --at-iou, --points and --report are for boxes: leave out --iou-type {kind}")


def diagnose(
    options: DiagnosisOptions, truth: dict, columns: Columns, folder: Path, verbose: bool = False
) -> dict[str, Any]:
    """Find out what is asked for, print it and write it.

    Args:
        options: what.
        truth: COCO's ground truth.
        columns: by the name of a detector, its results.
        folder: of the files.
        verbose: print the best threshold of every class, however many there are.

    Returns:
        Plain values for ``metrics.json`` by the name of a detector; nothing where nothing is asked for.
    """
    found: dict[str, Any] = {}
    if options.counts:
        found["working_points"] = _working_points(options, truth, columns)
    if options.report:
        _write_confusion(options, truth, columns, folder)
        curves = {name: curves_of(truth, results) for name, results in columns.items()}
        _write_curves(curves, folder)
        rows = _threshold_rows(curves)
        _write_thresholds(rows, folder)
        _print_report(rows, curves, verbose)
        found["best_thresholds"] = {name: one.best_thresholds() for name, one in curves.items()}
        found["calibration"] = {
            name: {"error": one.calibration_error, "bins": list(one.calibration_bins)} for name, one in curves.items()
        }
    return found


def _working_points(options: DiagnosisOptions, truth: dict, columns: Columns) -> dict[str, Any]:
    """Print the counts of each detector as Darknet prints them, and return them."""
    confidence, iou = options.confidence_and_iou(0.25, 0.5)
    found = {}
    for name, results in columns.items():
        point = working_point(truth, results, confidence, iou, options.points or 0)
        if len(columns) > 1:
            print(f"{name}:")
        print("\n".join(point.lines()) + "\n")
        found[name] = point.to_dict()
    return found


def _write_confusion(options: DiagnosisOptions, truth: dict, columns: Columns, folder: Path) -> None:
    """Write the confusion matrices as pictures, CSV and JSON; of several detectors the files' names end with theirs."""
    confidence, iou = options.confidence_and_iou(0.25, 0.45)  # these of ultralytics/yolov5 v7.0
    names = [str(category["name"]) for category in truth["categories"]]
    labels = [*names, BACKGROUND]
    content: dict[str, Any] = {"confidence": confidence, "iou": iou, "names": labels, "rows": "true", "matrices": {}}
    endings = _endings(list(columns)) if len(columns) > 1 else [""]
    for (name, results), ending in zip(columns.items(), endings, strict=True):
        matrix = confusion_matrix(truth, results, confidence, iou)
        title = f"{name}: confidence above {confidence:g}, IoU above {iou:g}"
        _save(confusion_plot(matrix, names, title), folder / f"confusion_matrix{ending}.png")
        _save(confusion_plot(normalised(matrix), names, title), folder / f"confusion_matrix_normalized{ending}.png")
        rows = [["true \\ predicted", *labels], *([label, *row] for label, row in zip(labels, matrix, strict=True))]
        write_text_atomically(folder / f"confusion_matrix{ending}.csv", csv_table(rows))
        content["matrices"][name] = matrix.tolist()
    write_json_atomically(folder / "confusion_matrix.json", content, indent=None)


def _write_curves(curves: Mapping[str, Curves], folder: Path) -> None:
    """Write the curves of all detectors as pictures, CSV and JSON."""
    _save(precision_recall_plot(curves), folder / "PR_curve.png")
    for stem, figure in confidence_plots(curves).items():
        _save(figure, folder / f"{stem}.png")
    _save(reliability_plot(curves), folder / "reliability_diagram.png")
    write_json_atomically(folder / "curves.json", {name: one.to_dict() for name, one in curves.items()}, indent=None)
    over_confidence: list[Sequence[Any]] = [("detector", "class", "confidence", "precision", "recall", "f1")]
    over_recall: list[Sequence[Any]] = [("detector", "class", "recall", "precision")]
    for name, one in curves.items():
        by = one.by_confidence
        means = [mean_of_classes(by.precision), mean_of_classes(by.recall), by.mean_f1]
        of_classes = [("all", means, mean_of_classes(one.precision_at_recall))]
        of_classes += [
            (
                one.names[number],
                [by.precision[number], by.recall[number], by.f1[number]],
                one.precision_at_recall[number],
            )
            for number in one.present
        ]
        for class_name, values, at_recall in of_classes:
            rows = zip(by.confidences.tolist(), *(value.tolist() for value in values), strict=True)
            over_confidence += [(name, class_name, *(f"{number:.6g}" for number in row)) for row in rows]
            pairs = zip(RECALLS.tolist(), at_recall.tolist(), strict=True)
            over_recall += [(name, class_name, f"{recall:.2f}", f"{precision:.6g}") for recall, precision in pairs]
    write_text_atomically(folder / "curves.csv", csv_table(over_confidence))
    write_text_atomically(folder / "PR_curve.csv", csv_table(over_recall))


def _threshold_rows(curves: Mapping[str, Curves]) -> list[list[str]]:
    """Return the table of the confidences with the highest F1, of all classes and of each."""
    rows = [["detector", "class", "confidence", "P", "R", "F1"]]
    for name, one in curves.items():
        for row in one.best_thresholds():
            numbers = (row["confidence"], row["precision"], row["recall"], row["f1"])
            rows.append([name, row["name"], *("-" if number is None else f"{number:.3f}" for number in numbers)])
    return rows


def _write_thresholds(rows: Sequence[Sequence[str]], folder: Path) -> None:
    write_text_atomically(folder / "best_thresholds.csv", csv_table(rows))
    text = markdown_table(rows, [False, False, True, True, True, True])
    write_text_atomically(folder / "best_thresholds.md", f"{text}\n")


def _print_report(rows: list[list[str]], curves: Mapping[str, Curves], verbose: bool) -> None:
    """Print the best thresholds, those of single classes where they are few, and the calibration errors."""
    shown = rows if verbose or len(rows) <= CONSOLE_ROWS else [row for row in rows if row[1] in ("class", "all")]
    print("Confidence with the highest F1 at IoU 0.5:\n" + text_table(shown))
    if len(shown) < len(rows):
        print(f"{len(rows) - len(shown)} more rows in best_thresholds.csv")
    for name, one in curves.items():
        if one.calibration_error is not None:
            print(f"{name}: expected calibration error {one.calibration_error:.3f}")


def _endings(names: Sequence[str]) -> list[str]:
    """Return an ending of a file name for each name, all different."""
    plain = [re.sub(r"[^\w.-]", "_", name) for name in names]
    if len(set(plain)) < len(plain):
        plain = [f"{number}_{name}" for number, name in enumerate(plain, start=1)]
    return [f"_{name}" for name in plain]


def _save(figure: Figure, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150)
