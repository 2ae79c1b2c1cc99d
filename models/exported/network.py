"""An exported network in the place of a network: any runtime behind the interface that the detector knows.

Shape letters: B images, N slots of all heads, C classes, K detections, H W pixels of the network input.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from models.darknet.cfg import parse_cfg_text
from models.exact_heads import DecodingHead
from models.exported.metadata import ExportMetadata
from models.network import Network


class Runtime(Protocol):
    """A file that is loaded and ready to run; may be called by several threads at once."""

    def __call__(self, images: np.ndarray) -> Sequence[np.ndarray]:
        """Run images [B 3 H W] float32, 0..1, RGB; return boxes [B N 4] and scores [B N C], or detections [K 7]."""


class ExportedNetwork(Network):
    """A network whose layers another runtime computes; its one raw map has boxes and scores, already decoded."""

    def __init__(self, metadata: ExportMetadata, runtime: Runtime, path: Path) -> None:
        """Take the place of the network of ``metadata.cfg_text``.

        Raises:
            UserError: the cfg in the file is unreadable.
        """
        config = parse_cfg_text(metadata.cfg_text, f"{metadata.cfg_name} in {path.name}")
        super().__init__(replace(config, oddities=(), notes=()), [])  # they were told when it was exported
        self.metadata = metadata
        self.runtime = runtime
        width, height = metadata.input_wh
        self.input_wh = (width, height)
        self.max_stride = metadata.max_stride
        self.fixed_size = not metadata.dynamic
        self.no_training = (config.net, "it is exported; use the weights that were exported")
        self.heads = (_head(metadata, len(metadata.names)),)
        self.classes: tuple[int, ...] = ()  # of the file, which are wanted in this order; empty for all

    def fuse(self) -> ExportedNetwork:
        """Return the network itself: nothing is left to fold."""
        return self

    def with_classes(self, classes: Sequence[int]) -> ExportedNetwork:
        """Return the network with class ``i`` being class ``classes[i]``; those not named are gone."""
        other = copy.copy(self)
        other.classes = tuple(self.classes[index] for index in classes) if self.classes else tuple(classes)
        other.heads = (_head(self.metadata, len(classes)),)
        return other

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return boxes and scores as one raw map [B 1 N 1 4+C] of a :class:`DecodedHead`."""
        boxes, scores = self.boxes_and_scores(images.float().cpu().contiguous().numpy())
        if self.classes:
            scores = scores[..., list(self.classes)]
        raw = torch.from_numpy(np.concatenate((boxes, scores), axis=2))
        return [raw[:, None, :, None].to(images.device)]

    def boxes_and_scores(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return boxes [B N 4], corners in network pixels, and scores [B N C] of images [B 3 H W] float32, 0..1, RGB.

        A file with a fixed number of images is run as often as needed, its last images filled up with grey ones.
        """
        step = self.metadata.batch_size or len(images)
        parts = []
        for start in range(0, len(images), step):
            part = images[start : start + step]
            missing = step - len(part)
            filled = np.concatenate((part, np.full_like(part[:1], 0.5).repeat(missing, axis=0))) if missing else part
            outputs = self.runtime(filled)
            boxes, scores = outputs if len(outputs) == 2 else self._from_detections(outputs[0], step)
            parts.append((boxes[: len(part)], scores[: len(part)]))
        if len(parts) == 1:
            return parts[0]
        slots = max(boxes.shape[1] for boxes, _ in parts)
        joined = [np.concatenate([_padded(one, slots) for one in column]) for column in zip(*parts, strict=True)]
        return joined[0], joined[1]

    def _from_detections(self, detections: np.ndarray, images: int) -> tuple[np.ndarray, np.ndarray]:
        """Return detections [K 7] (image, box, score, class) as boxes [B N 4] and scores [B N C], a slot for each."""
        detections = detections[np.argsort(detections[:, 0], kind="stable")]
        detections = detections[detections[:, 0] >= 0]  # some runtimes fill up with rows of -1
        image = detections[:, 0].astype(int)
        counts = np.bincount(image, minlength=images)
        slot = np.arange(len(image)) - (np.cumsum(counts) - counts)[image]
        boxes = np.zeros((images, counts.max(initial=0), 4), np.float32)
        scores = np.zeros((*boxes.shape[:2], len(self.metadata.names)), np.float32)
        boxes[image, slot] = detections[:, 1:5]
        scores[image, slot, detections[:, 6].astype(int)] = detections[:, 5]
        return boxes, scores


@dataclass(frozen=True)
class DecodedHead(DecodingHead):
    """The head of an exported network, whose numbers are corner boxes and scores."""

    @property
    def num_anchors(self) -> int:
        """Predictors per grid cell."""
        return 1

    def boxes_and_rows(self, raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As :meth:`DecodingHead.boxes_and_rows`, but with corner boxes."""
        raw = raw.permute(0, 2, 3, 1, 4)  # B N 1 1 4+C
        certain = torch.full_like(raw[..., :1], torch.inf)
        rows = torch.cat((raw[..., :4], certain, raw[..., 4:].logit(eps=0.0)), dim=-1)
        return raw[..., :4], rows[..., 5:].amax(dim=-1), rows

    def decode(self, raw: Tensor, least_logit: float) -> tuple[Tensor, Tensor, Tensor]:
        """As :meth:`DecodingHead.decode`; only of the slots above the logit more than the best score is computed."""
        table = raw.flatten(0, 3)  # B*N 4+C
        kept = table[:, 4:].amax(dim=1) > torch.tensor(least_logit).sigmoid().item()
        kept = (kept & ~table[:, :4].isnan().any(dim=1)).nonzero().flatten()
        boxes_xyxy, _, rows = self.boxes_and_rows(table[kept][None, None, :, None])
        return boxes_xyxy.flatten(0, 3), rows.flatten(0, 3), kept // max(1, raw.shape[2])


def _head(metadata: ExportMetadata, num_classes: int) -> DecodedHead:
    beta = metadata.nms_beta or None
    return DecodedHead(anchors_wh=(), stride=min(metadata.strides), num_classes=num_classes, nms_beta=beta)


def _padded(values: np.ndarray, slots: int) -> np.ndarray:
    """Return [B N x] with as many slots as are wanted; those added have the score 0."""
    return np.pad(values, ((0, 0), (0, slots - values.shape[1]), (0, 0)))
