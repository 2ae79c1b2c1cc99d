"""Torchvision's detectors that find more than boxes: Mask R-CNN (arXiv 1703.06870) and its key points.

Masks and key points are computed in a second step, of the boxes that suppression has left.

Shape letters: B images, H W pixels of the network input, N boxes, T objects, K key points, m cells of a mask's side.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from models.exported.required import required
from models.families.named import FIRST_LINE
from models.families.torchvision_networks import RESNET50, TorchvisionDetector, TorchvisionNetwork
from utils.masks import BoxMasks
from utils.structures import KEY_POINTS, MASKS, Detections, Targets

COCO_KEY_POINTS = 17
SHAPES_OF_DATA = ("model.roi_heads.mask_predictor.mask_fcn_logits.", "model.roi_heads.keypoint_predictor.")


@dataclass(frozen=True)
class InstanceDetector(TorchvisionDetector):
    """A function of ``torchvision.models.detection`` that builds a Mask or Keypoint R-CNN."""

    def build(self, name: str, num_classes: int, key_points: int = COCO_KEY_POINTS) -> InstanceNetwork:
        """As :meth:`TorchvisionDetector.build`, for so many key points of an object where it finds them."""
        own = {"num_keypoints": key_points} if KEY_POINTS in self.finds else {}
        return InstanceNetwork(name, self, self.model(name, num_classes, **own), num_classes)

    def names(self, name: str, num_classes: int) -> tuple[str, ...]:
        """As :meth:`TorchvisionDetector.names`; the key points that torchvision publishes are those of persons."""
        if KEY_POINTS in self.finds and num_classes == 1:
            return ("person",)
        return super().names(name, num_classes)


DETECTORS = {
    "maskrcnn_resnet50_fpn": InstanceDetector(44_400_693, 800, RESNET50, has_background=True, finds=frozenset({MASKS})),
    "maskrcnn_resnet50_fpn_v2": InstanceDetector(
        46_305_589, 800, RESNET50, has_background=True, finds=frozenset({MASKS})
    ),
    "keypointrcnn_resnet50_fpn": InstanceDetector(
        59_595_253, 800, RESNET50, has_background=True, finds=frozenset({KEY_POINTS})
    ),
}


class SeenBatch(NamedTuple):
    """What the network says of a batch, and what the second step needs of it."""

    boxes: list[dict[str, Tensor]]  # of each image, as torchvision gives them
    features: dict[str, Tensor]  # the maps of the pyramid, [B 256 h w] each
    sizes_hw: list[tuple[int, int]]


class InstanceNetwork(TorchvisionNetwork):
    """One of torchvision's detectors whose objects have masks or key points."""

    def __init__(self, name: str, kind: InstanceDetector, model: Any, num_classes: int) -> None:
        """As :class:`TorchvisionNetwork`."""
        super().__init__(name, kind, model, num_classes)
        self.finds = kind.finds
        if KEY_POINTS in kind.finds:
            self.num_key_points = model.roi_heads.keypoint_predictor.out_channels
            # The loss looks at the maps as rows, which those of convolutions in channels_last are not.
            model.roi_heads.keypoint_predictor.register_forward_hook(_contiguous)

    @property
    def cfg_text(self) -> str:
        """As :meth:`NamedNetwork.cfg_text`, with the number of key points."""
        own = f"key_points={self.num_key_points}\n" if self.num_key_points else ""
        return f"{FIRST_LINE}\nname={self.name}\n{own}"

    def forward(self, images: Tensor) -> SeenBatch:  # type: ignore[override]
        """Return boxes, in evaluation mode, with the maps from which :meth:`complete` tells masks or key points."""
        model: Any = self.model
        heads = copy.copy(model.roi_heads)  # without the second step, which it would do for each candidate
        heads._modules = model.roi_heads._modules | {"mask_roi_pool": None, "keypoint_roi_pool": None}
        seen, _ = model.transform(list(images))
        features = model.backbone(seen.tensors)
        proposals, _ = model.rpn(seen, features)
        boxes, _ = heads(features, proposals, seen.image_sizes)
        return SeenBatch(boxes, features, seen.image_sizes)

    def candidates(self, raw: SeenBatch, confidence: float) -> list[Detections]:
        """As :meth:`DetectionNetwork.candidates`."""
        return super().candidates(raw.boxes, confidence)

    def complete(self, raw: SeenBatch, found: Sequence[Detections]) -> list[Detections]:
        """As :meth:`DetectionNetwork.complete`, image by image: the maps of hundreds of boxes are large."""
        whole = []
        for number, (of_image, size_hw) in enumerate(zip(found, raw.sizes_hw, strict=True)):
            features = {level: maps[number : number + 1] for level, maps in raw.features.items()}
            whole.append(self._completed(of_image, features, size_hw))
        return whole

    def _completed(self, found: Detections, features: dict[str, Tensor], size_hw: tuple[int, int]) -> Detections:
        """Return what was found in one image with masks or key points."""
        heads: Any = self.model.roi_heads
        boxes, empty = found.boxes_xyxy, not len(found)
        if KEY_POINTS in self.finds:
            if empty:
                return replace(found, key_points=boxes.new_zeros(0, self.num_key_points, 3))
            pooled = heads.keypoint_roi_pool(features, [boxes], [size_hw])
            maps = heads.keypoint_predictor(heads.keypoint_head(pooled))
            infer = required("torchvision.models.detection.roi_heads", self.name).keypointrcnn_inference
            (points,), (scores,) = infer(maps, [boxes])
            return replace(found, key_points=torch.cat((points[..., :2], scores[..., None]), dim=2))
        if empty:
            return replace(found, masks=BoxMasks(boxes.new_zeros(0, 1, 1), boxes, size_hw[::-1]))
        pooled = heads.mask_roi_pool(features, [boxes], [size_hw])
        logits = heads.mask_predictor(heads.mask_head(pooled))  # N 1+C m m
        of_class = logits[torch.arange(len(found), device=logits.device), found.labels + 1]
        return replace(found, masks=BoxMasks(of_class.sigmoid(), boxes, size_hw[::-1]))

    def shapes_of(self, targets: Targets, rows: Tensor, size_hw: tuple[int, int]) -> dict[str, Tensor]:
        """As :meth:`TorchvisionNetwork.shapes_of`; where nobody has given them, an object has no pixel and no point."""
        count = int(rows.sum())
        if KEY_POINTS in self.finds:
            points = targets.key_points
            return {
                "keypoints": rows.new_zeros(count, self.num_key_points, 3).float() if points is None else points[rows]
            }
        masks = targets.masks
        return {"masks": rows.new_zeros(count, *size_hw).byte() if masks is None else masks[rows]}

    def depends_on_classes(self, name: str) -> bool:
        """As :meth:`DetectionNetwork.depends_on_classes`; the last layer of key points depends on the data likewise."""
        return super().depends_on_classes(name) or name.startswith(SHAPES_OF_DATA)


def _contiguous(_module: nn.Module, _given: Any, maps: Tensor) -> Tensor:
    return maps.contiguous()
