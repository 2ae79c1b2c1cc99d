"""Checkpoints: plain values and tensors only, written whole or not at all, read without unpickling code."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from models.checkpoints.torch_zip import check_archive
from utils.class_names import is_class_name
from utils.errors import UserError
from utils.files import atomic_path, keep_previous
from utils.renamed import with_current_names

FORMAT = "yolo-lab-1"


def save_checkpoint(path: Path, content: dict[str, Any], keep: int = 0) -> None:
    """Write ``content`` to ``path``; a process killed meanwhile leaves the previous file as it was.

    Args:
        path: the file.
        content: plain values and tensors.
        keep: how many of the files before this one stay beside it, see :func:`utils.files.keep_previous`.
    """
    with atomic_path(path) as temporary:
        try:
            torch.save({"format": FORMAT} | content, temporary)
        except RuntimeError as error:  # torch's own writer knows no OSError
            raise OSError(f"{path}: cannot be written completely; is the disk full?") from error
        keep_previous(path, keep)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Return the dict that :func:`save_checkpoint` wrote, its tensors on the CPU.

    Raises:
        UserError: there is no such file, it is cut off, it is not a checkpoint of this toolkit, or it holds code.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint; train.py writes last.pt and best.pt into runs/train/<name>/")
    try:
        check_archive(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except UserError as error:
        raise UserError(f"{error}; not a checkpoint of this toolkit") from error
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: not a checkpoint of this toolkit (it holds more than tensors and plain values)"
        ) from error
    except Exception as error:  # what torch raises on damaged bytes is open-ended: IndexError, struct.error, ...
        raise UserError(f"{path}: cut off or not a checkpoint; use another copy or train again") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{path}: not a checkpoint of this toolkit ('format' is not {FORMAT})")
    if "options" in content:
        content["options"] = with_current_names(_flat(content["options"], path))
    if isinstance(content.get("history"), list):
        content["history"] = [with_current_names(_flat(row, path)) for row in content["history"]]
    return content


def _flat(values: Any, path: Path) -> dict[str, Any]:
    """Return the values where they are a mapping of names to plain values, as options and rows of results are.

    Raises:
        UserError: they are something else.
    """
    if isinstance(values, dict) and all(isinstance(name, str) for name in values):
        parts = [one for value in values.values() for one in (value if isinstance(value, list) else [value])]
        if all(one is None or isinstance(one, (float, str)) or _is_integer(one) for one in parts):
            return values
    raise UserError(f"{path}: damaged, its options or its history are no plain values; use another copy or train again")


def _is_integer(value: Any) -> bool:
    """Whether this is a bool or a whole number of at most 64 bits; a pickle may hold one of a million digits."""
    return isinstance(value, int) and abs(value) < 2**63


def check_network_content(content: dict[str, Any], path: str | Path) -> None:
    """Refuse a checkpoint whose network cannot be rebuilt, because a part is missing or of another type.

    Raises:
        UserError: names the part.
    """
    kinds = {"cfg_name": str, "cfg_text": str, "names": list, "options": dict}
    wrong = [key for key, kind in kinds.items() if not isinstance(content.get(key), kind)]
    if not wrong and not (content["names"] and all(is_class_name(name) for name in content["names"])):
        wrong = ["names"]
    state = content.get("ema", content.get("model"))
    if not is_state_dict(state):
        wrong.append("model")
    if wrong:
        raise UserError(f"{path}: damaged, its '{wrong[0]}' is missing or unreadable; use another copy or train again")


def is_state_dict(state: Any) -> bool:
    """Whether this is what a network's ``state_dict`` returns: tensors by name."""
    return isinstance(state, dict) and all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in state.items()
    )
