"""``[rnn]``, ``[gru]``, ``[lstm]``, ``[crnn]`` and ``[conv_lstm]``: read for single images, with the state at zero."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from models.darknet.graph import Layer, MapShape, SectionBuilder, made
from models.darknet.kind import SectionKind
from models.darknet.schema import CHANNELS, FLAG, SIDE, Key, activation, ignored, integer, refused
from models.darknet.section import Section
from models.darknet.vectors import OUTPUTS, connected, vector
from models.layers import Convolution
from models.recurrent import GatedRecurrent, LongShortTerm, Recurrent

NO_TRAINING = "its state over the frames of a video is not trained here"


def _recurrent(section: Section, module: nn.Module, output: MapShape, fixed_size: bool) -> Layer:
    layer = made(section, module, output)
    return replace(layer, fixed_size=fixed_size, no_training=NO_TRAINING)


def _rnn(builder: SectionBuilder, section: Section, inputs: Sequence[MapShape]) -> Layer:
    hidden, outputs, name = section["hidden"], section["output"], section["activation"]
    of_state = {1: "logistic", 2: "loggy"}.get(section["logistic"], name)
    parts = (
        connected(builder, section, inputs[0].numbers, hidden, name),
        connected(builder, section, hidden, hidden, of_state),
        connected(builder, section, hidden, outputs, name),
    )
    return _recurrent(section, Recurrent(*parts), vector(outputs), True)


def _gates(builder: SectionBuilder, section: Section, inputs: int, count: int) -> list[nn.Module]:
    return [connected(builder, section, inputs, section["output"]) for _ in range(count)]


def _gru(builder: SectionBuilder, section: Section, inputs: Sequence[MapShape]) -> Layer:
    outputs = section["output"]
    gates = _gates(builder, section, inputs[0].numbers, 3) + _gates(builder, section, outputs, 3)
    return _recurrent(section, GatedRecurrent(gates), vector(outputs), True)


def _lstm(builder: SectionBuilder, section: Section, inputs: Sequence[MapShape]) -> Layer:
    outputs = section["output"]
    of_state, of_input = _gates(builder, section, outputs, 4), _gates(builder, section, inputs[0].numbers, 4)
    return _recurrent(section, LongShortTerm(of_state, of_input, []), vector(outputs), True)


def _convolution(builder: SectionBuilder, section: Section, source: MapShape, filters: int) -> Convolution:
    """Return one of the convolutions of a recurrent section, which all leave the grid as it is."""
    size, groups, dilation = section["size"], section["groups"], section["dilation"]
    dilation = 1 if size == 1 else dilation
    padding = size // 2 if section["pad"] else section["padding"]
    if section["stride"] != 1 or 2 * padding != size - 1:
        raise section.error("changes the grid, which its state cannot follow; write stride=1, pad=1 and an odd size")
    if source.channels % groups or filters % groups:
        raise section.error(f"groups={groups} must divide its {source.channels} inputs and {filters} filters", "groups")
    normalised = bool(section["batch_normalize"])
    weights = filters * (source.channels // groups) * size * size
    builder.reserve(section, weights + filters * (2 if normalised else 1), replace(source, channels=filters))
    conv = nn.Conv2d(source.channels, filters, size, 1, padding * dilation, dilation, groups, bias=not normalised)
    return Convolution(conv, builder.batch_norm(filters) if normalised else None, section["activation"])


def _crnn(builder: SectionBuilder, section: Section, inputs: Sequence[MapShape]) -> Layer:
    (source,) = inputs
    hidden, output = replace(source, channels=section["hidden"]), replace(source, channels=section["output"])
    parts = (
        _convolution(builder, section, source, hidden.channels),
        _convolution(builder, section, hidden, hidden.channels),
        _convolution(builder, section, hidden, output.channels),
    )
    return _recurrent(section, Recurrent(*parts), output, False)


def _conv_lstm(builder: SectionBuilder, section: Section, inputs: Sequence[MapShape]) -> Layer:
    (source,) = inputs
    filters, bottleneck = section["output"], bool(section["bottleneck"])
    output = replace(source, channels=filters)
    if bottleneck and source.channels != filters:
        raise section.error(f"bottleneck=1 needs output={source.channels}, as many as its inputs", "bottleneck")
    peepholes = [_convolution(builder, section, output, filters) for _ in range(3 * section["peephole"])]
    if bottleneck:
        of_state = [_convolution(builder, section, replace(output, channels=2 * filters), filters)]
    else:
        of_state = [_convolution(builder, section, output, filters) for _ in range(4)]
    of_input = [_convolution(builder, section, source, filters) for _ in range(4)]
    module = LongShortTerm(
        list(of_state),
        list(of_input),
        list(peepholes),
        section["lstm_activation"],
        bottleneck,
        bool(section["shortcut"]),
    )
    return _recurrent(section, module, output, False)


_VECTORS: dict[str, Key] = {"output": OUTPUTS, "batch_normalize": FLAG}
_MAPS: dict[str, Key] = {
    "output": CHANNELS, "batch_normalize": FLAG, "size": integer(3, 1, 255), "stride": SIDE, "dilation": SIDE,
    "pad": FLAG, "padding": integer(0, 0, 255), "groups": CHANNELS, "xnor": refused("weights and inputs are binarised"),
}  # fmt: skip

KINDS = (
    SectionKind(
        "rnn",
        {**_VECTORS, "hidden": OUTPUTS, "activation": activation("logistic"), "logistic": integer(0, 0, 2),
         "shortcut": ignored("int")},
        _rnn,
    ),
    SectionKind("gru", {**_VECTORS, "tanh": ignored("int")}, _gru),
    SectionKind("lstm", _VECTORS, _lstm),
    SectionKind(
        "crnn",
        {**_MAPS, "hidden": CHANNELS, "activation": activation("logistic"), "shortcut": ignored("int")},
        _crnn,
    ),
    SectionKind(
        "conv_lstm",
        {**_MAPS, "activation": activation("linear"), "lstm_activation": activation("tanh"), "peephole": FLAG,
         "bottleneck": FLAG, "shortcut": FLAG, "state_constrain": ignored("int"), "time_normalizer": ignored()},
        _conv_lstm,
    ),
)  # fmt: skip
