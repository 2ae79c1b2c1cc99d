"""How far a process has come in an epoch, so that a run can go on within it, at the very batch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch

from models.assignment.counts import MatchCounts
from utils.seeding import generator_state, set_generator_state


@dataclass
class Progress:
    """What one process has summed up in an epoch; empty at its start."""

    batches: int = 0  # that have been learned from
    images: int = 0  # in them, in this process
    totals: dict[str, float] = field(default_factory=dict)  # the sum of each loss part over these images
    counts: MatchCounts | None = None  # of their matches
    generator: torch.Tensor | None = None  # the state of torch's generator, where it has been taken

    def add(self, images: int, parts: Mapping[str, float], counts: MatchCounts | None) -> None:
        """Add what a batch gave; some networks count no matches."""
        self.images += images
        for name, value in parts.items():
            self.totals[name] = self.totals.get(name, 0.0) + value
        if counts is not None:
            self.counts = counts if self.counts is None else self.counts + counts

    def means(self) -> dict[str, float]:
        """Return the mean of each loss part per image so far."""
        return {name: total / self.images for name, total in self.totals.items()}

    def taken(self, device: torch.device) -> Progress:
        """Return a copy that stays as it is, on the CPU, with the state of the device's generator now."""
        generator = generator_state(device) if self.generator is None else self.generator
        return replace(self, totals=dict(self.totals), counts=self._counts_on("cpu"), generator=generator)

    def resumed(self, device: torch.device) -> Progress:
        """Return a copy to go on with, after setting the device's generator to where it was."""
        if self.generator is not None:
            set_generator_state(device, self.generator)
        return replace(self, totals=dict(self.totals), counts=self._counts_on(device), generator=None)

    def emptied(self) -> Progress:
        """Return a copy in which no image has been counted."""
        counts = self.counts
        if counts is not None:
            counts = replace(
                counts, **{item.name: torch.zeros_like(getattr(counts, item.name)) for item in fields(counts)}
            )
        return replace(self, images=0, totals=dict.fromkeys(self.totals, 0.0), counts=counts, generator=None)

    def _counts_on(self, device: str | torch.device) -> MatchCounts | None:
        if self.counts is None:
            return None
        return replace(
            self.counts, **{item.name: getattr(self.counts, item.name).to(device) for item in fields(self.counts)}
        )

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain values only."""
        counts = {item.name: getattr(self.counts, item.name) for item in fields(self.counts)} if self.counts else {}
        return {**vars(self), "totals": dict(self.totals), "counts": counts}

    @classmethod
    def from_state_dict(cls, content: Mapping[str, Any]) -> Progress:
        """Return what :meth:`state_dict` was taken of."""
        counts = MatchCounts(**content["counts"]) if content["counts"] else None
        return cls(**{**content, "totals": dict(content["totals"]), "counts": counts})


def share_of_process(parts: Sequence[Progress], rank: int, world_size: int) -> Progress:
    """Return what a process goes on with.

    Where as many processes go on as were stopped, each takes its own part. Else the main one takes the sum, so that
    the means of the epoch are right whoever makes the rest of it; the others have zeros, by the same names, for all of
    them are summed up even where no batch is left.

    Args:
        parts: of every process that was stopped, by rank; none at the start of an epoch.
        rank: of this process.
        world_size: how many go on.
    """
    if not parts:
        return Progress()
    if len(parts) == world_size:
        return parts[rank]
    if rank:
        return parts[0].emptied()
    whole = replace(parts[0], totals=dict(parts[0].totals), generator=None)
    for part in parts[1:]:
        if part.images:
            whole.add(part.images, part.totals, part.counts)
    return whole


def is_progress(content: Any) -> bool:
    """Whether this is a list of what :meth:`Progress.state_dict` returns, as a checkpoint has it."""
    return isinstance(content, list) and all(isinstance(part, dict) and _is_part(part) for part in content)


def _is_part(part: dict[Any, Any]) -> bool:
    totals, counts, generator = part.get("totals"), part.get("counts"), part.get("generator")
    return (
        part.keys() == {item.name for item in fields(Progress)}
        and all(isinstance(part[name], int) and 0 < part[name] < 2**63 for name in ("batches", "images"))
        and isinstance(totals, dict)
        and all(
            isinstance(name, str) and isinstance(value, float) and math.isfinite(value)
            for name, value in totals.items()
        )
        and isinstance(counts, dict)
        and (not counts or counts.keys() == {item.name for item in fields(MatchCounts)})
        and all(isinstance(value, torch.Tensor) and value.dtype == torch.float64 for value in counts.values())
        and (generator is None or (isinstance(generator, torch.Tensor) and generator.dtype == torch.uint8))
    )
