"""Differences by hand, sample sizes of tables and of the exact power of the test, and both intervals together."""

import math

import numpy as np
import pytest
from scipy import stats

from analysis.paired_differences import (
    PairedDifference,
    common_seeds,
    holds_zero,
    over_seeds_and_images,
    paired_by_seed,
    seeds_needed,
)


def test_a_paired_difference_by_hand():
    # Differences 0.01, 0.02, 0.03: mean 0.02, s = 0.01; t(0.975; 2) = 4.3027 of the table: 0.0248.
    found = paired_by_seed({0: 0.5, 1: 0.6, 2: 0.4, 7: 0.9}, {2: 0.43, 1: 0.62, 0: 0.51, 8: 0.1})
    assert (found.average, found.seeds, found.deviation) == pytest.approx((0.02, 3, 0.01))
    assert found.interval == pytest.approx((0.02 - 0.024842, 0.02 + 0.024842), abs=1e-6)
    # By hand: n = 4 needs ((3.1824 + 0.9785) / 2)^2 = 4.33, n = 5 ((2.7764 + 0.9410) / 2)^2 = 3.45.
    assert holds_zero(found.interval) and found.seeds_needed == 5
    assert paired_by_seed({0: 0.5}, {0: 0.75}) == PairedDifference(0.25, 1, None, None)
    assert paired_by_seed({0: 0.5}, {1: 0.75}) is None
    assert stats.ttest_1samp([0.01, 0.02, 0.03], 0).confidence_interval(0.95).low == pytest.approx(found.interval[0])


def test_what_is_told_needs_no_seeds():
    found = paired_by_seed({0: 0.5, 1: 0.6}, {0: 0.7, 1: 0.8001})
    assert not holds_zero(found.interval) and found.seeds_needed is None


@pytest.mark.parametrize("effect, pairs", [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10), (1.2, 8)])
def test_sample_sizes_of_the_tables(effect, pairs):
    """Cohen's and G*Power's numbers of pairs at 5 %, two-sided, power 80 %."""
    assert seeds_needed(effect, 1) == seeds_needed(-effect / 10, 0.1) == pytest.approx(pairs, abs=1)


@pytest.mark.parametrize("effect", [0.05, 0.1, 0.3, 0.6, 1.0, 1.5, 2.0, 3.0])
def test_so_many_seeds_have_the_power(effect):
    def power(number):
        bound = stats.t.ppf(0.975, number - 1)
        shifted = stats.nct(number - 1, effect * math.sqrt(number))
        return shifted.sf(bound) + shifted.cdf(-bound)

    number = seeds_needed(effect, 1)
    assert power(number + 1) > 0.8 and power(number) > 0.76
    assert number <= 3 or power(number - 2) < 0.8


def test_sample_sizes_at_the_ends():
    assert seeds_needed(0, 1) is None and seeds_needed(1e-9, 1) is None
    assert seeds_needed(1, 0) == 2 == seeds_needed(1000, 1)
    assert seeds_needed(0.01, 1) == pytest.approx((1.959964 + 0.841621) ** 2 / 1e-4, abs=3)


def test_seeds_are_common_where_each_setting_has_them_once():
    assert common_seeds([0, 1, 2], [2, 1, 5]) == [1, 2]
    assert common_seeds([0, 0, 1, 2], [0, 1, 2]) == [1, 2]
    assert common_seeds([None, None], [None, None]) == []
    assert common_seeds([0], [0]) == [0] and common_seeds([0, 1], [0, 5]) == []


def test_both_intervals_together_are_wider_than_each():
    by_seed = PairedDifference(0.1, 3, 0.01, (0.07, 0.13))
    assert over_seeds_and_images(by_seed, (0.05, 0.13)) == pytest.approx((0.05, 0.15))  # half widths 0.03 and 0.04
    assert over_seeds_and_images(PairedDifference(0.1, 1, None, None), (0.05, 0.13)) is None


def test_both_intervals_together_hold_the_truth_often_enough():
    """Made-up effects of seeds and of images on a difference of 0.3, of which some are shared."""
    generator = np.random.default_rng(0)
    held, trials, seeds, images = 0, 400, 4, 40
    for _ in range(trials):
        values = 0.3 + generator.normal(size=(seeds, 1)) * 0.2 + generator.normal(size=(1, images)) * 0.8
        values = values + generator.normal(size=(seeds, images)) * 0.5
        by_seed = paired_by_seed(dict.fromkeys(range(seeds), 0.0), dict(enumerate(values.mean(axis=1))))
        drawn = values.mean(axis=0)[generator.integers(images, size=(200, images))].mean(axis=1)
        low, high = over_seeds_and_images(by_seed, tuple(np.quantile(drawn, (0.025, 0.975))))
        held += low <= 0.3 <= high
    assert 0.93 * trials <= held <= 0.995 * trials
