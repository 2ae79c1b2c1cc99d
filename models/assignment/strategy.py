"""What an assignment strategy is: a rule for the base matches, perhaps one for extra matches, and facts about both."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Strategy:
    """One entry of :data:`models.assignment.strategies.STRATEGIES`.

    A rule is a frozen dataclass that is called with a batch. Its fields hold the defaults of its settings; those that
    :class:`~models.assignment.options.AssignmentOptions` has, too, are options of the strategy.
    """

    name: str  # in --match
    base: type  # called with (AssignmentInput), returns Pairs
    extra: type | None = None  # called with (AssignmentInput, base: Pairs), returns Pairs
    reads_predictions: bool = False  # False: its matches follow from boxes and priors, no network is needed
    anchor_rule: str = ""  # by which an object may fit no anchor: "iou" or "ratio"; "": every object gets one
    needs_anchors: bool | None = None  # compares shapes of anchors; False: for heads that have none; None: for both
    ignores_by_default: bool = False  # slots above the cfg's ignore_thresh and in crowd regions, without an option
