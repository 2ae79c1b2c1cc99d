"""The averaged model."""

import math

import torch
from torch import nn

from engine.ema import AveragedModel


def test_average_by_hand():
    model = nn.BatchNorm1d(1)
    average = AveragedModel(model, decay=0.5, tau=1.0)
    with torch.no_grad():
        model.weight.fill_(3.0)
    model.num_batches_tracked.fill_(7)
    average.update(model)
    # By hand: the decay is half of 1 - 1/e, and the average lies that far from 3 towards 1.
    decay = 0.5 * (1 - math.exp(-1))
    assert torch.isclose(average.model.weight, torch.tensor([decay * 1 + (1 - decay) * 3]))
    assert average.model.num_batches_tracked == 7
    assert not average.model.training and not average.model.weight.requires_grad
