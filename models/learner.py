"""A network with its loss, as a training step calls it: one module, so that DistributedDataParallel sees both.

Shape letters: B images, H W pixels of the network input.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from models.assignment.counts import MatchCounts
from utils.structures import Targets


@dataclass(frozen=True)
class BatchLoss:
    """The loss of one batch."""

    parts: dict[str, Tensor]  # scalars by name, sums over the images of the batch
    counts: MatchCounts | None = None  # of the matches; None where no slots are assigned
    share: float = 1.0  # what the parts are multiplied by before they are back-propagated

    @property
    def total(self) -> Tensor:
        """What is back-propagated."""
        return reduce(torch.add, self.parts.values()) * self.share


class Learner(nn.Module, ABC):
    """A network with its loss.

    Attributes:
        network: what is trained.
        amp_dtype: the type in which the network computes, None for float32 throughout; losses are always float32.
        part: a context manager that is told what is computed within it, "forward" or "loss", to measure it.
    """

    network: Any  # a module of any kind, which only this learner calls

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.amp_dtype: torch.dtype | None = None
        self.part: Callable[[str], AbstractContextManager[None]] = lambda _: nullcontext()

    @abstractmethod
    def forward(self, images: Tensor, targets: Targets, crowd: Targets) -> BatchLoss:
        """Return the loss of a batch, with gradient.

        Args:
            images: [B 3 H W], 0..1, RGB.
            targets: the objects.
            crowd: crowd regions, which are never learned from.
        """

    def start_epoch(self, images_seen: int) -> None:
        """Say how many images of the run were seen before the epoch that begins."""

    def loss_of_outputs(self) -> Callable | None:
        """Return ``(raw, targets, crowd) -> BatchLoss`` of what the network says in testing; None without one."""
        return None

    def mixed_precision(self, images: Tensor) -> torch.autocast:
        """Return the context in which the network computes."""
        return torch.autocast(images.device.type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None)


class MapsLearner(Learner):
    """A network whose loss is computed from its raw maps."""

    def __init__(self, network: nn.Module, loss_function: Callable) -> None:
        """Put both together; the loss function is ``(raw_maps, targets, crowd) -> BatchLoss``."""
        super().__init__(network)
        self.loss_function = loss_function

    def forward(self, images: Tensor, targets: Targets, crowd: Targets) -> BatchLoss:
        """As :meth:`Learner.forward`."""
        with self.part("forward"), self.mixed_precision(images):
            raw_maps = self.network(images)
        with self.part("loss"):
            return self.loss_function(raw_maps, targets, crowd)

    def start_epoch(self, images_seen: int) -> None:
        """As :meth:`Learner.start_epoch`; the first images of a run count in Darknet's loss."""
        if hasattr(self.loss_function, "images_seen"):
            self.loss_function.images_seen = images_seen

    def loss_of_outputs(self) -> Callable | None:
        """As :meth:`Learner.loss_of_outputs`; a copy, which counts no images of the run."""
        if not getattr(self.loss_function, "is_of_outputs", True):
            return None
        loss_function = copy.copy(self.loss_function)
        if hasattr(loss_function, "images_seen"):
            loss_function.images_seen = None
        return loss_function
