"""The table of strategies, and what a name in ``--match`` means.

A new strategy is one file with its rule and its ``STRATEGY``, and its line here; every list of strategies follows.
"""

from __future__ import annotations

from models.assignment import atss, fcos, max_iou, predicted, prior, simota, tal
from models.assignment.strategy import Strategy
from utils.errors import suggestion

STRATEGIES: dict[str, Strategy] = {
    strategy.name: strategy
    for strategy in (
        *prior.STRATEGIES,
        *predicted.STRATEGIES,
        max_iou.STRATEGY,
        atss.STRATEGY,
        simota.STRATEGY,
        tal.STRATEGY,
        fcos.STRATEGY,
    )
}


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
    """Whether ``--match`` names a strategy, or a combination, that can make ``extra`` matches."""
    parts = strategies_of(match)
    return len(parts) == 2 or parts[0].extra is not None


def reads_predictions(match: str) -> bool:
    """Whether the strategy that ``--match`` names, or either part of ``A+B``, looks at a network's predictions."""
    return any(strategy.reads_predictions for strategy in strategies_of(match))


def fits_heads(match: str, has_anchors: bool) -> bool:
    """Whether the strategy that ``--match`` names, both of ``A+B``, is for heads with, or without, anchors."""
    return all(strategy.needs_anchors in (None, has_anchors) for strategy in strategies_of(match))


def strategies_for(has_anchors: bool = True) -> list[str]:
    """Return the names of the strategies for heads with, or without, anchors, in the table's order."""
    return [name for name in STRATEGIES if fits_heads(name, has_anchors)]


def prior_strategies(has_anchors: bool = True) -> list[str]:
    """Return the names of those that need no network, in the table's order."""
    return [name for name in strategies_for(has_anchors) if not STRATEGIES[name].reads_predictions]
