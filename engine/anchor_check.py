"""Whether the anchors of a network fit the objects that it is to learn, as ultralytics/yolov5 v7.0 measures it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

import numpy as np

from data.labels.annotations import Annotations
from data.objects import select_objects, sizes_in_input
from models.assignment.prior import Ratio
from models.detection_network import DetectionNetwork
from models.heads import Head
from utils.config import command_from_here

LARGEST_RATIO = Ratio.anchor_t  # of an anchor's side to the object's, or the other way round
ENOUGH = 0.98  # share of the objects that have such an anchor


def anchor_line(
    heads: Sequence[Head], annotations: Annotations, input_wh: tuple[int, int], resize: str, command: str
) -> str:
    """Return in one line how the anchors fit, with the command that finds better ones where they do not.

    Args:
        heads: of the network.
        annotations: of the training images.
        input_wh: of the network, pixels.
        resize: how images get into the input, a key of ``data.letterbox.RESIZES``.
        command: that finds better ones.

    Returns:
        Nothing where there are no anchors or no objects.
    """
    anchors_wh = anchors_of([head for head in heads if not head.is_dense])  # others could not be given better ones
    sizes_wh = object_sizes(annotations, input_wh, resize)
    if not len(anchors_wh) or not len(sizes_wh):
        return ""
    recall, per_object = anchor_fit(anchors_wh, sizes_wh)
    line = (
        f"anchors: {per_object:.2f} per object within a ratio of {LARGEST_RATIO:g}, best possible recall {recall:.4f}"
    )
    return line if recall >= ENOUGH else f"{line}; better ones: {command_from_here(command)}"


def search_command(network: DetectionNetwork, data: str, cfg: str, input_wh: tuple[int, int], resize: str) -> str:
    """Return the command that finds anchors for a training, by the size and the way of its inputs.

    Args:
        network: whose own size and way the command has, unless it says otherwise.
        data: as the user named it.
        cfg: likewise.
        input_wh: of the training, pixels.
        resize: how images get into the input, a key of ``data.letterbox.RESIZES``.
    """
    words = ["python", "kmeans_anchors.py", "--data", data, "--cfg", cfg]
    if input_wh != tuple(network.input_wh):
        words += ["--img-size", *map(str, input_wh)]
    if resize != network.own_resize[0]:
        words += ["--resize", resize]
    return shlex.join([*words, "--write", "better.cfg"])


def anchors_of(heads: Sequence[Head]) -> np.ndarray:
    """Return the anchors that the heads use, [A 2] network pixels."""
    return np.array([wh for head in heads for wh in head.anchors_wh], dtype=np.float64).reshape(-1, 2)


def object_sizes(annotations: Annotations, input_wh: tuple[int, int], resize: str) -> np.ndarray:
    """Return width and height [M 2] of all objects in network pixels, as images get into the input."""
    sizes_wh = sizes_in_input(select_objects(annotations, crowd=False), input_wh, resize)
    return sizes_wh[(sizes_wh > 0).all(axis=1)]


def anchor_fit(anchors_wh: np.ndarray, sizes_wh: np.ndarray) -> tuple[float, float]:
    """Return the share of objects that have an anchor within the ratio, and how many they have in the mean.

    Args:
        anchors_wh: [A 2].
        sizes_wh: [M 2] of the objects, in the same unit.
    """
    fitting = np.zeros(len(sizes_wh), dtype=np.int64)  # anchors of each object
    for anchor_wh in anchors_wh:  # one by one: a large data set has a million objects
        ratio = sizes_wh / anchor_wh
        fitting += np.maximum(ratio, 1 / ratio).max(axis=1) < LARGEST_RATIO
    return float((fitting > 0).mean()), float(fitting.mean())
