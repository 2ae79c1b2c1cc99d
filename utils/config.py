"""Options: frozen dataclasses that are at once the command line, the YAML recipe and the record of a run.

A script names the dataclasses it needs; every field becomes a flag (``batch_size`` is ``--batch-size``). Values come,
in rising priority, from the field's default, from a YAML recipe (``train.py --hyp``) and from the command line.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import shlex
import sys
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, asdict, field, fields
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from utils import distributed
from utils.errors import UserError, suggestion
from utils.foreign_names import SAME, SHORT, WITHOUT_EFFECT, address_of, answer_to, from_yolov5_recipe, our_file
from utils.renamed import RENAMED, record_of_run, with_current_names
from utils.yaml_file import LARGEST_INTEGER, read_yaml

REPOSITORY = Path(__file__).resolve().parent.parent
FILE_KINDS = {  # what is looked for -> folders below the working directory and the repository, and endings
    "cfg": (("", "cfg"), (".cfg",)),
    "data file": (("", "cfg"), (".data", ".yaml", ".yml")),
    "names file": (("", "cfg"), (".names", ".txt")),
    "recipe": (("", "cfg", "cfg/hyp"), (".yaml", ".yml")),
    "search space": (("", "cfg", "cfg/search"), (".yaml", ".yml")),
    "study": (("", "cfg", "cfg/study"), (".yaml", ".yml")),
}


def option(
    default: Any,
    text: str,
    choices: Sequence[str] = (),
    bare: Any = None,
    words: Mapping[str, Any] | None = None,
) -> Any:
    """Declare a dataclass field that is also a command-line flag.

    Args:
        default: the value when nobody says otherwise; its type comes from the annotation.
        text: meaning and unit, for ``--help``.
        choices: allowed values, for fields of type ``str`` or tuples of them.
        bare: the value where the flag is given without one; None where it needs one.
        words: that may be written for some values: ``{"auto": -1}``.
    """
    metadata = {"help": text, "choices": tuple(choices), "bare": bare, "words": words or {}}
    return field(default=default, metadata=metadata)


def flag(field_name: str) -> str:
    """Return the command-line flag of an option: ``--batch-size`` of ``batch_size``."""
    return "--" + field_name.replace("_", "-")


def find_file(name: str, what: str) -> Path:
    """Return the path of a file named on the command line: as given, else in ``cfg/`` here or in the repository.

    The ending may be left out, and files of ultralytics/yolov5 that are not here stand for ours of the same content.

    Args:
        name: of the file.
        what: its kind, a key of :data:`FILE_KINDS`.

    Raises:
        UserError: there is no such file; the message says where it was looked for.
    """
    folders, endings = FILE_KINDS[what]
    for wanted in (name, *(name + ending for ending in endings)):
        if path := _find_below(folders, wanted):
            if what == "cfg" and path.suffix in (".yaml", ".yml"):
                raise UserError(f"{path}: a network is read from a Darknet cfg, such as yolov5s.cfg, not from a YAML")
            return path
    ours = our_file(name, endings[0])
    if path := _find_below(folders, ours):
        _say_once(f"{name} is not here: taking {path}")
        return path
    known = sorted({p.name for ending in endings for p in (REPOSITORY / folders[-1]).glob(f"*{ending}")})
    shipped = f" (shipped: {', '.join(known)})" if known else ""
    raise UserError(
        f"{what} '{name}' does not exist here or in {folders[-1]}/{suggestion(name, known)}{shipped}{address_of(name)}"
    )


def _find_below(folders: Sequence[str], name: str) -> Path | None:
    paths = (root / folder / name for root in (Path(), REPOSITORY) for folder in folders)
    return next((path for path in paths if path.is_file()), None)


def found_name(name: str, what: str) -> str:
    """Return the whole name of a file that a user named without its ending, to be looked up as that later.

    Raises:
        UserError: as :func:`find_file`.
    """
    if Path(os.path.expanduser(name)).exists():
        return name
    path = find_file(name, what)
    return path.name if find_file(path.name, what) == path else str(path)


@cache
def _say_once(line: str) -> None:
    """Print a note in the main process, however often the same is looked up."""
    if distributed.is_main():
        print(line)


def command_from_here(command: str) -> str:
    """Return a command of the documents as it works in this folder: a program that is not here is named in full."""

    def program(word: str) -> str:
        is_elsewhere = word.endswith(".py") and not Path(word).exists() and (REPOSITORY / word).is_file()
        return shlex.quote(str(REPOSITORY / word)) if is_elsewhere else word

    return " ".join(map(program, command.split(" ")))


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
    known = {item.name for group in groups for item in fields(group)}
    for group in groups:
        section = parser.add_argument_group((group.__doc__ or group.__name__).splitlines()[0].rstrip("."))
        for item in fields(group):
            _add_flag(section, item, group, [name for name in SAME.get(item.name, ()) if name not in known])
            for name, (target, value) in SHORT.items():
                if target == item.name:
                    _add_constant(section, flag(name), target, value)
    for name in WITHOUT_EFFECT.keys() - known:
        parser.add_argument(flag(name), nargs="?", action=_Note, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    return vars(parser.parse_args([_hyphenated(argument) for argument in (sys.argv[1:] if argv is None else argv)]))


def _hyphenated(argument: str) -> str:
    """Return an argument with its flag as ours are written: ``--batch-size=4`` for ``--batch_size=4``."""
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value if name.startswith("--") else argument


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
    refuse_unknown(values, known, place)
    values = {name: _checked(value, *known[name], place) for name, value in values.items()}
    try:
        return tuple(
            group(**{item.name: values[item.name] for item in fields(group) if item.name in values}) for group in groups
        )
    except ValueError as error:
        raise UserError(f"{place}{error!s:.400}") from error


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
    is_record = "resume" in values  # config.yaml of a run, which has all options
    values, note = from_yolov5_recipe(record_of_run(values) if is_record else with_current_names(values))
    if note:
        _say_once(f"{path}: {note}")
    by_name = {item.name: (item, group) for group in groups for item in fields(group)}
    unknown = [str(name) for name in values if name not in by_name]
    refuse_unknown(unknown, by_name, f"{path}:{min((lines.get(name, 1) for name in unknown), default=1)}: ")
    return {name: _checked(value, *by_name[name], f"{path}:{lines.get(name, 1)}: ") for name, value in values.items()}


def checked_value(name: str, value: Any, groups: Sequence[type], place: str = "") -> Any:
    """Return a value for one option in the type of its field.

    Raises:
        UserError: there is no such option, or it takes other values; begins with ``place``.
    """
    known = {item.name: (item, group) for group in groups for item in fields(group)}
    refuse_unknown([name], known, place)
    return _checked(value, *known[name], place)


def refuse_unknown(names: Iterable[str], known: Collection[str], place: str = "") -> None:
    """Refuse options that there are not, all of them at once.

    Raises:
        UserError: begins with ``place``.
    """
    unknown = [f"'{name}'{suggestion(name, known)}" for name in names if name not in known]
    if len(unknown) == 1:
        raise UserError(f"{place}unknown option {unknown[0]}")
    if unknown:
        raise UserError(f"{place}{len(unknown)} unknown options: {', '.join(unknown)}")


def _checked(value: Any, item: Field, group: type, place: str) -> Any:
    """Return a value in the type of its field; ``place`` begins the message: a file and its line, or nothing."""
    kind, many, optional = _type_of(item, group)
    if value is None and optional:
        return None
    values = value if many and isinstance(value, (list, tuple)) else [value]
    result = []
    for one in values:
        one = item.metadata.get("words", {}).get(one, one) if isinstance(one, str) else one
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


@cache
def _type_hints(group: type) -> dict[str, Any]:
    return typing.get_type_hints(group)


def _type_of(item: Field, group: type) -> tuple[type, bool, bool]:
    """Return (element type, whether a tuple of them, whether None is allowed) of a field's annotation."""
    annotation = _type_hints(group)[item.name]
    optional = False
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        annotation = next(arg for arg in typing.get_args(annotation) if arg is not type(None))
        optional = True
    if typing.get_origin(annotation) is tuple:
        return typing.get_args(annotation)[0], True, optional
    return annotation, False, optional


def _add_flag(section: argparse._ArgumentGroup, item: Field, group: type, other_names: Sequence[str]) -> None:
    flags = [flag(name) for name in (item.name, *other_names)]
    kind, many, _ = _type_of(item, group)
    default = item.default if item.default is not MISSING else None
    text = item.metadata.get("help", "") + ("" if default in (None, "", ()) else f" (default: {_shown(default)})")
    text = text.replace("%", "%%")
    if kind is bool:
        # A flag has its --no-x, too: a recipe may have switched it on.
        action = argparse.BooleanOptionalAction
        section.add_argument(*flags, dest=item.name, default=argparse.SUPPRESS, action=action, help=text)
        return
    bare, choices = item.metadata.get("bare"), item.metadata.get("choices", ())
    words = {choice.lower(): choice for choice in choices} | dict(item.metadata.get("words", {}))
    section.add_argument(
        *flags,
        dest=item.name,
        default=argparse.SUPPRESS,
        type=_reader(kind, words),
        nargs="+" if many else None if bare is None else "?",
        const=bare,
        choices=choices or None,
        metavar=None if choices else kind.__name__.upper(),
        action=_StoreTuple if many else "store",
        help=text,
    )


def _add_constant(section: argparse._ArgumentGroup, name: str, target: str, value: str) -> None:
    text = argparse.SUPPRESS if name.startswith("--no-") else f"the same as {flag(target)} {value}"
    section.add_argument(name, dest=target, action="store_const", const=value, default=argparse.SUPPRESS, help=text)


def _reader(kind: type, words: Mapping[str, Any]) -> Callable[[str], Any]:
    """Return what turns an argument into a value, with the name that a message about it takes.

    Args:
        kind: of the value.
        words: in lower case, and the values that they stand for, however they are written.
    """
    read: Callable[[str], Any] = {float: _number, int: _whole_number}.get(kind, kind)
    if not words:
        return read

    def read_word(text: str) -> Any:
        word = text.lower()
        return words[word] if word in words else read(text)

    read_word.__name__ = read.__name__
    return read_word


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


class _Note(argparse.Action):
    """A flag of other toolkits that asks for nothing: says why it changes nothing."""

    def __call__(self, parser, namespace, values, option_string=None):
        name = option_string.lstrip("-").replace("-", "_")
        _say_once(f"{option_string} changes nothing: {WITHOUT_EFFECT[name]}")


class Parser(argparse.ArgumentParser):
    """Reports a mistake on the command line as a UserError, with the closest flag for a mistyped one."""

    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments:"):
            argument = message.split()[2]
            name = argument.split("=")[0]
            new_name = RENAMED.get(name.lstrip("-").replace("-", "_"))
            if new_name:
                raise UserError(f"{name} is called {flag(new_name)} now")
            if answer := answer_to(argument):
                raise UserError(f"{argument}: {answer} (--help lists the options)")
            message += suggestion(name, [flag for action in self._actions for flag in action.option_strings])
        raise UserError(f"{message} (--help lists the options)")
