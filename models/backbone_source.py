"""Which classifier's published weights the backbone of a detector can start from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class BackboneSource:
    """A classifier, and how its tensors are called in a detector that is built around its layers."""

    classifier: str  # its name in the package that publishes it
    places: Mapping[str, str]  # beginnings of keys of the detector's state dict -> of the file's; the first that fits
    left_out: tuple[str, ...]  # beginnings of the file's keys that the detector has no use for

    def key_in_file(self, key: str) -> str | None:
        """Return what a tensor of the detector is called in the file; None for one that starts fresh."""
        for here, there in self.places.items():
            if key.startswith(here):
                return there + key.removeprefix(here)
        return None
