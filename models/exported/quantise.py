"""Static quantisation to int8, with a search for the layers that stay in float.

Only convolutions and what lies between them are quantised; the decoding behind the last convolutions stays in float:
boxes of hundreds of pixels do not fit into 256 steps.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.exported.metadata import ExportMetadata
from models.exported.network import Runtime
from models.exported.onnx_file import INPUT, OnnxRuntime, set_metadata
from models.exported.openvino_folder import OpenVinoRuntime, read_model
from models.exported.required import required
from utils.boxes import box_iou

SEARCHED_ON = 16  # images that the search calibrates and measures with
BETTER = 0.97  # a part stays in float where that lowers the error to this share or less
QUANTISED = ("Conv", "Mul", "Add", "Sigmoid", "Concat", "MaxPool", "Resize", "LeakyRelu")


def search(
    parts: dict[str, list[str]], always: list[str], error_without: Callable[[list[str]], float]
) -> tuple[list[str], list[str]]:
    """Leave out the parts that cost most accuracy, greedily in the given order.

    Args:
        parts: names of nodes by a name for the user.
        always: nodes that stay in float in any case.
        error_without: quantises all but some nodes and returns the error.

    Returns:
        The nodes that stay in float, and lines that say what was found.
    """
    kept = list(always)
    best = error_without(kept)
    lines = [f"all convolutions in int8: error {best:.2e}"]
    for name, nodes in parts.items():
        error = error_without([*kept, *nodes])
        helps = error <= BETTER * best
        lines.append(f"{name} in float: error {error:.2e}, {'kept in float' if helps else 'no gain, in int8'}")
        if helps:
            kept, best = [*kept, *nodes], error
    return kept, lines


Outputs = Sequence[np.ndarray]  # boxes [B N 4] and scores [B N C]


def mean_error(wanted: Sequence[Outputs], runtime: Runtime, images: Sequence[np.ndarray]) -> float:
    """Return the mean of |score - score'| + (1 - IoU) over the slots whose best score is above 0.05 in either."""
    total = count = 0.0
    for (boxes, scores), batch in zip(wanted, images, strict=True):
        found_boxes, found_scores = runtime(batch)
        relevant = np.maximum(scores, found_scores).max(axis=2) > 0.05
        of_scores = np.abs(found_scores - scores)[relevant].max(axis=1, initial=0.0)
        first, second = torch.from_numpy(boxes[relevant]), torch.from_numpy(found_boxes[relevant])
        total += float(of_scores.sum() + (1 - box_iou(first, second, elementwise=True)).sum())
        count += float(relevant.sum())
    return total / max(count, 1.0)


def quantise_onnx(float_path: Path, path: Path, images: Sequence[np.ndarray], metadata: ExportMetadata) -> list[str]:
    """Write an ONNX file with int8 convolutions (QDQ); return what the search for sensitive layers found.

    Args:
        float_path: boxes and scores, float32.
        path: of the result.
        images: of the calibration, each [B 3 H W] float32, 0..1.
        metadata: of the result.

    Raises:
        UserError: a package is missing.
    """
    onnx = required("onnx", "--format onnx-int8")
    graph = onnx.load(str(float_path)).graph
    decoding, parts = split_nodes(
        [(node.name, node.op_type, list(node.input), list(node.output)) for node in graph.node], "Conv"
    )
    few = images[:SEARCHED_ON]
    reference = OnnxRuntime(float_path)
    wanted = [reference(batch) for batch in few]
    with tempfile.TemporaryDirectory() as folder:
        prepared, trial = Path(folder) / "prepared.onnx", Path(folder) / "trial.onnx"
        _shape_inference(float_path, prepared)

        def error_without(excluded: list[str]) -> float:
            _quantise_static(prepared, trial, few, excluded)
            return mean_error(wanted, OnnxRuntime(trial), few)

        excluded, lines = search(parts, decoding, error_without)
        _quantise_static(prepared, path, images, excluded)
    model = onnx.load(str(path))
    set_metadata(model, metadata)
    path.write_bytes(model.SerializeToString())
    return lines


def _shape_inference(source: Path, target: Path) -> None:
    from onnxruntime.quantization import shape_inference

    shape_inference.quant_pre_process(str(source), str(target), skip_symbolic_shape=True)


def _quantise_static(source: Path, target: Path, images: Sequence[np.ndarray], excluded: list[str]) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        """The images one after the other."""

        def __init__(self) -> None:
            self.rest: Iterator[np.ndarray] = iter(images)

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.rest, None)
            return None if batch is None else {INPUT: batch}

    quantize_static(
        str(source),
        str(target),
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=list(QUANTISED),
        nodes_to_exclude=excluded,
        # The mean over the images of their extremes, not the extreme of all: a rare large value costs all others steps.
        extra_options={"CalibMovingAverage": True},
    )


def quantise_openvino(
    float_path: Path, images: Sequence[np.ndarray], metadata: ExportMetadata
) -> tuple[Any, list[str]]:
    """Return OpenVINO's model with int8 convolutions by NNCF, and what the search for sensitive layers found.

    Args:
        float_path: an ONNX file, boxes and scores, float32.
        images: of the calibration, each [B 3 H W] float32, 0..1.
        metadata: of the file.

    Raises:
        UserError: a package is missing.
    """
    nncf = required("nncf", "--format openvino-int8")
    logging.getLogger("nncf").setLevel(logging.ERROR)  # it names every layer
    model = read_model(float_path)
    nodes = [
        (
            op.get_friendly_name(),
            op.get_type_name(),
            [value.get_node().get_friendly_name() for value in op.input_values()],
            [op.get_friendly_name()],
        )
        for op in model.get_ordered_ops()
    ]
    decoding, parts = split_nodes(nodes, "Convolution")
    few = images[:SEARCHED_ON]
    reference = OpenVinoRuntime(model, metadata)
    wanted = [reference(batch) for batch in few]

    def quantised(excluded: list[str], calibration: Sequence[np.ndarray]) -> Any:
        return nncf.quantize(
            read_model(float_path),
            nncf.Dataset(list(calibration)),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(calibration),
            ignored_scope=nncf.IgnoredScope(names=excluded, validate=False),
        )

    def error_without(excluded: list[str]) -> float:
        return mean_error(wanted, OpenVinoRuntime(quantised(excluded, few), metadata), few)

    excluded, lines = search(parts, decoding, error_without)
    return quantised(excluded, images), lines


def split_nodes(
    nodes: Sequence[tuple[str, str, list[str], list[str]]], convolution: str
) -> tuple[list[str], dict[str, list[str]]]:
    """Return the nodes of the decoding, and the parts that may be sensitive: the last and the first convolutions.

    Args:
        nodes: name, kind, inputs and outputs of each, in an order in which they can be computed.
        convolution: the kind of a convolution.
    """
    reaching: set[str] = set()  # values that some convolution depends on
    decoding, last, first = [], [], []
    for name, kind, inputs, outputs in reversed(nodes):
        before = not reaching.isdisjoint(outputs)
        if kind == convolution and not before:
            last.append(name)
        elif not before:
            decoding.append(name)
        if kind == convolution:
            first = [name]  # the last one seen, from behind
        if before or kind == convolution:
            reaching.update(inputs)
    return decoding, {"last convolutions": last, "first convolution": first}
