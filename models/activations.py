"""Darknet's activation functions by name; formulas as in Darknet's ``src/activations.c``.

Those over channels take a map [B C H W]: images, channels, rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional


class Elementwise(nn.Module):
    """An activation that is one function of each number."""

    def __init__(self, name: str, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.name = name
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """Apply the function."""
        return self.function(x)

    def extra_repr(self) -> str:
        """Show the name."""
        return self.name


def hard_mish(x: Tensor) -> Tensor:
    """x above 0, 0 below -2, x²/2 + x between."""
    return torch.where(x > 0, x, torch.where(x > -2, x * x / 2 + x, torch.zeros_like(x)))


def hard_tan(x: Tensor) -> Tensor:
    """Clamp to -1..1."""
    return x.clamp(-1, 1)


def leaky_hard_tan(x: Tensor) -> Tensor:
    """x in 0..1, with slope 0.001 outside."""
    return torch.where(x < 0, x * 0.001, torch.where(x > 1, (x - 1) * 0.001 + 1, x))


def loggy(x: Tensor) -> Tensor:
    """2 / (1 + exp(-x)) - 1."""
    return 2 * torch.sigmoid(x) - 1


def plse(x: Tensor) -> Tensor:
    """Piece-wise linear sigmoid: x/8 + 1/2 within -4..4, slope 0.01 outside."""
    return torch.where(x < -4, (x + 4) * 0.01, torch.where(x > 4, (x - 4) * 0.01 + 1, x * 0.125 + 0.5))


def ramp(x: Tensor) -> Tensor:
    """Relu plus x/10."""
    return functional.relu(x) + 0.1 * x


def relie(x: Tensor) -> Tensor:
    """x above 0, x/100 below."""
    return functional.leaky_relu(x, 0.01)


def selu(x: Tensor) -> Tensor:
    """1.0507 x above 0, 1.0507 * 1.6732 (exp(x) - 1) below; Darknet rounds both constants."""
    return 1.0507 * torch.where(x > 0, x, 1.6732 * torch.expm1(x.clamp(max=0)))


def stair(x: Tensor) -> Tensor:
    """floor(x)/2 on even floors, between them (x - floor(x)) + floor(x/2)."""
    floor = torch.floor(x)
    return torch.where(torch.remainder(floor, 2) == 0, floor / 2, (x - floor) + torch.floor(x / 2))


def gelu(x: Tensor) -> Tensor:
    """The tanh form: x/2 (1 + tanh(0.797885 x + 0.035677 x³))."""
    return 0.5 * x * (1 + torch.tanh(0.797885 * x + 0.035677 * x**3))


def normalize_channels(x: Tensor) -> Tensor:
    """Relu, then every cell's channels divided by their sum; 0 where a number was not positive."""
    positive = functional.relu(x)
    return positive / (positive.sum(dim=1, keepdim=True) + 1e-4)


def normalize_channels_softmax(x: Tensor) -> Tensor:
    """Softmax over the channels of every cell, without subtracting the largest first."""
    powers = x.exp()
    return powers / (powers.sum(dim=1, keepdim=True) + 1e-4)


def normalize_channels_softmax_maxval(x: Tensor) -> Tensor:
    """Softmax over the channels of every cell, the largest subtracted first."""
    powers = (x - x.amax(dim=1, keepdim=True)).exp()
    return powers / (powers.sum(dim=1, keepdim=True) + 1e-4)


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": gelu,
    "hard_mish": hard_mish,
    "hardtan": hard_tan,
    "lhtan": leaky_hard_tan,
    "loggy": loggy,
    "normalize_channels": normalize_channels,
    "normalize_channels_softmax": normalize_channels_softmax,
    "normalize_channels_softmax_maxval": normalize_channels_softmax_maxval,
    "plse": plse,
    "ramp": ramp,
    "relie": relie,
    "selu": selu,
    "stair": stair,
}

MODULES: dict[str, Callable[[bool], nn.Module]] = {
    "linear": lambda inplace: nn.Identity(),
    "leaky": lambda inplace: nn.LeakyReLU(0.1, inplace),
    "revleaky": lambda inplace: nn.LeakyReLU(0.1, inplace),  # leaky by another name
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "logistic": lambda inplace: nn.Sigmoid(),
    "tanh": lambda inplace: nn.Tanh(),
    "elu": lambda inplace: nn.ELU(1.0, inplace),
    "swish": nn.SiLU,
    "mish": nn.Mish,
    "hard_swish": nn.Hardswish,
}


def build_activation(name: str, inplace: bool = True) -> nn.Module:
    """Return the activation of a checked name; ``inplace`` allows it to overwrite its input."""
    return MODULES[name](inplace) if name in MODULES else Elementwise(name, FUNCTIONS[name])
