"""What a kind of section is: the keys it may have, and what builds its layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from models.darknet.graph import Builder
from models.darknet.schema import Key


@dataclass(frozen=True)
class SectionKind:
    """One kind of section: the keys it may have, and what builds its layer.

    A kind with the key ``from`` reads the layers it names besides the one before it; with ``layers``, those alone.
    """

    name: str  # between the brackets
    keys: Mapping[str, Key]
    build: Builder
    box_numbers: int = 0  # of a head: channels of each anchor besides those of the classes; 0: not such a head
