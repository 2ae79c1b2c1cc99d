"""Boxes of any detector and objects as columns; boxes are corners in pixels of the original image.

Shape letters: N boxes, T objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data.labels.annotations import Annotations
from evaluation.pairs import columns
from utils.structures import Detections


@dataclass(frozen=True)
class FoundBoxes:
    """What one detector has found in some images."""

    image: Tensor  # [N] int64, index of the image in the annotations
    label: Tensor  # [N] int64, class index
    boxes_xyxy: Tensor  # [N 4] float64
    scores: Tensor  # [N] float64

    @classmethod
    def of_images(cls, found: Sequence[Detections], images: Sequence[int], single_class: bool = False) -> FoundBoxes:
        """Return the boxes of a batch.

        Args:
            found: of each image.
            images: their indices in the annotations.
            single_class: all boxes count as of class 0.
        """
        label = torch.cat([one.labels.cpu() for one in found])
        return cls(
            torch.cat([torch.full((len(one),), index) for one, index in zip(found, images, strict=True)]),
            torch.zeros_like(label) if single_class else label,
            torch.cat([one.boxes_xyxy.cpu().double() for one in found]),
            torch.cat([one.scores.cpu().double() for one in found]),
        )

    @classmethod
    def of_results(cls, rows: Sequence[dict], truth: dict) -> FoundBoxes:
        """Return the boxes of COCO's results, whose images and classes are counted as in the ground truth."""
        group, scores, boxes_xywh = map(torch.from_numpy, columns(rows, truth))
        num_classes = len(truth["categories"])
        boxes_xyxy = torch.cat((boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]), dim=1)
        return cls(group // num_classes, group % num_classes, boxes_xyxy, scores)

    def __len__(self) -> int:
        return len(self.scores)

    def select(self, index: Tensor) -> FoundBoxes:
        """Return the boxes at ``index``, a [N] bool mask or an index tensor."""
        return FoundBoxes(self.image[index], self.label[index], self.boxes_xyxy[index], self.scores[index])

    def clipped(self, image_wh: np.ndarray) -> FoundBoxes:
        """Return the boxes cut off at the borders of their images, whose sizes [I 2] in pixels are given."""
        limits = torch.from_numpy(np.asarray(image_wh)).double()[self.image].repeat(1, 2)
        boxes_xyxy = torch.minimum(self.boxes_xyxy.clamp(min=0), limits)
        return FoundBoxes(self.image, self.label, boxes_xyxy, self.scores)


@dataclass(frozen=True)
class ObjectBoxes:
    """The objects of some images; crowd regions are none."""

    row: np.ndarray  # [T] int64, of the annotations, rising
    image: Tensor  # [T] int64, index of the image in the annotations
    label: Tensor  # [T] int64, class index
    boxes_xyxy: Tensor  # [T 4] float64

    @classmethod
    def of(cls, annotations: Annotations, images: Sequence[int] | None = None) -> ObjectBoxes:
        """Return the objects of the images with these indices, None for all."""
        rows = np.arange(len(annotations.box_image))
        if images is not None:
            rows = np.concatenate([rows[:0], *(rows[annotations.rows_of(image)] for image in sorted(images))])
        rows = rows[~annotations.crowd[rows]]
        return cls(
            rows,
            torch.from_numpy(annotations.box_image[rows].astype(np.int64)),
            torch.from_numpy(annotations.labels[rows].astype(np.int64)),
            torch.from_numpy(annotations.boxes_xyxy[rows].astype(np.float64)),
        )

    def __len__(self) -> int:
        return len(self.row)


def groups_of_boxes(boxes: FoundBoxes | ObjectBoxes, num_classes: int) -> Tensor:
    """Return a number for the image and class of every box, [N]: only boxes with equal ones have to do with another."""
    return boxes.image * num_classes + boxes.label
