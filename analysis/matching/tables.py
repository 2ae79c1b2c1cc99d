"""Tables, plots and notes made of the statistics of ``--matching-stats``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from analysis.output.plots import anchor_labels, bars, positives_per_object
from analysis.output.result import Table, rows_of, table_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

IOU_NAMES = {"iou": "IoU", "giou": "GIoU", "diou": "DIoU", "ciou": "CIoU"}
LONG_BREAKDOWN = 12  # groups: of more, only those with the most objects are drawn
# Names of quantities in the tables, and below them the columns: heading -> where a row has the value.
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
SUPPRESSION_TEXTS = {
    "found": "found by a prediction above the confidence",
    "detected": "with a detection of their own after NMS",
    "suppressed": "found, but removed by a box of another object",
    "removed_by_none": "found, but removed by a box of no object",
    "in_merged_pairs": "covered, together with another one, by one detection",
}
OF_KIND = {"strategy": "strategy", "IoU": "IoU"}
OF_ANCHOR = {**OF_KIND, **{name: name for name in ("head", "stride", "anchor", "width", "height")}}
CONTRADICTION_COLUMNS = {
    **OF_KIND,
    "objects with both": "objects_with_both",
    "unmatched > worst matched": "unmatched_over_min/objects",
    "share of these": "unmatched_over_min/object_share",
    "unmatched > best matched": "unmatched_over_max/objects",
    "share of them": "unmatched_over_max/object_share",
    "share best from a neighbour": "best_from_neighbour/object_share",
}
FEATURE_MAP_COLUMNS = {
    **OF_KIND,
    "feature maps": "feature_maps/total",
    "with unmatched > worst": "feature_maps/over_min",
    "share of maps": "feature_maps/over_min_share",
    "with unmatched > best": "feature_maps/over_max",
    "share of all maps": "feature_maps/over_max_share",
}
SCORE_COLUMNS = {
    "IoU": "IoU",
    "confidence": "confidence",
    "objects": "of",
    "best box is not the most confident": "objects",
    "share of objects": "object_share",
    "mean IoU ratio": "mean_q_ratio",
}
MOMENT_COLUMNS = {**OF_KIND, "quantity": "quantity", "mean": "mean", "std": "std", "objects": "objects"}
ANCHOR_COLUMNS = {
    **OF_ANCHOR,
    "objects": "objects",
    "share of objects": "object_share",
    "matches": "matches",
    "mean q matched": "mean_matched_q",
    "mean shape IoU": "mean_shape_iou",
    "mean q of candidates": "mean_candidate_q",
}
MISASSIGNED_COLUMNS = {
    **OF_ANCHOR,
    "best unmatched": "best_unmatched",
    "share of its unmatched": "unmatched_share",
    "worst matched": "worst_matched",
    "share of its matched": "matched_share",
}


def all_tables(statistics: Mapping[str, Any]) -> tuple[Table, ...]:
    """Return every table of the statistics."""
    strategies = statistics["strategies"]
    return (
        _overview(statistics),
        table_of(
            "unmatched_candidates", "Unmatched candidates that predict better", _contradictions(statistics),
            CONTRADICTION_COLUMNS,
        ),
        table_of(
            "feature_maps", "Feature maps (annotated images x heads)", _by_kind(strategies), FEATURE_MAP_COLUMNS
        ),
        *_agreement(statistics["agreement"]),
        _scores(statistics["scores"]),
        _moments(statistics),
        table_of(
            "match_anchors", "Per anchor (network pixels; q is the IoU of the prediction)",
            _by_anchor(strategies, "anchors"), ANCHOR_COLUMNS,
        ),
        table_of(
            "misassigned_anchors", "Misassigned anchors: behind an unmatched candidate better than every matched",
            _by_anchor(strategies, "misassigned_anchors"), MISASSIGNED_COLUMNS,
        ),
        _suppression(statistics["suppression"]),
        *(table for breakdown in statistics["by"] for table in _breakdown(statistics, breakdown)),
    )  # fmt: skip


def _by_kind(strategies: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the statistics of every strategy under every kind of IoU."""
    for name, one in strategies.items():
        for row in rows_of(one["iou"], "IoU"):
            yield {"strategy": name, **row}


def _by_anchor(strategies: Mapping[str, Any], key: str) -> Iterator[dict[str, Any]]:
    """Yield one of the lists of anchors of every strategy under every kind of IoU."""
    for row in _by_kind(strategies):
        for anchor in row[key]:
            yield {"strategy": row["strategy"], "IoU": row["IoU"], **anchor}


def _contradictions(statistics: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield how often an unmatched candidate beats matched ones, by every strategy and kind of IoU."""
    for row in _by_kind(statistics["strategies"]):
        yield row | {"best_from_neighbour": statistics["best_from_neighbour"][row["IoU"]]}


def _overview(statistics: Mapping[str, Any]) -> Table:
    rows = ({**row, "objects": statistics["objects"]} for row in rows_of(statistics["strategies"], "strategy"))
    columns = {
        "strategy": "strategy",
        "objects": "objects",
        "without a match": "without_match/objects",
        "share without": "without_match/object_share",
        "positives per object": "positives_per_object/mean",
        "base": "base",
        "extra": "extra",
        "slots": "collisions/slots",
        "slots of several objects": "collisions/shared_slots",
        "share of slots": "collisions/shared_slot_share",
        **_mean_of_positives(statistics),
        "ms per batch": "milliseconds_per_batch",
    }
    return table_of("strategies", "Strategies side by side", rows, columns)


def _mean_of_positives(statistics: Mapping[str, Any]) -> dict[str, str]:
    return {f"mean {kind} of positives": f"iou/{kind}/mean_q_of_positives" for kind in statistics["scores"]}


def _agreement(agreement: Mapping[str, Mapping[str, float | None]]) -> list[Table]:
    if len(agreement) < 2:
        return []
    columns = {name: name for name in ("strategy", *agreement)}
    title = "Agreement of strategies (Jaccard index of their matches)"
    words = dict.fromkeys(agreement, "matches that both strategies make over those that either makes")
    return [replace(table_of("agreement", title, rows_of(agreement, "strategy"), columns), explanations=words)]


def _scores(scores: Mapping[str, Any]) -> Table:
    rows = (
        {"IoU": kind, "confidence": confidence, "of": one["objects"], **one[confidence]}
        for kind, one in scores.items()
        for confidence in ("objectness", "score")
        if one[confidence]["objects"] is not None
    )
    return table_of("scores", "IoU and confidence (score: objectness x class)", rows, SCORE_COLUMNS)


def _moments(statistics: Mapping[str, Any]) -> Table:
    groups = [{"strategy": "any", **row} for row in rows_of(statistics["scores"], "IoU")]
    rows = (
        {"strategy": group["strategy"], "IoU": group["IoU"], "quantity": MOMENT_TEXTS[key], **values}
        for group in (*groups, *_by_kind(statistics["strategies"]))
        for key, values in group["moments"].items()
    )
    title = "Moments over objects (q: IoU of a slot's prediction with the object)"
    return table_of("moments", title, rows, MOMENT_COLUMNS)


def _suppression(suppression: Mapping[str, Any]) -> Table:
    rows = ({"text": text, **suppression[key]} for key, text in SUPPRESSION_TEXTS.items())
    columns = {"objects": "text", "count": "objects", "share of objects": "object_share"}
    return table_of("suppression", f"Objects and NMS ({suppression['merged_pairs']} merged pairs)", rows, columns)


def _breakdown(statistics: Mapping[str, Any], breakdown: str) -> list[Table]:
    groups = statistics["by"][breakdown]
    order = sorted(groups, key=lambda name: -groups[name]["objects"]) if breakdown == "class" else list(groups)
    in_order = [({"group": name, "group_objects": groups[name]["objects"]}, groups[name]) for name in order]
    overview = (
        {**group, **row, "scores": one["scores"], "suppression": one["suppression"]}
        for group, one in in_order
        for row in rows_of(one["strategies"], "strategy")
    )
    contradictions = ({**group, **row} for group, one in in_order for row in _contradictions(one))
    of_group = {breakdown: "group", "objects": "group_objects"}
    columns = {
        **of_group,
        "strategy": "strategy",
        "share without a match": "without_match/object_share",
        "positives per object": "positives_per_object/mean",
        "share of positives contested": "collisions/contested_share",
        **_mean_of_positives(statistics),
        **{
            f"share best {kind} not highest objectness": f"scores/{kind}/objectness/object_share"
            for kind, one in statistics["scores"].items()
            if one["objectness"]["objects"] is not None
        },
        "share suppressed": "suppression/suppressed/object_share",
    }
    title = f"Unmatched candidates that predict better, by {breakdown}"
    return [
        table_of(f"by_{breakdown}", f"By {breakdown}", overview, columns),
        table_of(f"unmatched_by_{breakdown}", title, contradictions, {**of_group, **CONTRADICTION_COLUMNS}),
    ]


def all_plots(statistics: Mapping[str, Any]) -> dict[str, Figure]:
    """Return the plots, file stem -> plot, for the first kind of IoU."""
    strategies = statistics["strategies"]
    kind = next(iter(statistics["scores"]))
    first = next(iter(strategies.values()))
    iou = IOU_NAMES.get(kind, kind)
    labels = anchor_labels(first["iou"][kind]["anchors"])

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
    """Return the notes: what a reader should be told in words."""
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
        if one["objectness"]["objects"] is None:
            notes.append("the heads have no objectness: what is about it is left out, and a score is that of a class")
        elif one["objects"]:
            notes.append(
                f"{kind}: the best box is not the most confident one for {one['objectness']['object_share']:.1%} of "
                f"{one['objects']} objects (by objectness); that one reaches {one['objectness']['mean_q_ratio']:.1%} "
                "of the best on average"
            )
    return tuple(notes)
