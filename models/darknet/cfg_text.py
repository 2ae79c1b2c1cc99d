"""Other values for some keys in the text of a cfg; whatever else is written there stays as it is."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from models.darknet.section import Section

# A line of a cfg: key and equals sign, value, white space and comment.
KEY_LINE = re.compile(r"^([^=]*=\s*)[^#;]*?(\s*(?:[#;].*)?)$")


def with_values(text: str, changes: Iterable[tuple[Section, Mapping[str, str]]]) -> str:
    """Return the text of a cfg with other values; a key that is not written yet follows the header of its section.

    Args:
        text: of the cfg.
        changes: sections as they were read from this very text, and values by key.
    """
    lines = text.split("\n")  # as the parser counts them
    for section, values in changes:
        ending = "\r" if lines[section.line - 1].endswith("\r") else ""
        for key, value in values.items():
            number = section.lines.get(key, 0)
            if number:
                lines[number - 1] = KEY_LINE.sub(rf"\g<1>{value}\g<2>", lines[number - 1])
            else:
                lines[section.line - 1] += f"\n{key}={value}{ending}"
    return "\n".join(lines)
