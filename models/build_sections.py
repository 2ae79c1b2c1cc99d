"""Typed cfg sections to layers with known shapes: one builder per section kind, in the table ``BUILDERS``.

Everything that could fail is checked here, with the section's line, before any memory is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from torch import nn

from models.darknet_cfg import DarknetConfig, Section
from models.heads import Head
from models.layers import Convolution, GlobalAverage, Pool, Route, Shortcut, Upsample, YoloMap

MAX_PARAMETERS = 400_000_000  # the largest published cfg, yolov4-p7, has 287 million
MAX_MAP = 2**28  # numbers in one layer's output for one image: 1 GiB


@dataclass(frozen=True)
class Shape:
    """A layer's output for one image of the ``[net]`` size, and its stride against that image."""

    channels: int
    rows: int
    cols: int
    stride_x: Fraction = Fraction(1)
    stride_y: Fraction = Fraction(1)

    def __str__(self) -> str:
        return f"{self.cols} x {self.rows} x {self.channels}"

    def fits(self, other: Shape) -> bool:
        """Whether the two maps lie on the same grid."""
        return self._grid == other._grid

    @property
    def _grid(self) -> tuple[int, int, Fraction, Fraction]:
        return self.rows, self.cols, self.stride_x, self.stride_y

    def scaled(self, rows: int, cols: int, by_x: Fraction | int, by_y: Fraction | int) -> Shape:
        """Return the shape on another grid."""
        return replace(self, rows=rows, cols=cols, stride_x=self.stride_x * by_x, stride_y=self.stride_y * by_y)


@dataclass(frozen=True)
class Built:
    """One layer: the module, where its inputs come from (-1 is the image), and what the table prints."""

    section: Section
    module: nn.Module
    sources: tuple[int, ...]
    inputs: tuple[Shape, ...]
    output: Shape
    geometry: str = ""  # size and stride, for the table
    operations: int = 0  # for one image of the [net] size; a multiply-add counts twice, as in Darknet
    head: Head | None = None

    @property
    def parameters(self) -> int:
        """Trainable numbers."""
        return sum(p.numel() for p in self.module.parameters())


class SectionBuilder:
    """Builds the sections in order and remembers what the later ones may refer to."""

    def __init__(self, config: DarknetConfig, bn_eps: float, bn_momentum: float):
        self.config = config
        self.bn_eps = bn_eps
        self.bn_momentum = bn_momentum
        self.built: list[Built] = []
        self.parameters = 0
        net = config.net
        self.image = Shape(net["channels"], net["height"], net["width"])
        self.reserve(net, 0, self.image)

    def build(self) -> list[Built]:
        """Build every section.

        Raises:
            UserError: an impossible graph or an absurd size, with file and line.
        """
        for section in self.config.sections:
            sources = sources_of(section)
            inputs = tuple(self.image if index < 0 else self.built[index].output for index in sources)
            self.check_sources(section, sources)
            layer = BUILDERS[section.kind](self, section, inputs)
            self.built.append(replace(layer, sources=sources, inputs=inputs))
        return self.built

    def check_sources(self, section: Section, sources: Sequence[int]) -> None:
        """Refuse what would read the numbers of a head, which Darknet changes in place."""
        for index in sources:
            if index >= 0 and self.built[index].head:
                raise section.error(f"reads layer {index}, a [yolo] head; put a [route] to an earlier layer before it")

    def reserve(self, section: Section, parameters: int, output: Shape) -> None:
        """Refuse sizes that no machine should be asked for."""
        if min(output.channels, output.rows, output.cols) < 1:
            raise section.error(f"leaves nothing: its output would be {output}")
        if output.channels * output.rows * output.cols > MAX_MAP:
            raise section.error(f"an output of {output} is over the limit of {MAX_MAP:,} numbers for one image")
        self.parameters += parameters
        if self.parameters > MAX_PARAMETERS:
            raise section.error(f"makes {self.parameters:,} parameters in all; the limit is {MAX_PARAMETERS:,}")

    def batch_norm(self, channels: int) -> nn.BatchNorm2d:
        """Return a batch norm with the network's settings."""
        return nn.BatchNorm2d(channels, eps=self.bn_eps, momentum=self.bn_momentum)


def sources_of(section: Section) -> tuple[int, ...]:
    """Return the absolute indices of the layers a section reads; -1 is the image.

    Raises:
        UserError: a reference to the section itself, a later one or none.
    """
    before = (section.index - 1,)
    if section.kind.startswith("implicit"):
        return ()
    if section.kind == "route":
        return referred(section, "layers")
    if "from" in section or section.kind in ("shortcut", "sam", "scale_channels", "shift_channels", "control_channels"):
        if section.index == 0:
            raise section.error("cannot be the first layer: it joins two layers")
        return before + referred(section, "from")
    return before


def referred(section: Section, key: str) -> tuple[int, ...]:
    """Resolve relative (negative) and absolute layer numbers, as Darknet does."""
    value = section[key]
    if value is None:
        raise section.error(f"needs '{key} = ...'")
    numbers = value if isinstance(value, tuple) else (value,)
    indices = tuple(section.index + number if number < 0 else number for number in numbers)
    for number, index in zip(numbers, indices, strict=True):
        if not 0 <= index < section.index:
            raise section.error(f"{key}={number} is not one of the layers 0..{section.index - 1} before it", key)
    return indices


def _strides(section: Section) -> tuple[int, int]:
    both = section["stride"]
    return tuple(both if section[key] < 1 else section[key] for key in ("stride_x", "stride_y"))


def _made(section: Section, module: nn.Module, output: Shape, geometry: str = "", operations: int = 0) -> Built:
    return Built(section, module, (), (), output, geometry, operations)


def _geometry(size: int, strides: tuple[int, int], dilation: int = 1) -> str:
    step = f"{strides[0]}" if strides[0] == strides[1] else f"{strides[0]}x{strides[1]}"
    return f"{size} x {size} / {step}" + (f" ({dilation})" if dilation > 1 else "")


def _convolutional(builder: SectionBuilder, section: Section, inputs: Sequence[Shape]) -> Built:
    (source,) = inputs
    filters, size, groups = section["filters"], section["size"], section["groups"]
    strides = _strides(section)
    dilation = 1 if size == 1 else section["dilation"]
    padding = size // 2 if section["pad"] else section["padding"]
    if source.channels % groups or filters % groups:
        raise section.error(f"groups={groups} must divide its {source.channels} inputs and {filters} filters", "groups")
    if dilation > 1 and 2 * padding != size - 1:
        raise section.error(f"dilation={dilation} needs an odd size and pad=1", "dilation")
    sides = [
        (side + 2 * padding - size) // stride + 1
        for side, stride in zip((source.cols, source.rows), strides, strict=True)
    ]
    output = replace(source.scaled(sides[1], sides[0], *strides), channels=filters)
    normalised = bool(section["batch_normalize"] or section["cbn"])
    weights = filters * (source.channels // groups) * size * size
    builder.reserve(section, weights + filters * (2 if normalised else 1), output)
    conv = nn.Conv2d(
        source.channels, filters, size, strides[::-1], padding * dilation, dilation, groups, bias=not normalised
    )
    module = Convolution(conv, builder.batch_norm(filters) if normalised else None, _own_activation(builder, section))
    operations = 2 * weights * output.rows * output.cols
    return _made(section, module, output, _geometry(size, strides, dilation), operations)


def _own_activation(builder: SectionBuilder, section: Section) -> str:
    """Return the activation; the logistic before a new_coords head is left to the head, so that raw maps are logits."""
    following = builder.config.sections[section.index + 1 : section.index + 2]
    if not (following and following[0].kind == "yolo" and following[0]["new_coords"]):
        return section["activation"]
    if section["activation"] != "logistic":
        raise section.error("stands before a [yolo] with new_coords=1 and so needs activation=logistic", "activation")
    for other in builder.config.sections[section.index + 2 :]:
        if section.index in sources_of(other):
            raise other.error(f"reads layer {section.index}, whose logistic belongs to the [yolo] head after it")
    return "linear"


def _pool(builder: SectionBuilder, section: Section, inputs: Sequence[Shape], average: bool = False) -> Built:
    (source,) = inputs
    strides = _strides(section)
    size = section["size"] or section["stride"]
    padding = size - 1 if section["padding"] < 0 else section["padding"]
    if (padding + 1) // 2 >= size and padding:
        raise section.error(f"padding={padding} makes windows of size {size} that lie outside the map", "padding")
    module = Pool(size, strides, padding, average)
    cols, rows = module.output_side(source.cols, strides[0]), module.output_side(source.rows, strides[1])
    output = source.scaled(rows, cols, *strides)
    builder.reserve(section, 0, output)
    operations = size * size * output.channels * output.rows * output.cols
    return _made(section, module, output, _geometry(size, strides), operations)


def _maxpool(builder: SectionBuilder, section: Section, inputs: Sequence[Shape]) -> Built:
    return _pool(builder, section, inputs)


def _local_avgpool(builder: SectionBuilder, section: Section, inputs: Sequence[Shape]) -> Built:
    return _pool(builder, section, inputs, average=True)


def _avgpool(builder: SectionBuilder, section: Section, inputs: Sequence[Shape]) -> Built:
    (source,) = inputs
    return _made(section, GlobalAverage(), source.scaled(1, 1, source.cols, source.rows))


def _upsample(builder: SectionBuilder, section: Section, inputs: Sequence[Shape]) -> Built:
    (source,) = inputs
    stride = section["stride"]
    output = source.scaled(source.rows * stride, source.cols * stride, Fraction(1, stride), Fraction(1, stride))
    builder.reserve(section, 0, output)
    return _made(section, Upsample(stride, section["scale"]), output, f"{stride}x")


def _route(builder: SectionBuilder, section: Section, inputs: Sequence[Shape]) -> Built:
    groups, group_id = section["groups"], section["group_id"]
    if group_id >= groups:
        raise section.error(f"group_id={group_id} is not below groups={groups}", "group_id")
    for index, source in zip(sources_of(section), inputs, strict=True):
        if not source.fits(inputs[0]):
            raise section.error(f"joins maps of different sizes: {inputs[0]} and layer {index} with {source}", "layers")
        if source.channels % groups:
            raise section.error(f"groups={groups} must divide layer {index}'s {source.channels} channels", "groups")
    output = replace(inputs[0], channels=sum(source.channels for source in inputs) // groups)
    builder.reserve(section, 0, output)
    numbers = " ".join(str(index) for index in sources_of(section))
    return _made(section, Route(groups, group_id), output, numbers + (f" {group_id}/{groups}" if groups > 1 else ""))


def _shortcut(builder: SectionBuilder, section: Section, inputs: Sequence[Shape]) -> Built:
    output = inputs[0]
    for index, source in zip(sources_of(section)[1:], inputs[1:], strict=True):
        if not source.fits(output):
            raise section.error(f"adds maps of different sizes: {output} and layer {index} with {source}", "from")
    weights_shape: tuple[int, ...] = ()
    if section["weights_type"] in ("per_feature", "per_layer"):
        weights_shape = (len(inputs),)
    elif section["weights_type"] == "per_channel":
        weights_shape = (len(inputs), output.channels)
    if weights_shape:
        builder.reserve(section, len(inputs) * output.channels, output)
    key = "weights_normalizion" if "weights_normalizion" in section else "weights_normalization"
    normalization = section[key].removeprefix("avg_")
    module = Shortcut(section["activation"], weights_shape, normalization)
    operations = output.channels * output.rows * output.cols * (len(inputs) - 1)
    return _made(section, module, output, " ".join(str(index) for index in sources_of(section)[1:]), operations)


def _dropout(builder: SectionBuilder, section: Section, inputs: Sequence[Shape]) -> Built:
    return _made(section, nn.Dropout(section["probability"]), inputs[0], f"p = {section['probability']:g}")


def _yolo(builder: SectionBuilder, section: Section, inputs: Sequence[Shape]) -> Built:
    (source,) = inputs
    head = _head(section, source)
    wanted = head.num_anchors * (5 + head.num_classes)
    if source.channels != wanted:
        line = builder.built[-1].section.line if builder.built else 1
        raise section.error(
            f"needs {head.num_anchors} anchors x (5 + {head.num_classes} classes) = {wanted} channels; "
            f"the layer before it (line {line}) gives {source.channels}: "
            f"set filters={wanted} there"
        )
    if section["new_coords"] and not _has_logistic(builder, section):
        raise section.error("new_coords=1 needs a [convolutional] with activation=logistic before it", "new_coords")
    module = YoloMap(head.num_anchors, head.num_classes)
    return replace(_made(section, module, source, f"stride {head.stride}"), head=head)


def _has_logistic(builder: SectionBuilder, section: Section) -> bool:
    before = builder.config.sections[section.index - 1]
    return section.index > 0 and before.kind == "convolutional"  # its activation was checked when it was built


def _head(section: Section, source: Shape) -> Head:
    if source.stride_x != source.stride_y or source.stride_x.denominator != 1:
        raise section.error(f"lies on a grid of stride {source.stride_x} x {source.stride_y}, not of one whole number")
    numbers, total = section["anchors"], section["num"]
    if numbers is None or len(numbers) < 2 * total:
        given = 0 if numbers is None else len(numbers)
        raise section.error(f"num={total} needs {2 * total} numbers in anchors, {given} are given", "anchors")
    pairs = tuple(zip(numbers[0 : 2 * total : 2], numbers[1 : 2 * total : 2], strict=True))
    if min(min(pair) for pair in pairs) <= 0:
        raise section.error("anchors must be above 0", "anchors")
    mask = tuple(range(total)) if section["mask"] is None else section["mask"]
    if max(mask) >= total:
        raise section.error(f"mask={max(mask)} is not below num={total}", "mask")
    return Head(
        anchors_wh=tuple(pairs[index] for index in mask),
        stride=int(source.stride_x),
        num_classes=section["classes"],
        scale_x_y=section["scale_x_y"],
        new_coords=bool(section["new_coords"]),
        all_anchors_wh=pairs,
        mask=mask,
        ignore_thresh=section["ignore_thresh"],
        iou_thresh=section["iou_thresh"],
    )


BUILDERS: dict[str, Callable[[SectionBuilder, Section, Sequence[Shape]], Built]] = {
    "avgpool": _avgpool,
    "convolutional": _convolutional,
    "dropout": _dropout,
    "local_avgpool": _local_avgpool,
    "maxpool": _maxpool,
    "route": _route,
    "shortcut": _shortcut,
    "upsample": _upsample,
    "yolo": _yolo,
}
