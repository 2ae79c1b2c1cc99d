"""Checkpoints: plain values and tensors only, written whole or not at all, read without unpickling code."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from utils.errors import UserError
from utils.files import atomic_path

FORMAT = "yolo-lab-1"


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write ``content`` to ``path``; a process killed meanwhile leaves the previous file as it was."""
    with atomic_path(path) as temporary:
        torch.save({"format": FORMAT} | content, temporary)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Return the dict that :func:`save_checkpoint` wrote, its tensors on the CPU.

    Raises:
        UserError: there is no such file, it is cut off, it is not a checkpoint of this toolkit, or it holds code.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint; train.py writes last.pt and best.pt into runs/train/<name>/")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: not a checkpoint of this toolkit (it holds more than tensors and plain values)"
        ) from error
    except (RuntimeError, EOFError, zipfile.BadZipFile, ValueError, KeyError, OSError) as error:
        raise UserError(f"{path}: cut off or not a checkpoint; use another copy or train again") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{path}: not a checkpoint of this toolkit ('format' is not {FORMAT})")
    return content
