"""Batch norms whose statistics in training are those of the images of all processes.

torch.nn.SyncBatchNorm does the same for GPUs only, and is no BatchNorm2d.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from models.layers import running_statistics
from utils import distributed


class SyncedBatchNorm(nn.BatchNorm2d):
    """A batch norm that sums over the processes of ``torchrun``, in the forward and in the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [B C H W]; the processes may have different B."""
        if not self.training or distributed.world_size() == 1:
            return super().forward(x)
        values = x.float()
        size = torch.full((1,), values.numel() / values.shape[1], device=x.device)
        sums = all_reduce(torch.cat((values.sum((0, 2, 3)), size)))
        mean, count = sums[:-1] / sums[-1], sums[-1].detach()
        centred = values - mean[:, None, None]
        variance = all_reduce(centred.square().sum((0, 2, 3))) / count
        self._follow(mean.detach(), variance.detach() * count / (count - 1))
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics towards those of a batch, as torch.nn.BatchNorm2d does."""
        assert self.momentum is not None and self.num_batches_tracked is not None
        for running, value in zip(running_statistics(self), (mean, variance), strict=True):
            running.lerp_(value, self.momentum)
        self.num_batches_tracked += 1


def synchronise_norms(model: nn.Module) -> None:
    """Let all batch norms of a model sum over the processes; their parameters and statistics stay where they are."""
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncedBatchNorm
