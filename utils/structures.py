"""The records that cross package borders, with their shapes and units.

Shape letters: B images in a batch, T targets, M matches, A anchors of a head, N boxes, K key points of an object, H W
pixels of the network input (of a map: rows and columns of its grid).

Box formats: ``cxcywh`` is centre and size, ``xyxy`` is the two corners. "Normalised" means divided by the width and
height of the network input, after letterboxing; "original pixels" are those of the image file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from utils.masks import BoxMasks

# What may be known of an object besides its box and class: of labels that are read, and of what a network finds.
MASKS, KEY_POINTS = "masks", "key points"


@dataclass(frozen=True)
class ImageMeta:
    """Where an image lies in the network input: ``network = original * scale + offset``, per axis."""

    image_id: int  # the id that COCO results carry
    path: str  # the image file, or "" where there is none
    original_wh: tuple[int, int]  # pixels
    scale_xy: tuple[float, float] = (1.0, 1.0)
    offset_xy: tuple[float, float] = (0.0, 0.0)  # network pixels, the left and top border

    def to_original(self, boxes_xyxy_net: Tensor, clip: bool = True) -> Tensor:
        """Map [N 4] corner boxes from network pixels to original pixels, clipped to the image unless told otherwise."""
        offset = boxes_xyxy_net.new_tensor(self.offset_xy * 2)
        scale = boxes_xyxy_net.new_tensor(self.scale_xy * 2)
        boxes_xyxy = (boxes_xyxy_net - offset) / scale
        return self.clipped(boxes_xyxy) if clip else boxes_xyxy

    def clipped(self, boxes_xyxy: Tensor) -> Tensor:
        """Cut [N 4] corner boxes in original pixels off at the border of the image."""
        return torch.minimum(boxes_xyxy.clamp(min=0), boxes_xyxy.new_tensor(self.original_wh * 2))

    def to_network(self, boxes_xyxy: Tensor) -> Tensor:
        """Map [N 4] corner boxes from original pixels to network pixels."""
        return boxes_xyxy * boxes_xyxy.new_tensor(self.scale_xy * 2) + boxes_xyxy.new_tensor(self.offset_xy * 2)

    def points_to_original(self, points: Tensor) -> Tensor:
        """Map key points [... 3], x, y and a number that stays, from network pixels to original pixels, not clipped."""
        return _moved_points(points, lambda xyxy: self.to_original(xyxy, clip=False))

    def points_to_network(self, points: Tensor) -> Tensor:
        """Map key points [... 3], x, y and a number that stays, from original pixels to network pixels."""
        return _moved_points(points, self.to_network)


def _moved_points(points: Tensor, move: Callable[[Tensor], Tensor]) -> Tensor:
    """Return points [... 3] moved as the corners of boxes are; their third number stays."""
    return torch.cat((move(points[..., [0, 1, 0, 1]])[..., :2], points[..., 2:]), dim=-1)


@dataclass(frozen=True)
class Targets:
    """Ground-truth boxes of a batch; image ``b`` of the batch owns the rows with ``image == b``."""

    image: Tensor  # [T] int64, index in the batch
    label: Tensor  # [T] int64, class index
    boxes_cxcywh: Tensor  # [T 4] float32, normalised to the network input
    masks: Tensor | None = None  # [T H W] uint8, 1 where the object is; None where no network asks for them
    key_points: Tensor | None = None  # [T K 3] float32: x, y in network pixels, and 0 where a point is not labelled

    def __len__(self) -> int:
        return len(self.image)

    def to(self, device: torch.device | str) -> Targets:
        """Return the same targets on another device."""
        columns = {item.name: getattr(self, item.name) for item in fields(self)}
        there = {name: one.to(device, non_blocking=True) for name, one in columns.items() if one is not None}
        return replace(self, **there)

    @staticmethod
    def empty() -> Targets:
        """Return targets with no rows, on the CPU."""
        return Targets(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))


@dataclass(frozen=True)
class Batch:
    """What the loader gives to training, testing and analysis."""

    images: Tensor  # [B 3 H W] RGB, 0..255: uint8, or float32 where an image is stretched as it is
    targets: Targets  # the objects that are learned from
    crowd: Targets  # crowd regions: never learned from, optionally ignored by the objectness loss
    metas: tuple[ImageMeta, ...]  # one per image
    unread: dict[int, str] = field(default_factory=dict)  # index of an image that could not be read -> the reason

    def pin_memory(self) -> Batch:
        """Return the same batch with its images in pinned memory; a DataLoader calls this where CUDA is used."""
        return replace(self, images=self.images.pin_memory())

    @property
    def pixels(self) -> Tensor:
        """What is large, and what a loading process puts into memory that it uses again: the images."""
        return self.images

    def with_pixels(self, pixels: Tensor) -> Batch:
        """Return the same batch with its :attr:`pixels` in another tensor."""
        return replace(self, images=pixels)

    def to(self, device: torch.device | str) -> Batch:
        """Return the same batch with its tensors on another device."""
        # Unpinned memory may be written again by the process that it came from, as soon as nothing here refers to it.
        images = self.images.to(device, non_blocking=self.images.is_pinned())
        return replace(self, images=images, targets=self.targets.to(device), crowd=self.crowd.to(device))


@dataclass(frozen=True)
class Matches:
    """Pairs (target, slot), heads in order; a slot is the predictor at (image, head, anchor, row, col)."""

    target: Tensor  # [M] int64, row of the batch's Targets
    image: Tensor  # [M] int64
    head: Tensor  # [M] int64, rising
    anchor: Tensor  # [M] int64, index among the head's anchors
    row: Tensor  # [M] int64, grid row
    col: Tensor  # [M] int64, grid column
    iou: Tensor  # [M] float32, the value that decided the match
    weight: Tensor  # [M] float32, 1 unless the strategy weighs its matches
    per_head: tuple[int, ...]  # matches of each head, counted once: splitting by head never waits for a GPU

    def __len__(self) -> int:
        return len(self.target)

    @property
    def place(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Image, anchor, row and column of each match: its index in its head's map [B A H W]."""
        return self.image, self.anchor, self.row, self.col

    def place_per_head(self) -> list[tuple[Tensor, ...]]:
        """:attr:`place` of the matches of each head."""
        return list(zip(*(column.split(self.per_head) for column in self.place), strict=True))


@dataclass(frozen=True)
class Assignment:
    """Which slots learn from which targets."""

    base: Matches  # by the strategy's own rule
    extra: Matches  # added because of predictions
    ignore: tuple[Tensor | None, ...]  # per head [B A H W] bool, True where an unmatched slot is no negative; or None


@dataclass(frozen=True)
class Detections:
    """What the detector found in one image, strongest first."""

    boxes_xyxy: Tensor  # [N 4] original pixels
    scores: Tensor  # [N] objectness x class probability, 0..1
    labels: Tensor  # [N] int64 class index
    track_ids: Tensor | None = None  # [N] int64, 0 where an object has no track yet; None where nothing is tracked
    masks: BoxMasks | None = None  # of the image, where the network finds them
    key_points: Tensor | None = None  # [N K 3] x, y in original pixels and a score, any number; likewise

    def __len__(self) -> int:
        return len(self.scores)

    def select(self, index: Tensor) -> Detections:
        """Return the detections at ``index``, a [N] bool mask or an index tensor."""
        return Detections(
            self.boxes_xyxy[index],
            self.scores[index],
            self.labels[index],
            None if self.track_ids is None else self.track_ids[index],
            None if self.masks is None else self.masks.select(index),
            None if self.key_points is None else self.key_points[index],
        )

    def cpu(self) -> Detections:
        """Return the same detections on the CPU."""
        columns = {item.name: getattr(self, item.name) for item in fields(self)}
        return replace(self, **{name: one.cpu() for name, one in columns.items() if one is not None})
