"""Tables, pictures and sentences made of the statistics of ``--matching-stats``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from analysis.output.plots import bars, positives_per_object
from analysis.output.result import Table

IOU_NAMES = {"iou": "IoU", "giou": "GIoU", "diou": "DIoU", "ciou": "CIoU"}
LONG_BREAKDOWN = 12  # groups: beyond it, only those with the most objects are drawn
MOMENT_TEXTS = {
    "best_q": "best q of all slots",
    "q_of_objectness": "q of the slot with the highest objectness",
    "q_of_score": "q of the slot with the highest score",
    "best_objectness": "highest objectness",
    "objectness_of_best": "objectness of the slot with the best q",
    "area_best": "area of the best box, cells",
    "area_confident": "area of the most confident box, cells",
    "area_ratio": "ratio of these areas",
    "offset_best": "centre offset of the best box, cells",
    "offset_confident": "centre offset of the most confident box, cells",
    "mean_matched_q": "mean q of the object's matches",
    "matches": "matches",
}
CONTRADICTION_COLUMNS = ("objects with both", "unmatched > worst matched", "share of these", "unmatched > best matched",
                         "share of them")  # fmt: skip


def all_tables(statistics: Mapping[str, Any]) -> tuple[Table, ...]:
    """Return every table of the statistics."""
    strategies = statistics["strategies"]
    return (
        _overview(statistics),
        _contradictions("unmatched_candidates", "Unmatched candidates that predict better", [((), statistics)], ()),
        _feature_maps(strategies),
        *_agreement(statistics["agreement"]),
        _scores(statistics),
        _moments(statistics),
        _anchors(strategies),
        _misassigned_anchors(strategies),
        _suppression(statistics),
        *(table for breakdown in statistics["by"] for table in _breakdown(statistics, breakdown)),
    )


def _overview(statistics: Mapping[str, Any]) -> Table:
    strategies = statistics["strategies"]
    kinds = list(statistics["scores"])
    columns = ("strategy", "objects", "without a match", "share without", "positives per object", "base", "extra",
               "slots", "slots of several objects", "share of slots")  # fmt: skip
    columns += (*(f"mean {kind} of positives" for kind in kinds), "ms per batch")
    rows = tuple(
        (
            name,
            statistics["objects"],
            one["without_match"]["objects"],
            one["without_match"]["object_share"],
            one["positives_per_object"]["mean"],
            one["base"],
            one["extra"],
            *(one["collisions"][key] for key in ("slots", "shared_slots", "shared_slot_share")),
            *(one["iou"][kind]["mean_q_of_positives"] for kind in kinds),
            one["milliseconds_per_batch"],
        )
        for name, one in strategies.items()
    )
    return Table("strategies", "Strategies side by side", columns, rows)


def _contradictions(
    stem: str, title: str, groups: Sequence[tuple[tuple, Mapping[str, Any]]], names: tuple[str, ...]
) -> Table:
    """A row per group, strategy and kind of IoU: how often an unmatched candidate beats matched ones."""
    rows = tuple(
        (
            *group,
            name,
            kind,
            of_kind["objects_with_both"],
            of_kind["unmatched_over_min"]["objects"],
            of_kind["unmatched_over_min"]["object_share"],
            of_kind["unmatched_over_max"]["objects"],
            of_kind["unmatched_over_max"]["object_share"],
            statistics["best_from_neighbour"][kind]["object_share"],
        )
        for group, statistics in groups
        for name, one in statistics["strategies"].items()
        for kind, of_kind in one["iou"].items()
    )
    columns = (*names, "strategy", "IoU", *CONTRADICTION_COLUMNS, "share best from a neighbour")
    return Table(stem, title, columns, rows)


def _feature_maps(strategies: Mapping[str, Any]) -> Table:
    rows = tuple(
        (name, kind, *(of_kind["feature_maps"][key] for key in ("total", "over_min", "over_min_share", "over_max",
                                                                "over_max_share")))
        for name, one in strategies.items()
        for kind, of_kind in one["iou"].items()
    )  # fmt: skip
    columns = ("strategy", "IoU", "feature maps", "with unmatched > worst", "share of maps", "with unmatched > best",
               "share of all maps")  # fmt: skip
    return Table("feature_maps", "Feature maps (annotated images x heads)", columns, rows)


def _agreement(agreement: Mapping[str, Mapping[str, float | None]]) -> list[Table]:
    if len(agreement) < 2:
        return []
    rows = tuple((name, *row.values()) for name, row in agreement.items())
    return [
        Table("agreement", "Agreement of strategies (Jaccard index of their matches)", ("strategy", *agreement), rows)
    ]


def _scores(statistics: Mapping[str, Any]) -> Table:
    rows = tuple(
        (kind, score, one["objects"], one[score]["objects"], one[score]["object_share"], one[score]["mean_q_ratio"])
        for kind, one in statistics["scores"].items()
        for score in ("objectness", "score")
    )
    columns = ("IoU", "confidence", "objects", "best box is not the most confident", "share of objects",
               "mean IoU ratio")  # fmt: skip
    return Table("scores", "IoU and confidence (score: objectness x class)", columns, rows)


def _moments(statistics: Mapping[str, Any]) -> Table:
    rows = [("any", kind, statistics["scores"][kind]["moments"]) for kind in statistics["scores"]]
    rows += [
        (name, kind, of_kind["moments"]) for name, one in statistics["strategies"].items()
        for kind, of_kind in one["iou"].items()
    ]  # fmt: skip
    cells = tuple(
        (name, kind, MOMENT_TEXTS[key], *(values[part] for part in ("mean", "std", "objects")))
        for name, kind, moments in rows
        for key, values in moments.items()
    )
    return Table(
        "moments",
        "Moments over objects (q: IoU of a slot's prediction with the object)",
        ("strategy", "IoU", "quantity", "mean", "std", "objects"),
        cells,
    )


def _anchors(strategies: Mapping[str, Any]) -> Table:
    rows = tuple(
        (name, kind, *row.values())
        for name, one in strategies.items()
        for kind, of_kind in one["iou"].items()
        for row in of_kind["anchors"]
    )
    columns = ("strategy", "IoU", "head", "stride", "anchor", "width", "height", "objects", "share of objects",
               "matches", "mean q matched", "mean shape IoU", "mean q of candidates")  # fmt: skip
    return Table("match_anchors", "Per anchor (network pixels; q is the IoU of the prediction)", columns, rows)


def _misassigned_anchors(strategies: Mapping[str, Any]) -> Table:
    rows = tuple(
        (name, kind, *row.values())
        for name, one in strategies.items()
        for kind, of_kind in one["iou"].items()
        for row in of_kind["misassigned_anchors"]
    )
    columns = ("strategy", "IoU", "head", "stride", "anchor", "width", "height", "best unmatched",
               "share of its unmatched", "worst matched", "share of its matched")  # fmt: skip
    return Table(
        "misassigned_anchors",
        "Misassigned anchors: behind an unmatched candidate better than every matched",
        columns,
        rows,
    )


def _suppression(statistics: Mapping[str, Any]) -> Table:
    one = statistics["suppression"]
    labels = (
        ("found", "found by a prediction above the confidence"),
        ("detected", "with a detection of their own after NMS"),
        ("suppressed", "found, but removed by a box of another object"),
        ("removed_by_none", "found, but removed by a box of no object"),
        ("in_merged_pairs", "covered, together with another one, by one detection"),
    )
    rows = tuple((text, one[key]["objects"], one[key]["object_share"]) for key, text in labels)
    title = f"Objects and NMS ({one['merged_pairs']} merged pairs)"
    return Table("suppression", title, ("objects", "count", "share of objects"), rows)


def _breakdown(statistics: Mapping[str, Any], breakdown: str) -> list[Table]:
    groups = statistics["by"][breakdown]
    order = sorted(groups, key=lambda name: -groups[name]["objects"]) if breakdown == "class" else list(groups)
    pairs = [((name, groups[name]["objects"]), groups[name]) for name in order]
    overview = tuple(
        (
            *head,
            name,
            one["without_match"]["object_share"],
            one["positives_per_object"]["mean"],
            one["collisions"]["contested_share"],
            *(of_kind["mean_q_of_positives"] for of_kind in one["iou"].values()),
            *(group["scores"][kind]["objectness"]["object_share"] for kind in one["iou"]),
            group["suppression"]["suppressed"]["object_share"],
        )
        for head, group in pairs
        for name, one in group["strategies"].items()
    )
    kinds = list(statistics["scores"])
    columns = (breakdown, "objects", "strategy", "share without a match", "positives per object",
               "share of positives contested", *(f"mean {kind} of positives" for kind in kinds),
               *(f"share best {kind} not highest objectness" for kind in kinds), "share suppressed")  # fmt: skip
    return [
        Table(f"by_{breakdown}", f"By {breakdown}", columns, overview),
        _contradictions(
            f"unmatched_by_{breakdown}", f"Unmatched candidates that predict better, by {breakdown}", pairs,
            (breakdown, "objects"),
        ),
    ]  # fmt: skip


def all_plots(statistics: Mapping[str, Any]) -> dict[str, Figure]:
    """Return the pictures, for the first kind of IoU."""
    strategies = statistics["strategies"]
    kind = next(iter(statistics["scores"]))
    first = next(iter(strategies.values()))
    iou = IOU_NAMES[kind]
    labels = [f"stride {row['stride']}: {row['width']:g} x {row['height']:g}" for row in first["iou"][kind]["anchors"]]

    def of_anchors(table: str, key: str) -> dict[str, list[float]]:
        return {name: [row[key] or 0 for row in one["iou"][kind][table]] for name, one in strategies.items()}

    plots = {
        "match_objects_per_anchor": bars(
            labels, of_anchors("anchors", "objects"), "Objects that each anchor matches", "objects"
        ),
        "match_q_per_anchor": bars(
            labels, of_anchors("anchors", "mean_matched_q"), f"Mean {iou} of the matched predictions, per anchor", iou
        ),
        "misassigned_anchors": bars(
            labels,
            of_anchors("misassigned_anchors", "best_unmatched"),
            f"Best unmatched candidate beats every matched one, by {iou}",
            "objects",
        ),
        "match_positives_per_object": positives_per_object(strategies),
    }
    for breakdown, groups in statistics["by"].items():
        names = sorted(groups, key=lambda name: -groups[name]["objects"])[:LONG_BREAKDOWN]
        names = [name for name in groups if name in names]
        shares = {
            name: [
                groups[group]["strategies"][name]["iou"][kind]["unmatched_over_min"]["object_share"] or 0
                for group in names
            ]
            for name in strategies
        }
        plots[f"unmatched_by_{breakdown}"] = bars(
            names,
            shares,
            f"Unmatched candidate beats the worst matched one by {iou}, by {breakdown}",
            "share of objects",
        )
    return plots


def notes_of(statistics: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what a reader should be told in words."""
    if not statistics["objects"]:
        return ("there is no object to match: shares and means are undefined",)
    notes = []
    for name, one in statistics["strategies"].items():
        for kind, of_kind in list(one["iou"].items())[:1]:  # the tables have the other kinds
            low, high = of_kind["unmatched_over_min"], of_kind["unmatched_over_max"]
            if of_kind["objects_with_both"]:
                notes.append(
                    f"{name}, {kind}: an anchor that it leaves unmatched predicts better than the worst one it matches "
                    f"for {low['object_share']:.1%} of the objects that have both, better than all it matches for "
                    f"{high['object_share']:.1%}"
                )
    for kind, one in list(statistics["scores"].items())[:1]:
        if one["objects"]:
            notes.append(
                f"{kind}: the best box is not the most confident one for {one['objectness']['object_share']:.1%} of "
                f"{one['objects']} objects (by objectness); that one reaches {one['objectness']['mean_q_ratio']:.1%} "
                "of the best on average"
            )
    return tuple(notes)
