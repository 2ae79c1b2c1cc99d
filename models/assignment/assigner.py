"""Which slots learn from which objects: the one way to ask a strategy.

Training and the analyses both go through :func:`build_assigner`; there is no second implementation of a rule.
``docs/assignment.md`` explains every strategy with a worked example.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from models.assignment.grid import SlotGrid
from models.assignment.ignored import ignored_slots
from models.assignment.inputs import AssignmentInput, Pairs
from models.assignment.options import AssignmentOptions, build_rule
from models.assignment.predicted import without
from models.assignment.prior import with_fallback
from models.assignment.strategies import fits_heads, reads_predictions, strategies_for, strategies_of
from models.assignment.strategy import Strategy
from models.heads import Head
from utils.errors import UserError
from utils.structures import Assignment, Targets


class Assigner:
    """Matches batches by the strategy that the options name; no gradient passes through it."""

    def __init__(self, options: AssignmentOptions, heads: tuple[Head, ...]) -> None:
        parts = strategies_of(options.match)
        _refuse_other_heads(options, heads)
        self.options, self.heads = options, tuple(heads)
        self.make_base = build_rule(parts[0].base, options)
        self.make_extra = _extra_part(parts, options)
        self.ignore_thresholds, self.ignore_crowd = _ignore_rules(parts[0], options, self.heads)
        ignores = self.ignore_thresholds is not None or self.ignore_crowd
        self.reads_predictions = ignores or reads_predictions(options.match)  # to match, or to leave slots out

    @torch.no_grad()
    def match(
        self,
        targets: Targets,
        grid: SlotGrid,
        raw_maps: Sequence[Tensor] | None = None,
        crowd: Targets | None = None,
    ) -> Assignment:
        """Match a batch.

        Args:
            targets: the objects, on the device of the grid.
            grid: the slots of the heads at the batch's size.
            raw_maps: one [B A H W 5+C] per head. Without them only strategies that look at priors alone can match, and
                no slot is ignored.
            crowd: crowd regions, used where the options ignore predictions inside them.

        Returns:
            The base and the extra matches, and the slots that are ignored: one map per head, or None for each head
            where nothing can be ignored.
        """
        inputs = AssignmentInput(targets, grid, tuple(raw.detach() for raw in raw_maps or ()))
        base = extra = Pairs.none(grid.head.device)
        undecided = None
        if len(targets):
            base = self.make_base(inputs)
            undecided = base.undecided
            if self.options.match_fallback:
                base = with_fallback(inputs, base)
            if self.make_extra is not None:
                extra = self.make_extra(inputs, base)
        ignore: tuple[Tensor | None, ...] = (None,) * len(grid.heads)
        is_asked_for = self.ignore_thresholds is not None or self.ignore_crowd
        if raw_maps is not None and (is_asked_for or undecided is not None):
            ignore = ignored_slots(inputs, self.ignore_thresholds, crowd if self.ignore_crowd else None, undecided)
        return Assignment(inputs.matches(base), inputs.matches(extra), ignore)


def _refuse_other_heads(options: AssignmentOptions, heads: tuple[Head, ...]) -> None:
    """Refuse a strategy that has nothing to compare on these heads.

    Raises:
        UserError: names those that fit.
    """
    has_anchors = all(head.has_anchors for head in heads)
    if not fits_heads(options.match, has_anchors):
        kind = "anchors" if has_anchors else "no anchors"
        known = ", ".join(strategies_for(has_anchors))
        raise UserError(f"--match {options.match}: not for this network, whose heads have {kind}; use one of {known}")
    if options.match_fallback and not has_anchors:
        raise UserError("--match-fallback: leave it out; it gives objects their best anchor, and this network has none")


def _ignore_rules(
    strategy: Strategy, options: AssignmentOptions, heads: tuple[Head, ...]
) -> tuple[tuple[float, ...] | None, bool]:
    """Return two rules: which IoU makes a prediction no negative, and whether a crowd region does.

    The first is one IoU per head, or None where no IoU does; the options decide where given, else the strategy.
    """
    thresholds = None
    if options.ignore_thresh is not None:
        thresholds = (options.ignore_thresh,) * len(heads)
    elif strategy.ignores_by_default:
        thresholds = tuple(head.ignore_thresh for head in heads)
    ignore_crowd = strategy.ignores_by_default if options.ignore_crowd is None else options.ignore_crowd
    return thresholds, ignore_crowd


def _extra_part(parts: list[Strategy], options: AssignmentOptions) -> Callable[[AssignmentInput, Pairs], Pairs] | None:
    """Return the rule for extra matches: the last strategy's own, else, of ``A+B``, B's base matches that A lacks.

    None where ``--match`` makes no extra matches.
    """
    last = parts[-1]
    if last.extra is not None:
        return build_rule(last.extra, options)
    if len(parts) == 1:
        return None
    make_pairs = build_rule(last.base, options)

    def unlike_base(inputs: AssignmentInput, base: Pairs) -> Pairs:
        return without(inputs, make_pairs(inputs), base)

    return unlike_base


def build_assigner(options: AssignmentOptions, heads: tuple[Head, ...]) -> Assigner:
    """Return the assigner of ``--match`` and its options for a network's heads."""
    return Assigner(options, heads)
