"""The object for inference: network, decode, non-maximum suppression and the way back to original pixels.

Shape letters: B images, A anchors per cell, H W grid rows and columns, C classes, M slots whose objectness passes the
confidence.
"""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from models.exact_heads import DecodingHead
from models.heads import Head, decode_boxes, priors_wh, scoring_rows
from models.network import Network
from models.nms import LOGIT_SLACK, logit, select_candidates
from models.nms_variants import NmsOptions, NmsRule, suppress
from utils.boxes import cxcywh_to_xyxy
from utils.devices import half_type, synchronised_time
from utils.structures import Detections, ImageMeta

MULTI_LABEL_BELOW = 0.1  # up to this confidence one box may carry several classes, as is usual in COCO evaluation
COUNTED = 1000  # detections of an image above the limit that are counted; to count all may take minutes
Look = tuple[list[Tensor], Sequence[ImageMeta]]  # the raw maps of a batch, and where its images lie in the input


@dataclass(frozen=True)
class DecodedPredictions:
    """The slots of a batch whose objectness alone passes the confidence, ordered by image."""

    boxes_xyxy_net: Tensor  # [M 4] float32, network pixels
    objectness: Tensor  # [M] logits, as models.heads.scoring_rows gives them
    class_logits: Tensor  # [M C]
    image: Tensor  # [M] int64, index in the batch


@dataclass(frozen=True)
class Speed:
    """Milliseconds per image since the detector was made or reset."""

    inference_ms: float
    nms_ms: float
    images: int

    @property
    def total_ms(self) -> float:
        """Inference and NMS together."""
        return self.inference_ms + self.nms_ms


@dataclass(frozen=True)
class Dropped:
    """What the limit of detections per image has cut off."""

    images: int = 0  # that have more detections than the limit
    detections: int = 0  # those that were dropped
    is_least: bool = False  # whether there were more: an image counts with at most ``COUNTED``

    def __add__(self, other: Dropped) -> Dropped:
        return Dropped(self.images + other.images, self.detections + other.detections, self.is_least or other.is_least)


class Detector:
    """Finds objects in batches of images; owns a fused copy of the network, so later training does not change it.

    Several threads may call one detector at the same time.
    """

    def __init__(
        self,
        network: Network,
        confidence: float = 0.001,
        iou: float = 0.6,
        max_detections: int = 300,
        half: bool = False,
        nms: NmsOptions | None = None,
        classes: Sequence[int] | None = None,
        clip: bool = True,
    ) -> None:
        """Copy the network, fuse its batch norms and put it into evaluation mode, on the device where it is.

        Args:
            network: has ``heads`` and ``fuse()``; called with [B 3 H W] it returns one raw map [B A H W 5+C] per head.
            confidence: minimum objectness x class probability of a detection.
            iou: NMS drops a box that overlaps a stronger one more than this.
            max_detections: per image.
            half: compute in 16 bits where the device is faster with them: :func:`utils.devices.half_type`.
            nms: which kind of suppression; None: greedy within each class, as the cfg asks for.
            classes: class indices to look for, all when None or empty.
            clip: cut boxes off at the image's border; Darknet's own detections stick out.
        """
        # An exported network has no parameters: its runtime computes on the CPU.
        parameter = next(network.parameters(), None)
        self.device = torch.device("cpu") if parameter is None else parameter.device
        self.dtype = half_type(self.device) if half and parameter is not None else torch.float32
        fused = network.fuse().eval().requires_grad_(False)
        self.network = fused.to(self.device, self.dtype).to(memory_format=torch.channels_last)
        self.heads = tuple(network.heads)
        self.confidence = confidence
        self.iou = iou
        self.nms_beta = self.heads[-1].nms_beta  # Darknet, too, takes the last section's
        self.max_detections = max_detections
        self.nms = nms or NmsOptions()
        self.counts_dropped = False  # whether ``dropped`` counts what is above ``max_detections``, off the clock
        self.clip = clip
        self.classes = self._class_tensor(classes)
        self._counting = threading.Lock()
        self.reset_speed()

    def _class_tensor(self, classes: Sequence[int] | None) -> Tensor | None:
        return torch.tensor(sorted(classes), device=self.device) if classes else None

    def looking_for(
        self,
        confidence: float | None = None,
        iou: float | None = None,
        max_detections: int | None = None,
        agnostic: bool | None = None,
        classes: Sequence[int] | None = None,
        nms: NmsOptions | None = None,
    ) -> Detector:
        """Return a detector of the same network, not a copy of it, with other thresholds; None leaves one as it is."""
        other = copy.copy(self)
        other.confidence = self.confidence if confidence is None else confidence
        other.iou = self.iou if iou is None else iou
        other.max_detections = self.max_detections if max_detections is None else max_detections
        other.nms = self.nms if nms is None else nms
        if agnostic is not None:
            other.nms = replace(other.nms, agnostic_nms=agnostic)
        other.classes = self.classes if classes is None else self._class_tensor(classes)
        other.reset_speed()
        return other

    @torch.inference_mode()
    def __call__(self, images: Tensor, metas: Sequence[ImageMeta]) -> list[Detections]:
        """Return what is found in each image, in original pixels, on the detector's device.

        Args:
            images: [B 3 H W] uint8 or float32, 0..255, RGB, as the loader gives them.
            metas: where each image lies in the network input.
        """
        start = synchronised_time(self.device)
        looks = self.look(images, metas)
        middle = synchronised_time(self.device)
        candidates = [_joined(of_image) for of_image in zip(*(self.candidates(*look) for look in looks), strict=True)]
        found = [suppress(of_image, self.nms_rule) for of_image in candidates]
        end = synchronised_time(self.device)
        dropped = self._count_dropped(candidates, found) if self.counts_dropped else Dropped()
        with self._counting:
            self.seconds_inference += middle - start
            self.seconds_nms += end - middle
            self.images_seen += len(images)
            self.dropped += dropped
        return [self._clipped(of_image, meta) for of_image, meta in zip(found, metas, strict=True)]

    def look(self, images: Tensor, metas: Sequence[ImageMeta]) -> list[Look]:
        """Return what the network says of a batch: here of one view, the images as they are."""
        return [(self.raw_maps(images), metas)]

    @torch.inference_mode()
    def raw_maps(self, images: Tensor) -> list[Tensor]:
        """Return the network's raw maps [B A H W 5+C], one per head, of images [B 3 H W], 0..255."""
        images = images.to(self.device, non_blocking=True)
        # Divided as float32 where the type has too few bits for 200.3 (float16), or for 201 and 202 (bfloat16).
        is_exact = self.dtype == torch.float16 and not images.is_floating_point()
        dtype = self.dtype if is_exact else torch.float32
        images = images.to(dtype=dtype, memory_format=torch.channels_last) / 255
        return self.network(images.to(self.dtype))

    @torch.inference_mode()
    def detect(self, raw_maps: Sequence[Tensor], metas: Sequence[ImageMeta]) -> list[Detections]:
        """Turn raw maps [B A H W 5+C] into detections: the second half of calling the detector."""
        found = (suppress(of_image, self.nms_rule) for of_image in self.candidates(raw_maps, metas))
        return [self._clipped(of_image, meta) for of_image, meta in zip(found, metas, strict=True)]

    def candidates(self, raw_maps: Sequence[Tensor], metas: Sequence[ImageMeta]) -> list[Detections]:
        """Return of each image all boxes whose score passes, in original pixels, not clipped and in no order."""
        decoded = decode_predictions(raw_maps, self.heads, self.confidence)
        multi_label = self.confidence <= MULTI_LABEL_BELOW
        slot, label, score = select_candidates(decoded.objectness, decoded.class_logits, self.confidence, multi_label)
        if self.classes is not None:
            wanted = torch.isin(label, self.classes)
            slot, label, score = slot[wanted], label[wanted], score[wanted]
        # The candidates are ordered by image, so that counts are enough to split them.
        per_image = torch.bincount(decoded.image[slot], minlength=len(metas)).tolist()
        parts = zip(slot.split(per_image), label.split(per_image), score.split(per_image), metas, strict=True)
        # In original pixels, as Darknet: a stretch changes how far centres lie apart in units of a diagonal.
        return [
            Detections(meta.to_original(decoded.boxes_xyxy_net[slots], clip=False), scores, labels)
            for slots, labels, scores, meta in parts
        ]

    @property
    def nms_rule(self) -> NmsRule:
        """How boxes suppress one another."""
        return NmsRule(
            self.iou,
            self.max_detections,
            self.nms.nms,
            self.nms.agnostic_nms,
            confidence=self.confidence,
            sigma=self.nms.nms_sigma,
            cfg_beta=self.nms_beta,
        )

    def _clipped(self, found: Detections, meta: ImageMeta) -> Detections:
        return replace(found, boxes_xyxy=meta.clipped(found.boxes_xyxy)) if self.clip else found

    def _count_dropped(self, candidates: Sequence[Detections], found: Sequence[Detections]) -> Dropped:
        """Return how many detections there would be above the limit."""
        rule, dropped = replace(self.nms_rule, max_detections=self.max_detections + COUNTED), Dropped()
        for of_image, kept in zip(candidates, found, strict=True):
            if len(kept) == self.max_detections < len(of_image):
                above = len(suppress(of_image, rule)) - self.max_detections
                dropped += Dropped(int(above > 0), above, above == COUNTED)
        return dropped

    def reset_speed(self) -> None:
        """Forget what was measured and counted so far, after a warm-up for instance."""
        self.seconds_inference = self.seconds_nms = 0.0
        self.images_seen = 0
        self.dropped = Dropped()

    def speed(self) -> Speed:
        """Return the mean time per image since the last reset."""
        count = max(1, self.images_seen)
        return Speed(self.seconds_inference / count * 1e3, self.seconds_nms / count * 1e3, self.images_seen)


def _joined(parts: Sequence[Detections]) -> Detections:
    """Return the candidates of all views of one image."""
    if len(parts) == 1:
        return parts[0]
    columns = zip(*((part.boxes_xyxy, part.scores, part.labels) for part in parts), strict=True)
    return Detections(*(torch.cat(column) for column in columns))


def decode_predictions(raw_maps: Sequence[Tensor], heads: Sequence[Head], confidence: float) -> DecodedPredictions:
    """Decode the slots of raw maps [B A H W 5+C] whose objectness passes; of the others only the objectness is read.

    Within an image the order is head, row, column, anchor, which is also how NMS ranks equal scores.
    """
    parts = [_decode_head(raw, head, confidence) for raw, head in zip(raw_maps, heads, strict=True)]
    boxes, rows, image = (torch.cat(part) for part in zip(*_same_width(parts), strict=True))
    if len(parts) > 1:
        order = image.argsort(stable=True)
        boxes, rows, image = boxes[order], rows[order], image[order]
    return DecodedPredictions(boxes, rows[:, 4], rows[:, 5:], image)


def _same_width(parts: list[tuple[Tensor, Tensor, Tensor]]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return the parts with rows as wide as the widest; a class that a head does not have is impossible there."""
    width = max(rows.shape[1] for _, rows, _ in parts)
    pad = functional.pad
    return [(boxes, pad(rows, (0, width - rows.shape[1]), value=-math.inf), image) for boxes, rows, image in parts]


def _decode_head(raw: Tensor, head: Head, confidence: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the passing slots of one head: boxes [M 4] as corners in network pixels, rows [M 5+C], images [M]."""
    if isinstance(head, DecodingHead):
        return head.decode(raw, logit(confidence) - LOGIT_SLACK)
    num_anchors, num_rows, num_cols, width = raw.shape[1:]
    table = raw.permute(0, 2, 3, 1, 4).reshape(-1, width)  # B*H*W*A 5+C, a view of a channels-last output
    passing = (table[:, 4] > logit(confidence) - LOGIT_SLACK).nonzero().flatten()
    rows = table[passing]
    # A row's number is ((image * H + row) * W + column) * A + anchor.
    cell = torch.div(passing, num_anchors, rounding_mode="floor")
    col = cell % num_cols
    row = torch.div(cell, num_cols, rounding_mode="floor") % num_rows
    image = torch.div(cell, num_cols * num_rows, rounding_mode="floor")
    prior_wh = priors_wh(head, raw.device)[passing % num_anchors]
    # Darknet does not clamp exp(tw) when it detects; the box is clipped to the image at the end.
    boxes = decode_boxes(rows[:, :4], torch.stack((col, row), dim=1), prior_wh, head, exp_limit=math.inf)
    boxes_xyxy = cxcywh_to_xyxy(boxes * head.stride)
    # An infinite size around an infinite centre, or a raw NaN, has no corners.
    valid = ~boxes_xyxy.isnan().any(dim=1)
    if not valid.all():
        boxes_xyxy, rows, image = boxes_xyxy[valid], rows[valid], image[valid]
    return boxes_xyxy, scoring_rows(rows, head, confidence), image
