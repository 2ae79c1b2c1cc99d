"""The object for inference: network, decode, non-maximum suppression and the way back to original pixels.

Shape letters: B images, A anchors per cell, H W grid rows and columns, C classes.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from models.detection_network import DetectionNetwork
from models.heads import Head
from models.nms_variants import NmsOptions, NmsRule, suppress
from utils.devices import half_is_ignored, half_type, synchronised_time
from utils.masks import BoxMasks
from utils.structures import Detections, ImageMeta

COUNTED = 1000  # detections of an image above the limit that are counted; to count all may take minutes
Look = tuple[Any, Sequence[ImageMeta]]  # what the network says of a batch, and where its images lie in the input


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
        network: DetectionNetwork,
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
            network: with its weights.
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
        is_half = half and network.knows_half and parameter is not None
        self.dtype = half_type(self.device) if is_half else torch.float32
        self.half_ignored = half_is_ignored(half, self.device) if is_half else ""  # in words, for the user
        if half and not is_half:
            what = "an exported file computes as it was exported" if parameter is None else "computing in float32"
            self.half_ignored = f"--half means nothing for {network.cfg_path}: {what}"
        fused = network.fuse().eval().requires_grad_(False)
        fused = fused.to(self.device, self.dtype).to(memory_format=torch.channels_last)
        self.network = fused.looking_above(confidence)
        self.confidence = confidence
        self.iou = iou
        self.max_detections = max_detections
        self.nms = nms or NmsOptions()
        self.counts_dropped = False  # whether ``dropped`` counts what is above ``max_detections``, off the clock
        self.boxes_only = False  # whether masks and key points are left out where the network finds them
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
        if confidence is not None:
            other.confidence, other.network = confidence, self.network.looking_above(confidence)
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
        found = self._completed(*looks[0], found)
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
        return [(self.raw_outputs(images), metas)]

    @torch.inference_mode()
    def raw_outputs(self, images: Tensor) -> Any:
        """Return what the network says of images [B 3 H W], 0..255: of a cfg's, one raw map [B A H W 5+C] per head."""
        images = images.to(self.device, non_blocking=images.is_pinned())
        # Divided as float32 where the type has too few bits for 200.3 (float16), or for 201 and 202 (bfloat16).
        is_exact = self.dtype == torch.float16 and not images.is_floating_point()
        dtype = self.dtype if is_exact else torch.float32
        images = images.to(dtype=dtype, memory_format=torch.channels_last) / 255
        return self.network(images.to(self.dtype))

    @torch.inference_mode()
    def detect(self, raw: Any, metas: Sequence[ImageMeta]) -> list[Detections]:
        """Turn what the network said of a batch into detections: the second half of calling the detector."""
        found = [suppress(of_image, self.nms_rule) for of_image in self.candidates(raw, metas)]
        found = self._completed(raw, metas, found)
        return [self._clipped(of_image, meta) for of_image, meta in zip(found, metas, strict=True)]

    def candidates(self, raw: Any, metas: Sequence[ImageMeta]) -> list[Detections]:
        """Return of each image all boxes whose score passes, in original pixels, not clipped and in no order."""
        found = []
        for of_image, meta in zip(self.network.candidates(raw, self.confidence), metas, strict=True):
            if self.classes is not None:
                of_image = of_image.select(torch.isin(of_image.labels, self.classes))
            # In original pixels, as Darknet: a stretch changes how far centres lie apart in units of a diagonal.
            found.append(replace(of_image, boxes_xyxy=meta.to_original(of_image.boxes_xyxy, clip=False)))
        return found

    def _completed(self, raw: Any, metas: Sequence[ImageMeta], found: list[Detections]) -> list[Detections]:
        """Return what was found with masks and key points in original pixels, where the network finds them."""
        if self.boxes_only or not self.network.finds:
            return found
        in_network = [
            replace(of_image, boxes_xyxy=meta.to_network(of_image.boxes_xyxy))
            for of_image, meta in zip(found, metas, strict=True)
        ]
        whole = self.network.complete(raw, in_network)
        return [_in_original_pixels(*of_image) for of_image in zip(whole, found, metas, strict=True)]

    @property
    def heads(self) -> tuple[Head, ...]:
        """The network's; none where it does not predict in grids of cells."""
        return self.network.heads

    @property
    def nms_rule(self) -> NmsRule:
        """How boxes suppress one another."""
        return NmsRule(
            self.iou if self.network.suppresses else 1.0,
            self.max_detections,
            self.nms.nms,
            self.nms.agnostic_nms,
            confidence=self.confidence,
            sigma=self.nms.nms_sigma,
            cfg_beta=self.network.nms_beta,
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
    boxes, scores, labels = zip(*((part.boxes_xyxy, part.scores, part.labels) for part in parts), strict=True)
    return Detections(torch.cat(boxes), torch.cat(scores), torch.cat(labels))


def _in_original_pixels(whole: Detections, found: Detections, meta: ImageMeta) -> Detections:
    """Return boxes in original pixels with the masks and key points that are known in network pixels."""
    masks, key_points = whole.masks, whole.key_points
    if masks is not None:
        masks = BoxMasks(masks.grids, found.boxes_xyxy, meta.original_wh)
    if key_points is not None:
        key_points = meta.points_to_original(key_points)
    return replace(found, masks=masks, key_points=key_points)
