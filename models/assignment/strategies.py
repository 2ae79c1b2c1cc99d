"""The table of strategies, and what a name in ``--match`` means."""

from __future__ import annotations

from typing import TYPE_CHECKING

from models.assignment.atss import Atss
from models.assignment.predicted import Fast, Pure, Split
from models.assignment.prior import Darknet, Ratio, Standard
from models.assignment.simota import SimOta
from models.assignment.strategy import Strategy
from models.assignment.tal import Tal
from utils.errors import suggestion

if TYPE_CHECKING:
    from models.assignment.options import AssignmentOptions

OPTIONS_OF_ALL = {"match", "alpha", "match_fallback", "ignore_thresh", "ignore_crowd", "normalise"}


def _standard(options: AssignmentOptions) -> Standard:
    return Standard(0.20 if options.iou_t is None else options.iou_t, options.match_anchors == "best")


def _given(options: AssignmentOptions, names: tuple[str, ...]) -> dict:
    """Those of the named options that were given; what is None keeps the strategy's own default."""
    values = {name: getattr(options, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


STANDARD_USES = ("iou_t", "match_anchors")
PURE_USES = ("extra_iou", "match_iou", "candidates")
SPLIT_USES = (*PURE_USES, "refilter", "reduce_anchor", "extra_topk", "assign_rate")
FAST_USES = (*PURE_USES, "remove_duplicate", "reduce_anchor", "linear_reweight")

STRATEGIES: dict[str, Strategy] = {
    "standard": Strategy(_standard, STANDARD_USES),
    "ratio": Strategy(lambda options: Ratio(**_given(options, ("anchor_t",))), ("anchor_t",)),
    "darknet": Strategy(lambda options: Darknet(**_given(options, ("iou_t",))), ("iou_t",)),
    "pure": Strategy(_standard, STANDARD_USES, lambda options: Pure(**_given(options, PURE_USES)), PURE_USES),
    "split": Strategy(_standard, STANDARD_USES, lambda options: Split(**_given(options, SPLIT_USES)), SPLIT_USES),
    "fast": Strategy(_standard, STANDARD_USES, lambda options: Fast(**_given(options, FAST_USES)), FAST_USES),
    "atss": Strategy(lambda options: Atss()),
    "simota": Strategy(lambda options: SimOta()),
    "tal": Strategy(lambda options: Tal()),
}


def options_used(match: str) -> set[str]:
    """Return the names of the options that ``--match`` uses.

    Raises:
        ValueError: ``match`` names no strategy.
    """
    parts = strategies_of(match)
    first, last = parts[0], parts[-1]
    used = OPTIONS_OF_ALL | set(first.base_uses)
    if last.extra is not None:
        used |= {*last.extra_uses, "tobj"}
    elif len(parts) == 2:
        used |= {*last.base_uses, "tobj"}
    return used


def strategies_of(match: str) -> list[Strategy]:
    """Return the strategies that ``--match`` names, one or (``A+B``) two.

    Raises:
        ValueError: an unknown name, or more than two.
    """
    names = match.split("+")
    for name in names:
        if name not in STRATEGIES:
            known = f"known: {', '.join(STRATEGIES)}, and A+B of two of them"
            raise ValueError(f"unknown strategy '{name}' in --match {match}{suggestion(name, STRATEGIES)} ({known})")
    if len(names) > 2 or len(set(names)) < len(names):
        raise ValueError(
            f"--match {match}: a combination A+B takes the base matches of A and the extra ones of another B"
        )
    return [STRATEGIES[name] for name in names]


def makes_extra_matches(match: str) -> bool:
    """Whether ``--match`` names a strategy, or a combination, that has ``extra`` matches at all."""
    parts = strategies_of(match)
    return len(parts) == 2 or parts[0].extra is not None
