"""The ``[Gaussian_yolo]`` section, a ``[yolo]`` that predicts how uncertain its boxes are (arXiv 1904.04620).

Keys of Darknet's ``parse_gaussian_yolo``, most of them those of ``[yolo]``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from models.darknet.graph import Layer, MapShape, SectionBuilder, made
from models.darknet.kind import SectionKind
from models.darknet.schema import YOLO, choice, number
from models.darknet.section import Section
from models.darknet.sections import anchor_head, check_channels, check_even_cells
from models.head_maps import GAUSSIAN_OBJECTNESS, GaussianMap
from models.heads import GaussianRule

KEYS = {
    **{name: key for name, key in YOLO.items() if name != "new_coords"},
    "iou_loss": choice("mse", "mse", "iou", "giou", "diou", "ciou"),
    "iou_normalizer": number(0.75, 0.0), "uc_normalizer": number(1.0, 0.0), "obj_normalizer": number(1.0, 0.0),
    "label_smooth_eps": number(0.0, 0.0, 1.0), "max_delta": number(None, 0.0),
    "yolo_point": choice("center", "center"),  # Darknet also knows corners
}  # fmt: skip


def _gaussian_yolo(builder: SectionBuilder, section: Section, inputs: Sequence[MapShape]) -> Layer:
    (source,) = inputs
    head = anchor_head(section, source)
    check_channels(builder, section, source, head)
    check_even_cells(builder, section, source, head)
    rule = GaussianRule(
        iou_loss=section["iou_loss"],
        iou_normalizer=section["iou_normalizer"],
        uc_normalizer=section["uc_normalizer"],
        obj_normalizer=section["obj_normalizer"],
        label_smooth_eps=section["label_smooth_eps"],
        max_delta=math.inf if section["max_delta"] is None else section["max_delta"],
    )
    module = GaussianMap(head.num_anchors, head.num_classes)
    return replace(made(section, module, source, f"stride {head.stride}"), head=replace(head, rule=rule))


KIND = SectionKind("gaussian_yolo", KEYS, _gaussian_yolo, box_numbers=GAUSSIAN_OBJECTNESS + 1)
