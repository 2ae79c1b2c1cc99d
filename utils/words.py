"""Words in messages: how many of what there are."""

from __future__ import annotations

VOWELS = "aeiou"


def how_many(number: int, noun: str) -> str:
    """Return a number with the noun that it counts, as ``1 image``, ``2,000 images``."""
    return f"{number:,} {noun if number == 1 else plural(noun)}"


def plural(noun: str) -> str:
    """Return a noun, such as the name of a class, for several: persons, buses, benches, berries.

    The regular ending is given to every word (persons, not people; as in ultralytics/yolov5), none to one that ends
    like a plural already (Platelets, skis).
    """
    word = noun.lower()
    if word.endswith(("ss", "us", "x", "z", "ch", "sh")) and not word.endswith("och"):  # epochs, lochs
        return f"{noun}es"
    if word.endswith("s"):
        return noun
    if word.endswith("y") and len(word) > 1 and word[-2].isalpha() and word[-2] not in VOWELS:
        return f"{noun[:-1]}ies"
    return f"{noun}s"
