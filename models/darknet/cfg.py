"""Darknet's ``.cfg`` dialect: text to ``[net]`` options and typed sections; every error names file and line.

Read as Darknet reads it: white space means nothing, the first of two equal keys wins, ``#`` and ``;`` start a comment
(in Darknet only at the start of a line; after a value they could not mean anything else), a key that no section of its
kind has is unused, a line without a value is passed over. What is probably a mistake is told in a line each.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from models.darknet.kinds import KINDS
from models.darknet.schema import (
    ACTIVATION_ALIASES,
    COMMON,
    DARKNET_ACTIVATIONS,
    IGNORED,
    MATCHES_OTHERWISE,
    NET,
    REFUSED,
    SECTION_ALIASES,
    UNSUPPORTED_SECTIONS,
    WITH_CAPITALS,
    Key,
)
from models.darknet.section import DarknetConfig, Section
from utils.errors import UserError, suggestion

MAX_BYTES = 1_000_000  # the largest published cfg has about 60 kB
MAX_SECTIONS = 2_000  # the largest published cfg has about 500
MAX_LIST = 10_000  # values of one list

_NO_TEXT = dict.fromkeys(map(ord, "\0\x1a"))  # the ends of a file under DOS, at the end of some published cfgs

_Raw = tuple[str, int, dict[str, tuple[str, int]]]  # a section's kind, its line, and per key the text and the line


def schema_of(kind: str) -> Mapping[str, Key]:
    """Return the known keys of a section kind."""
    return NET if kind == "net" else {**KINDS[kind].keys, **COMMON}


def parse_cfg(path: str | Path) -> DarknetConfig:
    """Parse a cfg file.

    Raises:
        UserError: unreadable, or not the dialect; with file and line.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    if len(data) > MAX_BYTES:
        raise UserError(f"{path}: {len(data):,} bytes; a cfg file has at most {MAX_BYTES:,} (are these the weights?)")
    return parse_cfg_text(data.decode("utf-8", errors="replace"), str(path))


def parse_cfg_text(text: str, source: str) -> DarknetConfig:
    """Parse the text of a cfg file; ``source`` is its name in messages.

    Raises:
        UserError: as :func:`parse_cfg`.
    """
    oddities = Oddities(source)
    found = _read_lines(text, source, oddities)
    if not found:
        raise UserError(f"{source}: no sections; a cfg file starts with [net]")
    if found[0][0] != "net":
        raise UserError(f"{source}:{found[0][1]}: the first section must be [net], not [{found[0][0]}]")
    sections = [
        _typed(kind, index - 1, line, source, values, oddities) for index, (kind, line, values) in enumerate(found)
    ]
    for section in sections[1:]:
        if section.kind == "net":
            raise section.error("only the first section may be [net]")
    if len(sections) == 1:
        raise sections[0].error("is the only section; a network needs layers")
    notes = (*_notes(sections), *oddities.lines())
    return DarknetConfig(source, text, sections[0], tuple(sections[1:]), notes, oddities.lines())


class Oddities:
    """What was passed over or read otherwise than Darknet reads it: a line for each thing, however often it occurs."""

    def __init__(self, source: str):
        self.source = source
        self.found: dict[str, list[int]] = {}

    def add(self, line: int, text: str) -> None:
        """Note something about a line of the file."""
        self.found.setdefault(text, []).append(line)

    def lines(self) -> tuple[str, ...]:
        """Return a line each, in the order of the file: the first place, what it is, and how many more there are."""
        more = {text: f" (and in {len(lines) - 1} more lines)" * (len(lines) > 1) for text, lines in self.found.items()}
        ordered = sorted(self.found, key=lambda text: self.found[text][0])
        return tuple(f"{self.source}:{self.found[text][0]}: {text}{more[text]}" for text in ordered)


def _read_lines(text: str, source: str, oddities: Oddities) -> list[_Raw]:
    """Return each section's kind, line and keys as text with their lines; add what is passed over to ``oddities``."""
    found: list[_Raw] = []
    for number, raw in enumerate(text.removeprefix("\ufeff").split("\n"), start=1):
        line = "".join(raw.translate(_NO_TEXT).split("#")[0].split(";")[0].split())
        place = f"{source}:{number}"
        if line.startswith("["):
            found.append((_kind(line, place), number, {}))
            if line != line.lower() and line not in WITH_CAPITALS:
                oddities.add(number, f"Darknet knows {line.lower()} and no {_short(line)}; read as the former")
            if len(found) > MAX_SECTIONS:
                raise UserError(f"{place}: more than {MAX_SECTIONS} sections")
        elif line and not found:
            raise UserError(f"{place}: '{_short(line)}' stands before the first [section]")
        elif line:
            _read_key(line, number, found[-1], oddities)
    return found


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."


def _kind(line: str, place: str) -> str:
    """Return the kind that a line such as ``[conv]`` names, by its usual name."""
    if not line.endswith("]"):
        raise UserError(f"{place}: '{_short(line)}' is no section header; write [name]")
    name = line[1:-1].lower()
    name = SECTION_ALIASES.get(name, name)
    if name == "net" or name in KINDS:
        return name
    if name in UNSUPPORTED_SECTIONS:
        raise UserError(f"{place}: Darknet knows [{name}], this toolkit does not build it")
    close = suggestion(name, ["net", *KINDS, *SECTION_ALIASES])
    raise UserError(f"{place}: unknown section [{_short(name)}]{close}")


def _read_key(line: str, number: int, section: _Raw, oddities: Oddities) -> None:
    kind, _, values = section
    name, _, value = line.partition("=")
    name = name.lower()
    if not name or not value:
        oddities.add(number, f"'{_short(line)}' is no 'key = value'; passed over, as Darknet does")
    elif name not in schema_of(kind):
        close = suggestion(name, schema_of(kind))
        oddities.add(number, f"[{kind}] has no key '{_short(name)}'; without effect, in Darknet, too{close}")
    elif name not in values:
        values[name] = (value, number)
    elif values[name][0] != value:  # Darknet's option_find returns the first
        oddities.add(number, f"the second '{name}' has no effect; the first, {values[name][0]}, counts")


def _typed(
    kind: str, index: int, line: int, source: str, values: dict[str, tuple[str, int]], oddities: Oddities
) -> Section:
    lines = {name: number for name, (_, number) in values.items()}
    blank = Section(kind, index, line, source, schema_of(kind), {}, lines)  # knows its lines, for messages
    typed = {}
    for name, (text, number) in values.items():
        try:
            typed[name] = _value(blank, name, text)
        except UserError:
            if blank.keys[name].role != IGNORED:
                raise
            oddities.add(number, f"{name}={_short(text)} cannot be read; without effect here")
            continue
        if name in ("activation", "lstm_activation") and text not in DARKNET_ACTIVATIONS:
            oddities.add(number, f"Darknet does not know {name}={text} and computes relu; here it is {typed[name]}")
    return dataclasses.replace(blank, written=typed)


def _value(section: Section, name: str, text: str) -> Any:
    """Return the value that a key's text stands for, checked against its :class:`Key`."""
    key = section.keys[name]
    value: str | int | float | tuple[int | float, ...]
    if key.kind == "text":
        value = text.lower() if key.choices else text
        if key.choices and value not in key.choices:
            close = suggestion(value, key.choices)
            raise section.error(f"{name}={_short(text)} is not known{close} (known: {', '.join(key.choices)})", name)
        value = ACTIVATION_ALIASES.get(value, value) if key.choices else value
    elif key.kind in ("ints", "floats"):
        parts = text.removesuffix(",").split(",")
        if len(parts) > MAX_LIST:
            raise section.error(f"{name} has more than {MAX_LIST} values", name)
        value = tuple(_number(section, name, part, key) for part in parts)
    else:
        value = _number(section, name, text, key)
    if key.role == REFUSED and value != key.default:
        raise section.error(f"{name}={_short(text)} is not supported ({key.why}); remove the key", name)
    return value


def _number(section: Section, name: str, text: str, key: Key) -> int | float:
    whole = key.kind.startswith("int")  # int, ints
    try:
        value = int(text) if whole and len(text) < 20 else float(text)
    except ValueError:
        value = _float(text) if whole else math.nan
    if whole and isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)  # 64.0, which C's atoi reads as 64
    if not math.isfinite(value) or (whole and not isinstance(value, int)):
        what = "a whole number" if whole else "a finite number"
        raise section.error(f"{name}={_short(text)}: expected {what}", name)
    if (key.low is not None and value < key.low) or (key.high is not None and value > key.high):
        low, high = ("" if bound is None else f"{bound:g}" for bound in (key.low, key.high))
        raise section.error(f"{name}={_short(text)} is outside {low}..{high}", name)
    return value


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def keys_without_effect(source: str, sections: Sequence[Section], used: Mapping[str, Collection[str]]) -> str:
    """Return the line on the keys without effect here, or an empty one.

    Args:
        source: name of the cfg.
        sections: of it, ``[net]`` among them.
        used: by kind of section, keys that the caller knows what to do with.
    """
    ignored: dict[str, list[str]] = {}
    for section in sections:
        keys = ignored.setdefault(section.kind, [])
        known = (*used.get(section.kind, ()), *keys)
        keys += [name for name in section.written if section.keys[name].role == IGNORED and name not in known]
    lines = [f"[{kind}] {', '.join(keys)}" for kind, keys in ignored.items() if keys]
    return f"{source}: without effect here: {'; '.join(lines)}" if lines else ""


def _notes(sections: list[Section]) -> tuple[str, ...]:
    """Return one line each on keys without effect here and on keys that change Darknet's matching only."""
    line = keys_without_effect(sections[0].source, sections, {})
    without = (line,) if line else ()
    otherwise = [
        f"{name}={section[name]}"
        for section in sections
        for name, neutral in MATCHES_OTHERWISE.items() if name in section.written and section[name] != neutral
    ]  # fmt: skip
    text = (
        f"{sections[0].source}: Darknet's own matching follows {', '.join(dict.fromkeys(otherwise))}; "
        "--match darknet uses IoU and no truth_thresh"
    )
    return (*without, *([text] if otherwise else []))
