"""Image files: listing them, their size from the header, their pixels; EXIF orientation is handled nowhere else.

OpenCV is always told to ignore the EXIF orientation, because its versions differ in what they do; ``read_image`` turns
the picture itself.
"""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from utils.errors import UserError

IMAGE_SUFFIXES = frozenset((".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"))
EXIF_ORIENTATION = 0x0112
REDUCED = {  # how many times smaller -> OpenCV's flag
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}
# EXIF orientation -> how to turn a stored picture upright: whether to transpose it first, and then the flip code of
# cv2.flip (None: no flip).
UPRIGHT = {
    1: (False, None),
    2: (False, 1),
    3: (False, -1),
    4: (False, 0),
    5: (True, None),
    6: (True, 1),
    7: (True, -1),
    8: (True, 0),
}


def list_images(folder: Path) -> list[str]:
    """Return the image files below a folder, sorted by path; hidden files and folders are passed over."""
    found = []
    for root, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [
            os.path.join(root, name)
            for name in files
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
        ]
    return sorted(found)


def image_header(path: str) -> tuple[int, int, int]:
    """Return (width, height, EXIF orientation) without decoding; width and height are those of the upright picture.

    Raises:
        UserError: the file is missing or not an image.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            orientation = image.getexif().get(EXIF_ORIENTATION, 1) if "exif" in image.info else 1
    except OSError as error:  # Pillow's UnidentifiedImageError is one
        reason = error.strerror if error.errno else "not an image that can be read; replace or remove it"
        raise UserError(f"{path}: {reason}") from error
    except (Image.DecompressionBombError, ValueError, SyntaxError, TypeError) as error:
        raise UserError(f"{path}: not an image that can be read ({error}); replace or remove it") from error
    if orientation not in UPRIGHT:
        orientation = 1
    return (height, width, orientation) if UPRIGHT[orientation][0] else (width, height, orientation)


def read_image(path: str, expected_wh: tuple[int, int], orientation: int | None, reduce: int = 1) -> np.ndarray:
    """Decode an image as uint8 BGR [H W 3].

    Args:
        path: the file.
        expected_wh: the size that the annotations speak of, in pixels.
        orientation: the EXIF orientation to undo; None: the one with which the size is the expected one.
        reduce: 1, 2, 4 or 8: divide the sides by this (a JPEG is decoded so, at less cost; others are shrunk after it).

    Raises:
        UserError: the file cannot be read, is cut off, or has another size than the annotations say.
    """
    image = decode_image(path, reduce)
    width, height = expected_wh
    reduced_wh = (-(-width // reduce), -(-height // reduce))  # rounded up, as by the JPEG decoder
    if orientation is None:
        # The annotation's size says whether it speaks of the picture as it is stored or as it is shown.
        as_stored = (image.shape[1], image.shape[0]) == reduced_wh
        orientation = 1 if as_stored else image_header(path)[2]
    image = upright(image, orientation)
    if (image.shape[1], image.shape[0]) != reduced_wh:
        # A reduced picture may be a pixel off by rounding: the full size decides whether the annotation is wrong.
        full = upright(decode_image(path, 1), orientation) if reduce > 1 else image
        if (full.shape[1], full.shape[0]) != (width, height):
            found = f"{full.shape[1]}x{full.shape[0]}"
            raise UserError(
                f"{path}: the image is {found}, but its annotation says {width}x{height}; correct the one or the other"
            )
    return image


def decode_image(path: str, reduce: int = 1) -> np.ndarray:
    """Decode an image file as uint8 BGR [H W 3], as it is stored (EXIF orientation ignored).

    Raises:
        UserError: the file cannot be opened, is empty, cut off, or not an image.
    """
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    is_jpeg = data[:2] == b"\xff\xd8"
    if is_jpeg and data.rfind(b"\xff\xd9") < 0:
        raise UserError(f"{path}: the JPEG file is cut off; replace or remove it")
    image = None
    if data:
        flags = REDUCED[reduce if is_jpeg else 1] | cv2.IMREAD_IGNORE_ORIENTATION
        try:
            image = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), flags)
        except cv2.error as error:
            raise UserError(f"{path}: not an image that can be read ({error.err}); replace or remove it") from error
    if image is None:
        raise UserError(f"{path}: not an image that can be read; replace or remove it")
    if reduce > 1 and not is_jpeg:
        size = (-(-image.shape[1] // reduce), -(-image.shape[0] // reduce))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return image


def upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """Turn a stored picture [H W 3] upright by its EXIF orientation (1..8)."""
    transpose, flip = UPRIGHT[orientation]
    if transpose:
        image = cv2.transpose(image)
    return image if flip is None else cv2.flip(image, flip)
