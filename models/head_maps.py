"""From a convolution's output to a head's raw map, whose columns mean the same for every kind of head.

The class logits of a raw map are such that the sigmoid of each is the probability of its class, whether the classes
exclude one another or not: so detection, assignment and losses need not know of softmax and trees.

Shape letters: B images, A anchors per cell, H W grid rows and columns, C classes, G groups of classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.heads import ClassTree

LARGEST_LOG = -1e-7  # a probability of 1 counts as 1 - 1e-7: its logit and the slope of it stay finite
# Darknet's order of a [Gaussian_yolo]'s first nine numbers: x, y, w, h, each followed by its uncertainty; objectness.
GAUSSIAN_BOX, GAUSSIAN_OBJECTNESS, GAUSSIAN_UNCERTAINTY = (0, 2, 4, 6), 8, (1, 3, 5, 7)


def as_map(x: Tensor, num_anchors: int) -> Tensor:
    """View [B A*N H W] as [B A H W N], without moving any data."""
    batch, channels, rows, cols = x.shape
    return x.view(batch, num_anchors, channels // num_anchors, rows, cols).permute(0, 1, 3, 4, 2)


class RegionMap(nn.Module):
    """The raw map of a ``[region]`` whose classes are a softmax, over all of them or over each group of a tree."""

    ancestors: Tensor  # [depth C] int64, each class, its parent, that one's parent ...; C where there is none
    groups: Tensor  # [C] int64

    def __init__(self, num_anchors: int, num_classes: int, tree: ClassTree | None):
        super().__init__()
        self.num_anchors = num_anchors
        self.num_classes = num_classes
        self.num_groups = tree.groups[-1] + 1 if tree else 0  # 0: one softmax over all classes
        # Buffers of the device, not of the weights; empty without a tree.
        self.register_buffer("ancestors", _ancestors(tree) if tree else torch.zeros(0), persistent=False)
        self.register_buffer("groups", torch.tensor(tree.groups if tree else ()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B A(5+C) H W] to [B A H W 5+C]."""
        raw = as_map(x, self.num_anchors)
        numbers = raw[..., 5:].float()
        log_probability = self._tree_log_softmax(numbers) if self.num_groups else numbers.log_softmax(dim=-1)
        log_probability = log_probability.clamp(max=LARGEST_LOG)
        logits = log_probability - (-torch.expm1(log_probability)).log()
        return torch.cat((raw[..., :5], logits.to(raw.dtype)), dim=-1)

    def _tree_log_softmax(self, numbers: Tensor) -> Tensor:
        """Return the logarithm of each class's probability, the product of those along its branch, [... C]."""
        shape = (*numbers.shape[:-1], self.num_groups)
        group = self.groups.expand_as(numbers)
        largest = numbers.new_full(shape, -torch.inf).scatter_reduce(-1, group, numbers.detach(), "amax")
        shifted = numbers - largest.gather(-1, group)
        total = numbers.new_zeros(shape).scatter_add(-1, group, shifted.exp())
        in_group = shifted - total.log().gather(-1, group)
        in_group = nn.functional.pad(in_group, (0, 1))  # what stands for no parent is certain
        result = in_group[..., self.ancestors[0]]
        for above in self.ancestors[1:]:
            result = result + in_group[..., above]
        return result


def _ancestors(tree: ClassTree) -> Tensor:
    """Return the branch of every class from itself upwards, [depth C]; C stands for none."""
    none = len(tree.parents)
    parents = [none if parent < 0 else parent for parent in tree.parents] + [none]
    rows = [list(range(none))]
    while any(parents[number] < none for number in rows[-1]):
        rows.append([parents[number] for number in rows[-1]])
    return torch.tensor(rows)


class GaussianMap(nn.Module):
    """The raw map of a ``[Gaussian_yolo]``: Darknet's columns in the order of every raw map, the uncertainties last."""

    order: Tensor  # [9+C] int64

    def __init__(self, num_anchors: int, num_classes: int):
        super().__init__()
        self.num_anchors = num_anchors
        classes = range(GAUSSIAN_OBJECTNESS + 1, GAUSSIAN_OBJECTNESS + 1 + num_classes)
        order = torch.tensor((*GAUSSIAN_BOX, GAUSSIAN_OBJECTNESS, *classes, *GAUSSIAN_UNCERTAINTY))
        self.register_buffer("order", order, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B A(9+C) H W] to [B A H W 9+C]."""
        return as_map(x, self.num_anchors).index_select(-1, self.order)
