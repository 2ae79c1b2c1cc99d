"""Layers without a grid or of one fixed size: every number of an image, or every cell, has weights of its own.

Plain torch modules, as those of ``layers.py``. Shape letters: B images, C channels, H W rows and columns, N outputs,
L places of a window, A boxes per cell, K classes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.activations import build_activation


class Connected(nn.Module):
    """One matrix over all numbers of an image, batch norm where wanted, activation; the result is a map of one cell."""

    def __init__(self, inputs: int, outputs: int, activation: str, bn: nn.BatchNorm2d | None = None):
        super().__init__()
        self.linear = nn.Linear(inputs, outputs, bias=bn is None)
        self.bn = bn
        self.activation = build_activation(activation)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B C H W] to [B N 1 1]."""
        x = self.linear(x.flatten(1))[:, :, None, None]
        return self.activation(x if self.bn is None else self.bn(x))


class Local(nn.Module):
    """A convolution whose kernels differ from place to place."""

    def __init__(self, inputs: int, filters: int, size: int, stride: int, padding: int, places: int, activation: str):
        super().__init__()
        self.size, self.stride, self.padding = size, stride, padding
        window = inputs * size * size
        self.weight = nn.Parameter(torch.randn(places, filters, window) / math.sqrt(window))
        self.bias = nn.Parameter(torch.zeros(filters, places))
        self.activation = build_activation(activation)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B C H W] to [B N H' W']."""
        rows, cols = ((side + 2 * self.padding - self.size) // self.stride + 1 for side in x.shape[2:])
        windows = functional.unfold(x, self.size, padding=self.padding, stride=self.stride)  # B window L
        x = torch.einsum("lnw,bwl->bnl", self.weight, windows) + self.bias  # B N L
        return self.activation(x.unflatten(2, (rows, cols)))


class Crop(nn.Module):
    """The middle of an image, its numbers scaled and shifted."""

    def __init__(self, rows: int, cols: int, scale: float, shift: float):
        super().__init__()
        self.rows, self.cols, self.scale, self.shift = rows, cols, scale, shift

    def forward(self, x: Tensor) -> Tensor:
        """Map [B C H W] to [B C rows cols]."""
        top, left = (x.shape[2] - self.rows) // 2, (x.shape[3] - self.cols) // 2
        return x[..., top : top + self.rows, left : left + self.cols] * self.scale + self.shift


class GridMap(nn.Module):
    """YOLOv1's vector as a raw map: all classes of all cells, then all objectnesses, then all boxes."""

    def __init__(self, side: int, boxes: int, num_classes: int, softmax: bool):
        super().__init__()
        self.side, self.boxes, self.num_classes, self.softmax = side, boxes, num_classes, softmax

    def forward(self, x: Tensor) -> Tensor:
        """Map [B side²(5A+K) ...] to [B A side side 5+K]."""
        cells = self.side * self.side
        classes, objectness, boxes_xywh = x.flatten(1).split(
            (cells * self.num_classes, cells * self.boxes, cells * self.boxes * 4), dim=1
        )
        classes = classes.view(-1, cells, 1, self.num_classes).expand(-1, -1, self.boxes, -1)
        classes = classes.softmax(dim=-1) if self.softmax else classes
        parts = (boxes_xywh.view(-1, cells, self.boxes, 4), objectness.view(-1, cells, self.boxes, 1), classes)
        raw = torch.cat(parts, dim=-1)  # B cells A 5+K
        return raw.unflatten(1, (self.side, self.side)).permute(0, 3, 1, 2, 4)
