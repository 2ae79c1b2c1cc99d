"""The module tree of a YOLOv5 checkpoint, executed with symbols instead of images: which convolution feeds which.

The result is a graph of :class:`Node`; ``models/checkpoints/yolov5.py`` lays it over the graph of a cfg, so that a
tensor finds its layer by what it is connected to and not by counting.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from models.checkpoints.torch_zip import Record
from utils.errors import UserError

MODULES_LIMIT = 5_000  # yolov5x6 has about 1,000 modules
ACTIVATIONS = {"SiLU": "swish", "Hardswish": "hard_swish", "ReLU": "relu", "Mish": "mish", "Identity": "linear"}


@dataclass(frozen=True, eq=False)
class Node:
    """A value in the graph: what made it, of what, and the name or layer number that messages and tensors go by."""

    operation: str  # image, conv, maxpool, upsample, concat, add, reorg
    settings: tuple[tuple[str, Any], ...]  # compared between checkpoint and cfg
    inputs: tuple[Node, ...]
    name: str  # "model.2.cv1", or the cfg's line
    index: int = -1  # of the cfg's layer


@dataclass
class ConvTensors:
    """The tensors of one convolution and of the batch norm behind it, as the checkpoint stores them."""

    weight: Tensor  # [out, in/groups, rows, cols]
    bias: Tensor | None
    norm: dict[str, Tensor] = field(default_factory=dict)  # weight, bias, running_mean, running_var
    norm_eps: float = 0.0


@dataclass
class ModuleGraph:
    """The outputs of the detection heads as graphs, and the tensors of each convolution by its name."""

    heads: list[Node] = field(default_factory=list)
    tensors: dict[str, ConvTensors] = field(default_factory=dict)
    visited: int = 0


def concat(inputs: list[Node], name: str, index: int = -1) -> Node:
    """Return the concatenation along channels; nested ones are flattened, a single input is itself."""
    flat = [part for node in inputs for part in (node.inputs if node.operation == "concat" else (node,))]
    return flat[0] if len(flat) == 1 else Node("concat", (), tuple(flat), name, index)


def trace_modules(model: Record, path: str) -> ModuleGraph:
    """Execute a YOLOv5 ``Model`` record symbolically.

    Raises:
        UserError: a module that no YOLOv5 detection model of releases 4 to 7 has, or one without its parts.
    """
    try:
        return _trace(model)
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path}: not the module tree of a YOLOv5 detection model ({error!s:.80})") from error
    except _UnknownModuleError as error:
        raise UserError(f"{path}: {error}") from error


class _UnknownModuleError(Exception):
    """A part of the checkpoint that no detection network of ours has."""


def _trace(model: Record) -> ModuleGraph:
    graph = ModuleGraph()
    image = Node("image", (), (), "image")
    outputs: list[Node] = []
    for number, module in enumerate(children(children(model)["model"]).values()):
        source = module.state["f"]
        sources = [source] if isinstance(source, int) else list(source)
        inputs = [(outputs[s] if s != -1 else (outputs[-1] if outputs else image)) for s in sources]
        name = f"model.{number}"
        if module.kind == "Detect":
            graph.heads = [
                _plain_conv(graph, conv, node, f"{name}.m.{level}")
                for level, (conv, node) in enumerate(zip(children(children(module)["m"]).values(), inputs, strict=True))
            ]
            return graph
        outputs.append(_call(graph, module, inputs, name))
    raise ValueError("it has no Detect module")


def children(record: Record) -> dict[str, Record]:
    """Return a module record's sub-modules by name."""
    modules = record.state["_modules"]
    if not all(isinstance(module, Record) for module in modules.values()):
        raise TypeError("a sub-module that is no module")
    return modules


def _call(graph: ModuleGraph, module: Record, inputs: list[Node], name: str) -> Node:
    graph.visited += 1
    if graph.visited > MODULES_LIMIT:
        raise ValueError(f"more than {MODULES_LIMIT} modules")
    if module.kind not in MODULES:
        known = ", ".join(MODULES)
        raise _UnknownModuleError(
            f"{name} is a {module.kind[:40]}; YOLOv5 detection models are made of {known}, Detect"
        )
    return MODULES[module.kind](graph, module, inputs, name)


def _conv_bn_act(graph: ModuleGraph, module: Record, inputs: list[Node], name: str) -> Node:
    parts = children(module)
    return _add_conv(graph, name, parts["conv"], inputs[0], parts.get("bn"), _activation(parts["act"], name))


def _plain_conv(graph: ModuleGraph, conv: Record, node: Node, name: str) -> Node:
    return _add_conv(graph, name, conv, node, None, "linear")


def _activation(act: Record, name: str) -> str:
    if act.kind == "LeakyReLU" and act.state["negative_slope"] == 0.1:
        return "leaky"
    if act.kind not in ACTIVATIONS:
        raise _UnknownModuleError(f"{name} has the activation {act.kind[:40]}, which no Darknet layer has")
    return ACTIVATIONS[act.kind]


def _add_conv(graph: ModuleGraph, name: str, conv: Record, node: Node, norm: Record | None, activation: str) -> Node:
    state, parameters = conv.state, conv.state["_parameters"]
    tensors = ConvTensors(_tensor(parameters["weight"], 4), parameters.get("bias"))
    if norm is not None:
        stored = norm.state["_parameters"] | norm.state["_buffers"]
        names = ("weight", "bias", "running_mean", "running_var")
        tensors.norm = {key: _tensor(stored[key], 1) for key in names}
        tensors.norm_eps = float(norm.state["eps"])
    if tensors.bias is not None:
        _tensor(tensors.bias, 1)
    graph.tensors[name] = tensors
    settings = (
        ("filters", int(state["out_channels"])),
        ("size", _pair(state["kernel_size"])),
        ("stride", _pair(state["stride"])),
        ("padding", _pair(state["padding"])),
        ("dilation", _pair(state["dilation"])),
        ("groups", int(state["groups"])),
        ("batch_normalize", norm is not None),
        ("activation", activation),
    )
    return Node("conv", settings, (node,), name)


def _tensor(value: Any, dimensions: int) -> Tensor:
    if not isinstance(value, Tensor) or value.ndim != dimensions:
        raise TypeError("a parameter that is no tensor of the right kind")
    return value


def _pair(value: Any) -> tuple[int, int]:
    first, second = (value, value) if isinstance(value, int) else value
    return int(first), int(second)


def _c3(graph: ModuleGraph, module: Record, inputs: list[Node], name: str) -> Node:
    parts = children(module)
    deep = _call(graph, parts["cv1"], inputs, f"{name}.cv1")
    for number, bottleneck in enumerate(children(parts["m"]).values()):
        deep = _call(graph, bottleneck, [deep], f"{name}.m.{number}")
    beside = _call(graph, parts["cv2"], inputs, f"{name}.cv2")
    return _call(graph, parts["cv3"], [concat([deep, beside], name)], f"{name}.cv3")


def _bottleneck(graph: ModuleGraph, module: Record, inputs: list[Node], name: str) -> Node:
    parts = children(module)
    narrow = _call(graph, parts["cv1"], inputs, f"{name}.cv1")
    wide = _call(graph, parts["cv2"], [narrow], f"{name}.cv2")
    return Node("add", (), (wide, inputs[0]), name) if module.state["add"] else wide


def _maxpool(pool: Record, node: Node, name: str) -> Node:
    settings = (("size", _pair(pool.state["kernel_size"])), ("stride", _pair(pool.state["stride"])))
    return Node("maxpool", settings, (node,), name)


def _sppf(graph: ModuleGraph, module: Record, inputs: list[Node], name: str) -> Node:
    parts = children(module)
    stages = [_call(graph, parts["cv1"], inputs, f"{name}.cv1")]
    for _ in range(3):
        stages.append(_maxpool(parts["m"], stages[-1], f"{name}.m"))
    return _call(graph, parts["cv2"], [concat(stages, name)], f"{name}.cv2")


def _spp(graph: ModuleGraph, module: Record, inputs: list[Node], name: str) -> Node:
    parts = children(module)
    narrow = _call(graph, parts["cv1"], inputs, f"{name}.cv1")
    pooled = [_maxpool(pool, narrow, f"{name}.m.{key}") for key, pool in children(parts["m"]).items()]
    return _call(graph, parts["cv2"], [concat([narrow, *pooled], name)], f"{name}.cv2")


def _focus(graph: ModuleGraph, module: Record, inputs: list[Node], name: str) -> Node:
    """Cells to channels before a convolution; Darknet's ``[reorg3d]`` has the second and third quarter swapped."""
    cells = Node("reorg3d", (("stride", 2),), (inputs[0],), name)
    node = _call(graph, children(module)["conv"], [cells], f"{name}.conv")
    tensors = graph.tensors[node.name]
    tensors.weight = tensors.weight.unflatten(1, (4, -1))[:, [0, 2, 1, 3]].flatten(1, 2)
    return node


def _concat(graph: ModuleGraph, module: Record, inputs: list[Node], name: str) -> Node:
    return concat(inputs, name)


def _upsample(graph: ModuleGraph, module: Record, inputs: list[Node], name: str) -> Node:
    return Node("upsample", (("stride", int(module.state["scale_factor"])),), (inputs[0],), name)


Builder = Callable[[ModuleGraph, Record, list[Node], str], Node]
MODULES: dict[str, Builder] = {
    "Conv": _conv_bn_act,
    "C3": _c3,
    "Bottleneck": _bottleneck,
    "SPPF": _sppf,
    "SPP": _spp,
    "Focus": _focus,
    "Concat": _concat,
    "Upsample": _upsample,
}
