"""Groups of the objects of a COCO ground truth, whose AP ``test.py --report`` prints: by shape, occlusion, priors.

The definitions and limits are those of ``analyze.py`` (docs/analysis.md). Shape letters: N detections, M annotations, O
those of them that have an area.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from analysis.anchor_stats import object_blocks
from analysis.matching.statistics import (
    ELONGATION_LIMITS,
    ELONGATION_NAMES,
    MATCHES_LIMITS,
    MATCHES_NAMES,
    OCCLUSION_NAMES,
)
from analysis.objects import OCCLUSION_LIMITS, object_occlusion, pair_blocks, pair_geometry
from data.objects import Objects, boxes_in_input, sizes_in_input
from engine.network_input import choose_resize, input_size
from evaluation.breakdowns import Group, groups_between, named_bins, side_groups, size_groups
from evaluation.matches import CocoMatcher
from models.anchor_fit import one_thread
from models.assignment.assigner import build_assigner
from models.assignment.grid import slot_grid
from models.assignment.options import AssignmentOptions
from models.heads import Head
from models.network import Network, build_network
from utils.boxes import shape_iou
from utils.config import find_file
from utils.limits import limits_reached

NEIGHBOUR_LIMITS = (0.1, 0.3, 0.5)  # of the highest IoU with another object
PRIOR_LIMITS = (0.2, 0.4, 0.6, 0.8)  # of the best IoU of an object's shape with a prior


@dataclass(frozen=True)
class Priors:
    """The anchors that objects are matched with, and how images get into the network input."""

    heads: tuple[Head, ...]
    input_wh: tuple[int, int]  # pixels
    resize: str  # a key of data.letterbox.RESIZES


def priors_of_cfg(cfg: str, num_classes: int, img_size: tuple[int, ...], resize: str) -> Priors:
    """Return the priors of a cfg; allocates no weights.

    Args:
        cfg: the network.
        num_classes: of the data.
        img_size: as on the command line; empty for the cfg's.
        resize: as on the command line.

    Raises:
        UserError: no such cfg, it has no anchors to match, or the size does not fit its strides.
    """
    with torch.device("meta"):
        network = build_network(find_file(cfg, "cfg"), num_classes)
    return priors_of_network(network, input_size(img_size, network), choose_resize(resize, network).kind)


def priors_of_network(network: Network, input_wh: tuple[int, int], resize: str) -> Priors:
    """Return the priors of a network.

    Raises:
        UserError: it has no anchors to match.
    """
    network.require_heads()
    network.require_trainable()
    return Priors(network.heads, input_wh, resize)


def objects_of_truth(truth: dict) -> Objects:
    """Return the annotations that have an area, crowd regions among them, by image; ``source_row`` is their row."""
    boxes_xywh = np.array([one["bbox"] for one in truth["annotations"]], dtype=np.float64).reshape(-1, 4)
    images = {image["id"]: number for number, image in enumerate(truth["images"])}
    labels = {category["id"]: number for number, category in enumerate(truth["categories"])}
    image = np.array([images[one["image_id"]] for one in truth["annotations"]], dtype=np.int64)
    rows = np.flatnonzero((boxes_xywh[:, 2:] > 0).all(axis=1))
    rows = rows[np.argsort(image[rows], kind="stable")]
    chosen = [truth["annotations"][row] for row in rows]
    return Objects(
        image=image[rows],
        boxes_xyxy=np.concatenate((boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]), axis=1)[rows],
        boxes_wh=boxes_xywh[rows, 2:],
        labels=np.array([labels[one["category_id"]] for one in chosen], dtype=np.int64),
        crowd=np.array([one["iscrowd"] for one in chosen], dtype=bool),
        areas=np.array([one["area"] for one in chosen], dtype=np.float64),
        image_wh=np.array([(one.get("width", 0), one.get("height", 0)) for one in truth["images"]]).reshape(-1, 2),
        names=tuple(str(category["name"]) for category in truth["categories"]),
        source_row=rows,
    )


def learnable(objects: Objects) -> Objects:
    """Return the objects that training learns: no crowd region, and not outside of their image."""
    corners = np.clip(objects.boxes_xyxy, 0, np.tile(objects.image_wh, 2)[objects.image])
    keep = ~objects.crowd & (corners[:, 2:] > corners[:, :2]).all(axis=1)
    columns = ("image", "boxes_xyxy", "boxes_wh", "labels", "crowd", "areas", "source_row")
    return replace(objects, **{name: getattr(objects, name)[keep] for name in columns})


class ObjectGroups:
    """Knows the groups of the objects of a ground truth, which are the same for all detectors.

    Args:
        truth: COCO's ground truth.
        priors: of a network; None leaves out what is about them.
        matches: strategies whose number of positives makes groups, none of which reads predictions.
    """

    def __init__(self, truth: dict, priors: Priors | None = None, matches: Sequence[str] = ()) -> None:
        objects = objects_of_truth(truth)
        self.num_annotations = len(truth["annotations"])
        self.elongation = self._of_annotations(objects, limits_reached(objects.elongation, ELONGATION_LIMITS))
        occlusion = limits_reached(object_occlusion(objects), OCCLUSION_LIMITS)
        neighbour = limits_reached(highest_iou_with_another(objects), NEIGHBOUR_LIMITS)
        self.groups = {
            "occlusion": self._groups(objects, OCCLUSION_NAMES, occlusion),
            "IoU with another object": self._groups(objects, named_bins(NEIGHBOUR_LIMITS), neighbour),
        }
        if priors is not None:
            learned = learnable(objects)
            counts, best_iou = positives_and_prior_iou(learned, priors, matches)
            for name, count in counts.items():
                number = limits_reached(count, MATCHES_LIMITS)
                self.groups[f"positives of {name}"] = self._groups(learned, MATCHES_NAMES, number)
            best = limits_reached(best_iou, PRIOR_LIMITS)
            self.groups["best prior IoU"] = self._groups(learned, named_bins(PRIOR_LIMITS), best)

    def _groups(self, objects: Objects, names: Sequence[str], group: np.ndarray) -> list[Group]:
        return groups_between(names, self._of_annotations(objects, group))

    def _of_annotations(self, objects: Objects, group: np.ndarray) -> np.ndarray:
        """Return the group of every annotation [M] from that of the objects [O], -1 for all others."""
        of_annotation = np.full(self.num_annotations, -1)
        of_annotation[objects.source_row] = group
        return of_annotation

    def of(self, matcher: CocoMatcher) -> dict[str, list[Group]]:
        """Return the groups for the detections of one detector, by breakdown."""
        width, height = matcher.boxes_xywh[:, 2:].T
        with np.errstate(divide="ignore", invalid="ignore"):
            elongation = np.maximum(width / height, height / width)
        of_detection = np.where(np.isnan(elongation), -1, limits_reached(elongation, ELONGATION_LIMITS))
        return {
            "size": size_groups(matcher),
            "side in pixels": side_groups(matcher),
            "elongation": groups_between(ELONGATION_NAMES, self.elongation, of_detection),
            **self.groups,
        }


def highest_iou_with_another(objects: Objects) -> np.ndarray:
    """Return the highest IoU of each object with any other annotation of its image, [O]."""
    highest = np.zeros(len(objects))
    for block in pair_blocks(objects.image):
        iou = pair_geometry(objects.boxes_xyxy, block).iou
        np.maximum.at(highest, block.first, iou)
        np.maximum.at(highest, block.second, iou)
    return highest


def positives_and_prior_iou(
    objects: Objects, priors: Priors, matches: Sequence[str]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return how many positives each strategy gives to each object, by its name, and its best IoU with a prior, [O].

    For the IoU, shapes alone are compared, both centred on one point, as in ``analyze.py --anchor-stats``.
    """
    width, height = priors.input_wh
    shapes = tuple((height // head.stride, width // head.stride) for head in priors.heads)  # rows, columns
    grid = slot_grid(priors.heads, shapes, torch.device("cpu"))
    assigners = {name: build_assigner(AssignmentOptions(match=name), priors.heads) for name in matches}
    boxes_cxcywh = boxes_in_input(objects, priors.input_wh, priors.resize)
    boxes_wh = torch.from_numpy(sizes_in_input(objects, priors.input_wh, priors.resize))
    anchors_wh = torch.tensor([wh for head in priors.heads for wh in head.anchors_wh], dtype=torch.float64)
    counts = {name: np.zeros(len(objects), dtype=np.int64) for name in matches}
    best_iou = np.zeros(len(objects))
    with one_thread():
        for block in object_blocks(objects, boxes_cxcywh):
            best_iou[block.rows] = shape_iou(boxes_wh[block.rows], anchors_wh).amax(dim=1)
            for name, assigner in assigners.items():
                found = assigner.match(block.targets, grid)
                target = torch.cat((found.base.target, found.extra.target))
                counts[name][block.rows] = torch.bincount(target, minlength=len(block.targets)).numpy()
    return counts, best_iou
