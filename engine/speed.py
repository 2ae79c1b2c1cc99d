"""How long a detector takes per image, batch by batch, for ``test.py --task speed``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from models.detector import Detector
from utils.config import option
from utils.structures import Batch

PERCENTILES = (50, 90, 99)


@dataclass(frozen=True)
class SpeedOptions:
    """How the time is measured."""

    threads: int = option(0, "threads of the computation, of exported networks, too; default: one per core")

    def __post_init__(self) -> None:
        if not 0 <= self.threads <= 1024:
            raise ValueError("--threads must lie between 1 and 1024; 0 means one per core")


def time_batches(detector: Detector, batches: Iterable[Batch]) -> list[float]:
    """Run the detector over all batches for its speed alone; return each batch's milliseconds per image."""
    milliseconds = []
    for batch in batches:
        before = detector.seconds_inference + detector.seconds_nms
        detector(batch.images, batch.metas)
        seconds = detector.seconds_inference + detector.seconds_nms - before
        milliseconds.append(seconds / len(batch.images) * 1e3)
    return milliseconds


def percentiles_line(milliseconds: list[float]) -> str:
    """Return the percentiles over the batches in words."""
    values = np.percentile(milliseconds, PERCENTILES)
    shown = ", ".join(f"p{percent} {value:.1f}" for percent, value in zip(PERCENTILES, values, strict=True))
    return f"Percentiles over {len(milliseconds)} batches: {shown} ms per image"
