"""Names that were changed, and by what: so recipes, runs and checkpoints from before the change can still be read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RENAMED = {  # options, columns of results.csv and of the blocks of an interrupted --matching-stats
    "iou_new": "extra_iou",
    "new_topk": "extra_topk",
    "least_q": "min_q",
    "adam": "optimizer",
    "cache_images": "cache",
    "match/std_per_object": "match/base_per_object",
    "match/std_iou": "match/base_iou",
    "match/new_iou": "match/extra_iou",
    "match/new_share": "match/extra_share",
    "object/std": "object/base",
    "object/new": "object/extra",
    "object/prior_iou": "object/shape_iou",
}
RENAMED_VALUES: dict[str, dict[Any, Any]] = {  # values of options, under the current name
    "tobj": {"std+new": "base+extra", "std": "base", "new": "extra"},
    "optimizer": {True: "AdamW", False: "SGD"},
    "cache": {True: "ram", False: ""},
}
OWN_RULES = {  # networks that once had their own assignment only, under the name of the usual one
    "retinanet_resnet50_fpn": "maxiou",
    "retinanet_resnet50_fpn_v2": "maxiou",
    "fcos_resnet50_fpn": "fcos",
}
LISTS = {"freeze": None, "img_size": 0}  # options that were one number -> the one that stood for none


def record_of_run(values: Mapping[str, Any], cfg_side: int = 0) -> dict[str, Any]:
    """Return all options of a run of ``train.py``, as it keeps them, under current names and with current meanings.

    Before there were ``--resize`` and ``--test-size``, images were letterboxed into squares, and a second number of
    ``img_size`` was the side for testing. Before there was ``--background-iou``, some networks had no choice of
    ``--match``.

    Args:
        values: the options; none of a file that no run wrote.
        cfg_side: the longer side that the cfg says, in pixels; 0 where it is not known.
    """
    current = with_current_names(values)
    if current and "resize" not in current:
        size = current.get("img_size", [])
        if isinstance(size, (list, tuple)):
            train_size = list(size[:1]) or [cfg_side] * bool(cfg_side)
            current |= {"img_size": train_size, "test_size": list(size[1:])}
        current["resize"] = "letterbox"
    if "background_iou" not in current and current.get("cfg") in OWN_RULES:
        current["match"] = OWN_RULES[current["cfg"]]
    return current


def with_current_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a flat mapping of names to values under the current names; values of options are renamed likewise."""
    current = {}
    for name, value in values.items():
        name = RENAMED.get(name, name)
        meanings = RENAMED_VALUES.get(name, {})
        if isinstance(value, (str, bool)):
            value = meanings.get(value, value)
        if name in LISTS and not isinstance(value, (list, tuple)):
            value = [] if value == LISTS[name] else [value]
        current[name] = value
    return current
