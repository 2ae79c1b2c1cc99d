"""How well a network's anchors fit the objects that it is to learn, and better ones before the training starts."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from data.labels.annotations import Annotations
from data.objects import select_objects, sizes_in_input
from models.anchor_fit import AnchorFitOptions, count_sizes, fit_anchors, side_ratio
from models.anchor_text import refuse_own_anchors, with_anchors
from models.network import Network, build_network_from_text
from utils import distributed
from utils.config import command_from_here, option
from utils.errors import UserError
from utils.limits import below

if TYPE_CHECKING:
    from engine.train_options import TrainOptions

GOOD_RECALL = 0.98  # up to this, ultralytics/yolov5 v7.0 looks for other anchors (utils/autoanchor.py)
RATIO = 4.0  # the largest ratio of sides at which an anchor fits, as there


@dataclass(frozen=True)
class AnchorOptions:
    """What becomes of anchors that do not fit the objects."""

    auto_anchor: bool = option(
        False, "where the anchors fit too few objects, take those that kmeans_anchors.py finds if they fit more"
    )


@dataclass(frozen=True)
class AnchorCheck:
    """The measure of ultralytics/yolov5 v7.0 (utils/autoanchor.py): an anchor fits where no ratio of sides reaches 4.

    The ratio of an anchor and an object is ``min(w/pw, pw/w, h/ph, ph/h)``, 1 where both have the same shape.
    """

    recall: float  # best possible recall: share of the objects that an anchor fits
    per_object: float  # anchors that fit an object, mean
    best_ratio: float  # ratio of an object and the anchor that fits it best, mean

    def __str__(self) -> str:
        return (
            f"best possible recall {self.recall:.4f}, mean best ratio {self.best_ratio:.3f}, "
            f"{self.per_object:.2f} anchors per object"
        )


def measure_anchors(sizes_wh: np.ndarray, anchors_wh: np.ndarray) -> AnchorCheck:
    """Return how well anchors [A 2] fit objects [M 2], both in network pixels."""
    sizes = count_sizes(sizes_wh)
    ratio = side_ratio(sizes.wh.double(), torch.as_tensor(np.asarray(anchors_wh, dtype=np.float64)))  # K A
    fits = below(ratio, RATIO)
    return AnchorCheck(
        recall=sizes.mean(fits.any(dim=1)),
        per_object=sizes.mean(fits.sum(dim=1)),
        best_ratio=sizes.mean(1 / ratio.amin(dim=1)),
    )


def check_anchors(
    network: Network,
    train_set: Annotations,
    input_wh: tuple[int, int],
    resize: str,
    anchors: AnchorOptions,
    options: TrainOptions,
) -> Network:
    """Say in one line how well the anchors fit; with ``--auto-anchor`` return the network with others if they fit more.

    Args:
        network: on the CPU, with its weights.
        train_set: the images to learn from.
        input_wh: the size of the network's input, pixels.
        resize: how images get into it.
        anchors: whether others are looked for.
        options: of the run; the line names its data.

    Raises:
        UserError: with ``--auto-anchor``, a cfg whose heads have no anchors, or lists of their own.
    """
    present = np.array([anchor for head in network.heads for anchor in head.anchors_wh]).reshape(-1, 2)
    if not len(present):
        if anchors.auto_anchor:
            raise UserError(f"--auto-anchor: {network.cfg_path} has heads without anchors; leave it out")
        _say(f"anchors: {network.cfg_path} has heads without anchors, nothing to check")
        return network
    if anchors.auto_anchor:
        refuse_own_anchors(network)
    sizes_wh = sizes_in_input(select_objects(train_set, crowd=False), input_wh, resize)
    if not len(sizes_wh):  # the loader says so
        return network
    before = measure_anchors(sizes_wh, present)
    if before.recall > GOOD_RECALL:
        _say(f"anchors: {before}")
        return network
    if not anchors.auto_anchor:
        width, height = input_wh
        command = command_from_here(
            f"python kmeans_anchors.py --data {shlex.quote(options.data)} --cfg {shlex.quote(options.cfg)} "
            f"--img-size {width} {height} --resize {resize} --match ratio --write better.cfg"
        )
        _say(f"anchors: {before}: too low; --auto-anchor takes better ones, or find them with: {command}")
        return network
    return _with_better_anchors(network, sizes_wh, before, options.seed)


def _with_better_anchors(network: Network, sizes_wh: np.ndarray, before: AnchorCheck, seed: int) -> Network:
    """Return the network with the anchors that are found, or as it is where they fit no more objects."""
    listed = network.heads[0].all_anchors_wh
    sizes = count_sizes(sizes_wh)
    if len(sizes) < len(listed):
        _say(f"--auto-anchor: {before}; {len(sizes)} sizes of objects are too few for {len(listed)} other anchors")
        return network
    found = None
    if distributed.is_main():  # the search is the same everywhere, but once is enough
        search = AnchorFitOptions(match="ratio", anchor_t=RATIO, seed=seed % 2**32)
        found = fit_anchors(sizes, len(listed), search)
    found = distributed.broadcast(found)
    after = measure_anchors(sizes_wh, found)
    if after.recall <= before.recall:
        _say(f"--auto-anchor: {before}; the search found none that fit more ({after}): they stay as they are")
        return network
    text = with_anchors(network, found, np.zeros(0, dtype=int))
    other = build_network_from_text(text, network.cfg_path, network.num_classes)
    other.load_state_dict(network.state_dict())
    for parameter, old in zip(other.parameters(), network.parameters(), strict=True):
        parameter.requires_grad_(old.requires_grad)
    _say(f"--auto-anchor: {before}; with other anchors: {after}")
    return other.train(network.training)


def _say(line: str) -> None:
    if distributed.is_main():
        print(line)
