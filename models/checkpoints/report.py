"""What a file of weights filled of a network, and what it left as it was."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LoadReport:
    """What a weight file filled; ``str()`` is one line for the user."""

    source: str
    filled: int  # layers with weights that got theirs from the file
    total: int  # layers with weights
    seen: int = 0  # images trained on, as the header of Darknet weights says
    version: tuple[int, int, int] | None = None  # of the header; None where the format has none
    skipped: tuple[
        int, ...
    ] = ()  # layers left as they were, for the file's have another number of classes or key points
    names: tuple[str, ...] = ()  # of the file's classes; empty where it does not say
    classes: tuple[int, int] | None = None  # how many the file and the network have, where layers are skipped for it
    key_points: tuple[int, int] | None = None  # of an object, likewise
    note: str = ""  # what was odd about the file, and how it was read
    resize: str = ""  # "letterbox" or "stretch", as the training showed images; empty where the file does not say

    @property
    def complete(self) -> bool:
        """Whether nothing was left at its initial values."""
        return self.filled == self.total

    def __str__(self) -> str:
        rest = "" if self.complete else f"; the other {self.total - self.filled} start fresh"
        for what, counts in (("classes", self.classes), ("key points", self.key_points)):
            if counts:
                of_file, here = counts
                layers = ", ".join(map(str, self.skipped))
                rest += f" (layers {layers}: another number of {what}, {of_file} in the file and {here} here)"
        note = f"; {self.note}" if self.note else ""
        header = f" (Darknet {'.'.join(map(str, self.version))}, {self.seen:,} images seen)" if self.version else ""
        return f"{self.source}: {self.filled} of {self.total} layers with weights filled{header}{rest}{note}"
