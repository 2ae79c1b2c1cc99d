"""The module tree of a YOLOv5 checkpoint, executed with symbols instead of images: which convolution feeds which.

The result is a graph of :class:`Node`, which ``models/checkpoints/yolov5.py`` compares with the graph of a cfg, so that
a tensor finds its layer by what it is connected to and not by counting. What each kind of module computes is that of
``models/common.py`` in ultralytics/yolov5 v4.0 to v7.0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from models.checkpoints.torch_zip import Record
from utils.errors import UserError

MODULES_LIMIT = 5_000  # yolov5x6 has about 1,000 modules
ACTIVATIONS = {"SiLU": "swish", "Hardswish": "hard_swish", "ReLU": "relu", "Mish": "mish", "Identity": "linear"}
Settings = tuple[tuple[str, Any], ...]


@dataclass(frozen=True, eq=False)
class Node:
    """A value in the graph: the operation that made it, from which inputs, and where it stands in its file.

    Two nodes are equal only if they are the same object.
    """

    operation: str  # image, conv, maxpool, upsample, concat, add, reorg3d
    settings: Settings  # compared between checkpoint and cfg
    inputs: tuple[Node, ...]
    name: str  # "model.2.cv1", or the cfg's line
    index: int = -1  # of the cfg's layer
    tensors: dict[str, Tensor] = field(default_factory=dict)  # of a checkpoint's convolution, "conv.weight"
    norm_eps: float = 0.0  # what its batch norm adds to the variances


def concat(inputs: list[Node], name: str, index: int = -1) -> Node:
    """Return the concatenation along channels; nested ones are flattened, that of a single input is the input."""
    flat = [part for node in inputs for part in (node.inputs if node.operation == "concat" else (node,))]
    return flat[0] if len(flat) == 1 else Node("concat", (), tuple(flat), name, index)


def conv_settings(conv: Record | nn.Conv2d, has_norm: bool, activation: str) -> Settings:
    """Return what a convolution computes, from a checkpoint's record or a torch module alike."""
    return (
        ("filters", int(conv.out_channels)),
        ("size", _pair(conv.kernel_size)),
        ("stride", _pair(conv.stride)),
        ("padding", _pair(conv.padding)),
        ("dilation", _pair(conv.dilation)),
        ("groups", int(conv.groups)),
        ("batch_normalize", has_norm),
        ("activation", activation),
    )


def trace_modules(model: Record, path: str) -> list[Node]:
    """Execute a YOLOv5 ``Model`` record symbolically; return the outputs of its detection heads.

    Raises:
        UserError: a module that no YOLOv5 detection model of releases 4 to 7 has, or one without its parts.
    """
    try:
        return _Tracer().trace(model)
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path}: not the module tree of a YOLOv5 detection model ({error!s:.80})") from error
    except _UnknownModuleError as error:
        raise UserError(f"{path}: {error}") from error


def children(record: Record) -> list[Record]:
    """Return the parts of a module that is a list of parts, such as a ``Sequential``."""
    modules = list(record._modules.values())
    if not all(isinstance(module, Record) for module in modules):
        raise TypeError("a sub-module that is no module")
    return modules


class _UnknownModuleError(Exception):
    """A part of the checkpoint that no detection network of ours has."""


class _Tracer:
    """Does with nodes what the ``forward`` of each kind of module does with tensors; the kind is known by its name.

    The methods of a kind take the module, the nodes that it reads and its name, and return the node of its output.
    """

    def __init__(self) -> None:
        self.visited = 0

    def trace(self, model: Record) -> list[Node]:
        """Return the heads' nodes; each module says by ``f`` which outputs it reads, -1 being the latest."""
        outputs: list[Node] = []
        for number, module in enumerate(children(model.model)):
            sources = [module.f] if isinstance(module.f, int) else list(module.f)
            latest = outputs[-1] if outputs else Node("image", (), (), "image")
            inputs = [latest if source == -1 else outputs[source] for source in sources]
            name = f"model.{number}"
            if module.kind == "Detect":
                levels = enumerate(zip(children(module.m), inputs, strict=True))
                return [_conv_node(conv, None, "linear", node, f"{name}.m.{level}") for level, (conv, node) in levels]
            outputs.append(self.call(module, inputs, name))
        raise ValueError("it has no Detect module")

    def call(self, module: Record, inputs: list[Node], name: str) -> Node:
        """Return the output of a module of any known kind; the limit stops a tree that contains itself."""
        self.visited += 1
        if self.visited > MODULES_LIMIT:
            raise ValueError(f"more than {MODULES_LIMIT} modules")
        if module.kind not in MODULES:
            known = ", ".join(MODULES)
            raise _UnknownModuleError(
                f"{name} is a {module.kind[:40]}; YOLOv5 detection models are made of {known}, Detect"
            )
        return MODULES[module.kind](self, module, inputs, name)

    def conv(self, module: Record, inputs: list[Node], name: str) -> Node:
        """Convolution, batch norm (none where it was fused) and activation."""
        return _conv_node(module.conv, getattr(module, "bn", None), _activation(module.act, name), inputs[0], name)

    def c3(self, module: Record, inputs: list[Node], name: str) -> Node:
        """cv3 of two branches joined: cv1 followed by bottlenecks, and cv2."""
        deep = self.call(module.cv1, inputs, f"{name}.cv1")
        for number, bottleneck in enumerate(children(module.m)):
            deep = self.call(bottleneck, [deep], f"{name}.m.{number}")
        beside = self.call(module.cv2, inputs, f"{name}.cv2")
        return self.call(module.cv3, [concat([deep, beside], name)], f"{name}.cv3")

    def bottleneck(self, module: Record, inputs: list[Node], name: str) -> Node:
        """cv2 of cv1, plus the input where ``add`` says so."""
        narrow = self.call(module.cv1, inputs, f"{name}.cv1")
        wide = self.call(module.cv2, [narrow], f"{name}.cv2")
        return Node("add", (), (wide, inputs[0]), name) if module.add else wide

    def sppf(self, module: Record, inputs: list[Node], name: str) -> Node:
        """cv2 of cv1 joined with three pools of it, each applied to the one before."""
        stages = [self.call(module.cv1, inputs, f"{name}.cv1")]
        for _ in range(3):
            stages.append(_maxpool(module.m, stages[-1], f"{name}.m"))
        return self.call(module.cv2, [concat(stages, name)], f"{name}.cv2")

    def spp(self, module: Record, inputs: list[Node], name: str) -> Node:
        """cv2 of cv1 joined with pools of it of several sizes."""
        narrow = self.call(module.cv1, inputs, f"{name}.cv1")
        pooled = [_maxpool(pool, narrow, f"{name}.m.{number}") for number, pool in enumerate(children(module.m))]
        return self.call(module.cv2, [concat([narrow, *pooled], name)], f"{name}.cv2")

    def focus(self, module: Record, inputs: list[Node], name: str) -> Node:
        """A convolution of 2 x 2 cells put into channels.

        The quarters of the channels come in the order (row, column) = (0, 0), (1, 0), (0, 1), (1, 1) of the cells; in
        ``[reorg3d]`` the second and third are exchanged, and so must be the convolution's input channels.
        """
        cells = Node("reorg3d", (("stride", 2),), (inputs[0],), name)
        node = self.call(module.conv, [cells], f"{name}.conv")
        # out 4C k k -> out 4 C k k, reordered, and back
        weight = node.tensors["conv.weight"].unflatten(1, (4, -1))[:, [0, 2, 1, 3]].flatten(1, 2)
        return replace(node, tensors=node.tensors | {"conv.weight": weight})

    def concat(self, module: Record, inputs: list[Node], name: str) -> Node:
        return concat(inputs, name)

    def upsample(self, module: Record, inputs: list[Node], name: str) -> Node:
        return Node("upsample", (("stride", int(module.scale_factor)),), (inputs[0],), name)


def _conv_node(conv: Record, norm: Record | None, activation: str, node: Node, name: str) -> Node:
    """Return the node of a convolution, with its tensors under the names they have in ``models.layers.Convolution``."""
    tensors = {"conv.weight": _tensor(conv.weight, 4)}
    bias = getattr(conv, "bias", None)
    if norm is None or bias is not None:
        tensors["conv.bias"] = _tensor(bias, 1)
    if norm is not None:
        names = ("weight", "bias", "running_mean", "running_var")
        tensors |= {f"bn.{key}": _tensor(getattr(norm, key), 1) for key in names}
    settings = conv_settings(conv, norm is not None, activation)
    return Node("conv", settings, (node,), name, tensors=tensors, norm_eps=float(norm.eps) if norm else 0.0)


def _activation(act: Record, name: str) -> str:
    """Return Darknet's name of an activation module."""
    if act.kind == "LeakyReLU" and act.negative_slope == 0.1:
        return "leaky"
    if act.kind not in ACTIVATIONS:
        raise _UnknownModuleError(f"{name} has the activation {act.kind[:40]}, which no Darknet layer has")
    return ACTIVATIONS[act.kind]


def _maxpool(pool: Record, node: Node, name: str) -> Node:
    return Node("maxpool", (("size", _pair(pool.kernel_size)), ("stride", _pair(pool.stride))), (node,), name)


def _tensor(value: Any, dimensions: int) -> Tensor:
    if not isinstance(value, Tensor) or value.ndim != dimensions:
        raise TypeError("a parameter that is no tensor of the right kind")
    return value.detach()


def _pair(value: Any) -> tuple[int, int]:
    """Return torch's (rows, columns) of a setting that may be one number for both."""
    first, second = (value, value) if isinstance(value, int) else value
    return int(first), int(second)


MODULES: dict[str, Callable[[_Tracer, Record, list[Node], str], Node]] = {
    "Conv": _Tracer.conv,
    "C3": _Tracer.c3,
    "Bottleneck": _Tracer.bottleneck,
    "SPPF": _Tracer.sppf,
    "SPP": _Tracer.spp,
    "Focus": _Tracer.focus,
    "Concat": _Tracer.concat,
    "Upsample": _Tracer.upsample,
}
