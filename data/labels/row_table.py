"""Label rows while they are checked: what is wrong is recorded with file and line, and that row only is dropped."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from data.labels.annotations import Problem

OUTSIDE_TOLERANCE = 1.0  # pixels by which rounding may carry a box over the edge of its image


class RowTable:
    """Columns of equal length [M ...] that shrink as bad rows are dropped.

    Args:
        place: (image index, line) -> (file, line) for the message.
        columns: must contain ``image`` [M], ``line`` [M] and ``xyxy`` [M 4] in pixels.
    """

    def __init__(self, place: Callable[[int, int], tuple[str, int]], **columns: np.ndarray) -> None:
        self.place = place
        self.columns = columns
        self.problems: list[Problem] = []

    def __getitem__(self, name: str) -> np.ndarray:
        return self.columns[name]

    def __len__(self) -> int:
        return len(self.columns["image"])

    def note(self, bad: np.ndarray, kind: str, what: Callable[[int], str]) -> None:
        """Record a problem for the rows at ``bad`` [M] and keep them."""
        for row in np.flatnonzero(bad).tolist():
            file, line = self.place(int(self["image"][row]), int(self["line"][row]))
            self.problems.append(Problem(file, line, kind, what(row)))

    def drop(self, bad: np.ndarray, kind: str, what: Callable[[int], str]) -> RowTable:
        """Record a problem for the rows at ``bad`` [M] and drop them; return the dropped ones."""
        dropped = RowTable(self.place, **{name: column[bad] for name, column in self.columns.items()})
        if bad.any():
            self.note(bad, kind, what)
            self.columns = {name: column[~bad] for name, column in self.columns.items()}
        return dropped

    def extend(self, other: RowTable) -> None:
        """Append the rows of a table with the same columns."""
        self.columns = {name: np.concatenate((column, other[name])) for name, column in self.columns.items()}

    def drop_bad_boxes(self, image_wh: np.ndarray) -> RowTable:
        """Drop the boxes that are not finite, without area or wholly outside their image; note those partly outside.

        Args:
            image_wh: [N 2] pixels.

        Returns:
            The dropped rows that are boxes all the same: those without area or outside.
        """
        self.drop(~np.isfinite(self["xyxy"]).all(1), "not a finite number", self._box)
        size = self["xyxy"][:, 2:] - self["xyxy"][:, :2]
        unlearnable = self.drop((size <= 0).any(1), "zero or negative size", self._box)

        limit = np.tile(image_wh, 2)[self["image"]]  # M 4
        inside = np.clip(self["xyxy"], 0, limit)
        unlearnable.extend(self.drop((inside[:, 2:] - inside[:, :2] <= 0).any(1), "box outside the image", self._box))
        limit = np.tile(image_wh, 2)[self["image"]]  # M 4, of the rows that are left
        beyond = (self["xyxy"][:, :2] < -OUTSIDE_TOLERANCE) | (self["xyxy"][:, 2:] > limit[:, 2:] + OUTSIDE_TOLERANCE)
        self.note(beyond.any(1), "box reaches over the edge of the image; training uses its inside", self._box)
        return unlearnable

    def duplicates(self) -> np.ndarray:
        """Return [M] bool: an earlier row has the same image, label and box."""
        # A hash sorts ten times faster than six columns; only rows whose hash is not unique are compared in full.
        keys = np.column_stack((self["image"], self["label"], self["xyxy"] + 0.0)).astype(np.float64)  # -0.0 is 0.0
        factors = np.array((0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 3, 5, 7), dtype=np.uint64)
        hashes = ((keys.view(np.uint64) ^ (keys.view(np.uint64) >> np.uint64(29))) * factors).sum(axis=1)
        _, inverse, counts = np.unique(hashes, return_inverse=True, return_counts=True)
        suspects = np.flatnonzero(counts[inverse] > 1)
        # Of the suspects all but the first of each kind are duplicates.
        repeated = np.zeros(len(self), dtype=bool)
        repeated[suspects] = True
        repeated[suspects[np.unique(keys[suspects], axis=0, return_index=True)[1]]] = False
        return repeated

    def _box(self, row: int) -> str:
        which = f"annotation {self['id'][row]}, " if "id" in self.columns else ""
        return f"{which}box x1 y1 x2 y2 = " + " ".join(f"{value:g}" for value in self["xyxy"][row])
