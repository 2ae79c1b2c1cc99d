"""When ``last.pt`` is written, how many of them are kept, and whether every operation repeats to the bit."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from utils.config import option


@dataclass(frozen=True)
class SafetyOptions:
    """What is kept of a run that breaks off, and whether it can be repeated to the bit."""

    save_minutes: float = option(10.0, "write last.pt also within an epoch, after so many minutes; 0: never")
    keep: int = option(1, "keep so many of the last.pt before the present one, as last-1.pt, last-2.pt, …")
    deterministic: bool = option(
        False, "only operations that give the same bits every time, also on a GPU, where it costs time"
    )

    def __post_init__(self) -> None:
        if self.save_minutes < 0 or self.keep < 0:
            raise ValueError("--save-minutes and --keep must not be negative")


def use_deterministic_operations() -> None:
    """Let torch and cuBLAS use only operations that give the same bits every time; before the first one on a GPU.

    cuBLAS needs a workspace of its own for that, see "Results reproducibility" in its documentation.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # nobody reads before writing  # noqa: B010
