"""Figures show names as they are."""

import io

import pytest

from utils.figures import new_figure


@pytest.mark.parametrize("name", ["$", "$x", "a$b$c", "$\\\\frac{$", "100 % $"])
def test_dollar_signs_are_letters(name):
    figure = new_figure(figsize=(2, 2))
    axes = figure.subplots()
    axes.set_title(name)
    axes.bar([0], [1], label=name)
    axes.legend()
    axes.set_xticks([0], [name])
    figure.savefig(io.BytesIO())  # an unfinished formula would raise a ValueError
