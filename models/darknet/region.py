"""The ``[region]`` section, the head of YOLOv2 and YOLO9000 (arXiv 1612.08242); keys of Darknet's ``parse_region``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from models.darknet.class_tree import read_class_tree
from models.darknet.graph import Layer, MapShape, SectionBuilder, made
from models.darknet.kind import SectionKind
from models.darknet.schema import FLAG, Key, ignored, integer, number
from models.darknet.section import Section
from models.darknet.sections import check_channels, check_even_cells, stride_of_head
from models.head_maps import RegionMap
from models.heads import Head, RegionRule
from models.layers import YoloMap

COORDS = 4  # numbers of a box; Darknet has the key, but reads others than 4 wrongly
DEFAULT_ANCHOR = 0.5  # Darknet's, in cells

KEYS = {
    "anchors": Key("floats", None, 0.0, 1e5), "num": integer(1, 1, 1000), "classes": integer(20, 1, 100_000),
    "coords": integer(COORDS, COORDS, COORDS), "softmax": FLAG, "bias_match": FLAG, "rescore": FLAG,
    "thresh": number(0.5, 0.0, 1.0),
    "coord_scale": number(1.0, 0.0), "object_scale": number(1.0, 0.0), "noobject_scale": number(1.0, 0.0),
    "class_scale": number(1.0, 0.0), "tree": Key("text"),
    "classfix": integer(0, 0, 0),  # others learn classes where nothing matched, or cut scores off at 1/2
    # Without effect in Darknet as well: sizes are always those of ``absolute=1``, and no background class is read.
    **{name: ignored("int") for name in ("absolute", "background", "log", "sqrt")},
    **{name: ignored() for name in ("jitter", "resize", "random", "mask_scale")},
    **{name: ignored("int") for name in ("max", "focal_loss")}, "map": ignored("text"),
}  # fmt: skip


def _region(builder: SectionBuilder, section: Section, inputs: Sequence[MapShape]) -> Layer:
    (source,) = inputs
    head = _region_head(section, source)
    check_channels(builder, section, source, head)
    check_even_cells(builder, section, source, head)
    assert isinstance(head.rule, RegionRule)
    module: nn.Module = YoloMap(head.num_anchors, head.num_classes)
    if head.rule.softmax or head.rule.tree:
        module = RegionMap(head.num_anchors, head.num_classes, head.rule.tree)
    note = "" if head.rule.softmax or head.rule.tree else (
        f"{section.source}:{section.line}: [region] without softmax: every class has a logistic, as in "
        "pjreddie/darknet; AlexeyAB/darknet takes the raw numbers for probabilities"
    )  # fmt: skip
    return replace(made(section, module, source, f"stride {head.stride}"), head=head, note=note)


def _region_head(section: Section, source: MapShape) -> Head:
    """Return the head of a section whose map lies on the grid of ``source``; its anchors are given in cells."""
    stride = stride_of_head(section, source)
    total = section["num"]
    numbers = (section["anchors"] or ())[: 2 * total]
    numbers += (DEFAULT_ANCHOR,) * (2 * total - len(numbers))
    if min(numbers) <= 0:
        raise section.error("anchors must be above 0", "anchors")
    anchors_wh = tuple((w * stride, h * stride) for w, h in zip(numbers[::2], numbers[1::2], strict=True))
    scales = ("coord_scale", "object_scale", "noobject_scale", "class_scale")
    rule = RegionRule(
        softmax=bool(section["softmax"]),
        tree=None if section["tree"] is None else read_class_tree(section),
        bias_match=bool(section["bias_match"]),
        rescore=bool(section["rescore"]),
        **{name: section[name] for name in scales},
    )
    return Head(
        anchors_wh=anchors_wh,
        stride=stride,
        num_classes=section["classes"],
        all_anchors_wh=anchors_wh,
        mask=tuple(range(total)),
        ignore_thresh=section["thresh"],
        rule=rule,
    )


KIND = SectionKind("region", KEYS, _region, box_numbers=COORDS + 1)
