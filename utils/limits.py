"""Comparisons with the limits of the statistics, exact for the decimals that label files hold.

Binary numbers only come near most decimals: 40.04 / 10.01 is 4, and may end up below it. What lies nearer to a limit
than :data:`ON_THE_LIMIT` is therefore taken as equal to it; float64 errs by far less, and of boxes with two decimals no
other value comes so near. Float32 would not do: its numbers are 1e-7 of a limit apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from torch import Tensor

ON_THE_LIMIT = 1e-11  # of the limit, and at least of 1
_Values = TypeVar("_Values", np.ndarray, Tensor)


def at_least(values: np.ndarray, limit: float) -> np.ndarray:
    """Return whether each value, [M] float64, is equal to a limit or larger."""
    return values >= limit - _margin(limit)


def above(values: _Values, limit: float) -> _Values:
    """Return whether each value, [M] float64, is larger than a limit."""
    return values > limit + _margin(limit)


def below(values: _Values, limit: float) -> _Values:
    """Return whether each value, [M] float64, is smaller than a limit."""
    return values < limit - _margin(limit)


def limits_reached(values: np.ndarray, limits: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return how many of some ascending limits each value, [M] float64, is equal to or larger than."""
    return np.searchsorted([limit - _margin(limit) for limit in limits], values, side="right")


def _margin(limit: float) -> float:
    return ON_THE_LIMIT * max(1.0, limit)
