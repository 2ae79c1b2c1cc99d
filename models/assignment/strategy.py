"""One strategy: how to build its parts from the options, and which options each part uses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from models.assignment.inputs import Pairs, Scene

if TYPE_CHECKING:
    from models.assignment.options import AssignmentOptions


@dataclass(frozen=True)
class Strategy:
    """One entry of :data:`STRATEGIES`: how to build its parts from the options, and which options each part uses."""

    base: Callable[[AssignmentOptions], Callable[[Scene], Pairs]]  # builds what makes the base pairs of a scene
    base_uses: tuple[str, ...] = ()
    extra: Callable[[AssignmentOptions], Callable[[Scene, Pairs], Pairs]] | None = (
        None  # likewise, given the base pairs
    )
    extra_uses: tuple[str, ...] = ()
