"""The pictures of an evaluation: curves of one detector or several, confusion matrices and reliability diagrams."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from evaluation.confusion import BACKGROUND
from evaluation.curves import RECALLS, Curves, mean_of_classes
from utils.figures import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMED_CLASSES = 20  # of more, the lines of the single classes have no names
MANY_LINES = 6  # of more, the names stand beside the plot
NUMBERED_CLASSES = 30  # of more, the cells of a matrix have no numbers
LABELLED_CLASSES = 100  # of more, the rows and columns have no names


def precision_recall_plot(columns: Mapping[str, Curves]) -> Figure:
    """Draw precision over recall: of each class and the mean, or the means of several detectors."""
    lines = {name: (RECALLS, one.precision_at_recall) for name, one in columns.items()}
    figure, axes = _curves(columns, lines, lambda mean: f"{mean.mean():.3f} mAP@0.5", "recall", "precision")
    axes.set_title("Precision and recall at IoU 0.5", fontsize=10)
    return figure


def confidence_plots(columns: Mapping[str, Curves]) -> dict[str, Figure]:
    """Draw F1, precision and recall over the confidence; by file stem, those of ultralytics/yolov5."""
    figures = {}
    for stem, word, key in (("F1_curve", "F1", "f1"), ("P_curve", "precision", "precision"),
                            ("R_curve", "recall", "recall")):  # fmt: skip
        curves = {name: one.by_confidence for name, one in columns.items()}
        lines = {name: (one.confidences, getattr(one, key)) for name, one in curves.items()}
        confidences = next(iter(curves.values())).confidences  # the same for all
        figure, axes = _curves(columns, lines, partial(_highest, confidences), "confidence", word)
        axes.set_title(f"{word[0].upper()}{word[1:]} and confidence at IoU 0.5", fontsize=10)
        figures[stem] = figure
    return figures


def _highest(confidences: np.ndarray, mean: np.ndarray) -> str:
    """Return the highest value of a mean [S] and the confidence [S] where it is."""
    return f"{mean.max():.3f} at {confidences[mean.argmax()]:.3f}"


def _curves(
    columns: Mapping[str, Curves],
    lines: Mapping[str, tuple[np.ndarray, np.ndarray]],
    label_of: Callable[[np.ndarray], str],
    x_label: str,
    y_label: str,
) -> tuple[Figure, Axes]:
    """Draw lines y [K S] over x [S]: each class and the mean of one detector, the means of several.

    Args:
        columns: the detectors.
        lines: by the same names.
        label_of: what is said of a mean [S].
        x_label: of the plot.
        y_label: of the plot.
    """
    figure = new_figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    if len(columns) == 1:
        ((name, one),) = columns.items()
        x, values = lines[name]
        for number in one.present:
            if len(one.present) <= NAMED_CLASSES:
                axes.plot(x, values[number], linewidth=1, label=one.names[number])
            else:
                axes.plot(x, values[number], linewidth=1, color="0.75")
    for index, (name, (x, values)) in enumerate(lines.items()):
        mean = mean_of_classes(values)
        if not np.isnan(mean).all():
            color = "tab:blue" if len(columns) == 1 else f"C{index % 10}"
            title = "all classes" if len(columns) == 1 else name
            axes.plot(x, mean, linewidth=3, color=color, label=f"{title} {label_of(mean)}")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.01)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.25)
    if len(axes.get_legend_handles_labels()[0]) > MANY_LINES:
        figure.legend(loc="outside right upper", fontsize=8)
    elif axes.lines:
        axes.legend(loc="upper right", fontsize=8)
    return figure, axes


def confusion_plot(matrix: np.ndarray, names: Sequence[str], title: str) -> Figure:
    """Draw a confusion matrix.

    Args:
        matrix: [K + 1, K + 1] counts, or shares of the rows with NaN where a row has none; rows by the truth.
        names: of the K classes.
        title: of the picture.
    """
    count = len(matrix)
    side = max(6.0, min(20.0, 2.5 + 0.2 * count))
    figure = new_figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    shown = np.where(matrix > 0, matrix, np.nan)  # white: not once
    is_share = matrix.dtype.kind == "f"
    highest = 1.0 if is_share else max(2, matrix.max())
    # Counts differ by orders of magnitude, most of all those of the background.
    image = axes.imshow(
        shown, cmap="Blues", norm="linear" if is_share else "log", vmin=0 if is_share else 1, vmax=highest
    )
    figure.colorbar(image, ax=axes, shrink=0.8, format="{x:g}").minorticks_off()
    if count <= LABELLED_CLASSES + 1:
        labels = [*names, BACKGROUND]
        axes.set_xticks(range(count), labels, rotation=90, fontsize=8 if count <= NUMBERED_CLASSES else 6)
        axes.set_yticks(range(count), labels, fontsize=8 if count <= NUMBERED_CLASSES else 6)
    if count <= NUMBERED_CLASSES + 1:
        is_dark = np.asarray(image.norm(shown)) > 0.6
        for row, column in zip(*np.nonzero(np.isfinite(shown)), strict=True):
            value = shown[row, column]
            color = "white" if is_dark[row, column] else "black"
            text = f"{value:.2f}" if is_share else f"{value:.0f}"
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color=color)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(title, fontsize=10)
    return figure


def reliability_plot(columns: Mapping[str, Curves]) -> Figure:
    """Draw the precision of the detections of similar score over their mean score; below, how many there are."""
    figure = new_figure(figsize=(7, 7.5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.plot((0, 1), (0, 1), color="0.6", linestyle="--", linewidth=1, label="score = precision")
    width = 0.09 / max(len(columns), 1)
    for index, (name, one) in enumerate(columns.items()):
        if one.calibration_error is None:
            continue
        bins = [row for row in one.calibration_bins if row["detections"]]
        x, y = [row["mean_score"] for row in bins], [row["precision"] for row in bins]
        color = f"C{index % 10}"
        label = f"{name}: expected calibration error {one.calibration_error:.3f}"
        above.plot(x, y, marker="o", color=color, label=label)
        starts = np.array([row["from"] for row in bins]) + 0.005 + index * width
        below.bar(starts, [row["detections"] for row in bins], width=width, align="edge", color=color)
    above.set_xlim(0, 1)
    above.set_ylim(0, 1)
    above.set_ylabel("share of right detections (IoU 0.5)")
    above.set_title("Reliability of the confidence", fontsize=10)
    above.legend(fontsize=8)
    above.grid(alpha=0.25)
    below.set_yscale("log")
    below.yaxis.set_major_formatter("{x:,.0f}")
    below.set_xlabel("confidence")
    below.set_ylabel("detections")
    return figure
