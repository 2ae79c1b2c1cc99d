"""The built-in demo set: textured shapes on textured backgrounds, drawn on first use under ``datasets/shapes``.

Five classes in all sizes (from about 10 pixels) and elongations (5:1 and more), overlapping one another, some in dense
clusters. Labels are YOLO text; a box is tight around what is visible of a shape, and a shape of which less than
:data:`MIN_VISIBLE` is visible is not drawn at all. A COCO JSON has the outlines of what is visible, too. The same code
draws the same set everywhere.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by its path, from any folder: the packages are in the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from utils.errors import UserError, run_command  # first: for Ctrl-C during the imports below

# isort: split
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from data.labels.polygons import polygons_of_mask
from utils.config import REPOSITORY, parse_options
from utils.files import remove_unfinished, temporary_path, write_text_atomically

CLASSES = ("circle", "rectangle", "triangle", "star", "ring")
HUES = (5, 105, 55, 28, 145)  # of OpenCV's 180: each class prefers a colour, which helps with those of ten pixels
NUM_IMAGES = {"train": 400, "val": 100}
MIN_VISIBLE = 0.2  # share of its own pixels
MIN_PIXELS = 6  # sides of a visible box
FREELY_PLACED = 0.3  # share of shapes that may lie on others; the rest look for a free place first
BUNCHES, TARGETS = 0.04, 0.02  # shares of images with many small shapes in one place, with concentric shapes
Row = tuple[int, float, float, float, float]  # class, cx, cy, w, h of an object, relative to the image
FOLDER = REPOSITORY / "datasets" / "shapes"
MARKER = "drawn-by-data-shapes.json"

README = """# The built-in demo set

Drawn by `data/shapes.py` (run `python data/shapes.py` to draw it anew); nothing here needs to be kept, and the folder
is replaced when that program changes. {images} images, {objects} objects of {classes} classes ({names}).
`images/train`, `images/val`: JPEG; `labels/train`, `labels/val`: YOLO text, `class cx cy w h` relative to the image.
`annotations/train.json`, `annotations/val.json`: the same boxes with their masks, as COCO has them.
"""


def ensure_drawn(folder: Path = FOLDER) -> Path:
    """Return the folder of the demo set, drawing it first if it is missing, unfinished or of another version.

    Raises:
        UserError: the folder exists and was not drawn by this program.
    """
    if _is_current(folder):
        return folder
    if folder.exists() and not (folder / MARKER).is_file():
        raise UserError(f"{folder}: exists, but was not drawn by data/shapes.py; move it away")
    print(f"drawing the demo set: {sum(NUM_IMAGES.values())} images in {folder}", flush=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_unfinished(folder.parent.glob(f".{folder.name}.*"))
    fresh = temporary_path(folder)
    try:
        draw_all(fresh)
        _swap_in(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return folder


def draw_all(folder: Path) -> None:
    """Draw both splits into an empty or new folder; the marker is written last."""
    num_objects = 0
    for number, (split, num_images) in enumerate(NUM_IMAGES.items()):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        masks = CocoMasks()
        for index in range(num_images):
            image, rows = draw_scene(np.random.default_rng((2026, number, index)))
            name = f"{split}_{index:04d}"
            jpeg = cv2.imencode(".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, 92))[1]
            (folder / "images" / split / f"{name}.jpg").write_bytes(jpeg.tobytes())
            lines = (f"{label} " + " ".join(f"{value:.6f}" for value in box) for label, *box in rows)
            (folder / "labels" / split / f"{name}.txt").write_text("".join(line + "\n" for line in lines))
            num_objects += len(rows)
            masks.add(f"{name}.jpg", image.shape[:2], rows)
        write_text_atomically(folder / "annotations" / f"{split}.json", json.dumps(masks.content))
    text = README.format(
        images=sum(NUM_IMAGES.values()), objects=num_objects, classes=len(CLASSES), names=", ".join(CLASSES)
    )
    write_text_atomically(folder / "README.md", text)
    write_text_atomically(folder / MARKER, json.dumps({"version": _version(), "objects": num_objects}) + "\n")


class CocoMasks:
    """The masks of a split as a COCO JSON."""

    def __init__(self) -> None:
        categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES, start=1)]
        self.content: dict[str, list] = {"images": [], "annotations": [], "categories": categories}

    def add(self, file_name: str, image_hw: Sequence[int], objects: dict[Row, np.ndarray]) -> None:
        """Add an image with its objects: a row and the mask [H W] of each."""
        height, width = image_hw
        image_id = len(self.content["images"]) + 1
        self.content["images"].append({"id": image_id, "file_name": file_name, "width": width, "height": height})
        for (label, *_), mask in objects.items():
            extent = _extent(mask)
            assert extent is not None
            x1, y1, x2, y2 = extent
            self.content["annotations"].append(
                {
                    "id": len(self.content["annotations"]) + 1,
                    "image_id": image_id,
                    "category_id": label + 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": int(mask.sum()),
                    "iscrowd": 0,
                    "segmentation": [polygon.ravel().tolist() for polygon in polygons_of_mask(mask)],
                }
            )


def _version() -> str:
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]


def _is_current(folder: Path) -> bool:
    try:
        marker = json.loads((folder / MARKER).read_text())
        complete_json = all((folder / "annotations" / f"{split}.json").is_file() for split in NUM_IMAGES)
        complete = all(
            len(os.listdir(folder / kind / split)) >= count
            for split, count in NUM_IMAGES.items()
            for kind in ("images", "labels")
        )
    except (OSError, ValueError):
        return False
    return complete and complete_json and isinstance(marker, dict) and marker.get("version") == _version()


def _swap_in(fresh: Path, folder: Path) -> None:
    """Put the new folder in the place of the old one; two processes may do this at once."""
    old = temporary_path(folder.with_suffix(".old"))
    try:
        if folder.exists() and not _is_current(folder):
            folder.rename(old)
            shutil.rmtree(old, ignore_errors=True)
        fresh.rename(folder)
    except OSError:
        if not _is_current(folder):  # otherwise another process was faster and drew the same
            raise


# ---- one image ---------------------------------------------------------------------------------------------------


@dataclass
class Shape:
    """One shape in place; ``mask`` is its coverage, 0..255, of the whole image [H W]."""

    label: int
    mask: np.ndarray
    box: tuple[int, int, int, int]  # x1 y1 x2 y2 of the mask


def draw_image(rng: np.random.Generator) -> tuple[np.ndarray, list[Row]]:
    """Draw one image.

    Returns:
        uint8 BGR [H W 3] and the rows ``(class, cx, cy, w, h)`` relative to the image.
    """
    image, objects = draw_scene(rng)
    return image, list(objects)


def draw_scene(rng: np.random.Generator) -> tuple[np.ndarray, dict[Row, np.ndarray]]:
    """Draw one image; return as :func:`draw_image`, with what is visible of each object, [H W] bool."""
    width, height = (int(side) for side in rng.integers(240, 361, 2))
    shapes = [shape for shape in _choose_shapes(rng, width, height) if shape is not None]
    shapes = _visible_shapes(shapes)
    image = _background(rng, width, height)
    for shape in shapes:
        _fill(image, shape, rng)
    image = cv2.add(image, rng.integers(0, 10, image.shape, dtype=np.uint8))
    objects: dict[Row, np.ndarray] = {}
    for shape, visible in zip(shapes, _visible_masks(shapes), strict=True):
        extent = _extent(visible)
        assert extent is not None  # what does not show is no longer among the shapes
        x1, y1, x2, y2 = extent
        row = shape.label, (x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height
        objects.setdefault(row, visible)  # two of one class that show the same box could not be told apart
    return image, objects


def _choose_shapes(rng: np.random.Generator, width: int, height: int) -> list[Shape | None]:
    """Choose classes, sizes and places, farthest first: large shapes lie behind small ones more often than not."""
    sizes = np.exp(rng.uniform(np.log(13), np.log(160), rng.integers(2, 9)))  # log-uniform, long side in pixels
    shapes: list[Shape | None] = []
    for size in np.sort(sizes)[::-1]:
        label = int(rng.integers(len(CLASSES)))
        tries = 1 if rng.random() < FREELY_PLACED else 6
        for _ in range(tries):
            center = rng.uniform((0, 0), (width, height))
            shape = _place(rng, label, size, center, (width, height))
            if shape is not None and not any(_touch(shape, other) for other in shapes):
                break
        shapes.append(shape)
    chance = rng.random()
    label = int(rng.integers(len(CLASSES)))
    center = rng.uniform((30, 30), (width - 30, height - 30))
    if chance < BUNCHES:  # small ones of one class, close together
        for _ in range(rng.integers(5, 9)):
            shapes.append(_place(rng, label, rng.uniform(13, 20), center + rng.normal(0, 10, 2), (width, height)))
    elif chance < BUNCHES + TARGETS:  # one inside the other, around one centre
        for size in rng.uniform(100, 150) * 0.62 ** np.arange(5):
            shapes.append(_place(rng, label, size, center + rng.normal(0, 1, 2), (width, height)))
    return shapes


def _touch(first: Shape, second: Shape | None) -> bool:
    """Whether the boxes of two shapes overlap."""
    if second is None:
        return False
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = first.box, second.box
    return min(ax2, bx2) > max(ax1, bx1) and min(ay2, by2) > max(ay1, by1)


def _place(
    rng: np.random.Generator, label: int, long_side: float, center_xy: np.ndarray, wh: tuple[int, int]
) -> Shape | None:
    """Rasterise one shape; None where next to nothing of it lies in the image."""
    elongated = CLASSES[label] in ("circle", "rectangle", "triangle") and long_side > 24 and rng.random() < 0.3
    aspect = rng.uniform(3.0, 6.5) if elongated else rng.uniform(1.0, 1.5)
    angle = rng.uniform(0, 2 * np.pi)
    if elongated and rng.random() < 0.7:
        angle = rng.integers(4) * np.pi / 2 + rng.normal(0, 0.06)
    half = np.array((long_side / 2, max(long_side / aspect, 7) / 2))
    turn = np.array(((np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle))))
    contours = [(contour * half) @ turn.T + center_xy for contour in OUTLINES[CLASSES[label]]()]
    mask = np.zeros((wh[1], wh[0]), dtype=np.uint8)
    cv2.fillPoly(mask, [np.round(contour * 16).astype(np.int32) for contour in contours], 255, cv2.LINE_AA, shift=4)
    extent = _extent(mask > 127)
    if extent is None or min(extent[2] - extent[0], extent[3] - extent[1]) < MIN_PIXELS:
        return None
    return Shape(label, mask, extent)


def _circle() -> list[np.ndarray]:
    turns = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    return [np.stack((np.cos(turns), np.sin(turns)), axis=1)]


def _rectangle() -> list[np.ndarray]:
    return [np.array(((-1, -1), (1, -1), (1, 1), (-1, 1)), dtype=float)]


def _triangle() -> list[np.ndarray]:
    return [np.array(((-1, 1), (1, 1), (0, -1)), dtype=float)]


def _star() -> list[np.ndarray]:
    turns = np.arange(10) * np.pi / 5 - np.pi / 2
    radius = np.where(np.arange(10) % 2, 0.42, 1.0)
    return [np.stack((np.cos(turns), np.sin(turns)), axis=1) * radius[:, None]]


def _ring() -> list[np.ndarray]:
    return [_circle()[0], _circle()[0] * 0.5]


OUTLINES = {"circle": _circle, "rectangle": _rectangle, "triangle": _triangle, "star": _star, "ring": _ring}


def _extent(visible: np.ndarray) -> tuple[int, int, int, int] | None:
    """Return x1 y1 x2 y2 of the true pixels of a [H W] mask, or None."""
    columns, rows = np.flatnonzero(visible.any(axis=0)), np.flatnonzero(visible.any(axis=1))
    if not len(columns):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _visible_masks(shapes: list[Shape]) -> list[np.ndarray]:
    """Return what later shapes leave of each, [H W] bool."""
    masks, covered = [], None
    for shape in reversed(shapes):
        solid = shape.mask > 127
        masks.append(solid if covered is None else solid & ~covered)
        covered = solid if covered is None else covered | solid
    return masks[::-1]


def _visible_shapes(shapes: list[Shape]) -> list[Shape]:
    """Take away the shapes that hardly show, the rearmost first, until all that remain do."""
    while True:
        hidden = None
        for index, (shape, visible) in enumerate(zip(shapes, _visible_masks(shapes), strict=True)):
            extent = _extent(visible)
            small = extent is None or min(extent[2] - extent[0], extent[3] - extent[1]) < MIN_PIXELS
            if small or visible.sum() < MIN_VISIBLE * (shape.mask > 127).sum():
                hidden = index
                break
        if hidden is None:
            return shapes
        shapes = shapes[:hidden] + shapes[hidden + 1 :]


def _fill(image: np.ndarray, shape: Shape, rng: np.random.Generator) -> None:
    """Colour a shape with the texture and the darker edge that chance gives it."""
    x1, y1, x2, y2 = (
        max(shape.box[0] - 1, 0),
        max(shape.box[1] - 1, 0),
        min(shape.box[2] + 1, image.shape[1]),
        min(shape.box[3] + 1, image.shape[0]),
    )
    region, alpha = image[y1:y2, x1:x2], shape.mask[y1:y2, x1:x2]
    hue = (HUES[shape.label] + rng.normal(0, 5)) % 180
    light = _colour(hue, rng.uniform(130, 255), rng.uniform(170, 255))
    dark = light * rng.uniform(0.45, 0.8)
    pattern = _pattern(rng, region.shape[1], region.shape[0])[:, :, None]  # h w 1, 0..1
    colour = light * pattern + dark * (1 - pattern)
    if min(region.shape[:2]) > 14 and rng.random() < 0.6:
        inside = cv2.erode(alpha, np.ones((3, 3), np.uint8))[:, :, None] / 255
        colour = colour * inside + dark * 0.5 * (1 - inside)
    weight = alpha[:, :, None] / 255
    region[:] = np.clip(colour * weight + region * (1 - weight), 0, 255)


def _colour(hue: float, saturation: float, value: float) -> np.ndarray:
    """Return BGR floats of an HSV colour in OpenCV's ranges."""
    hsv = np.array([[[hue, saturation, value]]], dtype=np.float64).astype(np.uint8)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)[0, 0].astype(np.float64)


def _pattern(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Return a texture [h w] of 0..1: noise, stripes, checks or dots."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    period = rng.uniform(4, 14)
    angle = rng.uniform(0, np.pi)
    along, across = x * np.cos(angle) + y * np.sin(angle), -x * np.sin(angle) + y * np.cos(angle)
    wave, cross = np.sin(along * (2 * np.pi / period)), np.sin(across * (2 * np.pi / period))
    kind = rng.integers(4)
    if kind == 0:
        return cv2.GaussianBlur(rng.random((height, width), dtype=np.float32), (0, 0), 1.0)
    if kind == 1:
        return (wave > 0).astype(np.float32)
    if kind == 2:
        return (wave * cross > 0).astype(np.float32)
    return (wave + cross > 0.8).astype(np.float32)


def _background(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Return a dull background [h w 3] uint8: a slope of light, clouds at several scales and a faint pattern."""
    base = _colour(rng.uniform(0, 180), rng.uniform(0, 60), rng.uniform(50, 190))
    slope = np.linspace(rng.uniform(-25, 25), rng.uniform(-25, 25), width, dtype=np.float32)[None, :, None]
    image = base[None, None, :] + slope + np.zeros((height, 1, 1), dtype=np.float32)
    for cells, strength in ((4, 60), (16, 40), (64, 30)):
        noise = rng.random((cells, cells, 1), dtype=np.float32) - 0.5
        image += strength * cv2.resize(noise, (width, height), interpolation=cv2.INTER_LINEAR)[:, :, None]
    image += rng.uniform(0, 35) * (_pattern(rng, width, height)[:, :, None] - 0.5)
    return np.clip(image, 0, 255).astype(np.uint8)


def main() -> None:
    """Draw the set anew."""
    parse_options(f"Draw the built-in demo set anew: {sum(NUM_IMAGES.values())} images in {FOLDER}.")
    if (FOLDER / MARKER).is_file():
        shutil.rmtree(FOLDER)
    print(ensure_drawn())


if __name__ == "__main__":
    run_command(main)
