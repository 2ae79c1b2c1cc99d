"""OpenVINO: a folder with ``<name>.xml`` and ``.bin``, converted from an ONNX file, run on the CPU."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.exported.metadata import ExportMetadata, metadata_from_strings
from models.exported.network import ExportedNetwork
from models.exported.required import required
from utils.errors import UserError

PLACE = "yolo_lab"  # of the metadata among the file's runtime information


def xml_of(folder: Path) -> Path | None:
    """Return the only ``.xml`` of a folder, None where there is none or several."""
    found = sorted(folder.glob("*.xml"))
    return found[0] if len(found) == 1 else None


def write_openvino(model: Any, metadata: ExportMetadata, path: Path) -> None:
    """Write a model of OpenVINO's as ``.xml`` and ``.bin``, with its metadata; weights of float16 where it says so."""
    openvino = required("openvino", "--format openvino")
    for name, text in metadata.to_strings().items():
        model.set_rt_info(text, [PLACE, name])
    openvino.save_model(model, str(path), compress_to_fp16=metadata.precision == "float16")


def read_model(path: Path) -> Any:
    """Return the model in an ``.xml`` or ONNX file.

    Raises:
        UserError: damaged, or OpenVINO is missing.
    """
    openvino = required("openvino", str(path))
    try:
        return openvino.Core().read_model(str(path))
    except RuntimeError as error:
        raise UserError(f"{path}: damaged, or not for this OpenVINO ({error!s:.120})") from error


def open_openvino(path: Path) -> ExportedNetwork:
    """Return the network of a folder, or of the ``.xml`` in it.

    Raises:
        UserError: damaged, written by another program, or OpenVINO is missing.
    """
    model = read_model(xml_of(path) or path)
    names = [name for name in ("format", *ExportMetadata.__dataclass_fields__) if model.has_rt_info([PLACE, name])]
    metadata = metadata_from_strings({name: model.get_rt_info([PLACE, name]).astype(str) for name in names}, path)
    if metadata is None:
        raise UserError(f"{path}: an OpenVINO file of another program; export its weights with export.py")
    return ExportedNetwork(metadata, OpenVinoRuntime(model, metadata), path)


class OpenVinoRuntime:
    """A compiled model, with as many threads as torch has; every thread of the caller has a request of its own."""

    def __init__(self, model: Any, metadata: ExportMetadata) -> None:
        openvino = required("openvino", "this file")
        settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        if metadata.precision != "float16":  # else what is fastest: on some CPUs it computes in bfloat16
            settings["INFERENCE_PRECISION_HINT"] = "f32"
        self.compiled = openvino.Core().compile_model(model, "CPU", settings)
        self.own = threading.local()

    def __call__(self, images: np.ndarray) -> Sequence[np.ndarray]:
        """As :class:`models.exported.network.Runtime`."""
        if not hasattr(self.own, "request"):
            self.own.request = self.compiled.create_infer_request()
        outputs = self.own.request.infer([images])
        return [np.array(outputs[output]) for output in self.compiled.outputs]
