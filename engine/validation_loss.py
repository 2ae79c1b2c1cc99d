"""The loss on the validation images, by part, from what the network says of them for the evaluation anyway."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from models.learner import Learner
from utils import distributed
from utils.structures import Batch


class ValidationLoss:
    """Sums up the loss of the batches that a detector looks at."""

    def __init__(self, loss_function: Callable) -> None:
        """Begin with nothing; the loss function is ``(raw, targets, crowd) -> BatchLoss``."""
        self.loss_function = loss_function
        self.totals: dict[str, torch.Tensor] = {}
        self.images = 0

    @classmethod
    def of(cls, learner: Learner) -> ValidationLoss | None:
        """Return the sum for a network, None for one whose loss cannot be computed from what it says in testing."""
        loss_function = learner.loss_of_outputs()
        return cls(loss_function) if loss_function else None

    @torch.inference_mode()
    def add(self, raw: Any, batch: Batch) -> None:
        """Add the loss of a batch.

        Args:
            raw: what the network said of it.
            batch: on the device of ``raw``.
        """
        for name, part in self.loss_function(raw, batch.targets, batch.crowd).parts.items():
            self.totals[name] = self.totals.get(name, torch.zeros(())) + part.detach().double().cpu()
        self.images += len(batch.images)

    def means(self) -> dict[str, float]:
        """Return the mean of each part per image over all processes; every process must call it."""
        parts = distributed.gather((self.images, {name: total.item() for name, total in self.totals.items()}))
        images = sum(count for count, _ in parts or ())
        names = {name: None for _, totals in parts or () for name in totals}
        return {name: sum(totals.get(name, 0.0) for _, totals in parts or ()) / images for name in names}
