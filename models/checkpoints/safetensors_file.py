"""A checkpoint as safetensors: the tensors of a state dict, and of the rest what is needed to rebuild the network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from models.checkpoints.format import FORMAT, check_network_content
from models.exported.required import required
from utils.errors import UserError

TEXTS, VALUES = ("cfg_name", "cfg_text"), ("names", "options")  # of a checkpoint: as they are, and as JSON
LARGEST_HEADER = 100_000_000  # bytes, as the library allows


def is_safetensors(start: bytes) -> bool:
    """Say whether a file begins as safetensors do: the length of a header in eight bytes, and its opening brace."""
    return len(start) > 8 and int.from_bytes(start[:8], "little") <= LARGEST_HEADER and start[8:9] == b"{"


def has_safetensors(path: Path) -> bool:
    """Say whether a file is safetensors, by its first bytes."""
    with open(path, "rb") as file:
        return is_safetensors(file.read(9))


def write_safetensors(path: Path, content: dict[str, Any], extra: dict[str, str]) -> None:
    """Write a checkpoint's ``model``, ``cfg_name``, ``cfg_text``, ``names`` and ``options``, and further texts.

    Raises:
        UserError: the package is missing.
    """
    package = required("safetensors.torch", "--format safetensors")
    texts = {name: str(content[name]) for name in TEXTS} | {name: json.dumps(content[name]) for name in VALUES}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in content["model"].items()}
    path.write_bytes(package.save(tensors, metadata=extra | texts | {"format": FORMAT}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a file and its texts, both by name.

    Raises:
        UserError: damaged, or the package is missing.
    """
    package = required("safetensors", str(path))
    try:
        with package.safe_open(str(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict
            return tensors, file.metadata() or {}
    except (package.SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: cut off or damaged ({error!s:.120}); use another copy or export again") from error


def read_safetensors(path: Path) -> dict[str, Any]:
    """Return what :func:`write_safetensors` wrote as the dict of a checkpoint.

    Raises:
        UserError: damaged, of another program, or the package is missing.
    """
    tensors, texts = read_tensors(path)
    content: dict[str, Any] = {"model": tensors}
    if texts.get("format") != FORMAT:
        raise UserError(f"{path}: safetensors of another program; only those of export.py hold their network")
    try:
        content |= {name: texts[name] for name in TEXTS} | {name: json.loads(texts[name]) for name in VALUES}
    except (KeyError, ValueError) as error:
        raise UserError(f"{path}: damaged, its metadata cannot be read; export it again") from error
    check_network_content(content, path)
    return content
