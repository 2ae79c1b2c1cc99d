"""The parts of docs/assignment.md that programs write, each between two marks."""

from __future__ import annotations

import re

from utils.config import REPOSITORY
from utils.errors import UserError
from utils.files import write_text_atomically

DOCUMENT = REPOSITORY / "docs" / "assignment.md"


def read_document() -> str:
    """Return the text of the document."""
    return DOCUMENT.read_text(encoding="utf-8")


def with_part(document: str, mark: str, text: str) -> str:
    """Return the document with ``text`` between ``<!-- mark -->`` and ``<!-- end of mark -->``.

    Raises:
        UserError: the document lacks the two marks.
    """
    begin, end = f"<!-- {mark} -->\n", f"\n<!-- end of {mark} -->"
    changed, count = re.subn(
        f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: begin + text + end, document, flags=re.DOTALL
    )
    if not count:
        raise UserError(f"{DOCUMENT}: has no lines '{begin.strip()}' and '{end.strip()}' to put a table between")
    return changed


def write_part(mark: str, text: str) -> None:
    """Put ``text`` between two marks of the document."""
    write_text_atomically(DOCUMENT, with_part(read_document(), mark, text))
