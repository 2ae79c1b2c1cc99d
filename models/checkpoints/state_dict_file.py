"""Files that are nothing but the tensors of a state dict, as torchvision and effdet publish their weights."""

from __future__ import annotations

import zipfile
from pathlib import Path

import torch
from torch import Tensor

from models.checkpoints.format import is_state_dict
from models.checkpoints.torch_zip import check_archive


def read_state_dict(path: Path, device: str = "cpu") -> dict[str, Tensor] | None:
    """Return the tensors by name; None for a file that holds anything else.

    Both of torch's formats are read, that of before 1.6, too, in which torchvision's older files are.

    Args:
        path: the file.
        device: where the tensors are wanted; "meta" for their names and shapes alone.
    """
    try:
        if zipfile.is_zipfile(path):
            check_archive(path)
        content = torch.load(path, map_location=device, weights_only=True)
    except Exception:  # what torch raises is open-ended; the reader of YOLOv5's files says what is wrong
        return None
    return dict(content) if is_state_dict(content) and content else None
