"""Builders of the sections around the backbone: gates, implicit vectors, rearrangements, the ends of classifiers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

from torch import nn

from models.activations import build_activation
from models.darknet_cfg import Section
from models.layers import GlobalAverage, Implicit, Product, Reorg, Softmax, Sum
from models.section_graph import Builder, Built, SectionBuilder, Shape, made, sources_of


def _avgpool(builder: SectionBuilder, section: Section, inputs: Sequence[Shape]) -> Built:
    return made(section, GlobalAverage(), inputs[0].scaled(1, 1, 0, 0))


def _batchnorm(builder: SectionBuilder, section: Section, inputs: Sequence[Shape]) -> Built:
    (source,) = inputs
    builder.reserve(section, 2 * source.channels, source)
    return made(section, builder.batch_norm(source.channels), source)


def _activation(builder: SectionBuilder, section: Section, inputs: Sequence[Shape]) -> Built:
    return made(section, build_activation(section["activation"], inplace=False), inputs[0], section["activation"])


def _unchanged(builder: SectionBuilder, section: Section, inputs: Sequence[Shape]) -> Built:
    return made(section, nn.Identity(), inputs[0])


def _softmax(builder: SectionBuilder, section: Section, inputs: Sequence[Shape]) -> Built:
    (source,) = inputs
    groups = section["groups"]
    if source.channels * source.rows * source.cols % groups:
        raise section.error(f"groups={groups} must divide its {source} inputs", "groups")
    return made(section, Softmax(groups, section["temperature"], bool(section["spatial"])), source)


def _reorg(builder: SectionBuilder, section: Section, inputs: Sequence[Shape]) -> Built:
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


def _sam(builder: SectionBuilder, section: Section, inputs: Sequence[Shape]) -> Built:
    gate, source = inputs
    if not gate.fits(source) or gate.channels != source.channels:
        raise section.error(f"multiplies maps of different sizes: {gate} and {source}", "from")
    return made(section, Product(section["activation"]), source, _numbers(section))


def _scale_channels(builder: SectionBuilder, section: Section, inputs: Sequence[Shape]) -> Built:
    gate, source = inputs
    if section["scale_wh"]:
        if gate.channels != 1 or not gate.fits(source):
            raise section.error(
                f"scale_wh=1 needs a map {replace(source, channels=1)} before it, not {gate}", "scale_wh"
            )
    elif (gate.rows, gate.cols, gate.channels) != (1, 1, source.channels):
        raise section.error(f"needs 1 x 1 x {source.channels} before it, not {gate}", "from")
    return made(section, Product(section["activation"]), source, _numbers(section))


def _implicit(builder: SectionBuilder, section: Section, inputs: Sequence[Shape]) -> Built:
    filters = section["filters"]
    atoms = section["atoms"] if section.kind == "implicit" else 1
    output = Shape(filters, atoms, 1, Fraction(0), Fraction(0))
    builder.reserve(section, filters * atoms, output)
    uniform = section.kind == "implicit"  # Darknet's own; the other two are YOLOR's
    return made(section, Implicit(filters, atoms, section["mean"], section["std"], uniform), output)


def _shift_channels(builder: SectionBuilder, section: Section, inputs: Sequence[Shape]) -> Built:
    return _with_vector(section, inputs, Sum(section["activation"]))


def _control_channels(builder: SectionBuilder, section: Section, inputs: Sequence[Shape]) -> Built:
    return _with_vector(section, inputs, Product(section["activation"]))


def _with_vector(section: Section, inputs: Sequence[Shape], module: nn.Module) -> Built:
    source, vector = inputs
    if (vector.rows, vector.cols, vector.channels) != (1, 1, source.channels):
        raise section.error(f"needs 1 x 1 x {source.channels} from its layer, not {vector}", "from")
    return made(section, module, source, _numbers(section))


def _numbers(section: Section) -> str:
    return " ".join(str(index) for index in sources_of(section)[1:])


BLOCK_BUILDERS: dict[str, Builder] = {
    "activation": _activation,
    "avgpool": _avgpool,
    "batchnorm": _batchnorm,
    "control_channels": _control_channels,
    "cost": _unchanged,
    "implicit": _implicit,
    "implicit_add": _implicit,
    "implicit_mul": _implicit,
    "reorg": _reorg,
    "reorg3d": _reorg,
    "sam": _sam,
    "scale_channels": _scale_channels,
    "shift_channels": _shift_channels,
    "silence": _unchanged,
    "softmax": _softmax,
}
