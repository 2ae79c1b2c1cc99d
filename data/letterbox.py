"""From an image of any size to the network input: the geometry (an ImageMeta) and the pixels.

Coordinates are continuous: pixel ``i`` covers ``[i, i + 1)``; resizing ``w`` to ``w'`` pixels maps ``x`` to ``x w'/w``.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from utils.structures import ImageMeta

PADDING = 114  # grey level of the border, as in ultralytics/yolov5 v7.0


def letterbox_meta(image_id: int, path: str, original_wh: tuple[int, int], net_hw: tuple[int, int]) -> ImageMeta:
    """Fit an image into the network input: aspect ratio kept, the border shared equally between opposite sides.

    The resized size is rounded to whole pixels, and ``scale_xy`` is exactly what that rounding makes it. Of an odd
    number of border pixels, the right or lower side has one more.
    """
    width, height = original_wh
    ratio = min(net_hw[1] / width, net_hw[0] / height)
    new_w = min(max(round(width * ratio), 1), net_hw[1])
    new_h = min(max(round(height * ratio), 1), net_hw[0])
    offset = (float((net_hw[1] - new_w) // 2), float((net_hw[0] - new_h) // 2))
    return ImageMeta(image_id, path, (width, height), (new_w / width, new_h / height), offset)


def stretch_meta(image_id: int, path: str, original_wh: tuple[int, int], net_hw: tuple[int, int]) -> ImageMeta:
    """Scale each axis by itself so that the image fills the network input, as Darknet does without ``letter_box``."""
    width, height = original_wh
    return ImageMeta(image_id, path, (width, height), (net_hw[1] / width, net_hw[0] / height))


RESIZES = {"letterbox": letterbox_meta, "stretch": stretch_meta}  # --resize -> the geometry


def resize_for_view(image: np.ndarray, wh: tuple[int, int]) -> np.ndarray:
    """Resize to (width, height), bilinearly or, to shrink, by averages over areas, which keep small objects visible."""
    shrinks = wh[0] < image.shape[1] or wh[1] < image.shape[0]
    return cv2.resize(image, wh, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def resize_as_darknet(image: np.ndarray, wh: tuple[int, int]) -> np.ndarray:
    """Resize [h w 3] to (width, height) as Darknet's ``resize_image`` (src/image.c) does; return float32, not rounded.

    It interpolates between two pixels however much it shrinks, and puts the corner pixels of the result on those of the
    image.
    """
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float()  # 1 3 h w
    resized = functional.interpolate(pixels, (wh[1], wh[0]), mode="bilinear", align_corners=True)
    return resized[0].permute(1, 2, 0).numpy()


PIXELS = {"letterbox": resize_for_view, "stretch": resize_as_darknet}  # --resize -> the pixels
# --resize -> the numbers of a network input, 0..255: a stretched image is not rounded to bytes, as in Darknet.
PIXEL_TYPES = {"letterbox": torch.uint8, "stretch": torch.float32}


def place_image(image: np.ndarray, meta: ImageMeta, out: np.ndarray, resize: str = "letterbox") -> None:
    """Draw an image [h w 3] into a network input [H W 3], in place, where its meta says; ``resize`` as in PIXELS."""
    new_w, new_h = (round(size * scale) for size, scale in zip(meta.original_wh, meta.scale_xy, strict=True))
    left, top = (round(offset) for offset in meta.offset_xy)
    if (new_h, new_w) != out.shape[:2]:
        out[:] = PADDING
    target = out[top : top + new_h, left : left + new_w]
    target[:] = image if image.shape[:2] == (new_h, new_w) else PIXELS[resize](image, (new_w, new_h))


def place_images(
    images_rgb: Sequence[np.ndarray], metas: Sequence[ImageMeta], net_hw: tuple[int, int], resize: str = "letterbox"
) -> Tensor:
    """Place each image [h w 3] by its meta; return [B 3 H W], 0..255 (PIXEL_TYPES), in channels_last memory format."""
    batch = torch.empty((len(images_rgb), *net_hw, 3), dtype=PIXEL_TYPES[resize])
    for image, meta, out in zip(images_rgb, metas, batch.numpy(), strict=True):
        place_image(image, meta, out, resize)
    return batch.permute(0, 3, 1, 2)


def scales_and_offsets(image_wh: np.ndarray, net_hw: tuple[int, int], resize: str) -> tuple[np.ndarray, np.ndarray]:
    """Return where images [N 2] lie in the network input: ``network = original * scale + offset``, [N 2] each.

    Args:
        image_wh: sizes in original pixels.
        net_hw: size of the network input, pixels.
        resize: a key of :data:`RESIZES`.
    """
    sizes, which = np.unique(image_wh, axis=0, return_inverse=True)
    metas = [RESIZES[resize](0, "", (int(width), int(height)), net_hw) for width, height in sizes]
    scales = np.array([meta.scale_xy for meta in metas]).reshape(-1, 2)
    offsets = np.array([meta.offset_xy for meta in metas]).reshape(-1, 2)
    return scales[which.reshape(-1)], offsets[which.reshape(-1)]


def smallest_input(original_wh: np.ndarray, net_hw: tuple[int, int], stride: int) -> tuple[int, int]:
    """Return the smallest (height, width) in multiples of the stride that holds all images [N 2] fitted into net_hw."""
    ratio = np.minimum(net_hw[1] / original_wh[:, 0], net_hw[0] / original_wh[:, 1])
    scaled = np.maximum(np.round(original_wh * ratio[:, None]), 1)
    width, height = (int(-(-side // stride) * stride) for side in scaled.max(axis=0))
    return height, width
