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


def how_long(seconds: float) -> str:
    """Return a time in its two largest units: ``2 h 10 min``, ``3 d 4 h``, ``5 min``, ``40 s``."""
    if seconds < 60:
        return f"{max(0, round(seconds))} s"
    minutes = round(seconds / 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days:,} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
