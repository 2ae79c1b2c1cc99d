"""What a training picture is made of, apart from how its pixels come about: source images, each with a matrix; a second
picture that is blended in; a table of colours. Painted here by OpenCV; :mod:`data.device_painting` does it for a whole
batch on a GPU.

Shape letters: H W pixels of the picture, h w those of a source image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from data.letterbox import PADDING


class PlacedImage(NamedTuple):
    """One source image in a picture."""

    pixels: np.ndarray  # [h w 3] uint8 BGR
    warp: (
        np.ndarray
    )  # [2 3] from pixels to the region, both counted from the centre of their first pixel, as OpenCV does
    region: tuple[int, int, int, int]  # left, top, right, bottom in the picture; only there may it paint


@dataclass(frozen=True)
class Drawing:
    """All that the pixels of one picture follow from."""

    layers: list[PlacedImage]  # a later one covers an earlier one
    second: list[PlacedImage] | None = None  # of the picture that is blended in
    share: float = 1.0  # of the first picture
    colours: np.ndarray | None = None  # [256 3] uint8: new hue, saturation and value of each old one, as OpenCV counts

    def paint(self, out: np.ndarray) -> None:
        """Fill ``out`` [H W 3] uint8 with the picture, RGB."""
        paint_layers(self.layers, out)
        if self.second is not None:
            other = np.empty_like(out)
            paint_layers(self.second, other)
            cv2.addWeighted(out, self.share, other, 1 - self.share, 0, dst=out)
        recolour(out, self.colours)


def placed_image(
    pixels: np.ndarray, original_wh: tuple[int, int], matrix: np.ndarray, net_hw: tuple[int, int]
) -> PlacedImage | None:
    """Return an image where a matrix (original -> network pixels) puts it; None where that is outside the picture.

    Where the matrix shrinks to less than half, the image is halved by area averaging first, so that nothing aliases.
    """
    # The determinant is the factor on areas, its root that on lengths. ``pixels`` may be smaller than the original.
    zoom = math.sqrt(abs(np.linalg.det(matrix[:2, :2])))
    while zoom * original_wh[0] / pixels.shape[1] < 0.5 and min(pixels.shape[:2]) >= 2:
        pixels = cv2.resize(pixels, (pixels.shape[1] // 2, pixels.shape[0] // 2), interpolation=cv2.INTER_AREA)
    height, width = pixels.shape[:2]
    to_original = np.diag((original_wh[0] / width, original_wh[1] / height, 1.0))
    matrix = matrix @ to_original  # from the pixels as decoded

    # Only the upright region [left, right) x [top, bottom) around the moved corners [2 4] is touched; the tolerance
    # keeps rounding from adding a row of pixels to it.
    corners = matrix[:2] @ np.array([[0, width, width, 0], [0, 0, height, height], [1, 1, 1, 1]], dtype=np.float64)
    left, top = np.maximum(np.floor(corners.min(axis=1) + 1e-6), 0).astype(int).tolist()
    right, bottom = np.minimum(np.ceil(corners.max(axis=1) - 1e-6), net_hw[::-1]).astype(int).tolist()
    if right <= left or bottom <= top:
        return None
    # OpenCV's coordinate of a pixel is that of its centre: half a pixel less than ours, in the image as in the region.
    # The region begins at (left, top).
    warp = matrix[:2].copy()
    warp[:, 2] += matrix[:2, :2] @ (0.5, 0.5) - 0.5 - (left, top)
    return PlacedImage(pixels, warp, (left, top, right, bottom))


def paint_layers(layers: list[PlacedImage], out: np.ndarray) -> None:
    """Fill ``out`` [H W 3] with padding and the layers, BGR."""
    out[:] = PADDING
    for pixels, warp, (left, top, right, bottom) in layers:
        # A transparent border leaves the pixels of the region that the image does not cover as they are.
        cv2.warpAffine(
            pixels,
            warp,
            (right - left, bottom - top),
            dst=out[top:bottom, left:right],
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_TRANSPARENT,
        )


def recolour(image_bgr: np.ndarray, colours: np.ndarray | None) -> None:
    """Change hue, saturation and value of a BGR picture [H W 3] in place by a table [256 3], and leave it as RGB."""
    if colours is None:
        cv2.cvtColor(image_bgr, cv2.COLOR_BGR2RGB, dst=image_bgr)
        return
    hsv = cv2.cvtColor(image_bgr, cv2.COLOR_BGR2HSV)
    planes = cv2.split(hsv)  # three tables of bytes are faster than one of pixels
    for plane, table in zip(planes, colours.T, strict=True):
        cv2.LUT(plane, np.ascontiguousarray(table), dst=plane)
    cv2.merge(planes, dst=hsv)
    cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB, dst=image_bgr)
