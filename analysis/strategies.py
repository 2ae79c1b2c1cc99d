"""Several assignment strategies in one run, as in ``--match standard,ratio``, and which options go to which of them."""

from __future__ import annotations

from dataclasses import dataclass, fields

from models.assignment.options import AssignmentOptions, options_used
from models.assignment.strategies import STRATEGIES
from utils.boxes import IOU_KINDS
from utils.config import flag, option

READ_BY_MATCHING_STATS = frozenset({"match_iou", "candidates"})  # these also say what --matching-stats measures


@dataclass(frozen=True)
class StrategyOptions(AssignmentOptions):
    """Which strategies are compared; each takes the options that it uses."""

    match: str = option(
        "", f"some of {','.join(STRATEGIES)}, separated by commas; A+B: base matches of A, extra ones of B"
    )
    match_iou: tuple[str, ...] = option(  # type: ignore[assignment]  # several here, one for each strategy
        (), "kinds of IoU that are measured; the first decides extra matches", tuple(IOU_KINDS)
    )

    def __post_init__(self) -> None:
        names = self.match.split(",")
        if len(set(names)) < len(names):
            raise ValueError(f"--match {self.match}: names a strategy twice")
        if self.match:
            self.for_strategies(names, READ_BY_MATCHING_STATS)

    def for_strategies(self, names: list[str], also_read: frozenset[str] = frozenset()) -> dict[str, AssignmentOptions]:
        """Return the options of each strategy: those it uses as given, the others at their defaults.

        Args:
            names: of the strategies.
            also_read: options that may be given although no strategy uses them, because the analysis itself does.

        Raises:
            ValueError: an unknown strategy, or an option that none of them uses.
        """
        used = {name: options_used(name) for name in names}
        given = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "match"}
        given["match_iou"] = self.match_iou[0] if self.match_iou else None
        for item in fields(AssignmentOptions):
            if (
                item.name in given
                and given[item.name] != item.default
                and item.name not in also_read
                and not any(item.name in u for u in used.values())
            ):
                users = ", ".join(name for name in STRATEGIES if item.name in options_used(name))
                raise ValueError(f"{flag(item.name)} is used by none of --match {','.join(names)}; used by: {users}")
        return {
            name: AssignmentOptions(match=name, **{key: value for key, value in given.items() if key in used[name]})
            for name in names
        }
