"""TorchScript: traced, frozen, and run by torch itself, on the CPU. Its sizes are those of the trace unless free."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from models.exported.graph import DetectionGraph
from models.exported.metadata import ExportMetadata, metadata_from_strings
from models.exported.network import ExportedNetwork
from models.exported.onnx_file import example_images
from utils.errors import UserError

METADATA = "metadata.json"  # the extra file in the archive


@torch.no_grad()
def write_torchscript(graph: DetectionGraph, metadata: ExportMetadata, path: Path) -> None:
    """Write a graph as TorchScript, with its metadata as an extra file in the archive."""
    with warnings.catch_warnings():  # that tracing is no longer developed, and that shapes are compared
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(graph, example_images(metadata), check_trace=False)
        frozen = torch.jit.freeze(traced)
        torch.jit.save(frozen, str(path), _extra_files={METADATA: json.dumps(metadata.to_strings())})


def open_torchscript(path: Path) -> ExportedNetwork:
    """Return the network of a TorchScript file.

    Raises:
        UserError: damaged, or written by another program.
    """
    extra = {METADATA: ""}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = torch.jit.load(str(path), map_location="cpu", _extra_files=extra)
        strings = json.loads(extra[METADATA] or "{}")
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{path}: damaged, or not for this torch ({error!s:.120})") from error
    metadata = metadata_from_strings(strings, path) if isinstance(strings, dict) else None
    if metadata is None:
        raise UserError(f"{path}: a TorchScript file of another program; export its weights with export.py")
    return ExportedNetwork(metadata, TorchScriptRuntime(module), path)


class TorchScriptRuntime:
    """A loaded TorchScript module between arrays."""

    def __init__(self, module: torch.jit.ScriptModule) -> None:
        self.module = module

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> Sequence[np.ndarray]:
        """As :class:`models.exported.network.Runtime`."""
        boxes, scores = self.module(torch.from_numpy(images))
        return boxes.numpy(), scores.numpy()
