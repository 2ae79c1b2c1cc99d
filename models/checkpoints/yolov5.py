"""Official ``yolov5*.pt`` checkpoints (ultralytics/yolov5 v4.0 to v7.0) into a network built from a cfg.

The file is read by ``torch_zip.py``, which runs no code of it and builds nothing but tensors. The graph of its modules
is then compared with that of the cfg, from the heads to the image: a tensor goes to the layer that is connected as its
own module is, whatever the order in the cfg, and a cfg that computes something else is refused at the first difference.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.checkpoints.report import LoadReport
from models.checkpoints.tensor_checks import has_bad_variance, why_unusable
from models.checkpoints.torch_zip import Record, read_torch_zip
from models.checkpoints.yolov5_modules import Node, children, concat, conv_settings, trace_modules
from models.layers import Convolution, Pool
from models.network import Network
from utils.class_names import is_class_name
from utils.config import REPOSITORY
from utils.errors import UserError

# Filters of the first convolution and bottlenecks of the first C3 tell the official sizes apart.
SIZES = {(16, 1): "yolov5n", (32, 1): "yolov5s", (48, 2): "yolov5m", (64, 3): "yolov5l", (80, 4): "yolov5x"}
WITH_STRIDE_64 = 4  # heads of the networks for images of 1280 pixels: yolov5n6, yolov5s6, ...


@dataclass(frozen=True)
class Yolov5Checkpoint:
    """What is of use in an official checkpoint."""

    path: str
    names: tuple[str, ...]  # of the classes
    strides: tuple[int, ...]  # of the heads, in their order
    anchors_wh: tuple[tuple[tuple[float, float], ...], ...]  # per head, pixels of the network input
    size_name: str  # "yolov5n", "yolov5s6-focus", or "" where it is no official size
    heads: tuple[Node, ...]  # the output of each, as a graph of what it is computed from

    @property
    def cfg_name(self) -> str:
        """The shipped cfg that has this architecture.

        Raises:
            UserError: there is none; says what was found.
        """
        if not self.size_name:
            raise UserError(
                f"{self.path}: this is none of the official sizes, whose cfgs are in cfg/. Give a cfg of its width and "
                "depth with --cfg, made from cfg/yolov5s.cfg"
            )
        return f"{self.size_name}.cfg"


def read_yolov5_checkpoint(path: str | Path) -> Yolov5Checkpoint:
    """Read an official checkpoint; of a training run the averaged model is taken, as YOLOv5 does.

    Raises:
        UserError: no torch archive, code in it, or not a YOLOv5 detection model of releases 4 to 7.
    """
    content = read_torch_zip(path)
    # dict.get(content, ...), not content.get: a pickle can give an OrderedDict an attribute "get".
    found = [dict.get(content, key) for key in ("ema", "model")] if isinstance(content, dict) else []
    model = next((value for value in found if isinstance(value, Record)), None)
    if model is None:
        raise UserError(
            f"{path}: neither a checkpoint of this toolkit nor of YOLOv5, which holds a model under 'model' or 'ema'"
        )
    heads = tuple(trace_modules(model, str(path)))
    try:
        modules = children(model.model)
        detect = modules[-1]
        strides = tuple(int(stride) for stride in _numbers(detect.stride).flatten())
        pixels = _numbers(detect.anchors) * torch.tensor(strides).view(-1, 1, 1)  # heads, anchors, 2; stored in cells
        anchors_wh = tuple(tuple((float(w), float(h)) for w, h in head) for head in pixels)
        names = _names(model.names)
        size_name = _size_name(modules, len(heads))
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
        raise UserError(f"{path}: not a YOLOv5 detection model ({error!s:.80})") from error
    if len(strides) != len(heads) or len(anchors_wh) != len(heads):
        raise UserError(f"{path}: {len(heads)} heads, {len(strides)} strides and {len(anchors_wh)} sets of anchors")
    return Yolov5Checkpoint(str(path), names, strides, anchors_wh, size_name, heads)


def load_yolov5_checkpoint(network: Network, path: str | Path | Yolov5Checkpoint) -> LoadReport:
    """Fill a network from an official checkpoint; on an error the network is unchanged.

    A network with another number of classes than the checkpoint keeps its own last convolutions.

    Raises:
        UserError: unreadable (see :func:`read_yolov5_checkpoint`), the cfg has another architecture or other anchors;
            names the first module and layer that differ.
    """
    # Everything is checked and prepared before the first number is copied.
    checkpoint = path if isinstance(path, Yolov5Checkpoint) else read_yolov5_checkpoint(path)
    _check_heads(network, checkpoint)
    same_classes = network.num_classes == len(checkpoint.names)
    layer_of = _overlay(network, checkpoint, same_classes)
    skipped = () if same_classes else tuple(sorted(layer_of[node] for node in checkpoint.heads))
    ready = [
        _prepared(checkpoint.path, node, network.layers[index])
        for node, index in layer_of.items()
        if index not in skipped
    ]
    with torch.no_grad():
        for tensors in ready:
            for target, source in tensors:
                target.copy_(source)
    classes = None if same_classes else (len(checkpoint.names), network.num_classes)
    return LoadReport(
        checkpoint.path,
        len(ready),
        len(layer_of),
        skipped=skipped,
        names=checkpoint.names,
        classes=classes,
        resize="letterbox",
    )


def _numbers(values: Any) -> Tensor:
    """Return one of the checkpoint's small tensors, strides or anchors, as float32."""
    if not isinstance(values, Tensor) or values.numel() > 100:
        raise TypeError("no strides or no anchors")
    return values.detach().float()


def _names(names: Any) -> tuple[str, ...]:
    if isinstance(names, dict):
        names = [names[index] for index in range(len(names))]
    if not isinstance(names, list) or not all(map(is_class_name, names)):
        raise TypeError("class names that are no text")
    return tuple(names)


def _size_name(modules: list[Record], num_heads: int) -> str:
    """Return the name of the official size, "" for another; behind it "6" with a fourth head, "-focus" with a Focus."""
    first = modules[0]
    focus = first.kind == "Focus"
    stem = first.conv.conv if focus else first.conv
    size = SIZES.get((stem.out_channels, len(children(modules[2].m))), "")
    name = size + ("6" if num_heads == WITH_STRIDE_64 else "") + ("-focus" if focus else "")
    return name if (REPOSITORY / "cfg" / f"{name}.cfg").is_file() else ""


def _check_heads(network: Network, checkpoint: Yolov5Checkpoint) -> None:
    """Refuse a cfg whose heads have other strides, other anchors or another decode than the checkpoint's."""
    cfg, path = network.cfg_path, checkpoint.path
    if sorted(head.stride for head in network.heads) != sorted(checkpoint.strides):
        found = ", ".join(str(head.stride) for head in network.heads) or "none"
        wanted = ", ".join(map(str, checkpoint.strides))
        raise UserError(f"{path}: its heads have strides {wanted}, those of {cfg} {found}{_fitting(checkpoint)}")
    by_stride = dict(zip(checkpoint.strides, checkpoint.anchors_wh, strict=True))
    for head in network.heads:
        anchors = by_stride[head.stride]
        ours = torch.tensor(head.anchors_wh)
        if len(anchors) != len(ours) or not torch.allclose(ours, torch.tensor(anchors), rtol=2e-3):  # fp16 was stored
            text = ", ".join(f"{width:g},{height:g}" for width, height in anchors)
            raise UserError(f"{path}: trained with other anchors than {cfg}; at stride {head.stride} its are {text}")
        if not head.new_coords or head.scale_x_y != 2.0:
            raise UserError(f"{path}: YOLOv5 boxes need new_coords=1 and scale_x_y=2 in every [yolo] of {cfg}")


def _fitting(checkpoint: Yolov5Checkpoint) -> str:
    """Return for messages which shipped cfg would fit, if one does."""
    return f"; its cfg is {checkpoint.size_name}.cfg" if checkpoint.size_name else ""


def _overlay(network: Network, checkpoint: Yolov5Checkpoint, same_classes: bool) -> dict[Node, int]:
    """Walk both graphs from the heads to the image; return the layer of each of the checkpoint's convolutions.

    Raises:
        UserError: the graphs differ; names the first module and layer that do.
    """
    # Start from the pairs of heads that have the same stride; then follow the inputs of each pair, each pair once.
    cfg_nodes = cfg_graph(network)
    head_layers = {head.stride: layer for head, layer in zip(network.heads, network.head_layers, strict=True)}
    todo = [
        (node, cfg_nodes[head_layers[stride]])
        for stride, node in zip(checkpoint.strides, checkpoint.heads, strict=True)
    ]
    seen: set[tuple[Node, Node]] = set()
    # The pairing of convolutions, both ways: it must be one to one.
    layer_of: dict[Node, int] = {}
    module_at: dict[int, Node] = {}
    while todo:
        theirs, ours = todo.pop()
        if (theirs, ours) in seen:
            continue
        seen.add((theirs, ours))
        # With other classes the last convolutions have other filters; everything before them must be equal.
        free = "filters" if theirs in checkpoint.heads and not same_classes else ""
        difference = _difference(theirs, ours, free)
        if not difference and theirs.operation == "conv":
            layer, module = layer_of.setdefault(theirs, ours.index), module_at.setdefault(ours.index, theirs)
            if layer != ours.index:
                difference = f"is also layer {layer}, so the connections differ"
            elif module is not theirs:  # two convolutions alike, as in a C3's branches, and a route to the wrong one
                difference = f"is the same layer as {module.name}, so the connections differ"
        if difference:
            raise UserError(f"{checkpoint.path}: {theirs.name} {difference} ({ours.name}){_fitting(checkpoint)}")
        todo += zip(theirs.inputs, ours.inputs, strict=True)
    return layer_of


def _difference(theirs: Node, ours: Node, free: str) -> str:
    """Return in words what differs between two nodes, not looking at the setting ``free``; empty if nothing does."""
    if theirs.operation != ours.operation:
        return f"is a {theirs.operation} where the cfg has a {ours.operation}"
    if len(theirs.inputs) != len(ours.inputs):
        return f"joins {len(theirs.inputs)} maps where the cfg joins {len(ours.inputs)}"
    for (key, wanted), (_, found) in zip(theirs.settings, ours.settings, strict=True):
        if wanted != found and key != free:
            return f"has {key} {_shown(wanted)}, the cfg {_shown(found)}"
    return ""


def _shown(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def cfg_graph(network: Network) -> dict[int, Node]:
    """Return what every layer of the network computes, as a graph in the terms of YOLOv5's modules, by layer number.

    What YOLOv5 has no module for becomes a node named after its section, which equals none of the checkpoint's.
    """
    nodes = {-1: Node("image", (), (), network.cfg_path)}
    for index, module in enumerate(network.layers):
        section = network.config.sections[index]
        inputs = tuple(nodes[source] for source in network.sources[index])
        name = f"{section.source}:{section.line}"
        kind = section.kind
        if isinstance(module, Convolution):
            linear = isinstance(module.activation, nn.Identity)  # also where a new_coords head applies the logistic
            activation = "linear" if linear else section["activation"]
            settings = conv_settings(module.conv, module.bn is not None, activation)
            node = Node("conv", settings, inputs, name, index)
        elif kind == "route" and section["groups"] == 1:
            node = concat(list(inputs), name, index)
        elif kind == "shortcut" and section["activation"] == "linear" and not list(module.parameters()):
            node = Node("add", (), inputs, name, index)
        elif kind == "maxpool" and isinstance(module, Pool):  # not where it is blurred
            stride = tuple(module.stride_xy[::-1])  # rows first, as in torch
            node = Node("maxpool", (("size", (module.size,) * 2), ("stride", stride)), inputs, name, index)
        elif kind == "upsample" and section["scale"] == 1:
            node = Node("upsample", (("stride", section["stride"]),), inputs, name, index)
        elif kind == "reorg3d" and not section["reverse"]:
            node = Node("reorg3d", (("stride", section["stride"]),), inputs, name, index)
        elif kind in ("yolo", "dropout"):
            node = inputs[0]  # in inference neither computes anything
        else:
            node = Node(f"[{kind}]", (), inputs, name, index)
        nodes[index] = node
    return nodes


def _prepared(path: str, node: Node, layer: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Return (our tensor, its new numbers in float32) of each of a convolution's tensors, checked."""
    assert isinstance(layer, Convolution)  # the overlay pairs a convolution with a convolution
    ours = layer.state_dict()
    ready = []
    for key, source in node.tensors.items():
        if key not in ours or source.shape != ours[key].shape:
            raise UserError(f"{path}: {node.name} has a tensor of another shape than its settings say")
        problem = why_unusable(source, ours[key])
        if problem:
            raise UserError(f"{path}: {node.name} {problem} ({key})")
        source = source.float()
        if layer.bn is not None and key == "bn.running_var":
            # Another epsilon than the cfg's is the same network when the variances carry the difference.
            source = source + (node.norm_eps - layer.bn.eps)
            if has_bad_variance(source, layer.bn.eps):
                raise UserError(f"{path}: {node.name} has a negative variance")
        ready.append((ours[key], source))
    return ready
