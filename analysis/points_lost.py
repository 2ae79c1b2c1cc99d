"""``test.py --report``: where the points went, by groups of objects and by images; annotations that may be wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.error_pictures import ImageSource, write_suspicious_sheet
from analysis.evaluation_images import suspicious_images
from analysis.output.result import ReportSection, Table, as_csv, plain
from evaluation.breakdowns import broken_down
from evaluation.error_kinds import CORRECT, DETECTION_KINDS, ERRORS, ErrorKinds, error_kinds
from evaluation.image_losses import ap50_lost_by_image
from evaluation.matches import CocoMatcher
from evaluation.suspicious_labels import KINDS, Suspicion, confident_scores, suspicious_labels
from models.detection_network import DetectionNetwork
from models.network import require_cfg
from utils.errors import UserError
from utils.files import write_text_atomically

if TYPE_CHECKING:
    from analysis.evaluation_groups import Priors  # takes two seconds, which only a report needs

WORST_IMAGES = 16  # that are listed
SUSPICIONS_SHOWN = 50  # in metrics.json; the CSV has them all
GROUPS_TEXT = (
    "What is reached for some of the objects; the others are ignored, and so are detections that find them. Precision "
    "is as if all objects of a class were like those of the group, so that small and large groups can be compared."
)
LABELS_TEXT = (
    "Candidates for a second look: what confident detections see where nothing is annotated or another class is, and "
    "objects that no detection touches. The images show the first of each kind."
)
EXPLANATIONS = {
    "AP": "average precision: the mean over the IoU 0.50 to 0.95 and over the classes that the group has",
    "AP50": "AP at IoU 0.5 alone",
    "AR": "average recall with 100 detections of an image and class: the mean over the IoU 0.50 to 0.95 and classes",
    "share found": "of the objects, at IoU 0.5, by a detection of any score",
}
NUMBERS = {"AP": "ap", "AP50": "ap50", "AR": "ar", "share found": "found"}  # heading -> key of a group's row


@dataclass(frozen=True)
class ImageErrors:
    """One of the images with the most lost AP50."""

    image: int  # index in the ground truth
    ap50_lost: float
    counts: dict[str, int]  # of its confident detections by kind; missed: objects that none of them finds


@dataclass(frozen=True)
class PointsLost:
    """What was found for all detectors, by their names."""

    breakdowns: dict[str, dict[str, list[dict[str, Any]]]]
    ap50_lost: dict[str, np.ndarray]  # [I] by image
    worst: dict[str, list[ImageErrors]]
    suspicions: list[Suspicion]


def find_points_lost(
    truth: dict, results: Mapping[str, Sequence[dict]], priors: Priors | None, matches: Sequence[str]
) -> tuple[PointsLost, dict[str, ErrorKinds]]:
    """Tell where the points of each detector went.

    Args:
        truth: COCO's ground truth.
        results: COCO's results of boxes, by the name of the detector; at least one.
        priors: of a network; None leaves out what is about them.
        matches: strategies that give positives by priors.

    Returns:
        What was found, and the errors of each detector, by its name.
    """
    from analysis.evaluation_groups import ObjectGroups

    groups = ObjectGroups(truth, priors, matches)
    detectors, breakdowns, ap50_lost, worst = {}, {}, {}, {}
    for name, rows in results.items():
        matcher = CocoMatcher(truth, rows)
        detectors[name] = error_kinds(matcher)
        breakdowns[name] = broken_down(truth, matcher, groups.of(matcher))
        ap50_lost[name] = ap50_lost_by_image(truth, detectors[name])
        worst[name] = worst_images(detectors[name], ap50_lost[name])
    return PointsLost(breakdowns, ap50_lost, worst, suspicious_labels(detectors)), detectors


@dataclass(frozen=True)
class ReportedPointsLost:
    """What was found, and how it is shown."""

    found: PointsLost
    detectors: dict[str, ErrorKinds]
    content: dict[str, Any]  # for metrics.json: breakdowns, worst_images and suspicious_labels
    tables: list[Table]
    sections: list[ReportSection]


def worst_images(detector: ErrorKinds, lost: np.ndarray) -> list[ImageErrors]:
    """Return the images with the most lost AP50 [I], at most :data:`WORST_IMAGES`, the worst first."""
    order = np.argsort(-lost, kind="stable")[:WORST_IMAGES]
    matcher = detector.matcher
    is_confident = matcher.scores >= confident_scores(detector)[matcher.category]
    return [
        ImageErrors(int(row), float(lost[row]), errors_of(detector, is_confident, int(row)))
        for row in order
        if lost[row] > 0
    ]


def errors_of(detector: ErrorKinds, is_confident: np.ndarray, image: int) -> dict[str, int]:
    """Return how many confident detections of each kind an image has, and how many objects none of them finds.

    Args:
        detector: what is wrong with its detections.
        is_confident: [N] of these.
        image: index in the ground truth.
    """
    kinds = detector.detection[(detector.matcher.image == image) & is_confident & ~detector.ignored]
    counts = {name: int((kinds == DETECTION_KINDS.index(name)).sum()) for name in (DETECTION_KINDS[CORRECT], *ERRORS)}
    objects = int(((detector.matcher.truth_image == image) & ~detector.matcher.crowd).sum())
    return counts | {"missed": objects - counts["correct"]}


def network_priors(network: DetectionNetwork, input_wh: tuple[int, int], resize: str) -> Priors | None:
    """Return the priors of a network; None, with a line that says so, where it has none."""
    from analysis.evaluation_groups import priors_of_network

    try:
        return priors_of_network(require_cfg(network, "a prior"), input_wh, resize)
    except UserError as error:
        print(f"--report: no groups by positives and priors: {error}")
        return None


def cfg_priors(cfg: str, num_classes: int, img_size: tuple[int, ...], resize: str) -> Priors | None:
    """Return the priors of a cfg; None without one.

    Raises:
        UserError: as :func:`analysis.evaluation_groups.priors_of_cfg`.
    """
    if not cfg:
        return None
    from analysis.evaluation_groups import priors_of_cfg

    return priors_of_cfg(cfg, num_classes, img_size, resize)


def report_points_lost(
    truth: dict,
    results: Mapping[str, Sequence[dict]],
    source: ImageSource,
    folder: Path,
    priors: Priors | None,
    matches: Sequence[str],
) -> ReportedPointsLost:
    """Tell where the points went: draw and list the labels that may be wrong.

    Args:
        truth: COCO's ground truth.
        results: as for :func:`find_points_lost`.
        source: finds the pictures.
        folder: of the run.
        priors: as for :func:`find_points_lost`.
        matches: as for :func:`find_points_lost`.
    """
    found, detectors = find_points_lost(truth, results, priors, matches)
    shown = first_of_each_kind(found.suspicions)
    on_sheet = write_suspicious_sheet(folder / "suspicious_labels.jpg", truth, shown, source)
    groups, worst, labels = (
        breakdown_tables(found),
        worst_tables(truth, found),
        suspicious_table(truth, found.suspicions),
    )
    tables = [*groups, *worst, labels]
    if not on_sheet and shown:
        print("no pictures: the images are not on the disk")
    write_text_atomically(folder / "suspicious_labels.csv", as_csv(labels))
    content = plain(
        {
            "breakdowns": found.breakdowns,
            "worst_images": {name: [image_row(truth, one) for one in images] for name, images in found.worst.items()},
            "suspicious_labels": {
                "counts": {kind: sum(one.kind == kind for one in found.suspicions) for kind in KINDS},
                "first": [suspicion_row(truth, one) for one in found.suspicions[:SUSPICIONS_SHOWN]],
            },
        }
    )
    sections = [
        ReportSection("Groups of objects", GROUPS_TEXT, groups),
        ReportSection(
            "Annotations that may be wrong", LABELS_TEXT, [labels], images=suspicious_images(truth, shown, source)
        ),
    ]
    return ReportedPointsLost(found, detectors, content, tables, sections)


def first_of_each_kind(suspicions: Sequence[Suspicion], count: int = 16) -> list[Suspicion]:
    """Return the first ones of every kind, ``count`` in all where there are so many, in the order given."""
    by_kind = [[number for number, one in enumerate(suspicions) if one.kind == kind] for kind in KINDS]
    chosen: list[int] = []
    for place in range(max(map(len, by_kind))):
        chosen += [numbers[place] for numbers in by_kind if place < len(numbers)]
        if len(chosen) >= count:
            break
    return [suspicions[number] for number in sorted(chosen[:count])]


def breakdown_tables(found: PointsLost) -> list[Table]:
    """Return a table for each breakdown, in which every detector has its columns."""
    names = list(found.breakdowns)
    first = found.breakdowns[names[0]]
    tables = []
    for breakdown in first:
        headings = [(name, heading) for name in names for heading in NUMBERS]
        columns = tuple(heading if len(names) == 1 else f"{heading} {name}" for name, heading in headings)
        rows = tuple(
            (
                row["group"],
                row["objects"],
                *(found.breakdowns[name][breakdown][number][NUMBERS[heading]] for name, heading in headings),
            )
            for number, row in enumerate(first[breakdown])
        )
        title = "All objects" if breakdown == "all" else f"Objects by {breakdown}"
        explanations = {column: EXPLANATIONS[heading] for column, (_, heading) in zip(columns, headings, strict=True)}
        table_name = f"groups_by_{breakdown.replace(' ', '_')}"
        table_columns = (breakdown, "objects", *columns)
        tables.append(Table(table_name, title, table_columns, rows, explanations=explanations))
    return tables


def worst_tables(truth: dict, found: PointsLost) -> list[Table]:
    """Return the listing of the worst images of each detector."""
    columns = ("image", "AP50 lost", "correct", *ERRORS, "missed")
    return [
        Table(
            "worst_images" if len(found.worst) == 1 else f"worst_images_{number}",
            f"The images with the most lost AP50{'' if len(found.worst) == 1 else f' of {name}'}",
            columns,
            tuple(
                (
                    str(truth["images"][one.image].get("file_name", truth["images"][one.image]["id"])),
                    one.ap50_lost,
                    *(one.counts[column] for column in columns[2:]),
                )
                for one in images
            ),
        )
        for number, (name, images) in enumerate(found.worst.items(), start=1)
    ]


def image_row(truth: dict, one: ImageErrors) -> dict[str, Any]:
    """Return one of the worst images for ``metrics.json``."""
    about = truth["images"][one.image]
    return {"image_id": about["id"], "file_name": about.get("file_name"), "ap50_lost": one.ap50_lost, **one.counts}


def suspicious_table(truth: dict, suspicions: Sequence[Suspicion]) -> Table:
    """Return the listing of the annotations that are probably wrong."""
    rows = [suspicion_row(truth, one) for one in suspicions]
    columns = ("kind", "file_name", "image_id", "annotation_id", "label", "seen_as", "score", "detectors", "box_xywh")
    counts = ", ".join(f"{sum(one.kind == kind for one in suspicions):,} {kind}" for kind in KINDS)
    title = f"Annotations that deserve a look: {counts}"
    cells = tuple(tuple(_cell(column, row[column]) for column in columns) for row in rows)
    return Table("suspicious_labels", title, columns, cells, listing=True)


def _cell(column: str, value: Any) -> Any:
    """Return a value as a cell: an id is no number, and a list one text."""
    if isinstance(value, list):
        return " ".join(f"{one:g}" if isinstance(one, float) else str(one) for one in value)
    return str(value) if column.endswith("_id") and value is not None else value


def suspicion_row(truth: dict, one: Suspicion) -> dict[str, Any]:
    """Return a suspicion with ids and names."""
    about = truth["images"][one.image]
    annotation = None if one.annotation is None else truth["annotations"][one.annotation]
    names = {category["id"]: str(category["name"]) for category in truth["categories"]}
    return {
        "kind": one.kind,
        "image_id": about["id"],
        "file_name": about.get("file_name"),
        "annotation_id": annotation and annotation["id"],
        "label": annotation and names[annotation["category_id"]],
        "seen_as": None if one.category is None else str(truth["categories"][one.category]["name"]),
        "score": one.score,
        "detectors": list(one.detectors),
        "box_xywh": list(one.box_xywh),
    }
