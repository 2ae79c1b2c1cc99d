"""The progress bar while many label files or image headers are read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from tqdm import tqdm

from utils import distributed

Item = TypeVar("Item")
MIN_SECONDS = 0.5  # what is read sooner shows no bar


def with_progress(items: Sequence[Item], what: str) -> Iterable[Item]:
    """Yield the items, with a bar in the terminal of the main process that goes away at the end."""
    is_silent = None if distributed.is_main() else True  # None: where the output is no terminal
    return tqdm(items, desc=what, unit=" files", delay=MIN_SECONDS, leave=False, disable=is_silent)
