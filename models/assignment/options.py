"""The options of the assignment: an option that the strategy does not use is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

from models.assignment.candidates import CANDIDATES
from models.assignment.inputs import Pairs
from models.assignment.strategies import STRATEGIES, strategies_of
from utils.boxes import IOU_KINDS
from utils.config import flag, option


@dataclass(frozen=True)
class AssignmentOptions:
    """Which slots learn from which objects; an option that the strategy does not use is refused."""

    match: str = option("standard", f"strategy: {', '.join(STRATEGIES)}; or A+B: base matches of A, extra ones of B")
    alpha: float = option(0.0, "share of the extra matches in the box and class loss, 0 to 1")
    iou_t: float | None = option(
        None, "an anchor matches above this shape IoU (standard: 0.2; darknet: the cfg's), or IoU (maxiou: from 0.5 on)"
    )
    background_iou: float | None = option(None, "an anchor whose IoUs are below this is a negative (maxiou: 0.4)")
    match_anchors: str | None = option(None, "anchors that may match: all, or the best of each head", ("all", "best"))
    anchor_t: float | None = option(None, "largest ratio of an anchor's side to the object's (ratio: 4)")
    extra_iou: float | None = option(None, "a prediction matches from this IoU on (0.5)")
    match_iou: str | None = option(None, "IoU that decides extra matches (iou)", tuple(IOU_KINDS))
    candidates: str | None = option(None, "slots that may become extra matches", tuple(CANDIDATES))
    extra_topk: int | None = option(None, "at most so many extra matches per object (no limit)")
    assign_rate: float | None = option(None, "at most so many extra matches per base match of the batch (no limit)")
    refilter: bool = option(False, "keep extra matches that beat the object's worst base match")
    reduce_anchor: bool = option(False, "keep the best anchor of a cell")
    remove_duplicate: bool = option(False, "a slot is the extra match of one object only, never of a base slot")
    linear_reweight: float | None = option(
        None, "weight of an extra match at --extra-iou; rises to 1 at IoU 1 (always 1)"
    )
    tobj: str | None = option(
        None, "matches that write the objectness target (base+extra)", ("base+extra", "base", "extra")
    )
    match_fallback: bool = option(False, "an object without a base match takes its best anchor over all heads")
    ignore_thresh: float | None = option(None, "unmatched slots above this IoU are no negatives (darknet: the cfg's)")
    ignore_crowd: bool | None = option(None, "unmatched slots inside crowd regions are no negatives (darknet: yes)")
    normalise: str = option("head", "mean loss over the matches of each head, or of the batch", ("head", "batch"))

    def __post_init__(self) -> None:
        used = options_used(self.match)
        for item in fields(self):
            if item.name not in used and getattr(self, item.name) != item.default:
                users = [name for name in STRATEGIES if item.name in options_used(name)]
                raise ValueError(f"{flag(item.name)} is not used by --match {self.match}; used by: {', '.join(users)}")
        for name, low, high in RANGES:
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ValueError(f"{flag(name)} must be between {low} and {high}, not {value}")


# Option, lowest and highest value, both allowed.
RANGES = (
    ("alpha", 0, 1), ("iou_t", 0, 1), ("background_iou", 0, 1), ("anchor_t", 1, 1e6), ("extra_iou", 0.01, 1),
    ("extra_topk", 1, 1_000_000), ("assign_rate", 0, 1e6), ("linear_reweight", 0, 1), ("ignore_thresh", 0.01, 1),
)  # fmt: skip


OPTIONS_OF_ALL = {"match", "alpha", "match_fallback", "ignore_thresh", "ignore_crowd", "normalise"}


def options_used(match: str) -> set[str]:
    """Return the names of the options that ``--match`` uses.

    Raises:
        ValueError: ``match`` names no strategy.
    """
    parts = strategies_of(match)
    first, last = parts[0], parts[-1]
    used = OPTIONS_OF_ALL | option_names(first.base)
    if last.extra is not None:
        used |= option_names(last.extra) | {"tobj"}
    elif len(parts) == 2:
        used |= option_names(last.base) | {"tobj"}
    return used


def option_names(rule: type) -> set[str]:
    """Return the names of the fields of a strategy's rule that are options."""
    return {item.name for item in fields(rule)} & {item.name for item in fields(AssignmentOptions)}


def build_rule(rule: type, options: AssignmentOptions) -> Callable[..., Pairs]:
    """Return a strategy's rule with the options that were given; what is None keeps the rule's own default."""
    given = {name: getattr(options, name) for name in option_names(rule)}
    return rule(**{name: value for name, value in given.items() if value is not None})
