"""How sure the difference of two settings is: over seeds, over images, and over both."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

LEVEL = 0.975  # of Student's t: two sides of 2.5 %
POWER = 0.8  # with which so many seeds find a difference that is there
MOST_SEEDS = 10**6
Interval = tuple[float, float]


@dataclass(frozen=True)
class PairedDifference:
    """The second of two settings minus the first in one number, from the runs of equal seeds."""

    average: float
    seeds: int  # n
    deviation: float | None  # sample standard deviation of the differences; None: of fewer than two
    interval: Interval | None  # 95 %, Student's

    @property
    def seeds_needed(self) -> int | None:
        """How many seeds would tell, where these cannot; None where they can, or where no number would."""
        if self.deviation is None or self.interval is None or not holds_zero(self.interval):
            return None
        return seeds_needed(self.average, self.deviation)


def holds_zero(interval: Interval) -> bool:
    """Whether an interval cannot tell a difference from none."""
    return interval[0] <= 0 <= interval[1]


def confidence_interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean of n values and half the width of its 95 % confidence interval, None for one value.

    The half width is t(0.975, n - 1) · s / √n, with Student's t and the sample standard deviation s.
    """
    average = float(np.mean(values))
    if len(values) < 2:
        return average, None
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return average, float(stdtrit(len(values) - 1, LEVEL)) * error


def common_seeds(first: Sequence[Hashable], second: Sequence[Hashable]) -> list[Hashable]:
    """Return the seeds that one run of each setting has, in the order of the first; None is no seed.

    A single one is none where there are other runs: the means over all runs then say more.
    """
    common = [seed for seed in first if seed is not None and first.count(seed) == second.count(seed) == 1]
    return common if len(common) > 1 or len(first) == len(second) == 1 else []


def paired_by_seed(first: Mapping[Hashable, float], second: Mapping[Hashable, float]) -> PairedDifference | None:
    """Return the difference over the seeds that both have, None without any.

    Args:
        first: the number of each run by its seed.
        second: likewise.
    """
    differences = [second[seed] - value for seed, value in first.items() if seed in second]
    if not differences:
        return None
    average, half = confidence_interval(differences)
    if half is None:
        return PairedDifference(average, 1, None, None)
    deviation = float(np.std(differences, ddof=1))
    return PairedDifference(average, len(differences), deviation, (average - half, average + half))


def seeds_needed(average: float, deviation: float) -> int | None:
    """Return how many pairs of runs find a true difference of this size four times out of five, at 5 %, two-sided.

    It is the smallest n with n ≥ ((t(0.975, n - 1) + t(0.8, n - 1)) · s / d)²: Zar, Biostatistical Analysis, chapter 7,
    the sample size of a test of one mean, here of the paired differences.

    Args:
        average: the difference d that is to be found, for instance the one that was seen.
        deviation: the sample standard deviation s of the paired differences.

    Returns:
        At least 2; None where no number up to a million suffices.
    """
    if not average:
        return None
    number = 2
    while number <= MOST_SEEDS:
        quantiles = float(stdtrit(number - 1, LEVEL) + stdtrit(number - 1, POWER))
        wanted = (quantiles * deviation / average) ** 2
        if wanted <= number:
            return number
        # The quantiles fall with n towards the normal distribution's, 2.80: nothing below that bound can do.
        number = max(number + 1, math.ceil(min((2.80 * deviation / average) ** 2, MOST_SEEDS + 1)))
    return None


def over_seeds_and_images(by_seed: PairedDifference, over_images: Interval) -> Interval | None:
    """Return the 95 % interval for other seeds and other images, None for fewer than two seeds.

    The half widths of both intervals are added in quadrature, as for a sum of two independent errors (Zou and Donner,
    2008). What seeds and images share counts in both: the interval is rather a little too wide than too narrow.

    Args:
        by_seed: the difference.
        over_images: the interval of the mean over the same seeds.
    """
    if by_seed.interval is None:
        return None
    half = math.hypot(*((high - low) / 2 for low, high in (by_seed.interval, over_images)))
    return by_seed.average - half, by_seed.average + half
