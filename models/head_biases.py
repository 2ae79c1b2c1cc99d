"""What the heads of a cfg say before they have learned anything: that objects are rare."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from models.heads import Head, RegionRule

if TYPE_CHECKING:
    from models.network import Network


@torch.no_grad()
def initialise_head_biases(network: Network, rule: str = "yolov3") -> None:
    """Start the heads' biases where objects are rare, so that the first steps are not spent on learning that.

    Args:
        network: changed in place.
        rule: a key of ``BIAS_RULES``: "yolov3" for the numbers of ultralytics/yolov3 v7 (cfg era: 2019-2020), "yolov5"
            for those of ultralytics/yolov5 v7.0.
    """
    for index, head in enumerate(network.heads):
        if isinstance(head.rule, RegionRule):
            continue  # Darknet's squared error hardly moves what starts near 0, and a softmax starts where it should
        layer = network.head_convolution(index)
        bias = layer.conv.bias if layer.bn is None else layer.bn.bias
        assert bias is not None
        objectness, classes = BIAS_RULES[rule](head)
        per_anchor = bias.view(head.num_anchors, -1)  # A 5+C
        first_class = per_anchor.shape[1] - head.num_classes
        per_anchor[:, first_class - 1] += objectness
        per_anchor[:, first_class:] += classes


def _yolov3_biases(head: Head) -> tuple[float, float]:
    """Return what is added to the logits of objectness and of every class."""
    return -4.5, math.log(0.6 / (head.num_classes - 0.99))


def _yolov5_biases(head: Head) -> tuple[float, float]:
    """Return what is added to the logits: as if each anchor had eight objects in an image of 640 x 640 pixels."""
    return math.log(8 / (640 / head.stride) ** 2), math.log(0.6 / (head.num_classes - 0.99999))


BIAS_RULES = {"yolov3": _yolov3_biases, "yolov5": _yolov5_biases}
