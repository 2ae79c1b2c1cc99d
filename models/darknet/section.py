"""A cfg as it was read: the ``[net]`` options and the typed sections, which know their lines in the file.

Shared by the parser, which makes them, and the builders, which read them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from models.darknet.schema import Key
from utils.errors import UserError


@dataclass(frozen=True)
class Section:
    """One section: what was written, checked and typed; a key that was not written has its default."""

    kind: str  # canonical name: "convolutional" also where the file says [conv]
    index: int  # layer number as Darknet counts, -1 for [net]
    line: int  # of the [header]
    source: str  # file name, for messages
    keys: Mapping[str, Key]  # that this kind may have
    written: Mapping[str, Any] = field(default_factory=dict)
    lines: Mapping[str, int] = field(default_factory=dict)

    def __getitem__(self, key: str) -> Any:
        value = self.written.get(key)
        return self.keys[key].default if value is None else value

    def __contains__(self, key: str) -> bool:
        return key in self.written

    def error(self, message: str, key: str = "") -> UserError:
        """Return an error that names this section's line, or the line of one of its keys."""
        return UserError(f"{self.source}:{self.lines.get(key, self.line)}: [{self.kind}] {message}")

    def replace(self, **values: Any) -> Section:
        """Return a copy with other values; lines stay."""
        return dataclasses.replace(self, written={**self.written, **values})


@dataclass(frozen=True)
class DarknetConfig:
    """A parsed cfg file."""

    source: str
    text: str
    net: Section
    sections: tuple[Section, ...]
    notes: tuple[str, ...]  # one line each: what was read but has no effect here, and the oddities
    oddities: tuple[str, ...] = ()  # one line each: what is probably a mistake, or is unknown to Darknet
