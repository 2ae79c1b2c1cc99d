"""The pictures of a batch painted on the device where they are learned from: a loading process only decodes.

Each pixel is computed as OpenCV 4 does it (``warpAffine`` with linear interpolation, 8-bit HSV): coordinates count in
1/32 of a pixel, and the rounded products that they are sums of come from the loading process, a row and a column of
them per source image. The device adds, gathers and blends. So the pictures are those of :mod:`data.painting` to one
grey level, on any device. (OpenCV 5 does not round coordinates: there, edges differ by some levels.)

Shape letters: B pictures of the batch, P pictures to paint (B and the second ones that are blended in), L layers of a
picture, H W pixels of the picture, S bytes of all source images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np
import torch
from torch import Tensor

from data.letterbox import PADDING
from data.painting import Drawing, PlacedImage
from data.shared_memory import lent_tensor
from utils.structures import Batch

UNITS = 32  # of a pixel, in which OpenCV counts where a pixel comes from
FINER = 1024  # in which it rounds the products


@dataclass(frozen=True)
class Paints:
    """All that the pixels of a batch are computed from; every field is a tensor."""

    sources: Tensor  # [S] uint8, the source images one after the other, each [h w 3] BGR
    start: Tensor  # [P L] int64, where in ``sources`` the image of a layer begins
    source_wh: Tensor  # [P L 2] int32, 0 0 where a picture has fewer layers
    region: Tensor  # [P L 4] int32, left, top, right, bottom
    of_col: Tensor  # [P L 2 W] int32, what a column adds to x and y in the source, in 1/FINER of a pixel
    of_row: Tensor  # [P L 2 H] int32, what a row adds
    second: Tensor  # [P - B] int64, the picture of the batch into which each of the others is blended
    share: Tensor  # [P - B] float32, of the first picture
    colours: Tensor  # [B 256 3] uint8; [0 256 3]: they stay


@dataclass(frozen=True)
class UnpaintedBatch(Batch):
    """A batch whose images have no pixels before :meth:`to` paints them on the device."""

    paints: Paints = field(kw_only=True)

    def pin_memory(self) -> Batch:
        """Return the same batch with all that is to be sent to the device in pinned memory."""
        pinned = {item.name: getattr(self.paints, item.name).pin_memory() for item in fields(Paints)}
        return replace(self, paints=Paints(**pinned))

    @property
    def pixels(self) -> Tensor:
        """What is large: the source images."""
        return self.paints.sources

    def with_pixels(self, pixels: Tensor) -> Batch:
        """Return the same batch with its source images in another tensor."""
        return replace(self, paints=replace(self.paints, sources=pixels))

    def to(self, device: torch.device | str) -> Batch:
        """Return the painted batch on a device."""
        columns = {item.name: getattr(self.paints, item.name) for item in fields(Paints)}
        there = {name: column.to(device, non_blocking=column.is_pinned()) for name, column in columns.items()}
        targets, crowd = self.targets.to(device), self.crowd.to(device)
        return Batch(paint(Paints(**there)), targets, crowd, self.metas, self.unread)


def unpainted(batch: Batch, drawings: Sequence[Drawing], net_hw: tuple[int, int]) -> UnpaintedBatch:
    """Return a batch with what its pictures are to be painted from, instead of their pixels."""
    with_second = [number for number, drawing in enumerate(drawings) if drawing.second is not None]
    pictures = [drawing.layers for drawing in drawings] + [drawings[number].second or [] for number in with_second]
    depth = max(map(len, pictures))
    count = len(pictures)
    starts: dict[int, int] = {}  # id of an array of pixels -> where it begins; the drawings keep the arrays alive
    parts: list[np.ndarray] = []
    end = 0
    start = np.zeros((count, depth), np.int64)
    source_wh = np.zeros((count, depth, 2), np.int32)
    region = np.zeros((count, depth, 4), np.int32)
    of_col = np.zeros((count, depth, 2, net_hw[1]), np.int32)
    of_row = np.zeros((count, depth, 2, net_hw[0]), np.int32)
    for place in np.ndindex(count, depth):
        if place[1] >= len(pictures[place[0]]):
            continue
        one = pictures[place[0]][place[1]]
        if id(one.pixels) not in starts:
            starts[id(one.pixels)] = end
            parts.append(one.pixels.reshape(-1))
            end += one.pixels.size
        start[place] = starts[id(one.pixels)]
        source_wh[place] = one.pixels.shape[1::-1]
        region[place] = one.region
        of_col[place], of_row[place] = source_coordinates(one, net_hw)
    colours = [drawing.colours for drawing in drawings if drawing.colours is not None]
    sources = lent_tensor((max(end, 1),), torch.uint8)
    if parts:
        np.concatenate(parts, out=sources.numpy())
    arrays = (
        start,
        source_wh,
        region,
        of_col,
        of_row,
        np.array(with_second, np.int64),
        np.array([drawings[number].share for number in with_second], np.float32),
        np.stack(colours) if colours else np.zeros((0, 256, 3), np.uint8),
    )
    values = {item.name: getattr(batch, item.name) for item in fields(Batch)}
    return UnpaintedBatch(**values, paints=Paints(sources, *map(torch.from_numpy, arrays)))


def source_coordinates(image: PlacedImage, net_hw: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return what each column [2 W] and each row [2 H] adds to x and y in the source, in 1/FINER of a pixel, int32.

    The inverse of the image's matrix, rounded as ``cv::warpAffine`` does (OpenCV 4, modules/imgproc/src/imgwarp.cpp).
    """
    (a, b, shift_x), (c, d, shift_y) = image.warp.tolist()
    determinant = a * d - b * c
    factor = 1 / determinant if determinant else 0.0
    inverse = np.array([[d * factor, -b * factor], [-c * factor, a * factor]])
    shift = -inverse @ (shift_x, shift_y)
    left, top = image.region[:2]
    cols, rows = np.arange(net_hw[1]) - left, np.arange(net_hw[0]) - top
    limit = np.iinfo(np.int32).max // 4  # a matrix that shrinks to nearly nothing
    of_col = np.rint(inverse[:, :1] * cols * FINER)
    of_row = np.rint((inverse[:, 1:] * rows + shift[:, None]) * FINER) + FINER // UNITS // 2
    return of_col.clip(-limit, limit).astype(np.int32), of_row.clip(-limit, limit).astype(np.int32)


def paint(paints: Paints) -> Tensor:
    """Return the pictures [B 3 H W] uint8 RGB, in channels-last memory, on the device of ``paints``."""
    pictures = paint_layers(paints)
    count = len(pictures) - len(paints.second)
    if len(paints.second):
        share = paints.share[:, None, None, None]
        blend = pictures[paints.second] * share + pictures[count:] * (1 - share)
        pictures[paints.second] = blend.round().to(torch.uint8)
    pictures = pictures[:count]
    if len(paints.colours):
        hsv = rgb_to_hsv(pictures.flip(-1))
        tables = paints.colours.int()[:, None, None]  # B 1 1 256 3
        hsv = torch.take_along_dim(tables, hsv[..., None, :].long(), dim=3)[..., 0, :]
        return hsv_to_rgb(hsv).permute(0, 3, 1, 2)
    return pictures.flip(-1).permute(0, 3, 1, 2)


def paint_layers(paints: Paints) -> Tensor:
    """Return the pictures [P H W 3] uint8 BGR before they are blended and coloured."""
    height, width = paints.of_row.shape[-1], paints.of_col.shape[-1]
    device = paints.start.device
    rows = torch.arange(height, device=device)[:, None]
    cols = torch.arange(width, device=device)
    # Of the layers that reach a pixel the last one counts: where it comes from, in 1/UNITS, and from which source.
    shape = (len(paints.start), height, width)
    from_x = torch.zeros(shape, dtype=torch.int32, device=device)
    from_y, covered = torch.zeros_like(from_x), torch.full(shape, -1, dtype=torch.int8, device=device)
    for number in range(paints.start.shape[1]):
        x, y = (
            (paints.of_col[:, number, axis, None, :] + paints.of_row[:, number, axis, :, None])
            >> int(math.log2(FINER // UNITS))
            for axis in (0, 1)
        )
        left, top, right, bottom = (side[:, None, None] for side in paints.region[:, number].unbind(1))
        wide, high = (side[:, None, None] * UNITS for side in paints.source_wh[:, number].unbind(1))
        here = (x >= 0) & (x < wide) & (y >= 0) & (y < high)
        here &= (cols >= left) & (cols < right) & (rows >= top) & (rows < bottom)
        from_x, from_y = torch.where(here, x, from_x), torch.where(here, y, from_y)
        covered[here] = number
    picture = torch.full((*shape, 3), PADDING, dtype=torch.uint8, device=device)
    where = covered >= 0
    image = where.nonzero()[:, 0]
    place = image, covered[where].long()
    picture[where] = interpolate(paints, place, from_x[where], from_y[where])
    return picture


def interpolate(paints: Paints, place: tuple[Tensor, Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Return the colours [N 3] uint8 at N points of the sources of the layers [N] at ``place``, x and y in 1/UNITS."""
    start, (wide, high) = paints.start[place], paints.source_wh[place].unbind(1)
    col, row = x // UNITS, y // UNITS
    share_x, share_y = ((value % UNITS).float() / UNITS for value in (x, y))
    channel = torch.arange(3, device=x.device)
    total = torch.zeros(len(x), 3, device=x.device)
    for down in (0, 1):
        for right in (0, 1):
            weight = (share_x if right else 1 - share_x) * (share_y if down else 1 - share_y)
            # Beyond the last pixel there is the last pixel once more.
            pixel = torch.minimum(row + down, high - 1).long() * wide + torch.minimum(col + right, wide - 1)
            total += weight[:, None] * paints.sources[(start + 3 * pixel)[:, None] + channel]
    return (total + 0.5).to(torch.uint8)


def rgb_to_hsv(pictures: Tensor) -> Tensor:
    """Return hue 0..179, saturation and value 0..255 [... 3] int32 of RGB [... 3] uint8, with OpenCV's rounding."""
    red, green, blue = pictures.int().unbind(-1)
    value, least = pictures.int().amax(-1), pictures.int().amin(-1)
    spread = value - least
    levels = torch.arange(256, dtype=torch.float64, device=pictures.device).clamp(min=1)
    of_value = (255 * 4096 / levels).round().int()
    of_spread = (180 * 4096 / (6 * levels)).round().int()
    saturation = (spread * of_value[value] + 2048) >> 12
    hue = torch.where(
        value == red,
        green - blue,
        torch.where(value == green, blue - red + 2 * spread, red - green + 4 * spread),
    )
    hue = (hue * of_spread[spread] + 2048) >> 12
    return torch.stack((torch.where(hue < 0, hue + 180, hue), saturation, value), dim=-1)


def hsv_to_rgb(hsv: Tensor) -> Tensor:
    """Return RGB [... 3] uint8 of hue 0..179, saturation and value 0..255 [... 3] int32, with OpenCV's rounding."""
    hue, saturation, value = hsv.unbind(-1)
    sector = torch.div(hue, 30, rounding_mode="floor") % 6
    within = (hue.float() * (6 / 180)) - torch.div(hue, 30, rounding_mode="floor")
    saturation, value = saturation.float() / 255, value.float() / 255
    levels = torch.stack(
        (value, value * (1 - saturation), value * (1 - saturation * within), value * (1 - saturation * (1 - within))),
        dim=-1,
    )
    # Which of the four levels red, green and blue have in each sixth of the circle.
    which = torch.tensor([[0, 3, 1], [2, 0, 1], [1, 0, 3], [1, 2, 0], [3, 1, 0], [0, 1, 2]], device=hsv.device)
    rgb = levels.gather(-1, which[sector.long()])
    return (rgb * 255).round().to(torch.uint8)
