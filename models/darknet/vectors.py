"""``[connected]``, ``[local]``, ``[crop]`` and ``[detection]``: the sections of YOLOv1, for one fixed image size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

from models.connected import Connected, Crop, GridMap, Local
from models.darknet.graph import Layer, MapShape, SectionBuilder, made
from models.darknet.kind import SectionKind
from models.darknet.schema import CHANNELS, FLAG, SIDE, activation, ignored, integer
from models.darknet.section import Section
from models.exact_heads import GridHead

OUTPUTS = integer(1, 1, 1_000_000)


def vector(numbers: int) -> MapShape:
    """Return the shape of a vector: a map of one cell, on no grid."""
    return MapShape(numbers, 1, 1, Fraction(0), Fraction(0))


def connected(
    builder: SectionBuilder, section: Section, inputs: int, outputs: int, activation: str = "linear"
) -> Connected:
    """Return a connected layer, with batch norm where the section says so; its parameters are counted."""
    normalised = bool(section["batch_normalize"])
    builder.reserve(section, outputs * (inputs + (2 if normalised else 1)), vector(outputs))
    return Connected(inputs, outputs, activation, builder.batch_norm(outputs) if normalised else None)


def _connected(builder: SectionBuilder, section: Section, inputs: Sequence[MapShape]) -> Layer:
    numbers, outputs = inputs[0].numbers, section["output"]
    module = connected(builder, section, numbers, outputs, section["activation"])
    layer = made(section, module, vector(outputs), f"{numbers} -> {outputs}", 2 * numbers * outputs)
    return replace(layer, fixed_size=True)


def _local(builder: SectionBuilder, section: Section, inputs: Sequence[MapShape]) -> Layer:
    (source,) = inputs
    filters, size, stride, padding = section["filters"], section["size"], section["stride"], section["pad"]
    # Darknet counts the places as if a padding were half the window, and pads by the number itself.
    sides = [(side - (1 if padding else size)) // stride + 1 for side in (source.rows, source.cols)]
    padded = [(side + 2 * padding - size) // stride + 1 for side in (source.rows, source.cols)]
    if sides != padded:
        raise section.error(f"pad={padding} does not fit size={size}; write pad={size // 2} or another size", "pad")
    output = replace(source.scaled(sides[0], sides[1], stride, stride), channels=filters)
    builder.reserve(section, 0, output)  # before the weights, whose number would be as impossible
    places, window = sides[0] * sides[1], source.channels * size * size
    builder.reserve(section, places * filters * (window + 1), output)
    module = Local(source.channels, filters, size, stride, padding, places, section["activation"])
    layer = made(section, module, output, f"{size} x {size} / {stride}", 2 * places * filters * window)
    return replace(layer, fixed_size=True)


def _crop(builder: SectionBuilder, section: Section, inputs: Sequence[MapShape]) -> Layer:
    (source,) = inputs
    rows, cols = section["crop_height"], section["crop_width"]
    if rows > source.rows or cols > source.cols:
        raise section.error(f"{cols} x {rows} does not fit into {source}", "crop_height")
    output = replace(source, rows=rows, cols=cols)
    scale, shift = (1.0, 0.0) if section["noadjust"] else (2.0, -1.0)
    return replace(made(section, Crop(rows, cols, scale, shift), output), fixed_size=True)


def _detection(builder: SectionBuilder, section: Section, inputs: Sequence[MapShape]) -> Layer:
    (source,) = inputs
    side, boxes, classes = section["side"], section["num"], section["classes"]
    wanted = side * side * (5 * boxes + classes)
    if section["coords"] != 4:
        raise section.error(f"coords={section['coords']}: a box has 4 numbers", "coords")
    if source.numbers != wanted:
        raise section.error(
            f"needs side² x (5 x {boxes} boxes + {classes} classes) = {wanted} numbers; the layer before it gives "
            f"{source.numbers}: set output={wanted} there"
        )
    head = GridHead(
        anchors_wh=(),
        stride=max(1, builder.image.cols // side),
        num_classes=classes,
        boxes_per_cell=boxes,
        input_wh=(builder.image.cols, builder.image.rows),
        root_sizes=bool(section["sqrt"]),
    )
    module = GridMap(side, boxes, classes, bool(section["softmax"]))
    output = MapShape(5 * boxes + classes, side, side, Fraction(0), Fraction(0))
    layer = made(section, module, output, f"{side} x {side}")
    return replace(layer, head=head, fixed_size=True, no_training="YOLOv1's loss is not among those of train.py")


_IGNORED = "coord_scale object_scale noobject_scale class_scale jitter resize random"

KINDS = (
    SectionKind(
        "connected",
        {"output": OUTPUTS, "activation": activation("logistic"), "batch_normalize": FLAG},
        _connected,
    ),
    SectionKind(
        "local",
        {"filters": CHANNELS, "size": SIDE, "stride": SIDE, "pad": integer(0, 0, 255),
         "activation": activation("logistic")},
        _local,
    ),
    SectionKind(
        "crop",
        {"crop_height": integer(1, 1, 16_384), "crop_width": integer(1, 1, 16_384), "noadjust": FLAG,
         **{name: ignored() for name in ("flip", "angle", "saturation", "exposure", "shift")}},
        _crop,
    ),
    SectionKind(
        "detection",
        {"coords": integer(1, 1, 100), "classes": integer(1, 1, 100_000), "num": integer(1, 1, 1_000),
         "side": integer(7, 1, 1_000), "softmax": FLAG, "sqrt": FLAG,
         **{name: ignored() for name in _IGNORED.split()},
         **{name: ignored("int") for name in ("rescore", "forced", "max", "reorg")}},
        _detection,
    ),
)  # fmt: skip
