"""From what was measured of some detectors to the statistics of ``--score-mismatch``; docs/analysis.md defines them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from analysis.matching.statistics import groups_of
from analysis.score_mismatch.measure import MeasuredDetector
from analysis.score_mismatch.scores import histogram, reliability, score_statistics
from analysis.score_mismatch.suppression import statistics_of_objects, suppression_statistics
from data.labels.annotations import Annotations


def detector_statistics(
    measured: MeasuredDetector, annotations: Annotations, breakdowns: Sequence[str]
) -> dict[str, Any]:
    """Return the statistics of one detector.

    Args:
        measured: of it.
        annotations: that it was compared with.
        breakdowns: some of those of :mod:`analysis.matching.options`.
    """
    everything = np.ones(len(measured.rows), dtype=bool)
    return {
        "scores": {
            stage: score_statistics(one, everything) | {"reliability": reliability(one), "histogram": histogram(one)}
            for stage, one in measured.scores.items()
        },
        "suppression": suppression_statistics(measured.suppression) or None,
        "by": {
            breakdown: {
                name: group_statistics(measured, group == index)
                for index, name in enumerate(names)
                if (group == index).any()
            }
            for breakdown, (names, group) in groups_of(annotations, {"row": measured.rows}, breakdowns).items()
        },
    }


def group_statistics(measured: MeasuredDetector, chosen: np.ndarray) -> dict[str, Any]:
    """Return the statistics of the objects where ``chosen`` [T] is True; of suppression, those of the chosen kind."""
    first = next(iter(measured.suppression.values()), None)
    return {
        "scores": {stage: score_statistics(one, chosen) for stage, one in measured.scores.items()},
        "suppression": None if first is None else statistics_of_objects(first, chosen),
    }


def notes_of(detectors: Mapping[str, MeasuredDetector], statistics: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the notes: what a reader should be told in words."""
    notes = []
    for name, one in statistics.items():
        for stage, scores in one["scores"].items():
            if scores["with_box"]["objects"]:
                notes.append(
                    f"{name}, {stage}: the best box is not the strongest one for "
                    f"{scores['mismatch']['object_share']:.1%} of {scores['with_box']['objects']:,} objects; the "
                    f"strongest reaches {scores['mean_iou_ratio']:.1%} of the best IoU on average"
                )
            else:
                notes.append(f"{name}, {stage}: no box overlaps an object of its class; shares and means are undefined")
        if note := detectors[name].note:
            notes.append(f"{name}: {note}")
    return tuple(notes)
