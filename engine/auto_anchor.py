"""Other anchors for a network, found before its training starts, where its own fit too few objects."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data.labels.annotations import Annotations
from engine.anchor_check import ENOUGH, LARGEST_RATIO, anchor_fit, anchors_of, object_sizes
from engine.network_input import input_size
from models.anchor_fit import AnchorFitOptions, count_sizes, fit_anchors
from models.anchor_text import anchors_line, refuse_own_anchors, with_anchors
from models.detection_network import DetectionNetwork
from models.network import Network, build_network_from_text, require_cfg
from utils import distributed
from utils.config import option
from utils.errors import UserError


@dataclass(frozen=True)
class AnchorOptions:
    """What becomes of anchors that do not fit the objects."""

    auto_anchor: bool = option(
        False, "where the cfg's anchors fit too few objects, take those that kmeans_anchors.py finds if they fit more"
    )


def with_fitting_anchors(
    network: DetectionNetwork, annotations: Annotations, img_size: tuple[int, ...], resize: str, seed: int
) -> Network:
    """Return the network with anchors that fit more objects, with the same weights; as it is where there are none.

    Args:
        network: on the CPU.
        annotations: of the training images.
        img_size: of the option; () for the cfg's.
        resize: how images get into the input, a key of ``data.letterbox.RESIZES``.
        seed: of the search.

    Raises:
        UserError: the network has no anchors of a cfg, or its heads have lists of their own.
    """
    network = require_cfg(network, "--auto-anchor")
    if any(not head.anchors_wh for head in network.heads):
        raise UserError(f"--auto-anchor: {network.cfg_path} has heads without anchors; leave it out")
    refuse_own_anchors(network)
    sizes_wh = object_sizes(annotations, input_size(img_size, network), resize)
    if not len(sizes_wh):  # the loader says so
        return network
    before, _ = anchor_fit(anchors_of(network.heads), sizes_wh)
    said = f"--auto-anchor: best possible recall {before:.4f}"
    if before >= ENOUGH:
        _say(f"{said}, the anchors stay as they are")
        return network
    num = len(network.heads[0].all_anchors_wh)
    sizes = count_sizes(sizes_wh)
    if len(sizes) < num:
        _say(f"{said}; {len(sizes)} sizes of objects are too few to find {num} other anchors")
        return network
    search = AnchorFitOptions(match="ratio", anchor_t=LARGEST_RATIO, seed=seed)
    found = distributed.broadcast(fit_anchors(sizes, num, search) if distributed.is_main() else None)
    other = _rebuilt(network, found)
    after, _ = anchor_fit(anchors_of(other.heads), sizes_wh)
    if after <= before:
        _say(f"{said}; others have {after:.4f}, the anchors stay as they are")
        return network
    _say(f"{said}, with others {after:.4f}: {anchors_line(found)}")
    return other


def _rebuilt(network: Network, anchors_wh: np.ndarray) -> Network:
    """Return the network with other anchors [A 2] and everything else as it is."""
    text = with_anchors(network, anchors_wh, np.zeros(0, dtype=int))
    other = build_network_from_text(text, network.cfg_path, network.num_classes)
    other.load_state_dict(network.state_dict())
    for parameter, old in zip(other.parameters(), network.parameters(), strict=True):
        parameter.requires_grad_(old.requires_grad)
    return other.train(network.training)


def _say(line: str) -> None:
    if distributed.is_main():
        print(line)
