"""A Darknet cfg as a torch network: images [B 3 H W] in, one raw map [B A H W 5+C] of logits per head out.

``python models/network.py yolov3.cfg`` prints the layers as Darknet does at its start.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by its path, from any folder: the packages are in the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from utils.errors import UserError, run_command  # first: for Ctrl-C during the imports below

# isort: split
import copy
import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from models.assignment.options import AssignmentOptions
from models.darknet.cfg import parse_cfg, parse_cfg_text
from models.darknet.graph import Layer, SectionBuilder, sources_of
from models.darknet.kinds import KINDS
from models.darknet.scaled_decode import with_scaled_decode
from models.darknet.section import DarknetConfig, Section
from models.decode import candidates_of_maps
from models.detection_network import DetectionNetwork
from models.head_biases import initialise_head_biases
from models.heads import Head
from models.layers import Convolution
from models.learner import Learner, MapsLearner
from models.loss import LossOptions, build_loss
from utils.structures import Detections
from utils.words import how_many

DARKNET_BN_EPS = 1e-5
BN_MOMENTUM = 0.03  # weight of the new batch; Darknet's own rolling average uses 0.1 or 0.01 by version
GREY = (0.299, 0.587, 0.114)  # shares of red, green and blue, as where Darknet reads an image with one channel
# Kinds that may lie between a head and its convolution: they leave the channels as they are.
_THROUGH = ("shift_channels", "control_channels", "activation", "dropout", "silence")


class Network(DetectionNetwork):
    """The layers of one cfg, run in the order of the file; ``layers[i]`` is Darknet's layer ``i``."""

    def __init__(self, config: DarknetConfig, built: list[Layer]):
        super().__init__()
        self.config = config
        self.table = tuple(_table_row(layer) for layer in built)
        self.layers = nn.ModuleList(layer.module for layer in built)
        self.sources = tuple(layer.sources for layer in built)
        self.heads: tuple[Head, ...] = tuple(layer.head for layer in built if layer.head)
        self.head_layers = tuple(index for index, layer in enumerate(built) if layer.head)
        self.max_stride = max((_grid_stride(layer) for layer in built), default=1)
        self.layer_notes = tuple(dict.fromkeys(layer.note for layer in built if layer.note))
        self.input_wh: tuple[int, int] = (config.net["width"] or 1, config.net["height"] or 1)
        uneven = any(side % self.max_stride for side in self.input_wh)
        self.fixed_size = bool(self.heads) and (uneven or any(layer.fixed_size for layer in built))
        self.no_training = next(((layer.section, layer.no_training) for layer in built if layer.no_training), None)
        self.reads_grey = bool(self.heads) and config.net["channels"] == 1
        self._released = _released_after(self.sources)

    @property
    def cfg_path(self) -> str:
        """Name of the cfg file."""
        return self.config.source

    @property
    def cfg_text(self) -> str:
        """The cfg file's text, unchanged; with ``num_classes`` it rebuilds this network."""
        return self.config.text

    @property
    def notes(self) -> tuple[str, ...]:
        """One line each: what of the cfg has no effect here or another one than in Darknet."""
        return (*self.config.notes, *self.layer_notes)

    @property
    def oddities(self) -> tuple[str, ...]:
        """What in the cfg is probably a mistake, a line each."""
        return self.config.oddities

    @property
    def nms_beta(self) -> float | None:
        """Darknet, too, takes the last section's."""
        return self.heads[-1].nms_beta

    @property
    def num_classes(self) -> int:
        """Classes of the heads, of the one that has most where they differ; 0 for a network without heads."""
        return max((head.num_classes for head in self.heads), default=0)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the heads' raw maps in cfg order; of a network without heads, the last layer's output alone.

        Args:
            images: [B 3 H W] floats in 0..1, RGB; H and W multiples of ``max_stride``, with ``fixed_size`` those of
                ``input_wh``. A detector with one input channel makes them grey; one channel is taken as it is.
        """
        if self.reads_grey and images.shape[1] == 3:
            images = (images * images.new_tensor(GREY).view(3, 1, 1)).sum(dim=1, keepdim=True)
        outputs: dict[int, Tensor] = {-1: images}
        for index, layer in enumerate(self.layers):
            outputs[index] = layer(*[outputs[source] for source in self.sources[index]])
            for source in self._released[index]:
                del outputs[source]
        return [outputs[index] for index in self.head_layers or (len(self.layers) - 1,)]

    def candidates(self, raw: list[Tensor], confidence: float) -> list[Detections]:
        """As :meth:`DetectionNetwork.candidates`, of the raw maps of all heads."""
        return candidates_of_maps(raw, self.heads, confidence)

    def learner(self, loss: LossOptions, assignment: AssignmentOptions, input_wh: tuple[int, int]) -> Learner:
        """As :meth:`DetectionNetwork.learner`."""
        return MapsLearner(self, build_loss(loss, assignment, self.heads, math.sqrt(math.prod(input_wh))))

    def head_convolution(self, head: int) -> Convolution:
        """Return the convolution whose filters are the head's predictions."""
        layer = self.layers[_convolution_before(self.config.sections, self.head_layers[head])]
        assert isinstance(layer, Convolution)
        return layer

    def predicting_layers(self, head: int) -> list[int]:
        """Return the layers whose ``filters`` are the channels of a head, the number ``head`` among the heads."""
        return _predicting(self.config.sections, self.head_layers[head])

    def parts(self) -> list[nn.Module]:
        """Return the layers of the cfg."""
        return list(self.layers)

    def parts_without_effect(self) -> list[int]:
        """Return the layers that no head depends on: they run, but no loss reaches them."""
        # From the last layer to the first: what a needed layer reads is needed, too.
        needed = set(self.head_layers)
        for index in reversed(range(len(self.layers))):
            if index in needed:
                needed.update(self.sources[index])
        return [index for index in range(len(self.layers)) if index not in needed]

    def parts_that_predict(self) -> list[int]:
        """Return the layers whose filters are the channels of a head."""
        return [layer for head in range(len(self.heads)) for layer in self.predicting_layers(head)]

    def part_of(self, name: str) -> int:
        """Return the number of the layer that a key of the state dict, such as layers.12.conv.weight, belongs to."""
        return int(name.split(".")[1])

    def describe(self, name: str) -> str:
        """As :meth:`DetectionNetwork.describe`, with the section and its line."""
        section = self.config.sections[self.part_of(name)]
        return f"{section.index} ([{section.kind}], line {section.line}, {'.'.join(name.split('.')[2:])})"

    def depends_on_classes(self, name: str) -> bool:
        """Whether a tensor belongs to a head's convolution, or to a layer after the first of these."""
        heads = {id(self.head_convolution(number)) for number in range(len(self.heads))}
        first = min(index for index, layer in enumerate(self.layers) if id(layer) in heads)
        return self.part_of(name) >= first

    @property
    def own_resize(self) -> tuple[str, str]:
        """As :meth:`DetectionNetwork.own_resize`: Darknet stretches, unless ``[net]`` has ``letter_box=1``."""
        letter_box = self.config.net["letter_box"]
        if letter_box is None:
            return "stretch", "as Darknet: no letter_box=1 in the cfg"
        return "letterbox" if letter_box else "stretch", f"letter_box={letter_box} in the cfg"

    def require_heads(self) -> None:
        """As :meth:`DetectionNetwork.require_heads`: it has a head, and one or three channels."""
        net = self.config.net
        if net["channels"] not in (1, 3):
            raise net.error(f"channels={net['channels']}: a detector needs 3, for colour, or 1, for grey", "channels")
        if not self.heads:
            what = "no [yolo] section or other head, so this network cannot detect"
            raise UserError(f"{self.cfg_path}: {what}; give a detector's cfg")

    def require_trainable(self) -> None:
        """As :meth:`DetectionNetwork.require_trainable`; the message names the section."""
        if self.no_training:
            section, reason = self.no_training
            raise section.error(f"is for detection only: {reason}")
        if self.fixed_size:
            width, height = self.input_wh
            raise self.config.net.error(f"is for detection only: its input is {width} x {height} and nothing else")

    def initialise(self) -> None:
        """Start the heads' biases as the code does whose boxes the heads have."""
        initialise_head_biases(self, "yolov5" if self.heads[0].new_coords else "yolov3")

    def with_classes(self, classes: Sequence[int]) -> Network:
        """As :meth:`DetectionNetwork.with_classes`."""
        return select_classes(self, classes)

    def fuse(self) -> Network:
        """Return a copy for inference in which every batch norm is folded into its convolution."""
        fused = copy.deepcopy(self).eval()
        for layer in fused.layers:
            if isinstance(layer, Convolution):
                layer.fuse()
        return fused


def build_network(
    cfg_path: str | Path, num_classes: int | None = None, bn_eps: float | None = None, bn_momentum: float | None = None
) -> Network:
    """Build the network of a cfg file.

    Args:
        cfg_path: the file.
        num_classes: None for what the cfg says; else the heads and the filters before them are adapted.
        bn_eps: batch norm's epsilon; None for the cfg's ``[net] bn_eps`` (ours), else Darknet's 1e-5.
        bn_momentum: weight of a new batch in the running statistics; None for ``[net] bn_momentum`` (ours), else 0.03.

    Raises:
        UserError: unreadable, not the dialect, an impossible graph or an absurd size; with file and line.
    """
    return _build(parse_cfg(cfg_path), num_classes, bn_eps, bn_momentum)


def build_network_from_text(
    text: str, name: str, num_classes: int | None = None, bn_eps: float | None = None, bn_momentum: float | None = None
) -> Network:
    """Build the network of a cfg's text, as kept in a checkpoint; ``name`` stands for the file in messages."""
    return _build(parse_cfg_text(text, name), num_classes, bn_eps, bn_momentum)


def require_cfg(network: DetectionNetwork, what: str) -> Network:
    """Return a network that a cfg describes.

    Args:
        network: of any kind.
        what: needs it, for the message.

    Raises:
        UserError: it is of another kind.
    """
    if not isinstance(network, Network):
        raise UserError(f"{what}: is for networks of a Darknet cfg, which {network.cfg_path} is not")
    return network


def select_classes(network: Network, classes: Sequence[int]) -> Network:
    """Return a copy whose class ``i`` is class ``classes[i]`` of the network; those not named are gone.

    Raises:
        UserError: a head's convolution has groups, so that its filters cannot change places; or there is no
            convolution, or not all heads have the same classes.
    """
    for head, layer in zip(network.heads, network.head_layers, strict=True):
        section = network.config.sections[layer]
        if section.kind == "detection" or head.num_classes != network.num_classes:
            raise section.error("its classes cannot be put into another order", "classes")
    selected = build_network_from_text(network.cfg_text, network.cfg_path, len(classes))
    device = next(network.parameters()).device
    state = network.state_dict()
    sections = network.config.sections
    columns = torch.tensor([*range(5), *(5 + index for index in classes)], device=device)
    predicting = {
        index: head
        for head, layer in zip(network.heads, network.head_layers, strict=True)
        for index in _predicting(sections, layer)
    }
    for index, head in predicting.items():
        if sections[index].kind == "convolutional" and sections[index]["groups"] > 1:
            raise sections[index].error("groups: the classes of this head cannot be put into another order", "groups")
        axis = 0 if sections[index].kind == "convolutional" else 1  # an implicit vector is [1 C atoms 1]
        channels = head.num_anchors * (5 + head.num_classes)
        filters = torch.arange(channels, device=device).view(head.num_anchors, -1)[:, columns].flatten()
        for name, tensor in state.items():
            if name.startswith(f"layers.{index}.") and tensor.dim() > axis and tensor.shape[axis] == channels:
                state[name] = tensor.index_select(axis, filters)
    selected.load_state_dict(state)
    return selected.to(device).train(network.training)


def decode_scaled(network: Network) -> Network:
    """Return the network with the boxes of PyTorch_YOLOv4, ScaledYOLOv4 and yolor, with the same weights.

    Raises:
        UserError: as :func:`models.darknet.scaled_decode.with_scaled_decode`.
    """
    scaled = _build(with_scaled_decode(network.config), None, None, None)
    scaled.load_state_dict(network.state_dict())
    return scaled


def _build(config: DarknetConfig, num_classes: int | None, bn_eps: float | None, bn_momentum: float | None) -> Network:
    net = config.net
    if num_classes is not None:
        config = _with_classes(config, num_classes)
    eps = next(value for value in (bn_eps, net["bn_eps"], DARKNET_BN_EPS) if value is not None)
    momentum = next(value for value in (bn_momentum, net["bn_momentum"], BN_MOMENTUM) if value is not None)
    return Network(config, SectionBuilder(config, KINDS, eps, momentum).build())


def _with_classes(config: DarknetConfig, num_classes: int) -> DarknetConfig:
    """Return the config with other ``classes`` in every head and filters that fit before it."""
    sections = list(config.sections)
    for section in config.sections:
        box_numbers = KINDS[section.kind].box_numbers
        if not box_numbers:
            continue
        sections[section.index] = section.replace(classes=num_classes)
        masked = "mask" in section.keys and section["mask"] is not None
        num_anchors = len(section["mask"]) if masked else section["num"]
        for index in _predicting(config.sections, section.index):
            sections[index] = sections[index].replace(filters=num_anchors * (box_numbers + num_classes))
    return replace(config, sections=tuple(sections))


def _convolution_before(sections: tuple[Section, ...], head: int) -> int:
    """Return the index of the convolution that a head's numbers come from."""
    index = head - 1
    while index >= 0 and sections[index].kind in _THROUGH:
        index -= 1
    if index < 0 or sections[index].kind != "convolutional":
        raise sections[head].error("needs a [convolutional] before it")
    return index


def _predicting(sections: tuple[Section, ...], head: int) -> list[int]:
    """Return the layers whose ``filters`` are a head's channels: its convolution, and implicit vectors joined to it."""
    found = [_convolution_before(sections, head)]
    for section in sections[found[0] + 1 : head]:
        if section.kind in ("shift_channels", "control_channels"):
            found += [i for i in sources_of(section)[1:] if sections[i].kind.startswith("implicit")]
    return found


def _grid_stride(layer: Layer) -> int:
    """Return the larger stride of a layer's output, 1 for what lies on no grid."""
    return max(1, math.ceil(layer.output.stride_x), math.ceil(layer.output.stride_y))


def _released_after(sources: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
    """Return, per layer, the outputs that no later layer reads, so that inference holds no more than it must."""
    # Later readers overwrite earlier ones: the last layer that reads each output.
    last = {source: index for index, used in enumerate(sources) for source in used}
    return tuple(tuple(s for s in sorted(set(used)) if last[s] == index) for index, used in enumerate(sources))


def _table_row(layer: Layer) -> tuple[str, ...]:
    section = layer.section
    filters = str(layer.output.channels) if "filters" in section or section.kind == "convolutional" else ""
    source = str(layer.inputs[0]) if layer.inputs else ""
    count = f"{layer.parameters:,}" if layer.parameters else ""
    cost = f"{layer.operations / 1e9:.3f}" if layer.operations else ""
    return (str(section.index), section.kind, filters, layer.geometry, source, str(layer.output), count, cost)


def layer_table(network: Network) -> str:
    """Return the table of layers: index, type, filters, size / stride, input -> output, parameters, GFLOPs."""
    head = ("layer", "type", "filters", "size / stride", "input", "output", "parameters", "GFLOPs")
    rows = (head, *network.table)
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    left = (1, 3)
    lines = [
        "  ".join(c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
    parameters = sum(p.numel() for p in network.parameters())
    total = sum(float(row[7]) for row in network.table if row[7])
    width, height = network.input_wh
    heads = ", ".join(f"stride {head.stride} with {how_many(head.num_anchors, 'anchor')}" for head in network.heads)
    layers = how_many(len(network.layers), "layer")
    lines.append(f"{layers}, {parameters:,} parameters, {total:.3f} GFLOPs at {width} x {height}")
    lines.append(f"{how_many(network.num_classes, 'class')}; heads: {heads}" if heads else "no heads: not a detector")
    return "\n".join([*(line.rstrip() for line in lines), *network.notes])


def main() -> None:
    """Print the layer table of the cfg named on the command line."""
    from utils.config import Parser, find_file

    parser = Parser(description="Print the layers of a cfg as Darknet does at its start.")
    parser.add_argument("cfg", nargs="?", default="yolov3-nano.cfg", help="a file, or a name in cfg/")
    parser.add_argument("--num-classes", type=int, help="adapt the heads to this many classes")
    parser.add_argument("--strict", action="store_true", help="refuse what Darknet does not know")
    arguments = parser.parse_args()
    network = build_network(find_file(arguments.cfg, "cfg"), arguments.num_classes)
    if arguments.strict and network.config.oddities:
        raise UserError(f"{network.config.oddities[0]} (--strict)")
    print(layer_table(network))


if __name__ == "__main__":
    run_command(main)
