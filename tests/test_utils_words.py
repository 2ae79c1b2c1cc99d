"""Counts in words."""

import pytest

from utils.words import how_long, how_many, plural


@pytest.mark.parametrize(
    "noun, several",
    [
        ("person", "persons"), ("dog", "dogs"), ("Platelets", "Platelets"), ("skis", "skis"), ("RBC", "RBCs"),
        ("bus", "buses"), ("wine glass", "wine glasses"), ("box", "boxes"), ("bench", "benches"), ("brush", "brushes"),
        ("berry", "berries"), ("toy", "toys"), ("BUS", "BUSes"), ("y", "ys"), ("7", "7s"), ("Würfel", "Würfels"),
        ("epoch", "epochs"),
    ],
)  # fmt: skip
def test_plurals(noun, several):
    assert plural(noun) == several
    assert how_many(1, noun) == f"1 {noun}"
    assert how_many(2, noun) == f"2 {several}" and how_many(0, noun) == f"0 {several}"


def test_no_plural_has_a_double_s_that_the_noun_has_not():
    for noun in ("Platelets", "scissors", "bus", "glass", "person", "s", "classes"):
        assert not plural(noun).removeprefix(noun).startswith("ss") and not plural(noun).endswith("ss")


def test_large_numbers():
    assert how_many(1234, "image") == "1,234 images"


def test_a_time_has_its_two_largest_units():
    times = {0.2: "0 s", 40: "40 s", 300: "5 min", 3599: "1 h 0 min", 7800: "2 h 10 min", 273600: "3 d 4 h"}
    assert {seconds: how_long(seconds) for seconds in times} == times
