"""From an image of any size to the network input: the geometry (a ImageMeta) and the pixels.

Coordinates are continuous: pixel ``i`` covers ``[i, i + 1)``; resizing ``w`` to ``w'`` pixels maps ``x`` to ``x w'/w``.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

from utils.structures import ImageMeta

PADDING = 114  # grey level of the border, that of the ultralytics family


def letterbox_meta(image_id: int, path: str, original_wh: tuple[int, int], net_hw: tuple[int, int]) -> ImageMeta:
    """Keep the aspect ratio, fill the input as far as it goes, share the border equally between both sides.

    The resized size is rounded to whole pixels, and ``scale_xy`` is exactly what that rounding makes it.
    """
    width, height = original_wh
    ratio = min(net_hw[1] / width, net_hw[0] / height)
    new_w = min(max(round(width * ratio), 1), net_hw[1])
    new_h = min(max(round(height * ratio), 1), net_hw[0])
    offset = (float((net_hw[1] - new_w) // 2), float((net_hw[0] - new_h) // 2))
    return ImageMeta(image_id, path, (width, height), (new_w / width, new_h / height), offset)


def stretch_meta(image_id: int, path: str, original_wh: tuple[int, int], net_hw: tuple[int, int]) -> ImageMeta:
    """Scale each axis for itself so that the image fills the input (Darknet's training resize)."""
    width, height = original_wh
    return ImageMeta(image_id, path, (width, height), (net_hw[1] / width, net_hw[0] / height))


RESIZES = {"letterbox": letterbox_meta, "stretch": stretch_meta}


def resize_for_view(image: np.ndarray, wh: tuple[int, int]) -> np.ndarray:
    """Shrinking averages over areas, which keeps small objects visible; enlarging is bilinear."""
    shrinks = wh[0] < image.shape[1] or wh[1] < image.shape[0]
    return cv2.resize(image, wh, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def resize_as_darknet(image: np.ndarray, wh: tuple[int, int]) -> np.ndarray:
    """Darknet's ``resize_image``: bilinear between two pixels however much it shrinks, corners on corners."""
    pixels = image.astype(np.float32)
    for axis, new in ((1, wh[0]), (0, wh[1])):
        old = image.shape[axis]
        place = np.linspace(0, old - 1, new, dtype=np.float64)
        low = np.minimum(place.astype(np.int64), max(old - 2, 0))
        weight = (place - low).astype(np.float32).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        first, second = np.take(pixels, low, axis), np.take(pixels, np.minimum(low + 1, old - 1), axis)
        pixels = first + (second - first) * weight
    return np.rint(pixels).astype(np.uint8)


PIXELS = {"letterbox": resize_for_view, "stretch": resize_as_darknet}  # as RESIZES


def place_image(image: np.ndarray, meta: ImageMeta, out: np.ndarray, resize: str = "letterbox") -> None:
    """Draw an image [h w 3] into a network input [H W 3], in place, where its meta says; ``resize`` as in PIXELS."""
    new_w, new_h = (round(size * scale) for size, scale in zip(meta.original_wh, meta.scale_xy, strict=True))
    left, top = (round(offset) for offset in meta.offset_xy)
    if (new_h, new_w) != out.shape[:2]:
        out[:] = PADDING
    target = out[top : top + new_h, left : left + new_w]
    target[:] = image if image.shape[:2] == (new_h, new_w) else PIXELS[resize](image, (new_w, new_h))


def images_to_tensor(images_hwc: np.ndarray) -> Tensor:
    """View uint8 images [B H W 3] as [B 3 H W]; no copy, so the memory format is channels_last."""
    return torch.from_numpy(images_hwc).permute(0, 3, 1, 2)


def letterbox_images(images_rgb: Sequence[np.ndarray], metas: Sequence[ImageMeta], net_hw: tuple[int, int]) -> Tensor:
    """Place each image [h w 3] by its meta; return uint8 [B 3 H W] in channels_last memory format."""
    batch = np.empty((len(images_rgb), *net_hw, 3), dtype=np.uint8)
    for image, meta, out in zip(images_rgb, metas, batch, strict=True):
        place_image(image, meta, out)
    return images_to_tensor(batch)


def smallest_input(original_wh: np.ndarray, net_hw: tuple[int, int], stride: int) -> tuple[int, int]:
    """Return the smallest (height, width) in multiples of the stride that holds all images [N 2] fitted into net_hw."""
    ratio = np.minimum(net_hw[1] / original_wh[:, 0], net_hw[0] / original_wh[:, 1])
    scaled = np.maximum(np.round(original_wh * ratio[:, None]), 1)
    width, height = (int(-(-side // stride) * stride) for side in scaled.max(axis=0))
    return height, width
