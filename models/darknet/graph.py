"""The graph of a cfg: which layer reads which, on what grid, and how large everything may become.

Everything that could fail is checked with the section's line, before any memory is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING

from torch import nn

from models.darknet.section import DarknetConfig, Section
from models.heads import Head

if TYPE_CHECKING:
    from models.darknet.kind import SectionKind

MAX_PARAMETERS = 300_000_000  # the largest published cfg, yolov4-p7, has 287 million
MAX_MAP = 2**28  # numbers in one layer's output for one image: 1 GiB


@dataclass(frozen=True)
class MapShape:
    """A layer's output for one image of the ``[net]`` size, and its stride in pixels of that image.

    The stride is 0 for what lies on no grid, because its size does not follow the image's: global averages, vectors.
    """

    channels: int
    rows: int
    cols: int
    stride_x: Fraction = Fraction(1)
    stride_y: Fraction = Fraction(1)

    def __str__(self) -> str:
        return f"{self.cols} x {self.rows} x {self.channels}"

    @property
    def numbers(self) -> int:
        """How many numbers the output has."""
        return self.channels * self.rows * self.cols

    def fits(self, other: MapShape) -> bool:
        """Whether the two maps lie on the same grid."""
        return self._grid == other._grid

    @property
    def _grid(self) -> tuple[int, int, Fraction, Fraction]:
        return self.rows, self.cols, self.stride_x, self.stride_y

    def unlike(self, other: MapShape, index: int) -> str:
        """Return in words how this map and that of layer ``index`` differ, which should lie on one grid."""
        same_stride = (self.stride_x, self.stride_y) == (other.stride_x, other.stride_y)
        hint = "; make the width and height of [net] multiples of the largest stride" if same_stride else ""
        return f"{self} and layer {index} with {other}{hint}"

    def scaled(self, rows: int, cols: int, by_x: Fraction | int, by_y: Fraction | int) -> MapShape:
        """Return the shape on another grid, whose strides are ``by_x`` and ``by_y`` times as large."""
        return replace(self, rows=rows, cols=cols, stride_x=self.stride_x * by_x, stride_y=self.stride_y * by_y)


@dataclass(frozen=True)
class Layer:
    """One layer: the module, where its inputs come from (-1 is the image), and what the table prints."""

    section: Section
    module: nn.Module
    sources: tuple[int, ...]
    inputs: tuple[MapShape, ...]
    output: MapShape
    geometry: str = ""  # size and stride, for the table
    operations: int = 0  # for one image of the [net] size; a multiply-add counts twice, as in Darknet
    head: Head | None = None
    note: str = ""  # one line on what is done otherwise than in Darknet
    fixed_size: bool = False  # works for images of the [net] size only
    no_training: str = ""  # why it detects and cannot be trained, empty where it can

    @property
    def parameters(self) -> int:
        """Trainable numbers."""
        return sum(p.numel() for p in self.module.parameters())


class SectionBuilder:
    """Builds the sections in order and remembers what the later ones may refer to."""

    def __init__(self, config: DarknetConfig, kinds: Mapping[str, SectionKind], bn_eps: float, bn_momentum: float):
        self.config = config
        self.kinds = kinds
        self.bn_eps = bn_eps
        self.bn_momentum = bn_momentum
        self.built: list[Layer] = []
        self.parameters = 0
        net = config.net
        self.image = _image(net)
        self.reserve(net, 0, self.image)

    def build(self) -> list[Layer]:
        """Build every section.

        Raises:
            UserError: an impossible graph or an absurd size, with file and line.
        """
        for section in self.config.sections:
            sources = sources_of(section)
            inputs = tuple(self.image if index < 0 else self.built[index].output for index in sources)
            self.check_sources(section, sources)
            layer = self.kinds[section.kind].build(self, section, inputs)
            self.built.append(replace(layer, sources=sources, inputs=inputs))
        return self.built

    def check_sources(self, section: Section, sources: Sequence[int]) -> None:
        """Refuse a section that reads the numbers of a head, which Darknet changes in place."""
        for index in sources:
            if index >= 0 and self.built[index].head:
                head = f"a [{self.built[index].section.kind}] head"
                raise section.error(f"reads layer {index}, {head}; put a [route] to an earlier layer before it")

    def reserve(self, section: Section, parameters: int, output: MapShape) -> None:
        """Count a layer's parameters and refuse sizes that no machine should be asked for."""
        if min(output.channels, output.rows, output.cols) < 1:
            raise section.error(f"leaves nothing: its output would be {output}")
        if output.numbers > MAX_MAP:
            raise section.error(f"an output of {output} is over the limit of {MAX_MAP:,} numbers for one image")
        self.parameters += parameters
        if self.parameters > MAX_PARAMETERS:
            raise section.error(f"makes {self.parameters:,} parameters in all; the limit is {MAX_PARAMETERS:,}")

    def batch_norm(self, channels: int) -> nn.BatchNorm2d:
        """Return a batch norm with the network's settings."""
        return nn.BatchNorm2d(channels, eps=self.bn_eps, momentum=self.bn_momentum)


def _image(net: Section) -> MapShape:
    """Return the shape of an image; where only ``inputs`` is given, it is a vector of so many numbers."""
    sides = net["height"], net["width"]
    if sides == (None, None) and net["inputs"]:
        return MapShape(net["inputs"], 1, 1, Fraction(0), Fraction(0))
    for key, side in zip(("height", "width"), sides, strict=True):
        if side is None:
            raise net.error(f"needs '{key} = ...'")
    return MapShape(net["channels"], *sides)


def sources_of(section: Section) -> tuple[int, ...]:
    """Return the absolute indices of the layers a section reads; -1 is the image.

    Raises:
        UserError: a reference to the section itself, a later one or none.
    """
    before = (section.index - 1,)  # -1, the image, for the first section
    if "layers" in section.keys:
        return referred(section, "layers")
    if "from" in section.keys:
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


def made(section: Section, module: nn.Module, output: MapShape, geometry: str = "", operations: int = 0) -> Layer:
    """Return a layer whose sources the caller fills in."""
    return Layer(section, module, (), (), output, geometry, operations)


Builder = Callable[[SectionBuilder, Section, Sequence[MapShape]], Layer]
