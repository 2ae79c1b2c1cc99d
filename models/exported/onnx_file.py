"""ONNX: written by PyTorch's exporter over ``torch.export``, simplified by onnxslim, run by ONNX Runtime on the CPU."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.exported.graph import DetectionGraph
from models.exported.metadata import ExportMetadata, metadata_from_strings
from models.exported.network import ExportedNetwork
from models.exported.onnx_nms import GraphNms, append_nms
from models.exported.required import required
from utils.errors import UserError

OPSET = 18
INPUT, OUTPUTS = "images", ("boxes", "scores")


def write_onnx(
    graph: DetectionGraph, metadata: ExportMetadata, path: Path, opset: int = OPSET, nms: GraphNms | None = None
) -> None:
    """Write a graph as ONNX.

    Args:
        graph: whose network is float32 or float16; images, boxes and scores are float32 in either case.
        metadata: says which sizes are free.
        path: the file.
        opset: of the standard operators.
        nms: append an NMS to the graph, which then returns detections.

    Raises:
        UserError: a package is missing.
    """
    required("onnxscript", "--format onnx")  # the exporter's
    onnx, onnxslim = required("onnx", "--format onnx"), required("onnxslim", "--format onnx")
    free_axes = ([] if metadata.batch_size else [0]) + ([2, 3] if metadata.dynamic else [])
    free = {INPUT: {axis: torch.export.Dim.DYNAMIC for axis in free_axes}}
    with _quiet():
        program = torch.onnx.export(
            graph,
            (example_images(metadata),),
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            dynamo=True,
            opset_version=opset,
            dynamic_shapes=free if free_axes else None,
            verbose=False,
        )
        assert program is not None
        model = onnxslim.slim(program.model_proto)
    _name_dimensions(model, free_axes)
    if nms:
        append_nms(model, nms)
    set_metadata(model, metadata)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def example_images(metadata: ExportMetadata) -> torch.Tensor:
    """Return images [B 3 H W] to trace a graph with; free sizes differ from one another and from 1."""
    width, height = metadata.input_wh
    taller = metadata.max_stride if metadata.dynamic else 0
    return torch.rand(metadata.batch_size or 2, 3, height + taller, width)


def set_metadata(model: Any, metadata: ExportMetadata) -> None:
    """Write the metadata into an ONNX model, in the place of all that is there."""
    del model.metadata_props[:]
    for name, text in metadata.to_strings().items():
        model.metadata_props.add(key=name, value=text)


def open_onnx(path: Path) -> ExportedNetwork:
    """Return the network of an ONNX file.

    Raises:
        UserError: damaged, written by another program, or ONNX Runtime is missing.
    """
    runtime = OnnxRuntime(path)
    metadata = metadata_from_strings(runtime.strings, path)
    if metadata is None:
        raise UserError(f"{path}: an ONNX file of another program; export its weights with export.py")
    return ExportedNetwork(metadata, runtime, path)


class OnnxRuntime:
    """An ONNX file in ONNX Runtime, with as many threads as torch has."""

    def __init__(self, path: Path) -> None:
        """Load the file.

        Raises:
            UserError: damaged, or ONNX Runtime is missing.
        """
        onnxruntime = required("onnxruntime", str(path))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors
        try:
            self.session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its classes have no base of their own
            raise UserError(f"{path}: damaged, or not for this ONNX Runtime ({error!s:.120})") from error
        self.strings: dict[str, str] = self.session.get_modelmeta().custom_metadata_map
        self.input = self.session.get_inputs()[0].name

    def __call__(self, images: np.ndarray) -> Sequence[np.ndarray]:
        """As :class:`models.exported.network.Runtime`."""
        return self.session.run(None, {self.input: images})


def _name_dimensions(model: Any, free_axes: Sequence[int]) -> None:
    """Give the free dimensions their names instead of the exporter's formulas."""
    del model.graph.value_info[:]  # shapes between the nodes, in the old names
    names = {0: "batch", 2: "height", 3: "width"}
    shape = model.graph.input[0].type.tensor_type.shape
    for axis in free_axes:
        shape.dim[axis].dim_param = names[axis]
    for output in model.graph.output:
        for axis, name in enumerate(("batch", "slots")):
            if output.type.tensor_type.shape.dim[axis].dim_param:
                output.type.tensor_type.shape.dim[axis].dim_param = name


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the exporter prints and logs about itself from the console."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
