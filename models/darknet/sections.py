"""Builders of the layers that read one map: one function per kind of section, listed in ``KINDS``.

Each takes the builder (for its limits and settings), the section and the shapes of what it reads, and returns the
layer. Geometry follows Darknet's ``src/parser.c`` and the files of the layers there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from fractions import Fraction

from torch import nn

from models.activations import build_activation
from models.darknet.graph import Layer, MapShape, SectionBuilder, made, referred, sources_of
from models.darknet.kind import SectionKind
from models.darknet.schema import SECTIONS
from models.darknet.section import Section
from models.exact_heads import CellHead
from models.heads import Head
from models.layers import (
    BinaryConv2d,
    Blur,
    Convolution,
    DropBlock,
    GlobalAverage,
    MaxDepth,
    Pool,
    Reorg,
    Softmax,
    Upsample,
    XnorConv2d,
    YoloMap,
)

LEAVE_LOGISTIC = ("convolutional", "shift_channels", "control_channels")  # kinds that leave one to the head


def _strides(section: Section) -> tuple[int, int]:
    """Return the strides in x and y: ``stride`` where ``stride_x`` or ``stride_y`` is not above 0."""
    both = section["stride"]
    return tuple(both if section[key] < 1 else section[key] for key in ("stride_x", "stride_y"))


def _geometry(size: int, strides: tuple[int, int], dilation: int = 1) -> str:
    step = f"{strides[0]}" if strides[0] == strides[1] else f"{strides[0]}x{strides[1]}"
    return f"{size} x {size} / {step}" + (f" ({dilation})" if dilation > 1 else "")


def _convolutional(builder: SectionBuilder, section: Section, inputs: Sequence[MapShape]) -> Layer:
    (source,) = inputs
    filters, size, groups = section["filters"], section["size"], section["groups"]
    strides = _strides(section)
    dilation = 1 if size == 1 else section["dilation"]
    padding = size // 2 if section["pad"] else section["padding"]
    if source.channels % groups or filters % groups:
        raise section.error(f"groups={groups} must divide its {source.channels} inputs and {filters} filters", "groups")
    if dilation > 1 and 2 * padding != size - 1:
        raise section.error(f"dilation={dilation} needs an odd size and pad=1", "dilation")
    blur = _blur(section, filters)
    own_strides = strides if blur is None else (1, 1)  # the blur after it has the strides
    cols = (source.cols + 2 * padding - size) // own_strides[0] + 1
    rows = (source.rows + 2 * padding - size) // own_strides[1] + 1
    unblurred = replace(source.scaled(rows, cols, *own_strides), channels=filters)
    output = _blurred(unblurred, blur, strides)
    normalised = bool(section["batch_normalize"] or section["cbn"])
    weights = filters * (source.channels // groups) * size * size
    builder.reserve(section, 0, unblurred)
    builder.reserve(section, weights + filters * (2 if normalised else 1), output)
    activation = own_activation(builder, section)
    kind = XnorConv2d if section["xnor"] else BinaryConv2d if section["binary"] else nn.Conv2d
    conv = kind(
        source.channels, filters, size, own_strides[::-1], padding * dilation, dilation, groups, bias=not normalised
    )
    norm = builder.batch_norm(filters) if normalised else None
    if section["share_index"] is not None:
        norm = _share(builder, section, conv)
    module = Convolution(conv, norm, activation, blur)
    layer = made(section, module, output, _geometry(size, strides, dilation), 2 * weights * rows * cols)
    return layer if kind is nn.Conv2d else replace(layer, no_training="binary weights are not trained here")


def _share(builder: SectionBuilder, section: Section, conv: nn.Conv2d) -> nn.BatchNorm2d | None:
    """Let a convolution use the weights of the layer that ``share_index`` names; return that layer's batch norm."""
    (index,) = referred(section, "share_index")
    other = builder.built[index].module
    if not isinstance(other, Convolution) or other.conv.weight.shape != conv.weight.shape:
        wanted = " x ".join(map(str, conv.weight.shape))
        raise section.error(f"share_index: layer {index} has no weights of {wanted}", "share_index")
    conv.weight, conv.bias = other.conv.weight, other.conv.bias
    return other.bn


def _blur(section: Section, channels: int) -> Blur | None:
    """Return the antialiasing filter: 1 smooths over 3 x 3 cells, 2 over 2 x 2, with the layer's strides."""
    kind = section["antialiasing"]
    return Blur(channels, 3 if kind == 1 else 2, _strides(section)) if kind else None


def _blurred(shape: MapShape, blur: Blur | None, strides: tuple[int, int]) -> MapShape:
    if blur is None:
        return shape
    return shape.scaled(blur.output_side(shape.rows, strides[1]), blur.output_side(shape.cols, strides[0]), *strides)


def own_activation(builder: SectionBuilder, section: Section) -> str:
    """Return the activation; the logistic before a new_coords head is left to the head, so that raw maps are logits."""
    following = builder.config.sections[section.index + 1 : section.index + 2]
    if not (following and following[0].kind == "yolo" and following[0]["new_coords"]):
        return section["activation"]
    if section["activation"] != "logistic":
        return section["activation"]  # the head reads probabilities
    if section.written.get("antialiasing"):
        raise section.error("antialiasing after the logistic of a new_coords=1 head is not supported", "antialiasing")
    for other in builder.config.sections[section.index + 2 :]:
        if section.index in sources_of(other):
            raise other.error(f"reads layer {section.index}, whose logistic belongs to the [yolo] head after it")
    return "linear"


def _pool(builder: SectionBuilder, section: Section, source: MapShape, blur: Blur | None, average: bool) -> Layer:
    strides = _strides(section)
    size = section["size"] or section["stride"]
    padding = size - 1 if section["padding"] < 0 else section["padding"]
    if padding and (padding + 1) // 2 >= size:
        raise section.error(f"padding={padding} makes windows of size {size} that lie outside the map", "padding")
    own_strides = strides if blur is None else (1, 1)
    module = Pool(size, own_strides, padding, average)
    cols, rows = (module.output_side(n, s) for n, s in zip((source.cols, source.rows), own_strides, strict=True))
    unblurred = source.scaled(rows, cols, *own_strides)
    output = _blurred(unblurred, blur, strides)
    builder.reserve(section, 0, unblurred)
    builder.reserve(section, 0, output)
    operations = size * size * unblurred.channels * rows * cols
    return made(section, nn.Sequential(module, blur) if blur else module, output, _geometry(size, strides), operations)


def _maxpool(builder: SectionBuilder, section: Section, inputs: Sequence[MapShape]) -> Layer:
    (source,) = inputs
    if section["maxpool_depth"]:
        output = replace(source, channels=section["out_channels"])
        if output.channels > source.channels:
            raise section.error(f"out_channels={output.channels} is above its {source.channels} inputs", "out_channels")
        return made(section, MaxDepth(output.channels), output)
    return _pool(builder, section, source, _blur(section, source.channels), average=False)


def _local_avgpool(builder: SectionBuilder, section: Section, inputs: Sequence[MapShape]) -> Layer:
    return _pool(builder, section, inputs[0], None, average=True)


def _upsample(builder: SectionBuilder, section: Section, inputs: Sequence[MapShape]) -> Layer:
    (source,) = inputs
    stride = section["stride"]
    output = source.scaled(source.rows * stride, source.cols * stride, Fraction(1, stride), Fraction(1, stride))
    builder.reserve(section, 0, output)
    return made(section, Upsample(stride, section["scale"]), output, f"{stride}x")


def _dropout(builder: SectionBuilder, section: Section, inputs: Sequence[MapShape]) -> Layer:
    probability = section["probability"]
    if not section["dropblock"]:
        return made(section, nn.Dropout(probability), inputs[0], f"p = {probability:g}")
    size, share = section["dropblock_size_abs"], section["dropblock_size_rel"]
    if size:
        share = 0.0  # as Darknet: the absolute size wins
    elif not share:
        size = 7  # Darknet's default
    return made(section, DropBlock(probability, size, share), inputs[0], f"p = {probability:g}, blocks")


def _yolo(builder: SectionBuilder, section: Section, inputs: Sequence[MapShape]) -> Layer:
    (source,) = inputs
    head = anchor_head(section, source)
    check_channels(builder, section, source, head)
    module = YoloMap(head.num_anchors, head.num_classes)
    layer = made(section, module, source, f"stride {head.stride}")
    cell_wh = (builder.image.cols / source.cols, builder.image.rows / source.rows)
    even = cell_wh == (head.stride, head.stride)
    logits = not section["new_coords"] or _has_logistic(builder, section)
    if even and logits:
        return replace(layer, head=head)
    if logits:
        why = f"its cells have {cell_wh[0]:g} x {cell_wh[1]:g} pixels; make width and height multiples of {head.stride}"
    else:
        why = "to train with new_coords=1, write activation=logistic in the [convolutional] before it"
    values = {field.name: getattr(head, field.name) for field in fields(head)}
    exact = CellHead(**values, cell_wh=cell_wh, probabilities=not logits)
    return replace(layer, head=exact, fixed_size=not even, no_training=why)


def check_channels(builder: SectionBuilder, section: Section, source: MapShape, head: Head) -> None:
    """Refuse a head that the channels before it do not fit."""
    each = builder.kinds[section.kind].box_numbers
    wanted = head.num_anchors * (each + head.num_classes)
    if source.channels != wanted:
        line = builder.built[-1].section.line if builder.built else 1
        raise section.error(
            f"needs {head.num_anchors} anchors x ({each} + {head.num_classes} classes) = {wanted} channels; "
            f"the layer before it (line {line}) gives {source.channels}: set filters={wanted} there"
        )


def _has_logistic(builder: SectionBuilder, section: Section) -> bool:
    """Whether the numbers are those of a logistic that was left to the head."""
    if section.index == 0:
        return False
    before = builder.config.sections[section.index - 1]
    return before.kind in LEAVE_LOGISTIC and before["activation"] == "logistic"


def check_even_cells(builder: SectionBuilder, section: Section, source: MapShape, head: Head) -> None:
    """Refuse a grid that does not divide the image into cells of one whole stride."""
    if (source.cols * head.stride, source.rows * head.stride) != (builder.image.cols, builder.image.rows):
        raise section.error(f"needs cells of {head.stride} pixels; make width and height multiples of {head.stride}")


def stride_of_head(section: Section, source: MapShape) -> int:
    """Return the stride of a head's grid in pixels of the network input."""
    if source.stride_x != source.stride_y or source.stride_x < 1 or source.stride_x.denominator != 1:
        raise section.error(f"lies on a grid of stride {source.stride_x} x {source.stride_y}, not of one whole number")
    return int(source.stride_x)


def anchor_head(section: Section, source: MapShape) -> Head:
    """Return the head of a section with the keys of ``[yolo]`` whose map lies on the grid of ``source``."""
    stride = stride_of_head(section, source)
    numbers, total = section["anchors"], section["num"]
    mask = tuple(range(total)) if section["mask"] is None else section["mask"]
    if max(mask) >= total:
        raise section.error(f"mask={max(mask)} is not below num={total}", "mask")
    given = 0 if numbers is None else len(numbers)
    if given < 2 * max(mask) + 2:  # those that no mask names may be missing, as in Darknet
        raise section.error(f"num={total} needs {2 * total} numbers in anchors, {given} are given", "anchors")
    used = min(total, given // 2) * 2
    pairs = tuple(zip(numbers[0:used:2], numbers[1:used:2], strict=True))
    if min(min(pair) for pair in pairs) <= 0:
        raise section.error("anchors must be above 0", "anchors")
    return Head(
        anchors_wh=tuple(pairs[index] for index in mask),
        stride=stride,
        num_classes=section["classes"],
        scale_x_y=section["scale_x_y"],
        new_coords="new_coords" in section.keys and bool(section["new_coords"]),
        all_anchors_wh=pairs,
        mask=mask,
        ignore_thresh=section["ignore_thresh"],
        iou_thresh=section["iou_thresh"],
        # By Darknet's names: greedynms has a fixed 0.6, diounms the section's; the other kinds compare plain IoU.
        nms_beta={"greedynms": 0.6, "diounms": section["beta_nms"]}.get(section["nms_kind"]),
    )


def _avgpool(builder: SectionBuilder, section: Section, inputs: Sequence[MapShape]) -> Layer:
    return made(section, GlobalAverage(), inputs[0].scaled(1, 1, 0, 0))


def _batchnorm(builder: SectionBuilder, section: Section, inputs: Sequence[MapShape]) -> Layer:
    (source,) = inputs
    builder.reserve(section, 2 * source.channels, source)
    return made(section, builder.batch_norm(source.channels), source)


def _activation(builder: SectionBuilder, section: Section, inputs: Sequence[MapShape]) -> Layer:
    return made(section, build_activation(section["activation"], inplace=False), inputs[0], section["activation"])


def _unchanged(builder: SectionBuilder, section: Section, inputs: Sequence[MapShape]) -> Layer:
    return made(section, nn.Identity(), inputs[0])


def _softmax(builder: SectionBuilder, section: Section, inputs: Sequence[MapShape]) -> Layer:
    (source,) = inputs
    groups = section["groups"]
    if source.channels * source.rows * source.cols % groups:
        raise section.error(f"groups={groups} must divide its {source} inputs", "groups")
    return made(section, Softmax(groups, section["temperature"], bool(section["spatial"])), source)


def _reorg(builder: SectionBuilder, section: Section, inputs: Sequence[MapShape]) -> Layer:
    (source,) = inputs
    stride = section["stride"]
    flat = section.kind == "reorg"
    square = stride * stride
    if section["reverse"]:
        if source.channels % square or (not flat and source.channels % square**2):
            raise section.error(f"stride={stride} must divide its {source.channels} channels", "stride")
        by = Fraction(1, stride)
        output = source.scaled(source.rows * stride, source.cols * stride, by, by)
        output = replace(output, channels=source.channels // square)
    else:
        if source.rows % stride or source.cols % stride or (flat and source.channels % square):
            what = f"{square} its channels and {stride} its sides" if flat else f"{stride} its sides"
            raise section.error(f"stride={stride} does not fit {source}: {what} must be multiples", "stride")
        output = source.scaled(source.rows // stride, source.cols // stride, stride, stride)
        output = replace(output, channels=source.channels * square)
    builder.reserve(section, 0, output)
    return made(section, Reorg(stride, bool(section["reverse"]), flat), output, f"/ {stride}")


KINDS = tuple(
    SectionKind(name, SECTIONS[name], build, box_numbers=5 if name == "yolo" else 0)
    for name, build in {
        "activation": _activation,
        "avgpool": _avgpool,
        "batchnorm": _batchnorm,
        "contrastive": _unchanged,
        "convolutional": _convolutional,
        "cost": _unchanged,
        "dropout": _dropout,
        "local_avgpool": _local_avgpool,
        "maxpool": _maxpool,
        "reorg": _reorg,
        "reorg3d": _reorg,
        "silence": _unchanged,
        "softmax": _softmax,
        "upsample": _upsample,
        "yolo": _yolo,
    }.items()
)
