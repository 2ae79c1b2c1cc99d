"""Training pictures: mosaic, scale, rotation, shift, shear, flips, mixup and colour, all drawn from one generator.

The geometry of a picture is composed into one matrix per source image, so that each image is resampled once, straight
into the network input; the same matrix moves the boxes. Nothing is random but what the given generator draws. The
result is a drawing, painted in :mod:`data.painting` or, a whole batch at once, in :mod:`data.device_painting`.

Shape letters: H W pixels of the network input, h w those of a source image, K objects. A matrix [3 3] maps columns
(x, y, 1) in continuous coordinates: pixel ``i`` covers ``[i, i + 1)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np

from data.letterbox import RESIZES
from data.object_shapes import ObjectShapes
from data.painting import Drawing, PlacedImage, placed_image
from utils.config import option

# What the crop leaves of a box is still an object if all three hold; the thresholds are those of ultralytics/yolov5
# v7.0 (utils/augmentations.py, box_candidates).
MIN_SIDE = 2.0  # pixels of the network input: both sides are longer
MIN_AREA_LEFT = 0.1  # more than this share of the box's area is left
MAX_ASPECT = 100.0  # the longer side is less than this many times the shorter one

# Both parameters of the beta distribution of mixup's share, which is nearly one half; as in ultralytics/yolov5 v7.0.
MIXUP_BETA = 32.0

# Of options; of all others 1.
LIMITS = {"degrees": 180.0, "shear": 89.0, "saturation": 1e3, "exposure": 1e3, "close_mosaic": 1e6}


@dataclass(frozen=True)
class AugmentOptions:
    """Augmentation of training pictures."""

    hsv_h: float = option(0.015, "multiply the hue by a factor in 1 +- this")
    hsv_s: float = option(0.7, "multiply the saturation by a factor in 1 +- this")
    hsv_v: float = option(0.4, "multiply the brightness by a factor in 1 +- this")
    degrees: float = option(0.0, "rotation by up to +- so many degrees")
    translate: float = option(0.1, "shift by up to +- this fraction of the picture")
    scale: float = option(0.5, "zoom by a factor in 1 +- this")
    shear: float = option(0.0, "shear by up to +- so many degrees")
    flipud: float = option(0.0, "probability of a flip upside down")
    fliplr: float = option(0.5, "probability of a flip left to right")
    mosaic: float = option(1.0, "probability that a picture is made of four images")
    mixup: float = option(0.0, "probability that a second picture is blended in")
    close_mosaic: int = option(0, "last epochs of a run that see no mosaic and no mixup")
    jitter: float = option(0.0, "Darknet's: move each side of an image by up to +- this share of it, in or out")
    saturation: float = option(1.0, "Darknet's: multiply or divide the saturation by a number from 1 to this")
    exposure: float = option(1.0, "Darknet's: multiply or divide the brightness by a number from 1 to this")
    hue: float = option(0.0, "Darknet's: turn the hue by up to +- this share of the circle")

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            limit = LIMITS.get(item.name, 1.0)
            if not 0 <= value <= limit:
                raise ValueError(f"{item.name} = {value} is outside 0..{limit:g}")
        if self.scale >= 1:
            raise ValueError(f"scale = {self.scale} must be below 1: a factor of 1 - scale would leave nothing")


class SourceImage(NamedTuple):
    """One annotated image as the augmentation needs it; boxes are in original pixels."""

    pixels: np.ndarray  # [h w 3] uint8 BGR, perhaps decoded at a fraction of the original size
    original_wh: tuple[int, int]
    boxes_xyxy: np.ndarray  # [K 4] float64
    labels: np.ndarray  # [K] int
    crowd: np.ndarray  # [K] bool
    shapes: ObjectShapes | None = None  # outlines and key points, original pixels; None where nobody wants them


class Sample(NamedTuple):
    """The objects of one finished picture; boxes are in network pixels."""

    boxes_xyxy: np.ndarray  # [K 4] float64
    labels: np.ndarray  # [K] int
    crowd: np.ndarray  # [K] bool
    shapes: ObjectShapes | None = None  # likewise

    def joined(self, other: Sample) -> Sample:
        """Return the objects of both."""
        boxes, labels, crowd = (np.concatenate(pair) for pair in zip(self[:3], other[:3], strict=True))
        both = [one.shapes for one in (self, other) if one.shapes is not None]
        return Sample(boxes, labels, crowd, ObjectShapes.joined(both) if both else None)


def training_picture(
    index: int,
    pool: np.ndarray,
    load: Callable[[int], SourceImage],
    net_hw: tuple[int, int],
    options: AugmentOptions,
    rng: np.random.Generator,
    resize: str = "letterbox",
) -> tuple[Drawing, Sample]:
    """Make one training picture.

    Args:
        index: the image that the picture shows, alone or beside its partners.
        pool: indices of the images that mosaic and mixup may take their partners from.
        load: gives an annotated image by its index.
        net_hw: size of the picture.
        options: the range of each change and the probabilities.
        rng: the only source of randomness.
        resize: key of :data:`data.letterbox.RESIZES`.

    Returns:
        What is to be painted, and the objects of the picture; those of both pictures after mixup, which counts each in
        full.
    """
    layers, sample = _picture(index, pool, load, net_hw, options, rng, resize)
    second, share = None, 1.0
    if rng.random() < options.mixup:
        (partner,) = _partners(index, pool, 1, rng)
        second, other = _picture(partner, pool, load, net_hw, options, rng, resize)
        share = rng.beta(MIXUP_BETA, MIXUP_BETA)
        sample = sample.joined(other)
    return Drawing(layers, second, share, random_colours(options, rng)), sample


def _partners(index: int, pool: np.ndarray, count: int, rng: np.random.Generator) -> list[int]:
    """Draw ``count`` images of the pool other than ``index``: different ones if there are enough, else with repeats.

    Where the pool holds no other image, all of them are ``index``.
    """
    others = pool[pool != index]
    if len(others) == 0:
        return [index] * count
    return rng.choice(others, count, replace=len(others) < count).tolist()


def _picture(
    index: int,
    pool: np.ndarray,
    load: Callable[[int], SourceImage],
    net_hw: tuple[int, int],
    options: AugmentOptions,
    rng: np.random.Generator,
    resize: str,
) -> tuple[list[PlacedImage], Sample]:
    """Lay out one mosaic or one single image; return its layers and objects."""
    if rng.random() < options.mosaic:
        members = [index, *_partners(index, pool, 3, rng)]
        sources = [load(member) for member in members]
        places = mosaic_places([source.original_wh for source in sources], net_hw, rng, resize)
        canvas_hw = (2 * net_hw[0], 2 * net_hw[1])
    else:
        sources = [load(index)]
        places = [_place(sources[0].original_wh, net_hw, resize)]
        canvas_hw = net_hw
    if options.jitter:
        sources = [crop_sides(source, rng.uniform(-options.jitter, options.jitter, 4)) for source in sources]
    # One motion for the whole canvas: the images of a mosaic move together.
    motion = random_motion(options, canvas_hw, net_hw, rng)
    matrices = [motion @ place for place in places]  # original -> canvas -> network pixels
    layers = [
        placed_image(source.pixels, source.original_wh, matrix, net_hw)
        for source, matrix in zip(sources, matrices, strict=True)
    ]
    return [one for one in layers if one is not None], _objects(sources, matrices, net_hw)


def crop_sides(source: SourceImage, shares: np.ndarray) -> SourceImage:
    """Cut off, or add, a share of the image at each side and stretch what there is to the size of the image.

    As ``jitter`` in Darknet (src/data.c, load_data_detection): what is added has the mean colour of the image.

    Args:
        source: the image and its boxes, those of which little is left are dropped.
        shares: of left, top, right and bottom side, of the width or height; negative ones are added.

    Returns:
        An image of the same original size; where nothing would be left, the image as it is.
    """
    height, width = source.pixels.shape[:2]
    left, top, right, bottom = (int(share) for share in shares * (width, height, width, height))
    new_w, new_h = width - left - right, height - top - bottom
    if min(new_w, new_h, width - left, height - top, width - right, height - bottom) <= 0:
        return source
    pixels = np.empty((new_h, new_w, 3), np.uint8)
    pixels[:] = source.pixels.mean(axis=(0, 1))
    inside = source.pixels[max(top, 0) : height - max(bottom, 0), max(left, 0) : width - max(right, 0)]
    x, y = max(-left, 0), max(-top, 0)
    pixels[y : y + inside.shape[0], x : x + inside.shape[1]] = inside

    # Original pixels -> those that were decoded -> the crop -> original pixels of the stretched crop.
    to_crop = np.array((width, height) * 2) / np.array(source.original_wh * 2)
    offset, to_original = np.array((left, top) * 2), np.array(source.original_wh * 2) / np.array((new_w, new_h) * 2)
    moved = (source.boxes_xyxy * to_crop - offset) * to_original
    boxes = np.clip(moved, 0, source.original_wh * 2)
    area_before, area_left = ((box[:, 2:] - box[:, :2]).prod(axis=1) for box in (moved, boxes))
    keep = area_left > MIN_AREA_LEFT * area_before
    shapes = source.shapes
    if shapes is not None:
        matrix = np.diag((*(to_crop * to_original)[:2], 1.0))
        matrix[:2, 2] = -(offset * to_original)[:2]
        limits_wh = np.tile(source.original_wh, (len(keep), 1))
        shapes = shapes.moved(np.tile(matrix, (len(keep), 1, 1))).clipped(limits_wh).select(keep)
    return SourceImage(pixels, source.original_wh, boxes[keep], source.labels[keep], source.crowd[keep], shapes)


def _place(original_wh: tuple[int, int], net_hw: tuple[int, int], resize: str) -> np.ndarray:
    """Return the matrix [3 3] from original to canvas pixels of an image that is alone on its canvas."""
    meta = RESIZES[resize](0, "", original_wh, net_hw)
    (scale_x, scale_y), (left, top) = meta.scale_xy, meta.offset_xy
    return np.array([[scale_x, 0, left], [0, scale_y, top], [0, 0, 1]], dtype=np.float64)


def mosaic_places(
    original_whs: list[tuple[int, int]], net_hw: tuple[int, int], rng: np.random.Generator, resize: str = "letterbox"
) -> list[np.ndarray]:
    """Put four images around a random point of a canvas of twice the network input, one in each quarter.

    Returns:
        Four matrices [3 3], original pixels -> canvas pixels; in order top left, top right, bottom left, bottom right.
    """
    # In the middle half of the canvas, so that each quarter is at least half as wide and as high as the network input.
    height, width = net_hw
    center_x = round(rng.uniform(width / 2, width * 3 / 2))
    center_y = round(rng.uniform(height / 2, height * 3 / 2))
    places = []
    for quarter, (image_w, image_h) in enumerate(original_whs):
        # Scaled as if it were alone, then shifted so that one of its corners lies on the point.
        place = _place((image_w, image_h), net_hw, resize)
        place[0, 2] = center_x if quarter % 2 else center_x - round(place[0, 0] * image_w)
        place[1, 2] = center_y if quarter // 2 else center_y - round(place[1, 1] * image_h)
        places.append(place)
    return places


def random_motion(
    options: AugmentOptions, canvas_hw: tuple[int, int], net_hw: tuple[int, int], rng: np.random.Generator
) -> np.ndarray:
    """Return a matrix [3 3], canvas -> network pixels: rotate and zoom about the centre, shear, shift, flip."""
    angle = math.radians(rng.uniform(-options.degrees, options.degrees))
    zoom = rng.uniform(1 - options.scale, 1 + options.scale)
    shear_x, shear_y = (math.tan(math.radians(rng.uniform(-options.shear, options.shear))) for _ in range(2))
    shift_x, shift_y = (rng.uniform(0.5 - options.translate, 0.5 + options.translate) for _ in range(2))
    flip_x = -1.0 if rng.random() < options.fliplr else 1.0
    flip_y = -1.0 if rng.random() < options.flipud else 1.0

    to_center = np.array([[1, 0, -canvas_hw[1] / 2], [0, 1, -canvas_hw[0] / 2], [0, 0, 1]])
    cos, sin = zoom * math.cos(angle), zoom * math.sin(angle)
    rotation = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
    shear = np.array([[1, shear_x, 0], [shear_y, 1, 0], [0, 0, 1]])
    shift = np.array([[1, 0, shift_x * net_hw[1]], [0, 1, shift_y * net_hw[0]], [0, 0, 1]])
    flip = np.array(
        [[flip_x, 0, net_hw[1] if flip_x < 0 else 0], [0, flip_y, net_hw[0] if flip_y < 0 else 0], [0, 0, 1]]
    )
    # From right to left: the canvas's centre goes to (0, 0), is the fixed point of rotation, zoom and shear, and lands
    # near the centre of the network input, about which the flip mirrors.
    return flip @ shift @ shear @ rotation @ to_center


def _objects(sources: list[SourceImage], matrices: list[np.ndarray], net_hw: tuple[int, int]) -> Sample:
    """Move the boxes of all source images with their pixels and keep those that are still objects."""
    counts = [len(source.labels) for source in sources]
    matrix = np.repeat(np.stack(matrices), counts, axis=0)  # K 3 3
    # Labels may reach over the edge of their image, pixels do not: clip before moving, so that no box reaches into the
    # neighbour of a mosaic.
    limit = np.repeat(np.array([source.original_wh * 2 for source in sources], dtype=np.float64), counts, axis=0)  # K 4
    boxes = np.clip(np.concatenate([source.boxes_xyxy for source in sources]), 0, limit)
    labels = np.concatenate([source.labels for source in sources])
    crowd = np.concatenate([source.crowd for source in sources])
    moved = move_boxes(boxes, matrix)
    cropped = np.clip(moved, 0, (net_hw[1], net_hw[0], net_hw[1], net_hw[0]))
    keep = still_objects(moved, cropped)
    shapes = [source.shapes for source in sources if source.shapes is not None]
    if not shapes:
        return Sample(cropped[keep], labels[keep], crowd[keep])
    in_picture = ObjectShapes.joined(shapes).clipped(limit[:, :2]).moved(matrix).within(np.array(net_hw[::-1]))
    return Sample(cropped[keep], labels[keep], crowd[keep], in_picture.select(keep))


def move_boxes(boxes_xyxy: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Return the smallest upright boxes [K 4] around the moved corners; ``matrix`` is [K 3 3] or [3 3]."""
    corners = boxes_xyxy[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2)  # K corner xy
    moved = corners @ np.swapaxes(matrix[..., :2, :2], -1, -2) + matrix[..., None, :2, 2]  # K 4 2
    return np.concatenate((moved.min(axis=1), moved.max(axis=1)), axis=1)


def still_objects(before_xyxy: np.ndarray, after_xyxy: np.ndarray) -> np.ndarray:
    """Return [K] bool: what the crop has left of each box is still an object (MIN_SIDE, MIN_AREA_LEFT, MAX_ASPECT).

    Args:
        before_xyxy: [K 4] moved boxes, network pixels.
        after_xyxy: [K 4] the same boxes clipped to the network input.
    """
    before = before_xyxy[:, 2:] - before_xyxy[:, :2]
    after = after_xyxy[:, 2:] - after_xyxy[:, :2]
    aspect = after.max(axis=1) / np.maximum(after.min(axis=1), 1e-9)
    share = after.prod(axis=1) / np.maximum(before.prod(axis=1), 1e-9)
    return (after > MIN_SIDE).all(axis=1) & (share > MIN_AREA_LEFT) & (aspect < MAX_ASPECT)


def random_colours(options: AugmentOptions, rng: np.random.Generator) -> np.ndarray | None:
    """Return a table [256 3] uint8 with the new hue, saturation and value of each old one; None: nothing changes.

    OpenCV counts a uint8 hue in 180 steps around the circle.
    """
    gains = np.array((options.hsv_h, options.hsv_s, options.hsv_v))
    factors = rng.uniform(-1, 1, 3) * gains + 1
    turn = 0.0
    as_darknet = (options.saturation, options.exposure, options.hue) != (1, 1, 0)
    if as_darknet:
        turn = rng.uniform(-options.hue, options.hue) * 180
        factors[1:] *= [_up_or_down(largest, rng) for largest in (options.saturation, options.exposure)]
    if not gains.any() and not as_darknet:
        return None
    levels = np.arange(256, dtype=np.float64)
    table = np.stack(((levels * factors[0] + turn) % 180, *np.clip(levels * factors[1:, None], 0, 255)), axis=-1)
    return table.astype(np.uint8)


def _up_or_down(largest: float, rng: np.random.Generator) -> float:
    """Draw a factor between 1 and ``largest``, or one over it, as Darknet's ``rand_scale`` (src/utils.c)."""
    factor = rng.uniform(min(1.0, largest), max(1.0, largest))
    return factor if rng.random() < 0.5 else 1 / max(factor, 1e-6)
