"""All annotations of one split, as columns: what every label format is read into.

Column letters: N images, M boxes. Boxes are in pixels of the original image.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

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

    def __len__(self) -> int:
        return len(self.image_paths)

    @property
    def boxes_wh(self) -> np.ndarray:
        """[M 2] float64: widths and heights as the label file has them; those between corners are rounded once more."""
        if self.boxes_xywh is not None:
            return self.boxes_xywh[:, 2:]
        return self.boxes_xyxy[:, 2:] - self.boxes_xyxy[:, :2]

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
        # Join the row ranges of these images without a loop: each start repeated, plus 0, 1, 2, ... within its image.
        counts = np.diff(self.first_box)[keep]
        starts = np.repeat(self.first_box[keep], counts)
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        rows = starts + within
        return replace(
            self._with_rows(rows),
            image_paths=[self.image_paths[i] for i in keep],
            image_ids=self.image_ids[keep],
            image_wh=self.image_wh[keep],
            box_image=np.repeat(np.arange(len(keep), dtype=np.int32), counts),
            orientation=None if self.orientation is None else self.orientation[keep],
        )

    def select_boxes(self, keep: np.ndarray) -> Annotations:
        """Return the same images with the boxes at ``keep``, a [M] bool mask or ascending indices."""
        return self._with_rows(np.flatnonzero(keep) if np.asarray(keep).dtype == bool else keep)

    def as_single_class(self) -> Annotations:
        """Return the same boxes as objects of one class, ``object``."""
        return replace(self, labels=np.zeros_like(self.labels), names=("object",), category_ids=(1,))

    def with_names(self, names: Sequence[str]) -> Annotations:
        """Return the same boxes with the classes numbered as in ``names``, which has all of this split's names."""
        if tuple(names) == self.names:
            return self
        places = np.array(places_in(self.names, names), dtype=np.int32)
        ids = list(range(max(self.category_ids) + 1, max(self.category_ids) + 1 + len(names)))  # of the other classes
        for place, id_ in zip(places.tolist(), self.category_ids, strict=True):
            ids[place] = id_
        return replace(self, labels=places[self.labels], names=tuple(names), category_ids=tuple(ids))

    def to_coco(self) -> dict:
        """Return the ground truth in COCO's format, for the evaluators; boxes and areas are those of the file."""
        boxes_xywh = self.boxes_xywh
        if boxes_xywh is None:
            boxes_xywh = np.concatenate((self.boxes_xyxy[:, :2], self.boxes_wh), axis=1)
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
        return {"info": {}, "images": images, "annotations": annotations, "categories": categories}

    def _with_rows(self, rows: np.ndarray) -> Annotations:
        """Return the annotations with these rows of the columns [M ...]; the columns of images stay."""
        columns = ("box_image", "boxes_xyxy", "labels", "crowd", "areas", "annotation_ids")
        values = {name: getattr(self, name)[rows] for name in columns}
        if self.boxes_xywh is not None:
            values["boxes_xywh"] = self.boxes_xywh[rows]
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
