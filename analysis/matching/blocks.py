"""Columns of a long run, kept block by block on the disk, so that an interrupted run goes on where it stopped.

A block is one file with the columns of some batches, written whole or not at all, and named after its first batch.
A block says which batches it holds: a resumed run skips these, whatever its number of processes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from utils.arrays import read_arrays
from utils.errors import UserError
from utils.files import atomic_path
from utils.renamed import with_current_names

Columns = dict[str, np.ndarray]  # by name; the first dimension counts objects, images or batches
DONE = "done_batches"  # the column with the numbers of a block's batches
MAX_BYTES = 1 << 30  # of the columns of a block


class ColumnBlock:
    """The columns of some batches, collected in memory until they are written."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.parts: list[Columns] = []

    def add(self, batch: int, columns: Columns) -> None:
        """Add the columns of one batch, given by its number among all batches."""
        self.batches.append(batch)
        self.parts.append(columns)

    def write(self, folder: Path) -> None:
        """Write the block and start a new one; an empty block leaves no file."""
        if self.batches:
            columns: dict[str, Any] = {**concatenate(self.parts), DONE: np.array(self.batches)}
            with atomic_path(folder / f"block-{self.batches[0]:07d}.npz") as temporary:
                np.savez(temporary, **columns)
        self.batches, self.parts = [], []


def read_blocks(folder: Path) -> tuple[Columns, set[int]]:
    """Return the columns of all blocks in a folder, and the numbers of the batches they hold.

    Raises:
        UserError: a file is no block; the message names it.
    """
    parts: list[Columns] = []
    done: set[int] = set()
    for path in sorted(folder.glob("block-*.npz")):
        try:
            part = with_current_names(read_arrays(path, MAX_BYTES))
            batches = part.pop(DONE)
            if batches.ndim != 1 or batches.dtype.kind != "i" or not _fits(part, parts):
                raise ValueError("other columns than the blocks before it")
        except (ValueError, KeyError) as error:
            raise UserError(f"{path}: not a block of a matching-stats run; delete it and run again") from error
        done |= set(batches.tolist())
        parts.append(part)
    return concatenate(parts), done


def _fits(part: Mapping[str, np.ndarray], parts: Sequence[Mapping[str, np.ndarray]]) -> bool:
    """Whether a block has the columns of the others, all of one kind (object, image, batch) with as many rows."""
    lengths: dict[str, set[int]] = {}
    for name, values in part.items():
        lengths.setdefault(name.partition("/")[0], set()).add(len(values) if values.ndim else -1)
    if any(len(found) > 1 or -1 in found for found in lengths.values()) or any(
        v.dtype.kind not in "biuf" for v in part.values()
    ):
        return False
    first = parts[0] if parts else part
    return part.keys() == first.keys() and all(
        values.dtype == first[name].dtype and values.shape[1:] == first[name].shape[1:] for name, values in part.items()
    )


def remove_blocks(folder: Path) -> None:
    """Delete the blocks of a finished run, and the folder if nothing else is in it."""
    for path in folder.glob("block-*.npz"):
        path.unlink()
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def concatenate(parts: Iterable[Mapping[str, np.ndarray]]) -> Columns:
    """Join the columns of several parts, in their order; no parts give no columns."""
    parts = list(parts)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}


def in_order_of(columns: Columns, prefix: str, key: str) -> Columns:
    """Return some columns, their rows sorted by one of them.

    Args:
        columns: all columns.
        prefix: those whose names begin with ``prefix/`` are returned, without it in their names.
        key: column, without the prefix, whose values rise in the result.
    """
    chosen = {
        name.removeprefix(f"{prefix}/"): values for name, values in columns.items() if name.startswith(f"{prefix}/")
    }
    order = np.argsort(chosen[key], kind="stable")
    return {name: values[order] for name, values in chosen.items()}
