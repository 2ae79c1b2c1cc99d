"""One strategy: how to build its parts from the options, and which options each part uses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from models.assignment.inputs import AssignmentInput, Pairs

if TYPE_CHECKING:
    from models.assignment.options import AssignmentOptions


@dataclass(frozen=True)
class Strategy:
    """One entry of :data:`STRATEGIES`: how to build its parts from the options, and which options each part uses."""

    base: Callable[
        [AssignmentOptions], Callable[[AssignmentInput], Pairs]
    ]  # builds what makes the base pairs of a inputs
    base_uses: tuple[str, ...] = ()
    extra: Callable[[AssignmentOptions], Callable[[AssignmentInput, Pairs], Pairs]] | None = (
        None  # likewise, given the base pairs
    )
    extra_uses: tuple[str, ...] = ()
