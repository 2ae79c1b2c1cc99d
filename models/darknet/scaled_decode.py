"""Cfgs of PyTorch_YOLOv4, ScaledYOLOv4 and yolor, which decode boxes otherwise than Darknet reads the same file.

Their code computes ``(2 sigmoid)^2`` for sizes and ``2 sigmoid - 1/2`` for centres of any ``[yolo]``. Darknet does so
with ``new_coords=1`` and ``scale_x_y=2`` behind a logistic; the file does not say which of the two is meant.
"""

from __future__ import annotations

from dataclasses import replace

from models.darknet.cfg_text import with_values
from models.darknet.section import DarknetConfig, Section
from utils.errors import UserError

DECODES = ("cfg", "scaled")  # --decode: as Darknet reads the cfg, or as those three
SUSPICIOUS_SCALES = (1.05, 2.0)  # scale_x_y of every head in their cfgs, without effect there


def with_scaled_decode(config: DarknetConfig) -> DarknetConfig:
    """Return the cfg that says in Darknet's words what those three compute; its heads read logits.

    Raises:
        UserError: it has no ``[yolo]``, or something stands before one that no logistic can be put on.
    """
    heads = [section for section in config.sections if section.kind == "yolo"]
    if not heads:
        raise UserError(f"{config.source}: --decode scaled is for [yolo] heads; this cfg has none")
    changes: list[tuple[Section, dict[str, str]]] = []
    sections = list(config.sections)
    for head in heads:
        before = sections[head.index - 1] if head.index else None
        activation = before["activation"] if before is not None and "activation" in before.keys else ""
        if activation == "logistic" and head["new_coords"]:
            continue
        if before is None or activation not in ("linear", "logistic"):
            raise head.error("--decode scaled: needs a layer with activation=linear before it")
        sections[before.index] = before.replace(activation="logistic")
        sections[head.index] = head.replace(new_coords=1, scale_x_y=2.0)
        changes += [(before, {"activation": "logistic"}), (head, {"new_coords": "1", "scale_x_y": "2.0"})]
    return replace(config, text=with_values(config.text, changes), sections=tuple(sections))


def decode_warning(config: DarknetConfig) -> str:
    """Return a line where a cfg may be one of theirs, or nothing."""
    heads = [section for section in config.sections if section.kind == "yolo"]
    scales = {head["scale_x_y"] for head in heads}
    if len(scales) != 1 or not scales <= set(SUSPICIOUS_SCALES) or any(head["new_coords"] for head in heads):
        return ""
    return (
        f"{config.source}:{heads[0].lines['scale_x_y']}: WARNING: scale_x_y={scales.pop():g} without new_coords: boxes "
        "are decoded as Darknet does; for weights of PyTorch_YOLOv4, ScaledYOLOv4 or yolor add --decode scaled"
    )
