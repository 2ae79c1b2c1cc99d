"""Darknet's recurrent layers for one image: what they compute from a state of zeros, as at the first frame of a video.

Every gate is a layer of its own, connected or a convolution; with the state at zero, those that read it still give
their biases. Formulas as in Darknet's ``src/rnn_layer.c``, ``gru_layer.c``, ``lstm_layer.c``, ``crnn_layer.c`` and
``conv_lstm_layer.c``. The order of the parts is that of a ``.weights`` file.

Shape letters: B images, C channels, H W rows and columns.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.activations import build_activation


class Recurrent(nn.Module):
    """``[rnn]`` and ``[crnn]``: the output layer reads the sum of what the input and the state give."""

    def __init__(self, of_input: nn.Module, of_state: nn.Module, of_output: nn.Module):
        super().__init__()
        self.parts = nn.ModuleList((of_input, of_state, of_output))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B C H W] to the output layer's shape."""
        of_input, of_state, of_output = self.parts
        hidden = of_input(x)
        return of_output(hidden + of_state(torch.zeros_like(hidden)))


class GatedRecurrent(nn.Module):
    """``[gru]``: a share 1 - z of the candidate; the candidate's activation is the logistic, as Darknet is built."""

    def __init__(self, parts: list[nn.Module]):
        super().__init__()
        self.parts = nn.ModuleList(parts)  # update, reset and candidate of the input, then the same of the state

    def forward(self, x: Tensor) -> Tensor:
        """Map [B C H W] to [B N 1 1]."""
        z_of_input, _, h_of_input, z_of_state, _, h_of_state = self.parts
        z, candidate = z_of_input(x), h_of_input(x)
        zeros = torch.zeros_like(z)
        z = (z + z_of_state(zeros)).sigmoid()
        candidate = (candidate + h_of_state(zeros)).sigmoid()
        return (1 - z) * candidate


class LongShortTerm(nn.Module):
    """``[lstm]`` and ``[conv_lstm]``: gates f, i, g, o of the state (w) and of the input (u), peepholes (v) f, i, o.

    With ``bottleneck`` one layer joins state and input for all gates, whose ``u`` then read its output; with
    ``residual`` the first half of that output's channels is added to the result. (Only Darknet's GPU code has them.)
    """

    def __init__(
        self,
        of_state: list[nn.Module],
        of_input: list[nn.Module],
        peepholes: list[nn.Module],
        activation: str = "tanh",
        bottleneck: bool = False,
        residual: bool = False,
    ):
        super().__init__()
        self.parts = nn.ModuleList((*peepholes, *of_state, *of_input))
        self.has_peepholes = bool(peepholes)
        self.activation = build_activation(activation, inplace=False)
        self.bottleneck = bottleneck
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        """Map [B C H W] to the shape of a gate."""
        parts = list(self.parts)
        peepholes = [parts.pop(0) for _ in range(3)] if self.has_peepholes else []
        of_input = parts[-4:]
        joined = None
        if self.bottleneck:
            x = joined = self.activation(parts[0](torch.cat((torch.zeros_like(x), x), dim=1)))
        _, i, g, o = (gate(x) for gate in of_input)
        zeros = torch.zeros_like(i)
        if not self.bottleneck:
            _, wi, wg, wo = parts[:4]
            i, g, o = i + wi(zeros), g + wg(zeros), o + wo(zeros)
        if peepholes:
            i = i + peepholes[1](zeros)
        cell = i.sigmoid() * self.activation(g)  # what the gate f keeps of an empty cell is nothing
        if peepholes:
            o = o + peepholes[2](cell)
        result = o.sigmoid() * self.activation(cell)
        if self.residual and joined is not None:
            half = joined[:, : joined.shape[1] // 2]
            result = result + functional.pad(half, (0, 0, 0, 0, 0, result.shape[1] - half.shape[1]))
        return result
