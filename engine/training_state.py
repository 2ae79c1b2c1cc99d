"""What ``train.py --resume`` takes from a checkpoint, checked before anything of it is used."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from engine.progress import is_progress
from engine.train_loop import TrainState
from models.checkpoints.format import check_network_content, is_state_dict
from models.checkpoints.load import load_state
from models.checkpoints.tensor_checks import why_unusable
from models.detection_network import DetectionNetwork
from utils.errors import UserError

PARTS = {"model": dict, "ema": dict, "optimizer": dict, "scaler": dict, "history": list}
# What the optimizers keep for each parameter; the step is one number, the others have the parameter's shape.
KEPT_PER_PARAMETER = ({"momentum_buffer"}, {"step", "exp_avg", "exp_avg_sq"})


def check_resumable(content: Mapping[str, Any], path: str | Path) -> None:
    """Refuse a checkpoint from which no training can go on, because a part is missing or of another type.

    Raises:
        UserError: names the part.
    """
    check_network_content(dict(content), path)
    if "optimizer" not in content:
        raise UserError(f"{path}: holds no training state; resume from last.pt, or start with --weights")
    wrong = [name for name, kind in PARTS.items() if not isinstance(content.get(name), kind)]
    wrong += [name for name in ("model", "ema") if not is_state_dict(content.get(name))]
    wrong += [name for name in ("epoch", "ema_updates") if not _is_count(content.get(name))]
    if not _is_number(content.get("best_fitness")):
        wrong.append("best_fitness")
    if not _is_count(content.get("best_epoch", 0)):
        wrong.append("best_epoch")
    if not wrong and not all(_is_row(row) for row in content["history"]):
        wrong.append("history")
    if not _is_class_ap(content.get("class_ap", []), content["names"]):  # older ones do not have it
        wrong.append("class_ap")
    if not is_progress(content.get("progress", [])):
        wrong.append("progress")
    if not _is_count(content["options"].get("epochs")):
        wrong.append("options")
    if wrong:
        raise _damaged(path, f"its '{wrong[0]}' is missing or unreadable")


def load_training_state(state: TrainState[DetectionNetwork], content: Mapping[str, Any], path: str | Path) -> None:
    """Go on exactly where the checkpoint was written; it has passed :func:`check_resumable`.

    Raises:
        UserError: its tensors are not those of this network and its optimizer, or not finite; names the first.
    """
    for network, name in ((state.model, "model"), (state.average.model, "ema")):
        load_state(network, content[name], Path(path))
    problem = _optimizer_problem(content["optimizer"], state.optimizer)
    if problem:
        raise _damaged(path, f"its optimizer {problem}")
    if not all(_is_number(value) for value in content["scaler"].values()):
        raise _damaged(path, "its 'scaler' is unreadable")
    try:
        state.load_state_dict(dict(content))
    except (KeyError, RuntimeError) as error:  # the scaler lacks a number
        raise _damaged(path, "its 'scaler' is unreadable") from error


def _optimizer_problem(found: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> str:
    """Return in words what is wrong with an optimizer's state dict; empty where nothing is."""
    wanted = optimizer.state_dict()["param_groups"]
    groups, kept = found.get("param_groups"), found.get("state")
    if not isinstance(groups, list) or not isinstance(kept, dict) or len(groups) != len(wanted):
        return f"does not have {len(wanted)} groups of parameters"
    problems = [_group_problem(*pair) for pair in zip(groups, wanted, strict=True)]
    if not any(problems):
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        problems = [_parameter_problem(index, values, parameters) for index, values in kept.items()]
    return next(filter(None, problems), "")


def _group_problem(found: Any, wanted: Mapping[str, Any]) -> str:
    """Return what is wrong with one group of parameters and its settings."""
    # Flags come and go with the versions of PyTorch, which fills in those that are missing.
    needed = {name for name, value in wanted.items() if value is not None and not isinstance(value, bool)}
    if not isinstance(found, dict) or not needed <= found.keys():
        return "lacks settings"
    if any(not _is_alike(found[name], wanted[name]) for name in wanted.keys() & found.keys()):
        return "has settings that are no numbers, or was made for other parameters"
    return "" if found["params"] == wanted["params"] else "was made for other parameters"


def _parameter_problem(index: Any, values: Any, parameters: list[torch.Tensor]) -> str:
    """Return what is wrong with what the optimizer keeps of one parameter."""
    if not _is_count(index) or index >= len(parameters) or not isinstance(values, dict):
        return "was made for other parameters"
    if values.keys() not in KEPT_PER_PARAMETER:
        return f"keeps something else of parameter {index}"
    for name, value in values.items():
        problem = _kept_problem(name, value, parameters[index])
        if problem:
            return f"keeps a '{name}' of parameter {index} that {problem}"
    return ""


def _kept_problem(name: str, value: Any, parameter: torch.Tensor) -> str:
    """Return what is wrong with one thing that the optimizer keeps of a parameter."""
    if name == "momentum_buffer" and value is None:  # before the first step
        return ""
    wanted = torch.zeros(()) if name == "step" else parameter
    if not isinstance(value, torch.Tensor) or value.shape != wanted.shape:
        return "has another shape"
    return why_unusable(value, wanted)


def _is_alike(found: Any, wanted: Any) -> bool:
    """Whether a setting has the type of the optimizer's own, where 1 may stand for 1.0."""
    if isinstance(wanted, (list, tuple)):
        return (
            isinstance(found, (list, tuple))
            and len(found) == len(wanted)
            and all(_is_alike(*pair) for pair in zip(found, wanted, strict=True))
        )
    if isinstance(wanted, bool) or wanted is None:
        return type(found) is type(wanted)
    return _is_number(found)


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 2**63 and math.isfinite(value)
    )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and _is_number(value) and value >= 0


def _is_row(row: Any) -> bool:
    return isinstance(row, dict) and _is_count(row.get("epoch")) and all(_is_number(value) for value in row.values())


def _is_class_ap(values: Any, names: Any) -> bool:
    """Whether this is the AP of every class, or of none before the first test."""
    return isinstance(values, list) and len(values) in (0, len(names)) and all(_is_number(value) for value in values)


def _damaged(path: str | Path, what: str) -> UserError:
    return UserError(f"{path}: damaged, {what}; use another copy or train again")
