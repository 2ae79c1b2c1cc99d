"""What test.py finds out on request: counts at a working point, and with --report where the points went."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.error_pictures import ImageSource
from analysis.evaluation_images import hardest_images
from analysis.evaluation_plots import confidence_plots, confusion_plot, precision_recall_plot, reliability_plot
from analysis.output.pictures import ReportImage
from analysis.output.report import ReportOptions
from analysis.output.result import CONSOLE_ROWS, LISTING_ROWS, Plot, ReportSection, Table, as_csv, as_markdown
from analysis.points_lost import report_points_lost
from evaluation.confusion import BACKGROUND, confusion_matrix, normalised
from evaluation.curves import RECALLS, Curves, curves_of, mean_of_classes
from evaluation.working_point import WorkingPoint, working_point
from models.assignment.strategies import reads_predictions
from utils.config import option
from utils.errors import UserError
from utils.files import atomic_path, write_json_atomically, write_text_atomically
from utils.tables import csv_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from analysis.evaluation_groups import Priors

POINTS = (0, 11, 101)
CURVES = {  # stem of a file -> title
    "PR_curve": "Precision over recall at IoU 0.5",
    "F1_curve": "F1 over confidence",
    "P_curve": "Precision over confidence",
    "R_curve": "Recall over confidence",
    "reliability_diagram": "Share of right detections over their score",
}
CURVES_TEXT = (
    "At IoU 0.5. A detector is used with one confidence: the table names the one with the highest F1, of all classes "
    "and of each. The last diagram tells whether a score of 0.7 means that 7 of 10 such detections are right."
)
CONFUSION_TEXT = (
    "Rows are the classes of the objects, columns what they are taken for. The last row holds detections without an "
    "object, the last column objects that nothing finds."
)
Columns = Mapping[str, Sequence[dict]]  # name of a detector -> its results


@dataclass(frozen=True)
class DiagnosisOptions(ReportOptions):
    """Counts at one confidence and IoU, and a report of where the detections go wrong; of boxes."""

    at_conf: float | None = option(None, "TP, FP and FN above this confidence, as darknet detector map counts (0.25)")
    at_iou: float | None = option(None, "IoU of these counts and their mAP (0.5), and of the confusion matrix (0.45)")
    points: int | None = option(None, "recalls that this mAP is over: 11 (VOC 2007), 101 (COCO), 0: area under it (0)")
    match: str = option(
        "standard", "--report: strategies whose number of positives makes groups, separated by commas; with a network"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.at_conf is not None and not 0 <= self.at_conf < 1:
            raise ValueError(f"--at-conf must lie between 0 and 1, not {self.at_conf}")
        if self.at_iou is not None and not 0 < self.at_iou < 1:
            raise ValueError(f"--at-iou must lie between 0 and 1, not {self.at_iou}")
        if self.points not in (None, *POINTS):
            raise ValueError(f"--points must be 0, 11 or 101, not {self.points}")
        if self.match != "standard" and not self.report:
            raise ValueError(f"--match {self.match} is for --report; add it")
        for name in self.match.split(","):
            if reads_predictions(name):
                raise ValueError(
                    f"--match {name} looks at predictions, which --report has none of; see --matching-stats"
                )

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


def refuse_what_is_missing(options: DiagnosisOptions, kind: str, cfg: str) -> None:
    """Refuse what cannot be found out about files of results.

    Raises:
        UserError: counts of masks or key points are asked for, or matches without anchors.
    """
    if kind != "bbox" and options.counts:
        raise UserError(f"--at-conf, --at-iou and --points are for boxes: leave out --iou-type {kind}")
    if options.match != "standard" and not cfg:
        raise UserError(f"--match {options.match} needs the anchors of a network: name its --cfg")


@dataclass(frozen=True)
class Diagnosis:
    """What was found out."""

    content: dict[str, Any]  # for metrics.json
    tables: list[Table]
    sections: list[ReportSection]  # for report.html, without what is wrong with single images
    images: list[ReportImage]  # those that cost most AP50


def diagnose(
    options: DiagnosisOptions,
    truth: dict,
    columns: Columns,
    folder: Path,
    source: ImageSource,
    priors: Priors | None = None,
) -> Diagnosis:
    """Find out what is asked for about boxes; print the counts, write the files of the curves and the pictures.

    Args:
        options: what.
        truth: COCO's ground truth.
        columns: by the name of a detector, its results.
        folder: of the files.
        source: finds the pictures.
        priors: of a network; None leaves out groups of objects by these.
    """
    content: dict[str, Any] = {}
    sections: list[ReportSection] = []
    images: list[ReportImage] = []
    tables: list[Table] = []
    if options.counts:
        points = _working_points(options, truth, columns)
        content["working_points"] = {name: point.to_dict() for name, point in points.items()}
        sections.append(_section_of_points(points))
    if options.report:
        matrices = _write_confusion(options, truth, columns, folder)
        curves = {name: curves_of(truth, results) for name, results in columns.items()}
        plots = _write_curves(curves, folder)
        thresholds = _threshold_table(curves)
        content["best_thresholds"] = {name: one.best_thresholds() for name, one in curves.items()}
        lost = report_points_lost(truth, columns, source, folder, priors, options.match.split(","))
        tables = [thresholds, *lost.tables]
        content |= lost.content
        sections += [
            ReportSection("Curves", CURVES_TEXT, [thresholds], plots),
            ReportSection("Confusion matrix", CONFUSION_TEXT, plots=matrices),
            *lost.sections,
        ]
        images = hardest_images(truth, lost.detectors, lost.found.ap50_lost, source, options.report_images)
    return Diagnosis(content, tables, sections, images)


def add_tables(tables: Sequence[Table], folder: Path) -> None:
    """Print tables, and write them behind those that table.md and table.csv have."""
    tables = [replace(table, name="table") for table in tables]  # where the rows are that are not printed
    for table in tables:
        print(as_markdown(table, LISTING_ROWS if table.listing else CONSOLE_ROWS))
    for name, as_text in (("table.md", as_markdown), ("table.csv", as_csv)):
        path = folder / name
        before = [path.read_text(encoding="utf-8")] if path.is_file() else []
        write_text_atomically(path, "\n".join([*before, *map(as_text, tables)]))


def _working_points(options: DiagnosisOptions, truth: dict, columns: Columns) -> dict[str, WorkingPoint]:
    """Print the counts of each detector as Darknet prints them, and return them."""
    confidence, iou = options.confidence_and_iou(0.25, 0.5)
    found = {}
    for name, results in columns.items():
        point = working_point(truth, results, confidence, iou, options.points or 0)
        if len(columns) > 1:
            print(f"{name}:")
        print("\n".join(point.lines()) + "\n")
        found[name] = point
    return found


def _section_of_points(points: Mapping[str, WorkingPoint]) -> ReportSection:
    """Return the counts of each class as a part of the report."""
    headings = {
        "TP": "detections that are right",
        "FP": "detections that are wrong",
        "FN": "objects that are not found",
        "precision": "share of the detections that are right",
        "recall": "share of the objects that are found",
        "F1": "harmonic mean of precision and recall",
        "mean IoU": "of the detections that are right",
    }
    tables = []
    for name, point in points.items():
        of_classes = [("all", point.mean_ap, point.of_all), *zip(point.names, point.ap, point.of_class, strict=True)]
        rows = tuple(
            (class_name, ap, one.true_positives, one.false_positives, one.false_negatives, one.precision, one.recall,
             one.f1, one.mean_iou)
            for class_name, ap, one in of_classes
        )  # fmt: skip
        title = f"{name}: confidence above {point.confidence:g}, IoU above {point.iou:g}"
        explanations = {"AP": f"average precision at IoU {point.iou:g}, over all confidences"} | headings
        tables.append(Table("working_point", title, ("class", "AP", *headings), rows, explanations=explanations))
    return ReportSection("At a working point", "Counted as Darknet's detector map counts.", tables)


def _write_confusion(options: DiagnosisOptions, truth: dict, columns: Columns, folder: Path) -> list[Plot]:
    """Write the confusion matrices as pictures, CSV and JSON, and return the pictures.

    Of several detectors the files' names end with theirs.
    """
    plots = []
    confidence, iou = options.confidence_and_iou(0.25, 0.45)  # these of ultralytics/yolov5 v7.0
    names = [str(category["name"]) for category in truth["categories"]]
    labels = [*names, BACKGROUND]
    content: dict[str, Any] = {"confidence": confidence, "iou": iou, "names": labels, "rows": "true", "matrices": {}}
    endings = _endings(list(columns)) if len(columns) > 1 else [""]
    for (name, results), ending in zip(columns.items(), endings, strict=True):
        matrix = confusion_matrix(truth, results, confidence, iou)
        title = f"{name}: confidence above {confidence:g}, IoU above {iou:g}"
        for kind, values in (("", matrix), ("_normalized", normalised(matrix))):
            figure = confusion_plot(values, names, title)
            _save(figure, folder / f"confusion_matrix{kind}{ending}.png")
            plots.append(Plot(f"{title}, {'share of the objects of a class' if kind else 'counts'}", figure))
        rows = [["true \\ predicted", *labels], *([label, *row] for label, row in zip(labels, matrix, strict=True))]
        write_text_atomically(folder / f"confusion_matrix{ending}.csv", csv_table(rows))
        content["matrices"][name] = matrix.tolist()
    write_json_atomically(folder / "confusion_matrix.json", content, indent=None)
    return plots


def _write_curves(curves: Mapping[str, Curves], folder: Path) -> list[Plot]:
    """Write the curves of all detectors as pictures, CSV and JSON, and return the pictures."""
    figures = {"PR_curve": precision_recall_plot(curves), **confidence_plots(curves)}
    figures["reliability_diagram"] = reliability_plot(curves)
    for stem, figure in figures.items():
        _save(figure, folder / f"{stem}.png")
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
    return [Plot(CURVES[stem], figure) for stem, figure in figures.items()]


def _threshold_table(curves: Mapping[str, Curves]) -> Table:
    """Return the table of the confidences with the highest F1, of all classes and of each."""
    rows = [
        (name, row["name"], row["confidence"], row["precision"], row["recall"], row["f1"])
        for name, one in curves.items()
        for row in one.best_thresholds()
    ]
    columns = ("detector", "class", "confidence", "P", "R", "F1")
    return Table("best_thresholds", "Confidence with the highest F1 at IoU 0.5", columns, tuple(rows))


def _endings(names: Sequence[str]) -> list[str]:
    """Return an ending of a file name for each name, all different."""
    plain = [re.sub(r"[^\w.-]", "_", name) for name in names]
    if len(set(plain)) < len(plain):
        plain = [f"{number}_{name}" for number, name in enumerate(plain, start=1)]
    return [f"_{name}" for name in plain]


def _save(figure: Figure, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150)
