"""Learning rates by the iteration, as Darknet has them (``get_current_rate`` in src/network.c).

An iteration is one optimizer step and is counted from 1. Every rate is a factor on ``--lr0``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from utils.config import option


@dataclass(frozen=True)
class IterationOptions:
    """Numbers of the schedules that count iterations."""

    max_batches: int = option(0, "iterations, optimizer steps, of the run with --epochs 0; of --schedule poly and sgdr")
    burn_in: int = option(0, "iterations i in which the rate rises with (i / this)^power; for schedules by iteration")
    lr_power: float = option(4.0, "power of --burn-in and of --schedule poly")
    lr_steps: tuple[int, ...] = option((), "iterations at which --schedule steps multiplies the rate")
    lr_scales: tuple[float, ...] = option((), "by what it does, one factor per step")
    lr_cycle: int = option(0, "iterations of the first cycle of --schedule sgdr; 0: --max-batches")
    lr_cycle_growth: int = option(2, "each cycle of --schedule sgdr is so many times as long as the one before")

    def __post_init__(self) -> None:
        if min(self.max_batches, self.burn_in, self.lr_cycle, self.lr_power) < 0:
            raise ValueError("--max-batches, --burn-in, --lr-cycle and --lr-power must not be negative")
        if self.lr_cycle_growth < 1:
            raise ValueError(f"--lr-cycle-growth must be at least 1, not {self.lr_cycle_growth}")
        if len(self.lr_steps) != len(self.lr_scales):
            raise ValueError(
                f"--lr-steps and --lr-scales must be equally many, not {len(self.lr_steps)} and {len(self.lr_scales)}"
            )
        if any(scale < 0 for scale in self.lr_scales):
            raise ValueError("--lr-scales must not be negative")


def _constant(options: IterationOptions, lowest: float, iteration: int) -> float:
    return 1.0


def _steps(options: IterationOptions, lowest: float, iteration: int) -> float:
    factor = 1.0
    for step, scale in zip(options.lr_steps, options.lr_scales, strict=True):
        if step > iteration:  # in Darknet, too, the first step to come ends the list, whatever follows
            break
        factor *= scale
    return factor


def _poly(options: IterationOptions, lowest: float, iteration: int) -> float:
    return max(0.0, 1 - iteration / options.max_batches) ** options.lr_power


def _sgdr(options: IterationOptions, lowest: float, iteration: int) -> float:
    start, cycle = 0, options.lr_cycle or options.max_batches
    while start + cycle < iteration:
        start += cycle
        cycle *= options.lr_cycle_growth
    return lowest + (1 - lowest) * (1 + math.cos(math.pi * (iteration - start) / cycle)) / 2


POLICIES: dict[str, Callable[[IterationOptions, float, int], float]] = {
    "constant": _constant,
    "steps": _steps,
    "poly": _poly,
    "sgdr": _sgdr,
}


def rate_factor(policy: str, options: IterationOptions, lowest: float, iteration: int) -> float:
    """Return the factor on ``--lr0`` at an iteration.

    Args:
        policy: a key of :data:`POLICIES`.
        options: its numbers.
        lowest: factor at the end of a cycle of sgdr.
        iteration: from 1.
    """
    if iteration < options.burn_in:
        return (iteration / options.burn_in) ** options.lr_power
    return POLICIES[policy](options, lowest, iteration)
