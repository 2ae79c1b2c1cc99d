"""What is exported: a network that returns boxes and scores instead of raw maps.

Shape letters: B images, A anchors per cell, H W rows and columns, N slots of all heads, C classes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.exact_heads import DecodingHead
from models.heads import Head, RegionRule, decode_map, scoring_rows
from models.network import Network
from utils.boxes import cxcywh_to_xyxy
from utils.errors import UserError


class DetectionGraph(nn.Module):
    """A fused copy of a network with the decoding of its heads behind it."""

    def __init__(self, network: Network) -> None:
        """Copy the network.

        Raises:
            UserError: its scores depend on the confidence that a user asks for, so that no graph can hold them.
        """
        super().__init__()
        for head, layer in zip(network.heads, network.head_layers, strict=True):
            if isinstance(head.rule, RegionRule) and head.rule.tree is not None:
                raise network.config.sections[layer].error("a tree of classes cannot be exported", "tree")
        if network.reads_grey:
            raise UserError(f"{network.cfg_path}: channels=1: a network that reads grey images cannot be exported")
        self.network = network.fuse().requires_grad_(False)
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return boxes [B N 4], corners in network pixels, and scores [B N C], objectness x class probability.

        Args:
            images: [B 3 H W] float32, 0..1, RGB.
        """
        dtype = next(self.network.parameters()).dtype
        raw_maps = self.network(images.to(dtype))
        parts = [decode_all(raw.float(), head) for raw, head in zip(raw_maps, self.network.heads, strict=True)]
        width = max(scores.shape[-1] for _, scores in parts)
        scores = [functional.pad(part, (0, width - part.shape[-1])) for _, part in parts]
        return torch.cat([boxes for boxes, _ in parts], dim=1), torch.cat(scores, dim=1)


def decode_all(raw: Tensor, head: Head) -> tuple[Tensor, Tensor]:
    """Decode every slot of a raw map [B A H W 5+C]: corner boxes [B N 4] in network pixels, scores [B N C].

    Within an image the order is row, column, anchor, as in ``models/detector.py``.
    """
    batch = raw.shape[0]
    if isinstance(head, DecodingHead):
        boxes_cxcywh, _, rows = head.boxes_and_rows(raw)
        rows = rows.flatten(1, 3)  # B N 5+C
    else:
        boxes_cxcywh = decode_map(raw, head, exp_limit=math.inf).permute(0, 2, 3, 1, 4) * head.stride  # B H W A 4
        rows = raw.permute(0, 2, 3, 1, 4).flatten(1, 3)
        rows = scoring_rows(rows.flatten(0, 1), head, 0.0).unflatten(0, (batch, -1))
    scores = rows[..., 4:5].sigmoid() * rows[..., head.class_columns].sigmoid()
    return cxcywh_to_xyxy(boxes_cxcywh.flatten(1, 3)), scores
