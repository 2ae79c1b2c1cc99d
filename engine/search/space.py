"""What a search or a study varies: a YAML file of options, each with its values or its range."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.optimizer import AUTO, CHOSEN_BY_AUTO
from engine.train_options import GROUPS, choose_options
from utils.config import build_options, checked_value, refuse_unknown
from utils.errors import UserError
from utils.yaml_file import read_yaml

OF_EACH_RUN = ("name", "project", "resume", "exist_ok")  # options that the search itself gives to every training
RANGE_KEYS = ("low", "high", "log", "step")
LEAD_TO_OTHERS = {"cfg", "weights", "hyp", "data"}  # options on which the values of others depend
MAX_POINTS = 100_000  # of a grid
GAINS = ("box", "obj", "cls")  # their ranges in cfg/search/evolve.yaml are for --gains yolov5


@dataclass(frozen=True)
class Choices:
    """An option that takes one of several values."""

    values: tuple[Any, ...]

    @property
    def labels(self) -> tuple[Any, ...]:
        """The values as Optuna keeps them: a tuple, of which it knows nothing, as text."""
        return tuple(" ".join(map(str, one)) if isinstance(one, tuple) else one for one in self.values)

    @property
    def to_check(self) -> tuple[Any, ...]:
        """The values that show whether all of them may be used."""
        return self.values


@dataclass(frozen=True)
class Range:
    """An option that takes a number from ``low`` to ``high``, both included."""

    low: float
    high: float
    step: float | None
    log: bool  # drawn evenly by the logarithm

    @property
    def to_check(self) -> tuple[Any, ...]:
        """The values that show whether all of them may be used."""
        return self.low, self.high

    def steps(self) -> tuple[Any, ...]:
        """Return all values of a range with a step."""
        assert self.step
        count = math.floor((self.high - self.low) / self.step + 1e-9) + 1
        values = (self.low + number * self.step for number in range(count))
        return tuple(value if isinstance(value, int) else float(f"{value:.12g}") for value in values)


@dataclass(frozen=True)
class Space:
    """The options that are varied, by name."""

    path: Path
    options: dict[str, Choices | Range]
    lines: dict[str, int]  # of the file, from 1

    def place(self, name: str) -> str:
        """Return where an option stands, as the beginning of a message."""
        return f"{self.path}:{self.lines.get(name, 1)}: "

    def values_of(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values of options for what Optuna keeps of them."""
        return {
            name: entry.values[entry.labels.index(parameters[name])] if isinstance(entry, Choices) else parameters[name]
            for name, entry in self.options.items()
        }

    def as_record(self) -> dict[str, Any]:
        """Return what tells this space from another one, as plain values."""
        return {
            name: list(entry.labels) if isinstance(entry, Choices) else vars(entry)
            for name, entry in self.options.items()
        }

    def grid(self) -> list[dict[str, Any]]:
        """Return every combination, as Optuna keeps it; the last option of the file varies fastest.

        Raises:
            UserError: a range without a step, or too many combinations.
        """
        for name, entry in self.options.items():
            if isinstance(entry, Range) and not entry.step:
                raise UserError(f"{self.place(name)}'{name}' needs a step, or a list of values, to be part of a grid")
        axes = [entry.labels if isinstance(entry, Choices) else entry.steps() for entry in self.options.values()]
        if math.prod(map(len, axes)) > MAX_POINTS:
            raise UserError(f"{self.path}: has more than {MAX_POINTS:,} combinations; leave out some values")
        return [dict(zip(self.options, point, strict=True)) for point in itertools.product(*axes)]


def read_space(path: Path, is_study: bool = False) -> Space:
    """Read a file of ``option: [values]`` or ``option: {low: …, high: …, log: …, step: …}``.

    Args:
        path: the file.
        is_study: it is of a study, which has ``seeds`` and no ranges.

    Raises:
        UserError: an unknown option, a value of the wrong type or a range that is none; with file and line.
    """
    values, lines = read_yaml(path)
    if is_study and "seeds" in values:
        if "seed" in values:
            raise UserError(f"{path}:{lines['seed']}: 'seed' and 'seeds' are the same; leave one of them out")
        values["seed"], lines["seed"] = values.pop("seeds"), lines.pop("seeds")
    fixed = OF_EACH_RUN if is_study else (*OF_EACH_RUN, "seed")
    entries = {}
    for name, value in values.items():
        place = f"{path}:{lines[name]}: "
        if name in fixed:
            raise UserError(f"{place}'{name}' cannot be varied; leave it out, or give it on the command line")
        entries[name] = _entry(name, value, place, is_study)
    if not entries:
        raise UserError(f"{path}: names no option to vary; write a line such as 'lr0: [0.01, 0.003]'")
    return Space(path, entries, lines)


def _entry(name: str, value: Any, place: str, is_study: bool) -> Choices | Range:
    if isinstance(value, dict) and not is_study:
        return _range(name, value, place)
    values = value if isinstance(value, list) else [value]
    checked = tuple(checked_value(name, one, GROUPS, place) for one in values)
    if not checked or None in checked:
        raise UserError(f"{place}'{name}' needs values, none of them empty")
    if len(set(checked)) < len(checked):
        raise UserError(f"{place}'{name}' has a value twice; leave one of them out")
    return Choices(checked)


def _range(name: str, value: Mapping[str, Any], place: str) -> Range:
    refuse_unknown(value, RANGE_KEYS, f"{place}'{name}': ")
    if not {"low", "high"} <= value.keys():
        raise UserError(f"{place}'{name}' needs 'low' and 'high', or a list of values")
    ends = {key: checked_value(name, value[key], GROUPS, place) for key in ("low", "high", "step") if key in value}
    if any(isinstance(one, (bool, str, tuple)) for one in ends.values()):
        raise UserError(f"{place}'{name}' is no number, which could have a range; give a list of values")
    low, high, step, log = ends["low"], ends["high"], ends.get("step"), value.get("log", False)
    if not isinstance(log, bool):
        raise UserError(f"{place}'{name}': 'log' must be true or false, not '{log!s:.60}'")
    if not low < high or (log and low <= 0) or (step is not None and not 0 < step <= high - low):
        raise UserError(
            f"{place}'{name}': low must be below high, above 0 with 'log', and a step at most their difference"
        )
    if log and step is not None:
        raise UserError(f"{place}'{name}': 'log' and 'step' exclude each other; leave one of them out")
    return Range(low, high, step, log)


def checker(given: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], None]:
    """Return a function that refuses values of options which no training with these options would take.

    Args:
        given: the options of the command line.
    """
    base = choose_options(dict(given))[0].as_dict()

    def check(values: Mapping[str, Any]) -> None:
        if values.keys() & LEAD_TO_OTHERS or values.get("optimizer") == AUTO:
            choose_options({**given, **values})
        else:
            build_options({**base, **values}, GROUPS)

    return check


def check_space(space: Space, given: Mapping[str, Any]) -> None:
    """Refuse values that no training would take, each for itself together with the options of the command line.

    ``optimizer: auto`` is checked together with what it chooses itself, where that is varied, too.

    Raises:
        UserError: with file and line.
    """
    check = checker(given)
    for name, entry in space.options.items():
        for value in entry.to_check:
            others = CHOSEN_BY_AUTO if value == AUTO else ()
            try:
                check({name: value} | {one: space.options[one].to_check[-1] for one in others if one in space.options})
            except UserError as error:
                raise UserError(f"{space.place(name)}{name} {value}: {error}") from error


def check_grid(space: Space, points: list[dict[str, Any]], given: Mapping[str, Any]) -> None:
    """Refuse combinations that no training would take.

    Raises:
        UserError: with the file and the combination.
    """
    check = checker(given)
    for point in points:
        try:
            check(space.values_of(point))
        except UserError as error:
            shown = " ".join(f"{name}={value}" for name, value in point.items())
            raise UserError(f"{space.path}: {shown}: {error}") from error


def that_apply(space: Space, given: Mapping[str, Any]) -> tuple[Space, list[str]]:
    """Return the space without the options that the recipe has no use for, and their names."""
    check = checker(given)
    gains = choose_options(dict(given))[0].loss.gains
    left_out = []
    for name, entry in space.options.items():
        try:
            check({name: entry.to_check[0]})
        except UserError:
            left_out.append(name)
    left_out += [name for name in GAINS if name in space.options and gains != "yolov5"]
    options = {name: entry for name, entry in space.options.items() if name not in left_out}
    return Space(space.path, options, space.lines), left_out
