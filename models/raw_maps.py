"""Every read of a raw map by slot; the loss's read has a backward pass that writes one dense gradient and nothing else.

Plain autograd makes a zero-filled gradient of the whole map for each slice or index of it. The maps are the largest
tensors of a training step, and writing them several times would be most of the loss's backward pass.

Shape letters: B images, A anchors per cell, H W grid rows and columns, C classes, M matches, N slots of one map, P of
them that are asked for.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from utils.structures import Assignment


def flat_rows(raw: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """View a raw map [B A H W 5+C] as rows [N 5+C] in memory order.

    Returns:
        The rows, and how many rows one step in image, anchor, row and column is. A map that is not dense is copied.
    """
    # A convolution's output viewed as a map has its numbers of one slot side by side only in channels-last format.
    if not is_dense(raw):
        raw = raw.contiguous()
    width = raw.shape[-1]
    steps = tuple(step // width for step in raw.stride()[:4])
    return raw.as_strided((raw.numel() // width, width), (width, 1)), steps


def is_dense(raw: Tensor) -> bool:
    """Whether a raw map [B A H W 5+C] is rows of 5+C numbers without gaps, in any order of the other dimensions."""
    # From the smallest step up, each must be the size of everything inside it; a dimension of size 1 has no step.
    expected = raw.shape[-1]
    for step, size in sorted(zip(raw.stride()[:4], raw.shape[:4], strict=True)):
        if size > 1 and step != expected:
            return False
        expected *= size
    return raw.stride(-1) == 1


def row_numbers(steps: tuple[int, ...], image: Tensor, anchor: Tensor, row: Tensor, col: Tensor) -> Tensor:
    """Return the place of each slot among the rows of :func:`flat_rows`, [P] int64."""
    return image * steps[0] + anchor * steps[1] + row * steps[2] + col * steps[3]


def gather_rows(raw: Tensor, image: Tensor, anchor: Tensor, row: Tensor, col: Tensor, *, columns: slice) -> Tensor:
    """Return some columns of a raw map [B A H W 5+C] at the given slots, [P columns]."""
    rows, steps = flat_rows(raw)
    return rows[:, columns].index_select(0, row_numbers(steps, image, anchor, row, col))


def gather_numbers(raw: Tensor, column: Tensor, image: Tensor, anchor: Tensor, row: Tensor, col: Tensor) -> Tensor:
    """Return one number of a raw map [B A H W 5+C] per slot, [P] float32, from the column given for it, [P]."""
    rows, steps = flat_rows(raw)
    return rows.view(-1)[row_numbers(steps, image, anchor, row, col) * raw.shape[-1] + column].float()


def gather_predictions(raw_maps: Sequence[Tensor], assignment: Assignment) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
    """Read what the loss needs from the raw maps [B A H W 5+C] of all heads, in float32.

    Returns:
        Objectness logits per head [B A H W], the raw numbers of the base matches' slots [M 5+C], and those of the
        extra matches' slots [M' 5+C].
    """
    objectness, base_rows, extra_rows = [], [], []
    places = zip(assignment.base.place_per_head(), assignment.extra.place_per_head(), strict=True)
    for raw, (base, extra) in zip(raw_maps, places, strict=True):
        raw = raw if is_dense(raw) else raw.contiguous()
        _, steps = flat_rows(raw)
        logits, of_base, of_extra = _GatherRows.apply(raw, row_numbers(steps, *base), row_numbers(steps, *extra))
        objectness.append(logits.as_strided(raw.shape[:4], steps))  # N in memory order -> B A H W, without moving data
        base_rows.append(of_base)
        extra_rows.append(of_extra)
    return tuple(objectness), torch.cat(base_rows), torch.cat(extra_rows)


class _GatherRows(torch.autograd.Function):
    """Objectness of every slot [N], and the rows [P 5+C] of each list of row numbers, from a dense raw map."""

    @staticmethod
    def forward(ctx, raw: Tensor, *wheres: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(*wheres)
        ctx.like = torch.empty_like(raw, device="meta")  # shape, strides and type of the gradient; holds no memory
        ctx.device = raw.device
        rows, _ = flat_rows(raw)
        # Objectness is copied, also from float32: a view would keep the gaps between the rows.
        return (rows[:, 4].to(torch.float32, copy=True), *(rows.index_select(0, where).float() for where in wheres))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_objectness: Tensor, *grad_rows: Tensor) -> tuple[Tensor | None, ...]:
        gradient = torch.zeros_like(ctx.like, device=ctx.device)
        rows, _ = flat_rows(gradient)  # a view
        rows[:, 4] = grad_objectness
        # A slot may have several matches, in either set: their gradients are added up first, so that each row is
        # written once.
        where, total = _sum_of_repeated(torch.cat(ctx.saved_tensors), torch.cat(grad_rows))
        rows[where] += total.to(rows.dtype)
        return gradient, *(None for _ in grad_rows)


def _sum_of_repeated(where: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Add up the rows [P 5+C] that go to the same place, always in the same order; return places and sums."""
    order = torch.argsort(where, stable=True)
    places, group = torch.unique_consecutive(where[order], return_inverse=True)
    if len(places) == len(where):
        return where, values
    total = values.new_zeros(len(places), values.shape[1])
    if values.is_cuda:  # index_add_ adds in any order there, index_put_ sorts first; on a CPU it is the other way round
        return places, total.index_put_((group,), values[order], accumulate=True)
    return places, total.index_add_(0, group, values[order])
