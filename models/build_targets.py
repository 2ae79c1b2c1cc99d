"""Which slots learn from which objects: the options, the table of strategies and the one way to call them.

Training and the analyses both go through :func:`build_assigner`; there is no second implementation of a rule.
``docs/assignment.md`` explains every strategy with a worked example.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from models.atss import Atss
from models.heads import Head
from models.ignored_slots import ignored_slots
from models.prediction_matching import Fast, Pure, Split, without
from models.prior_matching import Darknet, Ratio, Standard, with_fallback
from models.simota import SimOta
from models.slots import Pairs, Scene
from models.tal import Tal
from utils.boxes import IOU_KINDS
from utils.config import option
from utils.errors import suggestion
from utils.records import Assignment, Targets


@dataclass(frozen=True)
class AssignmentOptions:
    """Which slots learn from which objects; an option that the strategy does not use is refused."""

    match: str = option("standard", "strategy, or A+B: the std matches of A with the new matches of B")
    alpha: float = option(0.0, "share of the new matches in the box and class loss, 0 to 1")
    iou_t: float | None = option(None, "an anchor matches above this shape IoU (standard: 0.2; darknet: the cfg's)")
    match_anchors: str | None = option(None, "anchors that may match: all, or the best of each head", ("all", "best"))
    anchor_t: float | None = option(None, "largest ratio of an anchor's side to the object's (ratio: 4)")
    iou_new: float | None = option(None, "a prediction matches from this IoU on (0.5)")
    match_iou: str | None = option(None, "IoU that decides new matches (iou)", tuple(IOU_KINDS))
    candidates: str | None = option(None, "slots that may become new matches", ("cell", "neighbours", "map"))
    new_topk: int | None = option(None, "at most so many new matches per object (no limit)")
    assign_rate: float | None = option(None, "at most so many new matches per std match of the batch (no limit)")
    refilter: bool = option(False, "keep new matches that beat the object's worst std match")
    reduce_anchor: bool = option(False, "keep the best anchor of a cell")
    remove_duplicate: bool = option(False, "a slot is the new match of one object only, never of a std slot")
    linear_reweight: float | None = option(None, "weight of a new match at --iou-new; rises to 1 at IoU 1 (always 1)")
    tobj: str | None = option(None, "matches that write the objectness target (std+new)", ("std+new", "std", "new"))
    match_fallback: bool = option(False, "an object without a std match takes its best anchor over all heads")
    ignore_thresh: float | None = option(None, "unmatched slots above this IoU are no negatives (darknet: the cfg's)")
    ignore_crowd: bool | None = option(None, "unmatched slots inside crowd regions are no negatives (darknet: yes)")
    normalise: str = option("head", "mean the losses over the matches of each head, or of the batch", ("head", "batch"))

    def __post_init__(self) -> None:
        used = options_used(self.match)
        for item in fields(self):
            if item.name not in used and getattr(self, item.name) != item.default:
                users = [name for name in STRATEGIES if item.name in options_used(name)]
                raise ValueError(
                    f"--{item.name.replace('_', '-')} is not used by --match {self.match}; used by: {', '.join(users)}"
                )
        for name, low, high in RANGES:
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ValueError(f"--{name.replace('_', '-')} must be between {low} and {high}, not {value}")


RANGES = (
    ("alpha", 0, 1), ("iou_t", 0, 1), ("anchor_t", 1, 1e6), ("iou_new", 0.01, 1), ("new_topk", 1, 1_000_000),
    ("assign_rate", 0, 1e6), ("linear_reweight", 0, 1), ("ignore_thresh", 0.01, 1),
)  # fmt: skip
OPTIONS_OF_ALL = {"match", "alpha", "match_fallback", "ignore_thresh", "ignore_crowd", "normalise"}


@dataclass(frozen=True)
class Strategy:
    """One entry of :data:`STRATEGIES`: how to build its parts from the options, and which options each part uses."""

    std: Callable[[AssignmentOptions], Callable[[Scene], Pairs]]  # builds what makes the std pairs of a scene
    std_uses: tuple[str, ...] = ()
    new: Callable[[AssignmentOptions], Callable[[Scene, Pairs], Pairs]] | None = None  # likewise, given the std pairs
    new_uses: tuple[str, ...] = ()


def _standard(options: AssignmentOptions) -> Standard:
    return Standard(0.20 if options.iou_t is None else options.iou_t, options.match_anchors == "best")


def _given(options: AssignmentOptions, names: tuple[str, ...]) -> dict:
    """Those of the named options that were given; what is None keeps the strategy's own default."""
    values = {name: getattr(options, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


STANDARD_USES = ("iou_t", "match_anchors")
PURE_USES = ("iou_new", "match_iou", "candidates")
SPLIT_USES = (*PURE_USES, "refilter", "reduce_anchor", "new_topk", "assign_rate")
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
    used = OPTIONS_OF_ALL | set(first.std_uses)
    if last.new is not None:
        used |= {*last.new_uses, "tobj"}
    elif len(parts) == 2:
        used |= {*last.std_uses, "tobj"}
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
        raise ValueError(f"--match {match}: a combination A+B takes the std matches of A and the new ones of another B")
    return [STRATEGIES[name] for name in names]


def makes_new_matches(match: str) -> bool:
    """Whether ``--match`` names a strategy, or a combination, that has ``new`` matches at all."""
    parts = strategies_of(match)
    return len(parts) == 2 or parts[0].new is not None


class Assigner:
    """The strategy of some options: targets and raw maps in, :class:`Assignment` out, without gradient."""

    def __init__(self, options: AssignmentOptions, heads: tuple[Head, ...]) -> None:
        parts = strategies_of(options.match)
        self.options, self.heads = options, tuple(heads)
        self.make_std = parts[0].std(options)
        self.make_new = _new_part(parts, options)
        self.ignore_thresholds, self.ignore_crowd = _ignore_rules(options, self.heads)

    @torch.no_grad()
    def __call__(
        self, targets: Targets, raws: list[Tensor] | tuple[Tensor, ...], crowd: Targets | None = None
    ) -> Assignment:
        """Match a batch.

        Args:
            targets: the objects, on the device of the maps.
            raws: one raw map [B A H W 5+C] per head; strategies that look at priors only use nothing but their shapes.
            crowd: crowd regions, used where they are ignored.
        """
        scene = Scene.of(targets, raws, self.heads)
        std = new = Pairs.none(raws[0].device)
        if len(targets):
            std = self.make_std(scene)
            if self.options.match_fallback:
                std = with_fallback(scene, std)
            if self.make_new is not None:
                new = self.make_new(scene, std)
        ignore = (None,) * len(raws)
        if self.ignore_thresholds is not None or self.ignore_crowd:
            ignore = ignored_slots(scene, self.ignore_thresholds, crowd if self.ignore_crowd else None)
        return Assignment(scene.matches(std), scene.matches(new), ignore)


def _ignore_rules(options: AssignmentOptions, heads: tuple[Head, ...]) -> tuple[tuple[float, ...] | None, bool]:
    """Return the IoU of each head above which a prediction is no negative, if any, and whether crowds are ignored."""
    as_darknet = options.match.split("+")[0] == "darknet"
    thresholds = None
    if options.ignore_thresh is not None:
        thresholds = (options.ignore_thresh,) * len(heads)
    elif as_darknet:
        thresholds = tuple(head.ignore_thresh for head in heads)
    return thresholds, as_darknet if options.ignore_crowd is None else options.ignore_crowd


def _new_part(parts: list[Strategy], options: AssignmentOptions) -> Callable[[Scene, Pairs], Pairs] | None:
    last = parts[-1]
    if last.new is not None:
        return last.new(options)
    if len(parts) == 1:
        return None
    make_pairs = last.std(options)

    def unlike_std(scene: Scene, std: Pairs) -> Pairs:
        return without(scene, make_pairs(scene), std)

    return unlike_std


def build_assigner(options: AssignmentOptions, heads: tuple[Head, ...]) -> Assigner:
    """Return the assigner of ``--match`` and its options for a network's heads."""
    return Assigner(options, heads)


def with_strategy(options: AssignmentOptions, match: str) -> AssignmentOptions:
    """Return the options for another strategy; options that it does not use fall back to their defaults."""
    used = options_used(match)
    defaults = {item.name: item.default for item in fields(options) if item.name not in used}
    return replace(options, **(defaults | {"match": match}))
