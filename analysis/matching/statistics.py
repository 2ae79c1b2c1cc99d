"""From measured objects to the statistics of ``--matching-stats``, for all objects and for groups of them.

Shape letters: M objects, Z strategies, Q kinds of IoU, K anchors of all heads, L heads. Sets may be empty: what is
undefined is NaN in the columns and None in the statistics. docs/analysis.md defines every statistic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from analysis.matching.measure import Measurements
from analysis.objects import OCCLUSION_LIMITS, anchor_rows, object_occlusion
from analysis.output.result import counted, distribution, mean, share
from data.labels.annotations import Annotations
from data.objects import select_objects
from utils.boxes import SIZE_NAMES
from utils.limits import limits_reached

# Names of the groups of a breakdown, and the limits between them; a value at a limit belongs to the group above it.
ELONGATION_NAMES, ELONGATION_LIMITS = ("below 2", "2 to 4", "4 and more"), (2.0, 4.0)
OCCLUSION_NAMES = ("below 0.3", "0.3 to 0.5", "0.5 to 0.7", "0.7 and more")  # between OCCLUSION_LIMITS
MATCHES_NAMES, MATCHES_LIMITS = ("0", "1", "2", "3 to 4", "5 and more"), (1, 2, 3, 5)
SCORE_MOMENTS = (  # quantities of docs/analysis.md, all but area_ratio columns of the objects
    "best_q", "q_of_objectness", "q_of_score", "best_objectness", "objectness_of_best", "area_best", "area_confident",
    "area_ratio", "offset_best", "offset_confident",
)  # fmt: skip


Groups = tuple[Sequence[str], np.ndarray]  # names of some groups, and the group of every object [M] as their index


def statistics(found: Measurements, groups: Mapping[str, Groups]) -> dict[str, Any]:
    """Return the statistics of all objects, and under ``by`` those of each group that has objects.

    Args:
        found: what was measured.
        groups: of each breakdown, by its name.

    Returns:
        The statistics of docs/analysis.md; ``by`` is breakdown -> name of the group -> its statistics.
    """
    result = statistics_of(found, np.ones(len(found.objects["image"]), dtype=bool))
    for number, name in enumerate(found.strategies):
        one = result["strategies"][name]
        one["collisions"] |= _slots(found.images, number)
        one["milliseconds_per_batch"] = mean(found.batches["milliseconds"][:, number])
    result["suppression"]["merged_pairs"] = int(found.images["merged_pairs"].sum())
    result["by"] = {
        breakdown: {
            name: statistics_of(found, group == index) for index, name in enumerate(names) if (group == index).any()
        }
        for breakdown, (names, group) in groups.items()
    }
    return result


def groups_of(annotations: Annotations, objects: Mapping[str, np.ndarray], by: Sequence[str]) -> dict[str, Groups]:
    """Return the groups that measured objects belong to, for every chosen breakdown.

    Args:
        annotations: of the data set.
        objects: columns of the objects; read are ``row`` and, for the breakdown by matches, the first strategy's
            ``matched``.
        by: breakdowns, of :data:`analysis.matching.options.BREAKDOWNS`.
    """
    everything = select_objects(annotations, crowd=True)  # crowd regions occlude, too
    place = np.empty(len(everything), dtype=np.int64)
    place[everything.source_row] = np.arange(len(everything))
    place = place[objects["row"]]
    makers = {
        "class": lambda: (everything.names, everything.labels[place]),
        "size": lambda: (SIZE_NAMES, everything.sizes[place]),
        "elongation": lambda: (ELONGATION_NAMES, limits_reached(everything.elongation[place], ELONGATION_LIMITS)),
        "occlusion": lambda: (OCCLUSION_NAMES, limits_reached(object_occlusion(everything)[place], OCCLUSION_LIMITS)),
        "matches": lambda: (MATCHES_NAMES, limits_reached(objects["matched"][:, 0].sum(axis=1), MATCHES_LIMITS)),
    }
    return {name: makers[name]() for name in by}


def statistics_of(found: Measurements, chosen: np.ndarray) -> dict[str, Any]:
    """Return the statistics of the objects where ``chosen`` [M] is True."""
    objects = {name: values[chosen] for name, values in found.objects.items()}
    strategies = {}
    for number, name in enumerate(found.strategies):
        strategies[name] = _strategy_statistics(objects, number) | {
            "iou": {kind: _kind_statistics(found, objects, number, index) for index, kind in enumerate(found.kinds)}
        }
    return {
        "objects": int(chosen.sum()),
        "images": len(np.unique(objects["image"])),
        "strategies": strategies,
        "agreement": _agreement(objects, found.strategies),
        "scores": {kind: score_statistics(objects, index) for index, kind in enumerate(found.kinds)},
        "best_from_neighbour": {
            kind: counted(objects["best_from_neighbour"][:, index]) for index, kind in enumerate(found.kinds)
        },
        "suppression": {name: counted(objects[name]) for name in ("found", "detected", "suppressed", "removed_by_none")}
        | {"in_merged_pairs": counted(objects["merged"] > 0)},
    }


def _strategy_statistics(objects: Mapping[str, np.ndarray], number: int) -> dict[str, Any]:
    """Return the statistics of a strategy that do not depend on the kind of IoU."""
    positives = objects["positives"][:, number]
    total, contested = int(positives.sum()), int(objects["contested"][:, number].sum())
    return {
        "positives": total,
        "base": int(objects["base"][:, number].sum()),
        "extra": int(objects["extra"][:, number].sum()),
        "positives_per_object": distribution(positives),
        "without_match": counted(positives == 0),
        "without_candidate_match": counted(objects["matched"][:, number].sum(axis=1) == 0),
        "collisions": {"contested_positives": contested, "contested_share": share(contested, total)},
    }


def _slots(images: Mapping[str, np.ndarray], number: int) -> dict[str, Any]:
    slots, shared = int(images["slots"][:, number].sum()), int(images["shared_slots"][:, number].sum())
    return {"slots": slots, "shared_slots": shared, "shared_slot_share": share(shared, slots)}


def _kind_statistics(found: Measurements, objects: Mapping[str, np.ndarray], number: int, index: int) -> dict[str, Any]:
    """Return the statistics of a strategy under one kind of IoU."""
    high, low = objects["matched_max"][:, number, index], objects["matched_min"][:, number, index]
    free = objects["unmatched_max"][:, number, index]
    both = ~np.isnan(high) & ~np.isnan(free)
    over_max = both & (free > high)
    positives = objects["positives"][:, number].sum()
    return {
        "objects_with_both": int(both.sum()),
        "unmatched_over_min": counted((free > low)[both]),
        "unmatched_over_max": counted(over_max[both]),
        "feature_maps": _feature_maps(found, objects, number, index),
        "mean_q_of_positives": share(objects["positives_q"][:, number, index].sum(dtype=np.float64), positives),
        "anchors": _anchors(found, objects, number, index),
        "misassigned_anchors": _misassigned_anchors(found, objects, number, index, over_max),
        "moments": _match_moments(objects, number, index),
    }


def _feature_maps(found: Measurements, objects: Mapping[str, np.ndarray], number: int, index: int) -> dict[str, Any]:
    """Count the maps (images x heads) on which an object's best unmatched candidate beats its best, or worst, match."""
    total = len(np.unique(objects["image"])) * len(found.heads)
    result: dict[str, Any] = {"total": total}
    for key, column in (("over_max", "map_over_max"), ("over_min", "map_over_min")):
        rows, heads = np.nonzero(objects[column][:, number, index])
        maps = len(np.unique(objects["image"][rows] * len(found.heads) + heads))
        result |= {key: maps, f"{key}_share": share(maps, total)}
    return result


def _anchors(found: Measurements, objects: Mapping[str, np.ndarray], number: int, index: int) -> list[dict[str, Any]]:
    matched, shape_iou = objects["matched"][:, number], objects["shape_iou"]
    matched_q = objects["matched_q"][:, number, index].sum(axis=0, dtype=np.float64)
    candidates_q = objects["candidates_q"][:, index].sum(axis=0, dtype=np.float64)
    candidates = objects["candidates"].sum(axis=0)
    shape_iou_sum = np.where(matched > 0, shape_iou, 0).sum(axis=0, dtype=np.float64)
    with_match = (matched > 0).sum(axis=0)
    return [
        row
        | {
            "objects": int(with_match[k]),
            "object_share": share(with_match[k], len(matched)),
            "matches": int(matched[:, k].sum()),
            "mean_matched_q": share(matched_q[k], matched[:, k].sum()),
            "mean_shape_iou": share(shape_iou_sum[k], with_match[k]),
            "mean_candidate_q": share(candidates_q[k], candidates[k]),
        }
        for k, row in enumerate(anchor_rows(found.heads))
    ]


def _misassigned_anchors(
    found: Measurements, objects: Mapping[str, np.ndarray], number: int, index: int, over_max: np.ndarray
) -> list[dict[str, Any]]:
    """Return, per anchor, how often it had the best unmatched, and the worst matched, candidate of some objects.

    ``over_max`` [M] says which objects these are: those whose best unmatched candidate beats every matched one.
    """
    matched = objects["matched"][:, number].sum(axis=0)
    unmatched = objects["candidates"].sum(axis=0) - matched
    better = objects["unmatched_anchor"][:, number, index][over_max]
    worse = objects["matched_anchor"][:, number, index][over_max]
    return [
        row
        | {
            "best_unmatched": int((better == k).sum()),
            "unmatched_share": share((better == k).sum(), unmatched[k]),
            "worst_matched": int((worse == k).sum()),
            "matched_share": share((worse == k).sum(), matched[k]),
        }
        for k, row in enumerate(anchor_rows(found.heads))
    ]


def score_statistics(objects: Mapping[str, np.ndarray], index: int) -> dict[str, Any]:
    """Return the statistics of confidence and fit under one kind of IoU, over the objects that some slot overlaps.

    What is about objectness is None where the columns have none.
    """
    best = objects["best_q"][:, index]
    seen = ~np.isnan(best)
    statistics: dict[str, Any] = {"objects": int(seen.sum())}
    for score, column in (("objectness", "objectness_mismatch"), ("score", "score_mismatch")):
        if column not in objects:
            statistics[score] = dict.fromkeys(("objects", "object_share", "mean_q_ratio"))
            continue
        reached = objects[f"q_of_{score}"][:, index][seen].astype(np.float64) / best[seen]
        statistics[score] = counted(objects[column][:, index][seen]) | {"mean_q_ratio": mean(reached)}
    undefined = np.full((len(best), index + 1), np.nan)
    columns = {name: objects.get(name, undefined)[:, index].astype(np.float64) for name in SCORE_MOMENTS}
    area = columns["area_confident"]
    columns["area_ratio"] = np.divide(columns["area_best"], area, out=np.full(len(area), np.nan), where=area > 0)
    return statistics | {"moments": {name: _moments(columns[name]) for name in SCORE_MOMENTS}}


def _match_moments(objects: Mapping[str, np.ndarray], number: int, index: int) -> dict[str, Any]:
    """Return the moments of the mean q of an object's matched candidates, where it has any, and of its matches."""
    matched = objects["matched"][:, number].sum(axis=1)
    matched_q = objects["matched_q"][:, number, index].sum(axis=1, dtype=np.float64)
    mean_q = np.divide(matched_q, matched, out=np.full(len(matched), np.nan), where=matched > 0)
    return {"mean_matched_q": _moments(mean_q), "matches": _moments(objects["positives"][:, number].astype(np.float64))}


def _moments(values: np.ndarray) -> dict[str, float | None]:
    """Return mean and population standard deviation of the values that are not NaN, and how many objects have one."""
    values = values[~np.isnan(values)]
    return {"mean": mean(values), "std": float(values.std()) if len(values) else None, "objects": len(values)}


def _agreement(objects: Mapping[str, np.ndarray], strategies: Sequence[str]) -> dict[str, dict[str, float | None]]:
    """Return the Jaccard index of the matches of every two strategies: common pairs (object, slot) over all pairs."""
    common = objects["common"].sum(axis=0)
    return {
        a: {b: share(common[i, j], common[i, i] + common[j, j] - common[i, j]) for j, b in enumerate(strategies)}
        for i, a in enumerate(strategies)
    }
