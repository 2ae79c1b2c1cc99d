"""Options: frozen dataclasses that are at once the command line, the YAML recipe and the record of a run.

A script names the dataclasses it needs; every field becomes a flag (``batch_size`` is ``--batch-size``). Values come,
in rising priority, from the field's default, from a YAML recipe (``train.py --hyp``) and from the command line.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import types
import typing
from collections.abc import Sequence
from dataclasses import MISSING, Field, asdict, field, fields
from pathlib import Path
from typing import Any, NoReturn

from utils.errors import UserError, suggestion
from utils.renamed import RENAMED, with_current_names
from utils.yaml_file import LARGEST_INTEGER, read_yaml

SEARCH_FOLDERS = ("", "cfg", "cfg/hyp")  # below the working directory, then below the repository
REPOSITORY = Path(__file__).resolve().parent.parent


def option(default: Any, text: str, choices: Sequence[str] = ()) -> Any:
    """Declare a dataclass field that is also a command-line flag.

    Args:
        default: the value when nobody says otherwise; its type comes from the annotation.
        text: meaning and unit, for ``--help``.
        choices: allowed values, for fields of type ``str`` or tuples of them.
    """
    return field(default=default, metadata={"help": text, "choices": tuple(choices)})


def flag(field_name: str) -> str:
    """Return the command-line flag of an option: ``--batch-size`` of ``batch_size``."""
    return "--" + field_name.replace("_", "-")


def find_file(name: str, what: str) -> Path:
    """Return the path of a file named on the command line: as given, else in ``cfg/`` here or in the repository.

    Raises:
        UserError: there is no such file; the message says where it was looked for.
    """
    for root in (Path(), REPOSITORY):
        for folder in SEARCH_FOLDERS:
            path = root / folder / name
            if path.is_file():
                return path
    known = sorted(
        {p.name for folder in SEARCH_FOLDERS[1:] for p in (REPOSITORY / folder).glob(f"*{Path(name).suffix}")}
    )
    shipped = f" (shipped: {', '.join(known)})" if known else ""
    raise UserError(f"{what} '{name}' does not exist here or in cfg/{suggestion(name, known)}{shipped}")


def parse_options(description: str, *groups: type, argv: Sequence[str] | None = None) -> tuple[Any, ...]:
    """Parse the command line into one instance of each options dataclass.

    Raises:
        UserError: an unknown, ill-typed or contradictory option.
    """
    return build_options(parse_flags(description, *groups, argv=argv), groups)


def parse_flags(description: str, *groups: type, argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Return only the options that the command line itself gives, by field name.

    Args:
        description: one sentence for ``--help``.
        groups: the dataclasses; their field names must differ from one another.
        argv: the arguments, ``sys.argv[1:]`` when None.

    Raises:
        UserError: an unknown flag or a value of the wrong type.
    """
    parser = Parser(description=description, allow_abbrev=False)
    for group in groups:
        section = parser.add_argument_group((group.__doc__ or group.__name__).splitlines()[0].rstrip("."))
        for item in fields(group):
            _add_flag(section, item, group)
    return vars(parser.parse_args(argv))


def build_options(values: dict[str, Any], groups: Sequence[type], source: str = "") -> tuple[Any, ...]:
    """Return one instance of each dataclass from a flat dict; what the dict lacks keeps its default.

    Args:
        values: by the names of the fields; YAML and checkpoints have lists where the options have tuples.
        groups: the dataclasses.
        source: the file that the values come from, for messages; empty for the command line.

    Raises:
        UserError: a key belongs to no group, a value of the wrong type, or the dataclass refuses the combination.
    """
    place = f"{source}: " if source else ""
    known = {item.name: (item, group) for group in groups for item in fields(group)}
    for name in values:
        if name not in known:
            raise UserError(f"{place}unknown option '{name}'{suggestion(name, known)}")
    values = {name: _checked(value, *known[name], place) for name, value in values.items()}
    try:
        return tuple(
            group(**{item.name: values[item.name] for item in fields(group) if item.name in values}) for group in groups
        )
    except ValueError as error:
        raise UserError(f"{place}{error}") from error


def flat_dict(*instances: Any) -> dict[str, Any]:
    """Return all options as one flat dict of plain YAML values, the inverse of :func:`build_options`."""
    flat: dict[str, Any] = {}
    for instance in instances:
        flat |= {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(instance).items()}
    return flat


def read_recipe(path: Path, groups: Sequence[type]) -> dict[str, Any]:
    """Read a flat YAML file of options and check names and types.

    Raises:
        UserError: not YAML, not a flat mapping, an unknown key or a value of the wrong type; names file and line.
    """
    values, lines = read_yaml(path)
    lines = {RENAMED.get(name, name): line for name, line in lines.items()}
    by_name = {item.name: (item, group) for group in groups for item in fields(group)}
    checked = {}
    for name, value in with_current_names(values).items():
        place = f"{path}:{lines[name]}: "
        if name not in by_name:
            raise UserError(f"{place}unknown option '{name}'{suggestion(name, by_name)}")
        item, group = by_name[name]
        checked[name] = _checked(value, item, group, place)
    return checked


def _checked(value: Any, item: Field, group: type, place: str) -> Any:
    """Return a value in the type of its field; ``place`` begins the message: a file and its line, or nothing."""
    kind, many, optional = _type_of(item, group)
    if value is None and optional:
        return None
    values = value if many and isinstance(value, (list, tuple)) else [value]
    result = []
    for one in values:
        if kind is float and isinstance(one, (int, str)) and not isinstance(one, bool):
            with contextlib.suppress(ValueError, OverflowError):  # YAML reads 1e-3 (without a dot) as a string
                one = float(one)
        good = type(one) is kind
        if good and isinstance(one, (int, float)):
            good = abs(one) <= LARGEST_INTEGER if kind is int else math.isfinite(one)
        choices = item.metadata.get("choices")
        if not good or (choices and one not in choices):
            wanted = f"one of {', '.join(choices)}" if choices else f"a value of type {kind.__name__}"
            raise UserError(f"{place}'{item.name}' must be {wanted}, not '{one!s:.60}'")
        result.append(one)
    return tuple(result) if many else result[0]


def _type_of(item: Field, group: type) -> tuple[type, bool, bool]:
    """Return (element type, whether a tuple of them, whether None is allowed) of a field's annotation."""
    annotation = typing.get_type_hints(group)[item.name]
    optional = False
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        annotation = next(arg for arg in typing.get_args(annotation) if arg is not type(None))
        optional = True
    if typing.get_origin(annotation) is tuple:
        return typing.get_args(annotation)[0], True, optional
    return annotation, False, optional


def _add_flag(section: argparse._ArgumentGroup, item: Field, group: type) -> None:
    kind, many, _ = _type_of(item, group)
    default = item.default if item.default is not MISSING else None
    text = item.metadata.get("help", "") + ("" if default in (None, "", ()) else f" (default: {_shown(default)})")
    text = text.replace("%", "%%")
    if kind is bool:
        # A flag has its --no-x, too: a recipe may have switched it on.
        action = argparse.BooleanOptionalAction
        section.add_argument(flag(item.name), dest=item.name, default=argparse.SUPPRESS, action=action, help=text)
        return
    section.add_argument(
        flag(item.name),
        dest=item.name,
        default=argparse.SUPPRESS,
        type={float: _number, int: _whole_number}.get(kind, kind),
        nargs="+" if many else None,
        choices=item.metadata.get("choices") or None,
        metavar=None if item.metadata.get("choices") else kind.__name__.upper(),
        action=_StoreTuple if many else "store",
        help=text,
    )


def _shown(default: Any) -> str:
    return " ".join(map(str, default)) if isinstance(default, tuple) else str(default)


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):  # it would pass every comparison with a limit
        raise ValueError
    return value


def _whole_number(text: str) -> int:
    value = int(text)
    if abs(value) > LARGEST_INTEGER:
        raise ValueError
    return value


_number.__name__, _whole_number.__name__ = "number", "int"


class _StoreTuple(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, tuple(values))


class Parser(argparse.ArgumentParser):
    """Reports a mistake on the command line as a UserError, with the closest flag for a mistyped one."""

    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments:"):
            first = message.split(": ", 1)[1].split()[0].split("=")[0]
            new_name = RENAMED.get(first.lstrip("-").replace("-", "_"))
            if new_name:
                raise UserError(f"{first} is called {flag(new_name)} now")
            message += suggestion(first, [flag for action in self._actions for flag in action.option_strings])
        raise UserError(f"{message} (--help lists the options)")
