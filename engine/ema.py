"""Exponential moving average of a network's weights: what is tested, saved as best and used for detection."""

from __future__ import annotations

import copy
import math
from typing import Generic, TypeVar

import torch
from torch import nn

Model = TypeVar("Model", bound=nn.Module)


class AveragedModel(Generic[Model]):
    """A copy of a model whose floating-point tensors follow the model's with decay ``d (1 - exp(-updates / tau))``.

    The decay rises from 0, so that the average soon forgets the random initial weights; the rule is that of
    ultralytics/yolov5 v7.0 (utils/torch_utils.py, ModelEMA).

    Attributes:
        model: the average, in evaluation mode.
        updates: optimizer steps so far.
    """

    def __init__(self, model: Model, decay: float = 0.9999, tau: float = 2000.0) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.tau = tau
        self.updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average one optimizer step towards the model."""
        self.updates += 1
        decay = self.decay * (1 - math.exp(-self.updates / self.tau))
        # Integers, the counters of batch norms, are copied; all other tensors move in one fused call.
        source = model.state_dict()
        averaged, current = [], []
        for name, value in self.model.state_dict().items():
            if value.is_floating_point():
                averaged.append(value)
                current.append(source[name].detach())
            else:
                value.copy_(source[name])
        torch._foreach_lerp_(averaged, current, 1 - decay)
