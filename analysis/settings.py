"""Runs of one setting: those whose options differ in nothing but the seed and bookkeeping."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

BOOKKEEPING = {
    "seed",
    "name",
    "device",
    "workers",
    "resume",
    "nosave",
    "notest",
    "cache",
    "hyp",
    "project",
    "exist_ok",
    "save_period",
}
# They say where and how a run was computed, not what was learned; what the recipe ``hyp`` says is in the other options.


class HasOptions(Protocol):
    """A run, of which only the options matter here."""

    @property
    def options(self) -> Mapping[str, Any]:
        """The options by name."""


def varying_options(runs: Sequence[HasOptions]) -> list[str]:
    """Return the options that are not the same in all runs that know them, in the order of the first run's file."""
    keys = list(dict.fromkeys(key for run in runs for key in run.options))
    values = {key: {repr(run.options[key]) for run in runs if key in run.options} for key in keys}
    return [key for key in keys if key not in BOOKKEEPING and len(values[key]) > 1]


def group_by_setting(runs: Sequence[HasOptions]) -> list[list[int]]:
    """Return the indices of the runs of each setting, in order of first appearance."""
    varying = varying_options(runs)
    groups: dict[tuple[str, ...], list[int]] = {}
    for index, run in enumerate(runs):
        groups.setdefault(tuple(repr(run.options.get(key)) for key in varying), []).append(index)
    return list(groups.values())


def shown_value(value: Any) -> str:
    """Return the value of an option as the tables show it."""
    return f"{value:g}" if isinstance(value, float) else str(value)
