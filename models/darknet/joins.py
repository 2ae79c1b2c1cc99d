"""Builders of the layers that read several maps: routes, shortcuts, gates; and of the vectors that join them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

from torch import nn

from models.darknet.graph import Layer, MapShape, SectionBuilder, made, sources_of
from models.darknet.kind import SectionKind
from models.darknet.schema import SECTIONS
from models.darknet.section import Section
from models.darknet.sections import own_activation
from models.layers import Implicit, Product, Route, Shortcut, Sum


def _sam(builder: SectionBuilder, section: Section, inputs: Sequence[MapShape]) -> Layer:
    gate, source = inputs
    if not gate.fits(source) or gate.channels != source.channels:
        raise section.error(f"multiplies maps of different sizes: {gate} and {source}", "from")
    return made(section, Product(section["activation"]), source, _numbers(section))


def _scale_channels(builder: SectionBuilder, section: Section, inputs: Sequence[MapShape]) -> Layer:
    gate, source = inputs
    if section["scale_wh"]:
        if gate.channels != 1 or not gate.fits(source):
            raise section.error(
                f"scale_wh=1 needs a map {replace(source, channels=1)} before it, not {gate}", "scale_wh"
            )
    elif (gate.rows, gate.cols, gate.channels) != (1, 1, source.channels):
        raise section.error(f"needs 1 x 1 x {source.channels} before it, not {gate}", "from")
    return made(section, Product(section["activation"]), source, _numbers(section))


def _implicit(builder: SectionBuilder, section: Section, inputs: Sequence[MapShape]) -> Layer:
    filters = section["filters"]
    atoms = section["atoms"] if section.kind == "implicit" else 1
    output = MapShape(filters, atoms, 1, Fraction(0), Fraction(0))
    builder.reserve(section, filters * atoms, output)
    uniform = section.kind == "implicit"  # Darknet's own draws evenly; the other two are YOLOR's, with normal numbers
    return made(section, Implicit(filters, atoms, section["mean"], section["std"], uniform), output)


def _shift_channels(builder: SectionBuilder, section: Section, inputs: Sequence[MapShape]) -> Layer:
    return _with_vector(section, inputs, Sum(own_activation(builder, section)))


def _control_channels(builder: SectionBuilder, section: Section, inputs: Sequence[MapShape]) -> Layer:
    return _with_vector(section, inputs, Product(own_activation(builder, section)))


def _with_vector(section: Section, inputs: Sequence[MapShape], module: nn.Module) -> Layer:
    source, vector = inputs
    if (vector.rows, vector.cols, vector.channels) != (1, 1, source.channels):
        raise section.error(f"needs 1 x 1 x {source.channels} from its layer, not {vector}", "from")
    return made(section, module, source, _numbers(section))


def _numbers(section: Section) -> str:
    """Return for the table the layers that a section reads besides the one before it."""
    return " ".join(str(index) for index in sources_of(section)[1:])


def _route(builder: SectionBuilder, section: Section, inputs: Sequence[MapShape]) -> Layer:
    half = section.kind == "route_lhalf"
    groups, group_id = (2, 0) if half else (section["groups"], section["group_id"])
    if group_id >= groups:
        raise section.error(f"group_id={group_id} is not below groups={groups}", "group_id")
    for index, source in zip(sources_of(section), inputs, strict=True):
        if not source.fits(inputs[0]):
            raise section.error(f"joins maps of different sizes: {inputs[0].unlike(source, index)}", "layers")
        if source.channels % groups:
            what = "halves" if half else f"groups={groups} must divide"
            raise section.error(f"{what} layer {index}'s {source.channels} channels", "groups")
    output = replace(inputs[0], channels=sum(source.channels for source in inputs) // groups)
    builder.reserve(section, 0, output)
    numbers = " ".join(str(index) for index in sources_of(section))
    return made(section, Route(groups, group_id), output, numbers + (f" {group_id}/{groups}" if groups > 1 else ""))


def _shortcut(builder: SectionBuilder, section: Section, inputs: Sequence[MapShape]) -> Layer:
    output = inputs[0]
    for index, source in zip(sources_of(section)[1:], inputs[1:], strict=True):
        if not source.fits(output):
            raise section.error(f"adds maps of different sizes: {output.unlike(source, index)}", "from")
    weights_shape: tuple[int, ...] = ()
    if section["weights_type"] in ("per_feature", "per_layer"):
        weights_shape = (len(inputs),)
    elif section["weights_type"] == "per_channel":
        weights_shape = (len(inputs), output.channels)
    if weights_shape:
        builder.reserve(section, len(inputs) * output.channels, output)
    # Versions of Darknet differ in how they spell the key; the misspelt one counts where both are given.
    key = "weights_normalizion" if "weights_normalizion" in section else "weights_normalization"
    normalization = section[key].removeprefix("avg_")
    module = Shortcut(section["activation"], weights_shape, normalization)
    operations = output.channels * output.rows * output.cols * (len(inputs) - 1)
    return made(section, module, output, _numbers(section), operations)


KINDS = tuple(
    SectionKind(name, SECTIONS[name], build)
    for name, build in {
        "control_channels": _control_channels,
        "implicit": _implicit,
        "implicit_add": _implicit,
        "implicit_mul": _implicit,
        "route": _route,
        "route_lhalf": _route,
        "sam": _sam,
        "scale_channels": _scale_channels,
        "shift_channels": _shift_channels,
        "shortcut": _shortcut,
    }.items()
)
