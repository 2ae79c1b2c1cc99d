"""Boxes with labels on images, masks and key points where there are any, and sheets of whole batches.

Images here are uint8 [H W 3] in OpenCV's order, BGR; batches are RGB, as the loader gives them.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from utils.boxes import cxcywh_to_xyxy
from utils.files import atomic_path, printable
from utils.masks import BoxMasks
from utils.structures import Batch, Detections, ImageMeta, Targets

Color = tuple[int, int, int]  # B G R

GOLDEN_RATIO = 0.618034  # multiples of it, modulo 1, are spread evenly however many are taken
SHEET_IMAGES = 16  # at most, on one sheet
SHEET_PIXELS = 1920  # longest side of a sheet
SHEET_CONFIDENCE = 0.25  # weaker predictions would cover a sheet
CROWD_COLOR: Color = (160, 160, 160)
BORDER: Color = (255, 255, 255)
MASK_SHARE = 0.4  # of an object's colour over its pixels
SHOWN_POINT = 0.0  # a key point with a higher score is drawn
# Between COCO's 17 key points, numbered from 0: legs, trunk, arms, face.
SKELETON = (
    (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8), (7, 9), (8, 10),
    (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
)  # fmt: skip
SKELETON_POINTS = 17


@dataclass(frozen=True)
class DrawStyle:
    """How detections are drawn."""

    line_width: int = 0  # pixels; 0 for what suits the image
    labels: bool = True  # with text: class and score, and the number of the track where there is one
    scores: bool = True  # with the score in the text

    def text(self, name: str, score: float, track_id: int = 0) -> str:
        """Return what is written above a box; a track of number 0 is none."""
        words = [f"#{track_id}"] * (track_id > 0) + [name] + [f"{score:.2f}"] * self.scores
        return " ".join(words) if self.labels else ""


@lru_cache(maxsize=4096)
def class_color(label: int) -> Color:
    """Return the colour of a class: neighbouring numbers differ in hue, and every other one is darker."""
    hue = (label * GOLDEN_RATIO) % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.9 if label % 3 else 0.65, 1.0 if label % 2 == 0 else 0.75)
    return round(blue * 255), round(green * 255), round(red * 255)


def class_name(label: int, names: Sequence[str]) -> str:
    """Return the name of a class, its number where there is no name."""
    return names[label] if 0 <= label < len(names) else str(label)


def line_width(height: int, width: int) -> int:
    """Return the thickness that reads well in an image of this size, in pixels."""
    return max(1, round((height + width) / 2 * 0.003))


def draw_detections(
    image: np.ndarray, detections: Detections, names: Sequence[str], style: DrawStyle | None = None
) -> None:
    """Draw boxes, class names and scores into an image, in place; the strongest comes last, on top."""
    style = style or DrawStyle()
    boxes = detections.boxes_xyxy.tolist()
    scores = detections.scores.tolist()
    labels = detections.labels.tolist()
    tracks = [0] * len(labels) if detections.track_ids is None else detections.track_ids.tolist()
    draw_shapes(image, detections, style)
    for box, score, label, track in reversed(list(zip(boxes, scores, labels, tracks, strict=True))):
        text = style.text(class_name(label, names), score, track)
        draw_box(image, box, text, class_color(label), style.line_width)


def draw_shapes(image: np.ndarray, detections: Detections, style: DrawStyle) -> None:
    """Draw masks and key points into an image, in place, where the detections have any; the strongest comes last."""
    for index, label in reversed(list(enumerate(detections.labels.tolist()))):
        if detections.masks is not None:
            draw_mask(image, detections.masks.of_object(index), class_color(label))
        if detections.key_points is not None:
            points = detections.key_points[index].float().cpu().numpy()
            draw_key_points(image, points[:, :2], points[:, 2] > SHOWN_POINT, class_color(label), style.line_width)


def draw_mask(image: np.ndarray, mask: np.ndarray, color: Color) -> None:
    """Tint the pixels of a mask [H W] bool in an image, in place."""
    image[mask] = (image[mask] * (1 - MASK_SHARE) + np.array(color) * MASK_SHARE).round().astype(np.uint8)


def draw_key_points(
    image: np.ndarray, points_xy: np.ndarray, shown: np.ndarray, color: Color, thickness: int = 0
) -> None:
    """Draw the key points [K 2] of an object that are shown [K] into an image, in place; of 17, with their skeleton."""
    thickness = thickness or line_width(*image.shape[:2])
    places = np.clip(points_xy, -1e4, 1e4).round().astype(int).tolist()  # OpenCV's integers overflow far outside
    for first, second in SKELETON if len(places) == SKELETON_POINTS else ():
        if shown[first] and shown[second]:
            cv2.line(image, places[first], places[second], color, thickness, cv2.LINE_AA)
    for place, is_shown in zip(places, shown, strict=True):
        if is_shown:
            cv2.circle(image, place, thickness + 1, BORDER, -1, cv2.LINE_AA)
            cv2.circle(image, place, thickness + 1, color, max(1, thickness // 2), cv2.LINE_AA)


def draw_box(image: np.ndarray, box_xyxy: Sequence[float], text: str, color: Color, thickness: int = 0) -> None:
    """Draw one box and its text into an image, in place; a thickness of 0 is one that suits the image.

    The text stands on a plate of the box's colour above the box, or inside it where there is no room above.
    """
    height, width = image.shape[:2]
    thickness = thickness or line_width(height, width)
    # Corners far outside of the image overflow OpenCV's integers; moved to just outside, the edge stays out of sight.
    left, top, right, bottom = (
        round(min(max(value, -thickness), max(height, width) + thickness)) for value in box_xyxy
    )
    cv2.rectangle(image, (left, top), (right, bottom), color, thickness)
    if text:
        plate = _text_plate(text, max(10, round((height + width) * 0.011)), color)
        above = top - plate.shape[0] >= 0
        _paste(image, plate, max(0, min(left, width - plate.shape[1])), max(0, top - plate.shape[0] if above else top))


def write_image(path: str | Path, image: np.ndarray) -> None:
    """Write an image whole or not at all, in the format of the suffix.

    Raises:
        OSError: the folder cannot be written, or OpenCV does not know the format.
    """
    try:  # in memory: OpenCV's own writer ends the process where a path is not UTF-8
        is_encoded, content = cv2.imencode(Path(path).suffix, image)
    except cv2.error as error:
        raise OSError(f"{printable(str(path))}: OpenCV cannot write this image: {error.err}") from error
    if not is_encoded:
        raise OSError(f"{printable(str(path))}: OpenCV cannot write this image here")
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.tobytes())


def draw_batch(path: str | Path, batch: Batch, names: Sequence[str]) -> None:
    """Write a sheet of a batch as the network sees it, with its objects; crowd regions are grey."""
    images = [image.copy() for image in _bgr_images(batch)]
    _draw_targets(images, batch.targets, names)
    _draw_targets(images, batch.crowd, names, CROWD_COLOR)
    write_sheet(path, images, [meta.path for meta in batch.metas])


def draw_predictions(path: str | Path, batch: Batch, found: Sequence[Detections], names: Sequence[str]) -> None:
    """Write a sheet of a batch in which every image appears twice: left its objects, right what was found."""
    truths, predictions = ([image.copy() for image in _bgr_images(batch)] for _ in range(2))
    _draw_targets(truths, batch.targets, names)
    _draw_targets(truths, batch.crowd, names, CROWD_COLOR)
    for image, detections, meta in zip(predictions, found, batch.metas, strict=False):
        confident = detections.select(detections.scores >= SHEET_CONFIDENCE).cpu()
        draw_detections(image, _in_network_pixels(confident, meta, (image.shape[1], image.shape[0])), names)
    pairs = [np.concatenate(pair, axis=1) for pair in zip(truths, predictions, strict=True)]
    write_sheet(path, pairs, [meta.path for meta in batch.metas])


def _in_network_pixels(found: Detections, meta: ImageMeta, net_wh: tuple[int, int]) -> Detections:
    """Return what was found in an image as it lies in the network input."""
    masks, key_points = found.masks, found.key_points
    if masks is not None:
        masks = BoxMasks(masks.grids, meta.to_network(masks.boxes_xyxy), net_wh)
    if key_points is not None:
        key_points = meta.points_to_network(key_points)
    boxes_xyxy_net = meta.to_network(found.boxes_xyxy)
    return Detections(boxes_xyxy_net, found.scores, found.labels, masks=masks, key_points=key_points)


def _bgr_images(batch: Batch) -> list[np.ndarray]:
    images = batch.images[:SHEET_IMAGES].round().byte().permute(0, 2, 3, 1).flip(-1).cpu()  # B H W 3
    return list(np.ascontiguousarray(images.numpy()))


def _draw_targets(images: list[np.ndarray], targets: Targets, names: Sequence[str], color: Color | None = None) -> None:
    corners = cxcywh_to_xyxy(targets.boxes_cxcywh.cpu())
    for row, (number, label) in enumerate(zip(targets.image.tolist(), targets.label.tolist(), strict=True)):
        if number < len(images) and targets.masks is not None:
            draw_mask(images[number], targets.masks[row].cpu().numpy() > 0, color or class_color(label))
        if number < len(images) and targets.key_points is not None:
            points = targets.key_points[row].cpu().numpy()
            draw_key_points(images[number], points[:, :2], points[:, 2] > 0, color or class_color(label))
    for number, label, corner in zip(targets.image.tolist(), targets.label.tolist(), corners.tolist(), strict=True):
        if number < len(images):
            height, width = images[number].shape[:2]
            box = [value * size for value, size in zip(corner, (width, height, width, height), strict=True)]
            draw_box(images[number], box, class_name(label, names), color or class_color(label))


def write_sheet(path: str | Path, images: list[np.ndarray], paths: Sequence[str]) -> None:
    """Lay images of one size out in a nearly square grid, name each, and write the sheet."""
    height, width = images[0].shape[:2]
    columns = max(1, min(len(images), round(math.sqrt(len(images) * height / width))))
    rows = -(-len(images) // columns)
    scale = min(1.0, SHEET_PIXELS / max(rows * height, columns * width))
    cell_h, cell_w = max(1, int(height * scale)), max(1, int(width * scale))
    sheet = np.full((rows * cell_h, columns * cell_w, 3), 255, dtype=np.uint8)
    for number, (image, name) in enumerate(zip(images, paths, strict=False)):
        top, left = number // columns * cell_h, number % columns * cell_w
        cell = sheet[top : top + cell_h, left : left + cell_w]
        cell[:] = cv2.resize(image, (cell_w, cell_h), interpolation=cv2.INTER_AREA)
        _paste(cell, _text_plate(printable(Path(name).name), 12, (60, 60, 60)), 0, cell_h - 18)
        cv2.rectangle(cell, (0, 0), (cell_w - 1, cell_h - 1), BORDER, 1)
    write_image(path, sheet)


def _paste(image: np.ndarray, patch: np.ndarray, left: int, top: int) -> None:
    """Copy a patch into an image, cut off at the image's edges."""
    left, top = max(0, left), max(0, top)
    target = image[top : top + patch.shape[0], left : left + patch.shape[1]]
    target[:] = patch[: target.shape[0], : target.shape[1]]


@lru_cache(maxsize=4096)
def _text_plate(text: str, size: int, color: Color) -> np.ndarray:
    """Return a small image [h w 3] of a text on a plate of the colour; ``size`` is the height of a line in pixels."""
    ink = (0, 0, 0) if 0.114 * color[0] + 0.587 * color[1] + 0.299 * color[2] > 130 else (255, 255, 255)
    return _plate_ascii(text, size, color, ink) if text.isascii() else _plate_unicode(text, size, color, ink)


def _plate_ascii(text: str, size: int, color: Color, ink: Color) -> np.ndarray:
    scale, thickness = size / 30, max(1, size // 14)
    (width, height), below = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, thickness)
    plate = np.full((height + below + 2, width + 4, 3), color, dtype=np.uint8)
    cv2.putText(plate, text, (2, height + 1), cv2.FONT_HERSHEY_SIMPLEX, scale, ink, thickness, cv2.LINE_AA)
    return plate


def _plate_unicode(text: str, size: int, color: Color, ink: Color) -> np.ndarray:
    """Return a plate for text that OpenCV's font, which is ASCII only, cannot write.

    Pillow comes with matplotlib, and so does a font of many alphabets.
    """
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.truetype(
        str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), max(8, round(size * 0.8))
    )
    left, top, right, bottom = font.getbbox(text)
    picture = Image.new("RGB", (max(1, round(right - left)) + 4, max(1, round(bottom - top)) + 4), color)
    ImageDraw.Draw(picture).text((2 - left, 2 - top), text, fill=ink, font=font)
    return np.array(picture)  # the colours went in as BGR, so they come out as BGR
