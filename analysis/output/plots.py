"""The plots of the analyses; each function returns a matplotlib Figure that needs no display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.figures import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_POINTS = 20_000  # of a scatter plot: more make it slow, and show no more
MAX_BARS = 40  # groups of bars: more cannot be read


def histogram_grid(
    histograms: Mapping[str, Mapping[str, Sequence[float]]], words: Mapping[str, tuple[str, str]]
) -> Figure:
    """Draw one bar chart per histogram ``{"edges": [n + 1], "counts": [n]}``, two to a row; all bins have one width.

    Args:
        histograms: by name.
        words: title and label of the counts, by the same names.
    """
    columns = min(2, len(histograms))
    rows = -(-len(histograms) // columns)
    figure = new_figure(figsize=(5.6 * columns, 3.2 * rows), layout="constrained")
    all_axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axes, (name, histogram) in zip(all_axes, histograms.items(), strict=False):
        edges, counts = np.asarray(histogram["edges"], dtype=float), histogram["counts"]
        place = np.arange(len(counts))
        axes.bar(place + 0.5, counts, width=0.95, color="tab:blue")
        every = max(1, len(edges) // 8)
        axes.set_xticks(np.arange(len(edges))[::every], [f"{edge:.4g}" for edge in edges[::every]], fontsize=7)
        title, counted = words[name]
        axes.set_title(title, fontsize=9)
        axes.set_ylabel(counted, fontsize=8)
        axes.tick_params(axis="y", labelsize=7)
    for axes in all_axes[len(histograms) :]:
        axes.set_visible(False)
    return figure


def bars(labels: Sequence[str], series: Mapping[str, Sequence[float]], title: str, unit: str) -> Figure:
    """Draw grouped horizontal bars, one group per label and one colour per series.

    Args:
        labels: of the groups; the first MAX_BARS are drawn, and the title says so where there are more.
        series: name -> one value per label.
        title: of the plot.
        unit: of the values.
    """
    if len(labels) > MAX_BARS:
        title = f"{title} (the first {MAX_BARS} of {len(labels)})"
    labels = list(labels)[:MAX_BARS]
    figure = new_figure(figsize=(8, 1.5 + 0.22 * len(labels) * max(1, len(series) * 0.6)), layout="constrained")
    axes = figure.subplots()
    height = 0.85 / max(1, len(series))
    for number, (name, values) in enumerate(series.items()):
        axes.barh(np.arange(len(labels)) + number * height, list(values)[: len(labels)], height=height, label=name)
    axes.set_yticks(np.arange(len(labels)) + 0.425 - height / 2, labels, fontsize=7)
    axes.set_ylim(len(labels), -height)
    axes.set_xlabel(unit)
    axes.set_title(title, fontsize=10)
    if len(series) > 1:
        figure.legend(fontsize=8, loc="outside right upper")
    return figure


def cumulative_counts(counts: Mapping[str, Sequence[int]], title: str, x_label: str) -> Figure:
    """Draw the cumulative distribution of counts per object.

    Args:
        counts: name of a series -> [n + 1], entry ``i`` is the number of objects with exactly ``i``.
        title: of the plot.
        x_label: what is counted.
    """
    figure = new_figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    longest = max(map(len, counts.values()), default=1)
    for name, values in counts.items():
        padded = np.pad(np.asarray(values, dtype=float), (0, longest - len(values)))
        axes.step(np.arange(longest), padded.cumsum() / max(padded.sum(), 1), where="post", alpha=0.85, label=name)
    axes.set_xlabel(x_label)
    axes.set_ylabel("share of objects with at most so many")
    axes.set_ylim(0, 1.02)
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, loc="lower right")
    return figure


def positives_per_object(strategies: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draw :func:`cumulative_counts` of the positives, from the statistics of each strategy."""
    counts = {name: one["positives_per_object"]["counts"] for name, one in strategies.items()}
    return cumulative_counts(counts, "Positives per object", "positives")


def anchor_labels(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the label of each anchor for :func:`bars`, from rows with ``stride``, ``width`` and ``height``."""
    return [f"stride {row['stride']}: {row['width']:g} x {row['height']:g}" for row in rows]


def anchor_scatter(boxes_wh: np.ndarray, anchors: Mapping[str, np.ndarray], title: str, seed: int = 0) -> Figure:
    """Draw box sizes as points and anchors as large marks, on logarithmic axes.

    Args:
        boxes_wh: [K 2] network pixels; of more than MAX_POINTS, so many drawn at random are shown.
        anchors: name -> [A 2] network pixels; up to four sets.
        title: of the plot.
        seed: of that draw.
    """
    figure = new_figure(figsize=(7, 6.5), layout="constrained")
    axes = figure.subplots()
    if len(boxes_wh) > MAX_POINTS:
        boxes_wh = boxes_wh[np.random.default_rng(seed).choice(len(boxes_wh), MAX_POINTS, replace=False)]
    axes.scatter(boxes_wh[:, 0], boxes_wh[:, 1], s=5, alpha=0.35, color="tab:gray", linewidths=0, label="boxes")
    colors = ("tab:red", "tab:blue", "k", "tab:green")
    for (name, anchors_wh), marker, color in zip(anchors.items(), "PXD*", colors, strict=False):
        width, height = np.asarray(anchors_wh).T
        axes.scatter(width, height, s=70, marker=marker, color=color, edgecolors="white", label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("width, network pixels")
    axes.set_ylabel("height, network pixels")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    return figure


def curves(panels: Mapping[str, Mapping[str, Sequence[tuple[np.ndarray, np.ndarray]]]], x_label: str) -> Figure:
    """Draw lines over one another, one panel beside the other.

    Args:
        panels: title of a panel -> label of a line -> the curves (x, y) that share this label and its colour.
        x_label: of every panel.
    """
    figure = new_figure(figsize=(6.5 * len(panels), 4.5), layout="constrained")
    for axes, (title, lines) in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels.items(), strict=True):
        _draw_lines(axes, lines)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(x_label)
        axes.grid(alpha=0.25)
        if lines:
            axes.legend(fontsize=7)
    return figure


def _draw_lines(axes: Axes, lines: Mapping[str, Sequence[tuple[np.ndarray, np.ndarray]]]) -> None:
    for number, (label, pairs) in enumerate(lines.items()):
        label = label
        for index, (x, y) in enumerate(pairs):
            axes.plot(x, y, color=f"C{number % 10}", alpha=0.85, linewidth=1.3, label=label if index == 0 else None)
