"""The statistics of ``--score-mismatch`` as tables and as a plot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.output.result import Cell, Table, table_of
from utils.figures import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_COLUMNS = 2  # panels in a row of the plot
EXPLANATIONS = {
    "detector": "name of the weights or of the file of results",
    "boxes": "candidates: before suppression; detections: after it, or as the file has them",
    "NMS": "kind of suppression, as --nms names it",
    "with a box": "objects that a box of their class overlaps",
    "with several": "objects that several boxes of their class overlap",
    "best is not strongest": "objects of which another box than the one with the highest IoU has the highest score",
    "share of these": "of the objects that a box overlaps",
    "share of several": "of the objects that several boxes overlap",
    "mean IoU ratio": "IoU of the strongest box over that of the best one, mean over the objects",
    "mean best IoU": "IoU of the best box, mean over the objects that a box overlaps",
    "mean IoU of strongest": "IoU of the strongest box, mean over the objects that a box overlaps",
    "rank correlation": "Spearman's, of score and IoU over the boxes, each with the object that it overlaps most",
    "of boxes": "boxes that the rank correlation is over",
    "before": "boxes above --conf-thres",
    "after": "boxes that are left",
    "found": "objects that a box belongs to before suppression",
    "detected": "objects that a box belongs to after suppression",
    "suppressed": "found and not detected, because of a box that belongs to another object",
    "removed by none": "found and not detected, because of a box that belongs to no object",
    "best box lost": "found, but no box that is left fits as well as the best one before",
    "share best box lost": "of the objects that were found",
    "IoU kept": "highest IoU after suppression over that before it, mean over the objects that were found",
    "in merged pairs": "objects that one detection covers together with another object",
    "share suppressed": "of all objects",
    "score from": "lowest score of the bin",
    "score to": "highest score of the bin",
    "mean score": "of the boxes in the bin",
    "mean IoU": "of the boxes in the bin, each with the object of its class that it overlaps most",
    "count": "boxes in the bin",
}
SCORE_COLUMNS: dict[str, Cell] = {
    "objects": "objects",
    "with a box": "with_box/objects",
    "with several": "with_several/objects",
    "best is not strongest": "mismatch/objects",
    "share of these": "mismatch/object_share",
    "share of several": "mismatch/several_share",
    "mean IoU ratio": "mean_iou_ratio",
    "mean best IoU": "mean_best_iou",
    "mean IoU of strongest": "mean_iou_of_strongest",
    "rank correlation": "rank_correlation",
    "of boxes": "boxes",
}
SUPPRESSION_COLUMNS: dict[str, Cell] = {
    "detector": "detector",
    "NMS": "kind",
    "before": "boxes_before",
    "after": "boxes_after",
    "found": "found/objects",
    "detected": "detected/objects",
    "suppressed": "suppressed/objects",
    "removed by none": "removed_by_none/objects",
    "best box lost": "best_box_lost/objects",
    "share best box lost": "best_box_lost/found_share",
    "IoU kept": "mean_iou_ratio",
    "in merged pairs": "in_merged_pairs/objects",
}
RELIABILITY_COLUMNS: dict[str, Cell] = {
    "detector": "detector",
    "boxes": "stage",
    "score from": "from",
    "score to": "to",
    "count": "boxes",
    "mean score": "mean_score",
    "mean IoU": "mean_iou",
}


def all_tables(statistics: Mapping[str, Any]) -> tuple[Table, ...]:
    """Return the tables, the most important first.

    Args:
        statistics: by detector, from :func:`analysis.score_mismatch.statistics.detector_statistics`.
    """
    rows = list(_by_stage(statistics))
    tables = [
        table_of("scores", "Score and IoU", rows, {"detector": "detector", "boxes": "stage", **_of("scores")}),
    ]
    suppressed = [
        {"detector": name, "kind": kind, **of_kind}
        for name, one in statistics.items()
        for kind, of_kind in (one["suppression"] or {}).items()
    ]
    if suppressed:
        tables.append(table_of("suppression", "What suppression takes", suppressed, SUPPRESSION_COLUMNS))
    breakdowns = dict.fromkeys(name for one in statistics.values() for name in one["by"])
    tables += [_breakdown(statistics, name) for name in breakdowns]
    bins = [{**row, **one} for row in rows for one in row["scores"]["reliability"]]
    tables.append(table_of("reliability", "IoU of the boxes by score", bins, RELIABILITY_COLUMNS, listing=True))
    return tuple(replace(table, explanations=EXPLANATIONS) for table in tables)


def _of(key: str) -> dict[str, Cell]:
    """Return the columns about scores, which are under a key of the row."""
    return {heading: f"{key}/{where}" for heading, where in SCORE_COLUMNS.items()}


def _by_stage(statistics: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the scores of every detector, before and after suppression."""
    for name, one in statistics.items():
        for stage, scores in one["scores"].items():
            yield {"detector": name, "stage": stage, "scores": scores}


def _breakdown(statistics: Mapping[str, Any], breakdown: str) -> Table:
    """Return the groups of a breakdown; classes with most objects first."""
    rows = []
    for detector, one in statistics.items():
        groups = one["by"][breakdown]
        order = sorted(groups, key=lambda name: -_objects(groups[name])) if breakdown == "class" else list(groups)
        for name in order:
            lost = (groups[name]["suppression"] or {}).get("suppressed", {}).get("object_share")
            rows += [
                {"group": name, "suppressed": lost if row["stage"] == "detections" else None, **row}
                for row in _by_stage({detector: groups[name]})
            ]
    columns = {breakdown: "group", "detector": "detector", "boxes": "stage", **_of("scores")}
    columns = {name: where for name, where in columns.items() if name not in ("with several", "mean IoU of strongest")}
    return table_of(f"by_{breakdown}", f"By {breakdown}", rows, columns | {"share suppressed": "suppressed"})


def _objects(group: Mapping[str, Any]) -> int:
    return next(iter(group["scores"].values()))["objects"]


def score_iou_plot(statistics: Mapping[str, Any]) -> Figure:
    """Draw how many boxes there are by score and IoU, a panel for each detector before and after suppression."""
    rows = list(_by_stage(statistics))
    across = min(MOST_COLUMNS, len(rows))
    down = -(-len(rows) // across)
    figure = new_figure(figsize=(5.6 * across, 4.6 * down), layout="constrained")
    all_axes = np.atleast_1d(figure.subplots(down, across)).ravel()
    for axes, row in zip(all_axes, rows, strict=False):
        _draw_histogram(axes, row["scores"])
        axes.set_title(f"{row['detector']}, {row['stage']}", fontsize=10)
    for axes in all_axes[len(rows) :]:
        axes.set_visible(False)
    return figure


def _draw_histogram(axes: Axes, scores: Mapping[str, Any]) -> None:
    """Draw one histogram, and over it the mean IoU of the boxes of similar score."""
    from matplotlib.colors import LogNorm

    edges, counts = scores["histogram"]["edges"], np.asarray(scores["histogram"]["counts"], dtype=float)
    shown = np.where(counts > 0, counts, np.nan).T  # rows are the IoU, upwards
    mesh = axes.pcolormesh(edges, edges, shown, cmap="Blues", norm=LogNorm(vmin=0.5, vmax=max(counts.max(), 2)))
    axes.figure.colorbar(mesh, ax=axes, label="boxes", format="{x:,.0f}")
    bins = [one for one in scores["reliability"] if one["boxes"]]
    axes.plot((0, 1), (0, 1), color="0.5", linestyle="--", linewidth=1, label="IoU = score")
    x, y = [one["mean_score"] for one in bins], [one["mean_iou"] for one in bins]
    axes.plot(np.clip(x, 0, 1), y, color="tab:red", marker="o", markersize=3, label="mean IoU")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xlabel("score")
    axes.set_ylabel("IoU with the object that the box overlaps most")
    axes.legend(fontsize=8, loc="lower right")
