"""Reading a raw map for the loss, with a backward pass that writes one dense gradient and nothing else.

Slicing and indexing a raw map in plain autograd makes a zero-filled gradient of the whole map for each read; the maps
are the largest tensors of a training step, and writing them several times is what the loss's backward pass then costs.

Shape letters: B images, A anchors per cell, H W grid rows and columns, C classes, M matches, N slots.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.slots import flat_rows, is_dense, row_numbers
from utils.records import Matches


def read_raw(raw: Tensor, std: Matches, new: Matches) -> tuple[Tensor, Tensor, Tensor]:
    """Read what the loss needs from a raw map [B A H W 5+C], in float32.

    Returns:
        Objectness logits [B A H W], and the rows [M 5+C] of the std and of the new matches.
    """
    if not is_dense(raw):
        raw = raw.contiguous()
    steps = flat_rows(raw)[1]
    rows = [row_numbers(steps, half.image, half.anchor, half.row, half.col) for half in (std, new)]
    objectness, std_rows, new_rows = _ReadRaw.apply(raw, *rows)
    return objectness.as_strided(raw.shape[:4], steps), std_rows, new_rows


class _ReadRaw(torch.autograd.Function):
    @staticmethod
    def forward(ctx, raw: Tensor, *wheres: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(*wheres)
        ctx.like = torch.empty_like(raw, device="meta")
        ctx.device = raw.device
        rows, _ = flat_rows(raw)
        return (rows[:, 4].to(torch.float32, copy=True), *(rows.index_select(0, where).float() for where in wheres))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_objectness: Tensor, *grad_rows: Tensor) -> tuple[Tensor | None, ...]:
        gradient = torch.zeros_like(ctx.like, device=ctx.device)
        rows, _ = flat_rows(gradient)
        rows[:, 4] = grad_objectness
        where, total = _sum_of_repeated(torch.cat(ctx.saved_tensors), torch.cat(grad_rows))
        rows[where] += total.to(rows.dtype)
        return gradient, *(None for _ in grad_rows)


def _sum_of_repeated(where: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Add the rows that go to the same place, always in the same order; each place is then written once."""
    order = torch.argsort(where, stable=True)
    places, group = torch.unique_consecutive(where[order], return_inverse=True)
    if len(places) == len(where):
        return where, values
    total = values.new_zeros(len(places), values.shape[1])
    if values.is_cuda:  # index_add_ adds in any order there, index_put_ sorts first; on a CPU it is the other way round
        return places, total.index_put_((group,), values[order], accumulate=True)
    return places, total.index_add_(0, group, values[order])
