"""A cfg with other anchors: its text, in which everything else stays as it is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from models.darknet.cfg import parse_cfg_text
from models.darknet.cfg_text import with_values
from models.darknet.kinds import KINDS
from models.darknet.section import Section
from models.network import Network, build_network_from_text


def refuse_own_anchors(network: Network) -> None:
    """Refuse a cfg whose heads have different anchors: it has no single list to compare with or to replace."""
    for section, head in zip(head_sections(network), network.heads, strict=True):
        if head.all_anchors_wh != network.heads[0].all_anchors_wh:
            raise section.error(
                f"has other anchors than the first [{section.kind}]; to replace them, every [{section.kind}] needs the "
                "same list (num and anchors) and masks that share it out",
                "anchors",
            )


def head_sections(network: Network) -> list[Section]:
    """Return the sections of the heads."""
    return [network.config.sections[index] for index in network.head_layers]


def with_anchors(network: Network, anchors_wh: np.ndarray, counters: np.ndarray) -> str:
    """Return the cfg's text with other anchors, and counters of its classes, in every head; comments stay.

    Another number of anchors is shared out among the heads, the smallest to the finest grid; the filters before them
    follow.
    """
    config = parse_cfg_text(network.cfg_text, network.cfg_path)  # with the classes that it says itself
    shares = shared_out(len(anchors_wh), [head.stride for head in network.heads])
    changes: list[tuple[Section, dict[str, str]]] = []
    for number, (layer, head) in enumerate(zip(network.head_layers, network.heads, strict=True)):
        section = config.sections[layer]
        in_cells = section.kind == "region"  # whose anchors are written in cells
        numbers = numbers_of(anchors_wh / head.stride, decimals=9) if in_cells else numbers_of(anchors_wh)
        values = {"anchors": numbers}
        if section["num"] != len(anchors_wh):
            masked = "mask" in section
            count = len(shares[number]) if masked else len(anchors_wh)
            values |= {"num": str(len(anchors_wh))} | ({"mask": ",".join(map(str, shares[number]))} if masked else {})
            filters = str(count * (KINDS[section.kind].box_numbers + section["classes"]))
            changes += [(config.sections[index], {"filters": filters}) for index in network.predicting_layers(number)]
        if "counters_per_class" in section and section["classes"] == len(counters):
            values["counters_per_class"] = ", ".join(map(str, counters))
        changes.append((section, values))
    text = with_values(network.cfg_text, changes)
    with torch.device("meta"):
        rebuilt = build_network_from_text(text, network.cfg_path, network.num_classes)
        if any("filters" in values for _, values in changes):
            build_network_from_text(text, network.cfg_path)  # with the filters as they are written
    assert np.allclose(rebuilt.heads[0].all_anchors_wh, anchors_wh), "the written cfg has other anchors"
    return text


def shared_out(num: int, strides: Sequence[int]) -> list[list[int]]:
    """Return the numbers of the anchors of each head: as many to each as can be, the first to the finest grid."""
    finest_first = sorted(range(len(strides)), key=lambda index: strides[index])
    parts = np.array_split(np.arange(num), len(strides))
    return [parts[finest_first.index(index)].tolist() for index in range(len(strides))]


def numbers_of(anchors_wh: np.ndarray, decimals: int = 6) -> str:
    """Return ``w,h,  w,h,  …`` without superfluous digits."""
    return ",  ".join(f"{width:.10g},{height:.10g}" for width, height in np.round(anchors_wh, decimals))


def anchors_line(anchors_wh: np.ndarray) -> str:
    """Return the line that defines these anchors in a cfg."""
    return f"anchors = {numbers_of(anchors_wh)}"
