"""Names that were changed, and by what: so recipes, runs and checkpoints from before the change can still be read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RENAMED = {  # options, columns of results.csv and of the blocks of an interrupted --matching-stats
    "iou_new": "extra_iou",
    "new_topk": "extra_topk",
    "least_q": "min_q",
    "match/std_per_object": "match/base_per_object",
    "match/std_iou": "match/base_iou",
    "match/new_iou": "match/extra_iou",
    "match/new_share": "match/extra_share",
    "object/std": "object/base",
    "object/new": "object/extra",
    "object/prior_iou": "object/shape_iou",
}
RENAMED_VALUES = {"tobj": {"std+new": "base+extra", "std": "base", "new": "extra"}}  # values of options


def with_current_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a flat mapping of names to values under the current names; values of options are renamed likewise."""
    current = {}
    for name, value in values.items():
        name = RENAMED.get(name, name)
        meanings = RENAMED_VALUES.get(name, {})
        current[name] = meanings.get(value, value) if isinstance(value, str) else value
    return current
