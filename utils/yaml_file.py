"""YAML files of ``key: value`` lines: plain values only, within limits, every mistake with its file and line.

What YAML would make of a date stays text. An alias counts as often as it is used, for nine lines of aliases can stand
for a billion values.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import yaml

from utils.errors import UserError
from utils.files import read_text

MAX_BYTES = 2_000_000  # the names of 21,000 classes take 0.6 MB
MAX_DEPTH = 20  # lists and mappings in one another; a data set's file has two
MAX_VALUES = 200_000  # with every alias written out
LARGEST_INTEGER = 2**63 - 1
TAG = "tag:yaml.org,2002:"
SCALARS = {TAG + kind for kind in ("null", "bool", "int", "float", "str")}


class YamlFile(NamedTuple):
    """The content of a file, and where it stands."""

    values: dict[str, Any]  # None, bool, int, float, str, and lists and dicts of these
    lines: dict[str, int]  # of each key, from 1


def read_yaml(path: Path, as_text: bool = False) -> YamlFile:
    """Read a file of ``key: value`` lines; an empty one has no keys.

    Args:
        path: the file.
        as_text: leave all single values and keys as they are written; "no" is no bool then, and "1e3" no number.

    Raises:
        UserError: too large, no YAML, no mapping, a key that is given twice, a value that is not plain; with file and
            line.
        OSError: the file cannot be opened.
    """
    text = read_text(path, MAX_BYTES)
    try:
        loader = _Loader(text, as_text)
        root = loader.get_single_node()
        if root is None or root.tag == TAG + "null":
            return YamlFile({}, {})
        if not isinstance(root, yaml.MappingNode):
            raise UserError(f"{path}: not a list of 'option: value' lines")
        values = loader.plain_mapping(root, depth=1, keys_as_text=True)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UserError(f"{path}:{line}: not valid YAML: character U+{error.character:04X} is in it") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"{path}:{line}: not valid YAML: {error.problem}") from error
    return YamlFile(values, {key.value: _line(key) for key, _ in root.value})


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1


class _Loader(yaml.SafeLoader):
    """Makes plain values of YAML's nodes, and stops where there are too many of them."""

    # Without dates: the rules by which a text that is not in quotes becomes something else, by its first letter.
    yaml_implicit_resolvers = {  # noqa: RUF012
        letter: [rule for rule in rules if rule[0] != TAG + "timestamp"]
        for letter, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, text: str, as_text: bool) -> None:
        super().__init__(text)
        self.as_text = as_text
        self.depth = 0  # of the node that is being composed
        self.made = 0  # values so far

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Return the next node of the text, as the base class does."""
        self.depth += 1
        self._check_depth(self.depth, self.peek_event().start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def plain(self, node: yaml.Node, depth: int) -> Any:
        """Return the value of a node, every alias written out; ``depth`` is the number of nodes that hold it."""
        self.made += 1
        if self.made > MAX_VALUES:
            raise self._error(node, f"stands for more than {MAX_VALUES:,} values")
        if isinstance(node, yaml.ScalarNode):
            return self._plain_scalar(node)
        self._check_depth(depth + 1, node.start_mark)  # an alias may stand inside of what it stands for
        if isinstance(node, yaml.MappingNode) and node.tag == TAG + "map":
            return self.plain_mapping(node, depth + 1)
        if isinstance(node, yaml.SequenceNode) and node.tag == TAG + "seq":
            return [self.plain(one, depth + 1) for one in node.value]
        raise self._error(node, f"the tag '{node.tag[:40]}' is not read; leave it out")

    def plain_mapping(self, node: yaml.MappingNode, depth: int, keys_as_text: bool = False) -> dict[Any, Any]:
        """Return a mapping; with ``keys_as_text`` its keys are as written, 'yes' is no bool then."""
        values: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise self._error(key_node, "a key must be a single word or number")
            key = self.plain(key_node, depth)
            key = key_node.value if keys_as_text else key
            if key in values:
                raise self._error(key_node, f"'{key_node.value[:40]}' is given twice")
            values[key] = self.plain(value_node, depth)
        return values

    def _plain_scalar(self, node: yaml.ScalarNode) -> bool | int | float | str | None:
        text = node.value
        # Of the surrogates, Python keeps the bytes of file names that are not UTF-8 in "\udc80" to "\udcff".
        if any("\ud800" <= letter < "\udc80" or "\udcff" < letter <= "\udfff" for letter in text):
            raise self._error(node, "half of a surrogate pair is no letter")
        if self.as_text:
            return text
        # A tag such as !!int may stand before any text; it counts where the text alone has the same meaning.
        if node.tag not in SCALARS or node.tag not in (TAG + "str", self.resolve(yaml.ScalarNode, text, (True, False))):
            raise self._error(node, f"'{text[:40]}' is no plain value; put it in quotes if it is a text")
        try:
            value = self.construct_object(node)
        except (ValueError, OverflowError):  # "0x_", or more digits than Python reads
            value = LARGEST_INTEGER + 1
        if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
            raise self._error(node, f"'{text[:40]}' is no number that can be read; put it in quotes if it is a text")
        return value

    def _check_depth(self, depth: int, mark: yaml.Mark) -> None:
        if depth > MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem=f"more than {MAX_DEPTH} levels in one another", problem_mark=mark)

    def _error(self, node: yaml.Node, problem: str) -> yaml.MarkedYAMLError:
        return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
