"""What is checked of every tensor of a file, whatever its format, before it may become part of a network."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def why_unusable(found: Tensor, wanted: Tensor) -> str:
    """Return in words why a tensor of the right shape cannot take the place of ``wanted``; empty where it can."""
    if found.layout != torch.strided or found.is_quantized:
        return "is sparse or quantized"
    if found.is_complex() or found.dtype == torch.bool:
        return "has no real numbers"
    if found.is_floating_point() != wanted.is_floating_point():
        return "has whole numbers" if wanted.is_floating_point() else "has no whole numbers"
    # In the type that it will have: 1e300 is finite as a float64 only.
    return "" if torch.isfinite(found.to(wanted.dtype)).all() else "has numbers that are not finite"


def why_unfit(network: nn.Module, name: str, found: Tensor, wanted: Tensor) -> str:
    """Return in words why a tensor of the right shape cannot become ``name`` of a network; empty where it can."""
    problem = why_unusable(found, wanted)
    norm = network.get_submodule(name.rpartition(".")[0])
    if not problem and isinstance(norm, nn.BatchNorm2d) and name.endswith("running_var"):
        problem = "has a negative variance" if has_bad_variance(found, norm.eps) else ""
    return problem


def has_bad_variance(variances: Tensor, eps: float) -> bool:
    """Whether a batch norm would divide by zero or by no real number.

    Published files have variances slightly below 0, to which the epsilon is added before the root is taken.
    """
    return bool((variances.float() + eps <= 0).any())
