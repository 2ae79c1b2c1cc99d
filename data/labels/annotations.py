"""All annotations of one split, as columns: what every label format is read into.

Column letters: N images, M boxes. Boxes are in pixels of the original image.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from data.labels.polygons import Polygons, rows_of_ranges
from utils.class_names import places_in
from utils.files import printable

# The ids that COCO gives to its 80 classes (of 1..90): with them, results of a network trained on YOLO labels can be
# handed to COCO's evaluation.
COCO_CATEGORY_GAPS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
COCO_CATEGORY_IDS = tuple(id_ for id_ in range(1, 91) if id_ not in COCO_CATEGORY_GAPS)


class Problem(NamedTuple):
    """One thing that is wrong with a label file or an image."""

    file: str
    line: int  # from 1; 0 where the format has no lines
    kind: str  # the same words for all problems of the kind
    what: str  # about this one: its values and what was done

    def __str__(self) -> str:
        return f"{self.file}{f':{self.line}' if self.line else ''}: {self.kind}{f' ({self.what})' if self.what else ''}"


@dataclass(frozen=True)
class KeyPoints:
    """The key points of M objects, K each."""

    points: np.ndarray  # [M K 3] float64: x, y in original pixels, and 0 not labelled, 1 hidden or 2 visible
    mirrored: np.ndarray  # [K] int64: the point that takes the place of each in a mirror; [0] where nothing says it

    def __len__(self) -> int:
        return len(self.points)

    def select(self, rows: np.ndarray) -> KeyPoints:
        """Return those of the objects at ``rows``."""
        return KeyPoints(self.points[rows], self.mirrored)

    def unlabelled(self, count: int) -> KeyPoints:
        """Return as many for each of ``count`` objects, of which none is labelled."""
        return KeyPoints(np.zeros((count, *self.points.shape[1:])), self.mirrored)

    def to_coco(self, index: int) -> dict[str, Any]:
        """Return those of one object as COCO has them."""
        of_object = self.points[index]
        numbers = [
            int(value) if column == 2 else value for point in of_object.tolist() for column, value in enumerate(point)
        ]
        return {"keypoints": numbers, "num_keypoints": int((of_object[:, 2] > 0).sum())}


@dataclass(frozen=True)
class Annotations:
    """Images and their objects, as columns; the rows of an image stand together, in the order of the images."""

    image_paths: list[str]  # N, "" where the image is not on the disk
    image_ids: np.ndarray  # [N] int64
    image_wh: np.ndarray  # [N 2] int32
    box_image: np.ndarray  # [M] int32, index of the image, ascending
    boxes_xyxy: np.ndarray  # [M 4] float64
    labels: np.ndarray  # [M] int32, class index
    crowd: np.ndarray  # [M] bool: a region that is neither object nor background
    areas: np.ndarray  # [M] float64, COCO's own where given, else width x height
    annotation_ids: np.ndarray  # [M] int64, unique, at least 1
    names: tuple[str, ...]  # of the classes
    category_ids: tuple[int, ...]  # class index -> the id that COCO results carry
    problems: tuple[Problem, ...] = ()
    orientation: np.ndarray | None = None  # [N] int8, the EXIF orientation to undo when reading pixels; None: unknown
    boxes_xywh: np.ndarray | None = None  # [M 4] float64, with the sizes of the label file; None: from boxes_xyxy
    polygons: Polygons | None = None  # of the boxes, original pixels; None where nobody wants masks or there are none
    key_points: KeyPoints | None = None  # of the boxes, likewise
    # Of the same images, the boxes that cannot be learned, having no size or lying outside, but that can be missed.
    unlearnable: Annotations | None = None

    def __len__(self) -> int:
        return len(self.image_paths)

    @property
    def boxes_wh(self) -> np.ndarray:
        """[M 2] float64: widths and heights as the label file has them; those between corners are rounded once more."""
        if self.boxes_xywh is not None:
            return self.boxes_xywh[:, 2:]
        return self.boxes_xyxy[:, 2:] - self.boxes_xyxy[:, :2]

    @property
    def num_key_points(self) -> int:
        """Of an object; 0 where there are none."""
        return 0 if self.key_points is None else self.key_points.points.shape[1]

    @cached_property
    def first_box(self) -> np.ndarray:
        """[N+1] int64: image ``i`` owns the rows ``first_box[i]:first_box[i + 1]``."""
        return np.searchsorted(self.box_image, np.arange(len(self) + 1))

    def rows_of(self, image: int) -> slice:
        """Return the rows of one image."""
        return slice(int(self.first_box[image]), int(self.first_box[image + 1]))

    def select_images(self, keep: np.ndarray) -> Annotations:
        """Return the annotations of the images at ``keep``, a [N] bool mask or indices in any order."""
        keep = np.flatnonzero(keep) if np.asarray(keep).dtype == bool else np.asarray(keep, dtype=np.int64)
        counts = np.diff(self.first_box)[keep]
        rows = rows_of_ranges(self.first_box[keep], counts)
        return replace(
            self._with_rows(rows),
            image_paths=[self.image_paths[i] for i in keep],
            image_ids=self.image_ids[keep],
            image_wh=self.image_wh[keep],
            box_image=np.repeat(np.arange(len(keep), dtype=np.int32), counts),
            orientation=None if self.orientation is None else self.orientation[keep],
            unlearnable=None if self.unlearnable is None else self.unlearnable.select_images(keep),
        )

    def select_boxes(self, keep: np.ndarray) -> Annotations:
        """Return the same images with the boxes at ``keep``, a [M] bool mask or ascending indices."""
        return self._with_rows(np.flatnonzero(keep) if np.asarray(keep).dtype == bool else keep)

    def as_single_class(self) -> Annotations:
        """Return the same boxes as objects of one class, ``object``."""
        unlearnable = None if self.unlearnable is None else self.unlearnable.as_single_class()
        labels = np.zeros_like(self.labels)
        return replace(self, labels=labels, names=("object",), category_ids=(1,), unlearnable=unlearnable)

    def with_names(self, names: Sequence[str]) -> Annotations:
        """Return the same boxes with the classes numbered as in ``names``, which has all of this split's names."""
        if tuple(names) == self.names:
            return self
        places = np.array(places_in(self.names, names), dtype=np.int32)
        ids = list(range(max(self.category_ids) + 1, max(self.category_ids) + 1 + len(names)))  # of the other classes
        for place, id_ in zip(places.tolist(), self.category_ids, strict=True):
            ids[place] = id_
        unlearnable = None if self.unlearnable is None else self.unlearnable.with_names(names)
        labels = places[self.labels]
        return replace(self, labels=labels, names=tuple(names), category_ids=tuple(ids), unlearnable=unlearnable)

    def with_a_mask_each(self, source: str) -> Annotations:
        """Return the same objects where the boxes of those without a mask stand for it, if others have one.

        ``source`` names the data set in the problem that is recorded.
        """
        if self.polygons is None:
            return self
        lacking = np.flatnonzero(~self.polygons.are_given)
        unlearnable = self.unlearnable
        if unlearnable is not None:
            own = unlearnable.polygons or Polygons.of([[]] * len(unlearnable.labels))
            unlearnable = replace(unlearnable, polygons=own.filled(unlearnable.boxes_xyxy))
        problems = self.problems
        if len(lacking):
            said = f"{len(lacking)} of {len(self.labels)}"
            problems = (*problems, Problem(source, 0, "objects without a mask, whose boxes stand for it", said))
        filled = self.polygons.filled(self.boxes_xyxy)
        return replace(self, polygons=filled, unlearnable=unlearnable, problems=problems)

    def to_coco(self) -> dict:
        """Return the ground truth in COCO's format, for the evaluators; boxes and areas are those of the file."""
        categories = [{"id": id_, "name": name} for id_, name in zip(self.category_ids, self.names, strict=True)]
        images = [
            {
                "id": id_,
                "width": width,
                "height": height,
                "file_name": printable(path.replace("\\", "/").rsplit("/", 1)[-1]),
            }
            for id_, (width, height), path in zip(
                self.image_ids.tolist(), self.image_wh.tolist(), self.image_paths, strict=True
            )
        ]
        annotations = self._coco_annotations()
        if self.unlearnable is not None:
            annotations += self.unlearnable._coco_annotations()
        return {"info": {}, "images": images, "annotations": annotations, "categories": categories}

    def _coco_annotations(self) -> list[dict]:
        """Return the rows as COCO's ``annotations``."""
        boxes_xywh = self.boxes_xywh
        if boxes_xywh is None:
            boxes_xywh = np.concatenate((self.boxes_xyxy[:, :2], self.boxes_wh), axis=1)
        columns = zip(
            self.annotation_ids.tolist(),
            self.image_ids[self.box_image].tolist(),
            np.asarray(self.category_ids, dtype=np.int64)[self.labels].tolist(),
            boxes_xywh.tolist(),
            self.areas.tolist(),
            self.crowd.astype(int).tolist(),
            strict=True,
        )
        keys = ("id", "image_id", "category_id", "bbox", "area", "iscrowd")
        annotations = [dict(zip(keys, row, strict=True)) for row in columns]
        for number, annotation in enumerate(annotations):
            if self.polygons is not None:
                annotation["segmentation"] = self.polygons.to_coco(number)
            if self.key_points is not None:
                annotation |= self.key_points.to_coco(number)
        return annotations

    def _with_rows(self, rows: np.ndarray) -> Annotations:
        """Return the annotations with these rows of the columns [M ...]; the columns of images stay."""
        columns = ("box_image", "boxes_xyxy", "labels", "crowd", "areas", "annotation_ids")
        values: dict[str, Any] = {name: getattr(self, name)[rows] for name in columns}
        if self.boxes_xywh is not None:
            values["boxes_xywh"] = self.boxes_xywh[rows]
        values |= {
            name: shapes.select(rows)
            for name in ("polygons", "key_points")
            if (shapes := getattr(self, name)) is not None
        }
        return replace(self, **values)


def summarise_problems(problems: Sequence[Problem], most: int = 8) -> list[str]:
    """Return a line for each of the ``most`` most frequent kinds of problem: how often, and the first place."""
    counts = Counter(problem.kind for problem in problems)
    first: dict[str, Problem] = {}
    for problem in problems:
        first.setdefault(problem.kind, problem)
    lines = []
    for kind, count in counts.most_common(most):
        example = first[kind]
        place = f"{example.file}{f':{example.line}' if example.line else ''}"
        lines.append(f"{count} x {kind}; first: {place}{f' ({example.what})' if example.what else ''}")
    if len(counts) > most:
        lines.append(f"and {len(counts) - most} more kinds of problems")
    return lines


def category_ids_for(names: Sequence[str]) -> tuple[int, ...]:
    """Return the COCO category ids of data that have none of their own: COCO's for COCO's classes, else 1..C."""
    is_coco = len(names) == 80 and names[0] == "person" and names[79] == "toothbrush"
    return COCO_CATEGORY_IDS if is_coco else tuple(range(1, len(names) + 1))
