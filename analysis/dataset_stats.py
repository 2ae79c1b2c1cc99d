"""``analyze.py --dataset-stats``: what the annotations look like; no model and no image is read.

Every statistic is defined in docs/analysis.md. Boxes are in the pixels of the original image; "share of images" is a
share of the annotated images, those with at least one counted object.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from analysis.mode import Mode, Request
from analysis.objects import OCCLUSION_LIMITS, add_occlusion, pair_blocks, pair_geometry
from analysis.output.plots import bars, histogram_grid
from analysis.output.result import Result, Table, counted, mean, rows_of, share, table_of, value_at
from data.objects import Objects, select_objects
from utils.boxes import SIZE_NAMES
from utils.config import flag, option
from utils.limits import above, at_least, below, limits_reached

if TYPE_CHECKING:
    from data.labels.annotations import Annotations

OCCLUSION_EDGES = np.linspace(0, 1, 21)
RELATIVE_SIZE_EDGES = np.linspace(0, 1, 21)
ASPECT_EDGES = 2.0 ** np.arange(-4, 4.5, 0.5)  # w/h; what lies outside counts in the first or last bin
COUNT_EDGES = np.array((0, 1, 2, 3, 4, 5, 6, 8, 11, 16, 21, 31, 51, 101, 1001))  # objects per image
PAIR_DEFINITIONS = {  # {} is the threshold
    "near": "gap < {} px",
    "overlapping": "IoU > {}",
    "contained": "intersection over smaller area > {}",
    "coincident": "distance of centres < {} px",
}
HISTOGRAMS = {  # title and what is counted
    "relative_size": ("size: sqrt(wh / WH)", "objects"),
    "aspect": ("aspect ratio w/h", "objects"),
    "occlusion": ("occlusion: largest share covered by one box", "objects"),
    "objects_per_image": ("objects per image", "images"),
}
OVERVIEW = {  # name of a statistic in the first table -> its keys
    "images": "images/total",
    "annotated images": "images/annotated",
    "images without objects": "images/without_objects",
    "objects": "objects/total",
    "of these crowd regions": "objects/crowd",
    "pairs of objects in one image": "pairs/total",
    "objects per annotated image, mean": "objects_per_image/mean",
    "objects per annotated image, median": "objects_per_image/median",
    "objects per annotated image, most": "objects_per_image/max",
    "label problems": "problems/total",
}
OF_IMAGES = {"images": "images", "share of images": "image_share"}
PAIR_COLUMNS = {
    "kind": "kind", "definition": "definition", "pairs": "pairs", "share of pairs": "pair_share", **OF_IMAGES
}  # fmt: skip
OBJECT_COLUMNS = {"kind": "kind", "objects": "objects", "share of objects": "object_share", **OF_IMAGES}


@dataclass(frozen=True)
class DatasetStatsOptions:
    """Thresholds of --dataset-stats."""

    near_gap: float = option(10.0, "a pair is near when the gap between its boxes is below this, pixels")
    overlap_iou: float = option(0.6, "a pair overlaps when its IoU is above this")
    containment: float = option(0.6, "a pair is contained when intersection over the smaller area is above this")
    coincident: float = option(10.0, "a pair coincides when its centres are closer than this, pixels")
    crowded_pairs: int = option(7, "an image is crowded when it has at least so many coincident pairs")
    elongation: float = option(4.0, "an object is elongated when max(w/h, h/w) is at least this")
    crowd: bool = option(True, "count crowd regions as objects")

    def __post_init__(self) -> None:
        for name in ("near_gap", "coincident"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{flag(name)} is a distance in pixels, not {getattr(self, name)}")
        if not 0 <= self.overlap_iou <= 1 or not 0 <= self.containment <= 1:
            raise ValueError("--overlap-iou and --containment must lie between 0 and 1")
        if self.crowded_pairs < 1 or not 1 <= self.elongation < math.inf:
            raise ValueError("--crowded-pairs and --elongation must be at least 1")


def dataset_stats(annotations: Annotations, options: DatasetStatsOptions) -> Result:
    """Compute every statistic of the annotations of a data set; pairs are made in blocks, so memory stays bounded."""
    objects = select_objects(annotations, crowd=options.crowd)
    per_image, occlusion = _walk_pairs(objects, options)
    of_images = _image_statistics(objects)
    statistics = {
        **of_images,
        **_pair_statistics(per_image, of_images["pairs"]["total"], of_images["images"]["annotated"], options),
        **_per_object_statistics(objects, occlusion, options),
        "classes": _class_statistics(objects, options),
        "problems": problem_statistics(annotations),
    }
    data = {"images": objects.num_images, "annotations": len(annotations.box_image), "names": objects.names}
    return Result(
        "dataset-stats", data, statistics, _tables(statistics, annotations), _plots(statistics), _notes(statistics)
    )


def _walk_pairs(objects: Objects, options: DatasetStatsOptions) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return the pairs of each kind per image, [N] each, and the occlusion per object, [M]."""
    per_image = {kind: np.zeros(objects.num_images, dtype=np.int64) for kind in PAIR_DEFINITIONS}
    occlusion = np.zeros(len(objects))
    with tqdm(total=len(objects), desc="pairs", unit=" objects", disable=None, leave=False) as bar:
        for block in pair_blocks(objects.image):
            geometry = pair_geometry(objects.boxes_xyxy, block)
            is_kind = {
                "near": below(geometry.gap, options.near_gap),
                "overlapping": above(geometry.iou, options.overlap_iou),
                "contained": above(geometry.containment, options.containment),
                "coincident": below(geometry.center_distance, options.coincident),
            }
            for kind, chosen in is_kind.items():
                images, counts = np.unique(objects.image[block.first[chosen]], return_counts=True)
                per_image[kind][images] += counts
            add_occlusion(occlusion, block, geometry)
            bar.update(block.stop - block.start)
    return per_image, occlusion


def _image_statistics(objects: Objects) -> dict[str, Any]:
    counts = np.bincount(objects.image, minlength=objects.num_images)
    annotated = counts[counts > 0]
    return {
        "images": {"total": len(counts), "annotated": len(annotated), "without_objects": len(counts) - len(annotated)},
        "objects": {"total": len(objects), "crowd": int(objects.crowd.sum())},
        "objects_per_image": {
            "mean": mean(annotated),
            "median": float(np.median(annotated)) if len(annotated) else None,
            "max": int(annotated.max(initial=0)),
            "histogram": histogram(counts, COUNT_EDGES),
        },
        "pairs": {"total": int((counts * (counts - 1) // 2).sum())},
    }


def _pair_statistics(
    per_image: Mapping[str, np.ndarray], num_pairs: int, num_images: int, options: DatasetStatsOptions
) -> dict[str, dict[str, Any]]:
    """Return the statistics of each kind of pair; the shares are of all pairs and of the images with objects."""
    thresholds = {
        "near": options.near_gap,
        "overlapping": options.overlap_iou,
        "contained": options.containment,
        "coincident": options.coincident,
    }
    statistics: dict[str, dict[str, Any]] = {}
    for kind, in_image in per_image.items():
        pairs, images = int(in_image.sum()), int((in_image > 0).sum())
        statistics[kind] = {
            "threshold": thresholds[kind],
            "pairs": pairs,
            "pair_share": share(pairs, num_pairs),
            "images": images,
            "image_share": share(images, num_images),
        }
    crowded = int((per_image["coincident"] >= options.crowded_pairs).sum()) if num_images else 0
    statistics["crowded"] = {
        "threshold": options.crowded_pairs,
        "images": crowded,
        "image_share": share(crowded, num_images),
    }
    return statistics


def _per_object_statistics(objects: Objects, occlusion: np.ndarray, options: DatasetStatsOptions) -> dict[str, Any]:
    elongated = at_least(objects.elongation, options.elongation)
    num_images = len(np.unique(objects.image))
    elongated_images = len(np.unique(objects.image[elongated]))
    width, height = objects.boxes_wh.T
    return {
        "elongated": {
            "threshold": options.elongation,
            **counted(elongated),
            "images": elongated_images,
            "image_share": share(elongated_images, num_images),
        },
        "occlusion": {
            "mean": mean(occlusion),
            "at_least": {str(limit): counted(at_least(occlusion, limit)) for limit in OCCLUSION_LIMITS},
            "histogram": histogram(occlusion, OCCLUSION_EDGES),
        },
        "sizes": {name: counted(objects.sizes == index) for index, name in enumerate(SIZE_NAMES)},
        "relative_size": {
            "mean": mean(objects.relative_size),
            "histogram": histogram(objects.relative_size, RELATIVE_SIZE_EDGES),
        },
        "aspect": {"histogram": histogram(width / height, ASPECT_EDGES)},
    }


def _class_statistics(objects: Objects, options: DatasetStatsOptions) -> list[dict[str, Any]]:
    num_classes = len(objects.names)
    labels = objects.labels
    # An image counts once for each of its classes: the keys number the distinct pairs (class, image).
    keys = np.unique(labels * max(1, objects.num_images) + objects.image)
    columns = {
        "objects": np.bincount(labels, minlength=num_classes),
        "images": np.bincount(keys // max(1, objects.num_images), minlength=num_classes),
        "crowd": np.bincount(labels[objects.crowd], minlength=num_classes),
        **{
            name: np.bincount(labels[objects.sizes == index], minlength=num_classes)
            for index, name in enumerate(SIZE_NAMES)
        },
        "elongated": np.bincount(labels[at_least(objects.elongation, options.elongation)], minlength=num_classes),
    }
    relative = np.bincount(labels, weights=objects.relative_size, minlength=num_classes)
    return [
        {
            "name": objects.names[index],
            **{key: int(values[index]) for key, values in columns.items()},
            "mean_relative_size": share(relative[index], columns["objects"][index]),
        }
        for index in range(num_classes)
    ]


def problem_statistics(annotations: Annotations) -> dict[str, Any]:
    """Count the label problems by kind; the text of a kind says whether the row was left out."""
    kinds = Counter(problem.kind for problem in annotations.problems)
    return {"total": len(annotations.problems), "by_kind": dict(kinds.most_common())}


def problem_table(annotations: Annotations) -> Table:
    """Return the listing of all label problems, with file and line."""
    rows = tuple((str(problem.file), problem.line, problem.kind, problem.what) for problem in annotations.problems)
    return Table("problems", "Label problems", ("file", "line", "kind", "what"), rows, listing=True)


def histogram(values: np.ndarray, edges: np.ndarray) -> dict[str, list[float]]:
    """Count values in bins ``edges[i] <= v < edges[i + 1]``; what lies outside counts in the first or last bin."""
    place = np.clip(limits_reached(values, edges) - 1, 0, len(edges) - 2)
    return {"edges": [float(edge) for edge in edges], "counts": np.bincount(place, minlength=len(edges) - 1).tolist()}


def _tables(statistics: Mapping[str, Any], annotations: Annotations) -> tuple[Table, ...]:
    overview = tuple((text, value_at(statistics, where)) for text, where in OVERVIEW.items())
    unknown = {"images": None, "image_share": None}
    kinds = {f"elongated: max(w/h, h/w) >= {statistics['elongated']['threshold']:g}": statistics["elongated"]}
    for limit, value in statistics["occlusion"]["at_least"].items():
        kinds[f"covered by one other box: >= {limit}"] = unknown | value
    kinds |= {f"size: {name}": unknown | value for name, value in statistics["sizes"].items()}
    classes = sorted(statistics["classes"], key=lambda row: -row["objects"])
    tables: tuple[Table, ...] = (
        Table("overview", "The data set", ("statistic", "count"), overview),
        table_of("pairs", "Pairs", _pair_rows(statistics), PAIR_COLUMNS),
        table_of("objects", "Objects", rows_of(kinds, "kind"), OBJECT_COLUMNS),
        table_of("classes", "Classes", classes, {key: key for key in (classes[0] if classes else ("name",))}),
    )
    if annotations.problems:
        by_kind = tuple(statistics["problems"]["by_kind"].items())
        tables += (
            Table("problem_kinds", "Label problems, by kind", ("kind", "count"), by_kind),
            problem_table(annotations),
        )
    return tables


def _pair_rows(statistics: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for kind, definition in PAIR_DEFINITIONS.items():
        one = statistics[kind]
        yield {"kind": kind, "definition": definition.format(f"{one['threshold']:g}"), **one}
    crowded = statistics["crowded"]
    definition = f">= {crowded['threshold']} coincident pairs"
    yield {"kind": "crowded images", "definition": definition, "pairs": None, "pair_share": None, **crowded}


def _plots(statistics: Mapping[str, Any]) -> dict[str, Any]:
    histograms = {name: statistics[name]["histogram"] for name in HISTOGRAMS}
    classes = sorted(statistics["classes"], key=lambda row: -row["objects"])
    by_size = {size: [row[size] for row in classes] for size in SIZE_NAMES}
    return {
        "histograms": histogram_grid(histograms, HISTOGRAMS),
        "classes": bars([row["name"] for row in classes], by_size, "Objects per class and size", "objects"),
    }


def _notes(statistics: Mapping[str, Any]) -> tuple[str, ...]:
    notes = []
    if statistics["problems"]["total"]:
        notes.append(f"{statistics['problems']['total']:,} label problems; problems.csv names file and line of each")
    if not statistics["objects"]["total"]:
        notes.append("there is no object to count: shares and means are undefined")
    return tuple(notes)


def run(request: Request) -> Result:
    """Return the statistics of the annotations of the chosen split."""
    return request.described(dataset_stats(request.annotations(), request.options(DatasetStatsOptions)))


MODE = Mode(
    name="dataset_stats",
    text="pairs, overlaps, sizes, elongation and occlusion of the annotations",
    run=run,
    groups=(DatasetStatsOptions,),
    reads=frozenset({"data", "split", "val_fraction"}),
)
