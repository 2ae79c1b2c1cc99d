"""Exported files, told apart by their content, and opened as networks: one table of runtimes."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from models.exported.network import ExportedNetwork
from models.exported.onnx_file import open_onnx
from models.exported.openvino_folder import open_openvino, xml_of
from models.exported.torchscript_file import open_torchscript

OPENERS: dict[str, Callable[[Path], ExportedNetwork]] = {
    "onnx": open_onnx,
    "openvino": open_openvino,
    "torchscript": open_torchscript,
}


def exported_kind(path: Path) -> str:
    """Return the key of ``OPENERS`` for an exported file or folder, nothing for every other file."""
    if path.is_dir():
        return "openvino" if xml_of(path) else ""
    with open(path, "rb") as file:
        start = file.read(64)
        if start.startswith(b"PK"):
            return "torchscript" if _is_torchscript(file) else ""
    if path.suffix == ".xml" or start.lstrip().startswith(b"<?xml"):
        return "openvino"
    # A protobuf whose first field is ir_version, a small number; Darknet's weights begin with four bytes of a version.
    return "onnx" if start[:1] == b"\x08" and 0 < start[1] < 64 and start[2:4] != b"\0\0" else ""


def _is_torchscript(file: BinaryIO) -> bool:
    """Say whether an archive has code, as TorchScript's have and checkpoints do not."""
    try:
        with zipfile.ZipFile(file) as archive:
            return any("/code/" in entry.filename for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError, NotImplementedError):
        return False  # the reader of checkpoints says what is damaged


def open_exported(path: Path) -> ExportedNetwork:
    """Return the network of an exported file or folder.

    Raises:
        UserError: it is damaged, of another program, or its runtime is not installed.
    """
    return OPENERS[exported_kind(path)](path)
