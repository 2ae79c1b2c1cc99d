"""Hard examples: the images with the largest training loss, with the parts of the loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from models.loss import DetectionLoss, LossOptions
from utils.config import build_options
from utils.structures import Targets

PARTS = ("box", "obj", "cls")  # of the loss, in the order of the columns


def loss_options_of(trained: Mapping[str, Any], match: str) -> LossOptions:
    """Return the loss options of the run that trained a network; for foreign weights, which have none, the defaults.

    Darknet's own loss goes with Darknet's matching alone: for another ``match`` the defaults stand in for it.
    """
    known = {item.name for item in fields(LossOptions)}
    (options,) = build_options({name: value for name, value in trained.items() if name in known}, [LossOptions])
    return LossOptions() if options.loss == "darknet" and match != "darknet" else options


def image_losses(loss: DetectionLoss, raw_maps: Sequence[Tensor], targets: Targets, crowd: Targets) -> Tensor:
    """Return the parts of the training loss of each image, [B 3] in the order of :data:`PARTS`.

    Each image is a batch of its own: the loss takes means over the matches of a batch, which would mix the images.
    """
    rows = []
    for image in range(len(raw_maps[0])):
        one = [raw[image : image + 1] for raw in raw_maps]
        parts = loss(one, only_image(targets, image), only_image(crowd, image)).parts
        rows.append(torch.stack([parts[name] for name in PARTS]))
    return torch.stack(rows)


def only_image(targets: Targets, image: int) -> Targets:
    """Return the targets of one image of a batch, as those of a batch of this image alone."""
    rows = (targets.image == image).nonzero().squeeze(1)
    of_image = {name: one[rows] for name, one in vars(targets).items() if one is not None}
    return Targets(**of_image | {"image": torch.zeros_like(rows)})


def hardest(total: Sequence[float], count: int) -> list[int]:
    """Return the indices of the ``count`` largest losses, largest first; equal ones in their order."""
    return sorted(range(len(total)), key=lambda index: (-total[index], index))[:count]
