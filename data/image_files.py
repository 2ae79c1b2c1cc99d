"""Image files: listing them, their size from the header, their pixels; EXIF orientation is handled nowhere else.

OpenCV is always told to ignore the EXIF orientation, because its versions differ in what they do; ``read_image`` turns
the picture itself. What OpenCV cannot decode is left to Pillow.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from data.jpeg import END, end_of_jpeg, ends_early, is_jpeg, jpeg_frame
from utils.errors import UserError
from utils.files import printable

IMAGE_SUFFIXES = frozenset((
    ".avif", ".bmp", ".dib", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".mpo", ".pbm", ".pgm",
    ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp",
))  # fmt: skip
VIDEO_SUFFIXES = frozenset((
    ".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".ts",
    ".webm", ".wmv",
))  # fmt: skip
# What else lies among images: labels, lists, notes, caches and archives.
OTHER_SUFFIXES = frozenset((
    ".7z", ".cache", ".cfg", ".csv", ".data", ".db", ".gz", ".html", ".ini", ".json", ".jsonl", ".log", ".md",
    ".names", ".npy", ".npz", ".pdf", ".pt", ".py", ".rar", ".rst", ".sh", ".tar", ".tsv", ".txt", ".weights",
    ".xml", ".yaml", ".yml", ".zip",
))  # fmt: skip
# Pillow knows more kinds of files, some of which it hands to other programs.
WANTED_FORMATS = ("JPEG", "PNG", "BMP", "DIB", "GIF", "PPM", "TIFF", "WEBP", "JPEG2000", "AVIF", "MPO")
# Decoding may take this much memory, which an ordinary picture of 200 million pixels does: no sensor has more.
MAX_DECODING_BYTES = 1_200_000_000
# Bytes per pixel while OpenCV 4.14 decodes, measured: the picture and a copy, wider values, or whole passes besides.
DECODING_BYTES = {"WEBP": 8, "AVIF": 18, "JPEG2000": 20}
DECODING_BYTES_OTHERS, DECODING_BYTES_DEEP = 6, 12  # the second: of 16-bit and of progressive pictures
DEPTHS = (8, 10, 12, 14, 16)  # bits per value that sensors have
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

Image.init()
FORMATS = tuple(name for name in WANTED_FORMATS if name in Image.OPEN)  # old versions lack AVIF
Image.MAX_IMAGE_PIXELS = None  # the limit here is one of memory
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")  # of damaged EXIF data, which do no harm


class ImageHeader(NamedTuple):
    """What the header of an image file says."""

    width: int  # of the upright picture, pixels
    height: int
    orientation: int = 1  # of EXIF, 1..8
    is_deep: bool = False  # more than 8 bits per value


class Listing(NamedTuple):
    """The files below a folder."""

    images: list[str]  # sorted paths
    unknown: Counter[str]  # suffix -> how many files of it are neither images that are read nor known to be none


def list_files(folder: Path) -> Listing:
    """List the files below a folder; hidden ones are passed over.

    A folder is visited once: by its own path, else by the first link to it. So links may point upwards.
    """
    images: list[str] = []
    unknown: Counter[str] = Counter()
    visited = set()
    waiting = [str(folder)]  # links are followed when all folders that lie here themselves have been seen
    while waiting:
        for root, folders, files in os.walk(waiting.pop(0)):
            status = os.stat(root)
            if (status.st_dev, status.st_ino) in visited:
                folders.clear()
                continue
            visited.add((status.st_dev, status.st_ino))
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            paths = [os.path.join(root, name) for name in folders]
            waiting += [path for path in paths if os.path.islink(path)]
            for name in files:
                suffix = os.path.splitext(name)[1].lower()
                if name.startswith("."):
                    continue
                if suffix in IMAGE_SUFFIXES:
                    images.append(os.path.join(root, name))
                elif suffix and suffix not in VIDEO_SUFFIXES | OTHER_SUFFIXES:
                    unknown[suffix] += 1
    return Listing(sorted(images), unknown)


def list_images(folder: Path) -> list[str]:
    """Return the image files below a folder, sorted by path; hidden files and folders are passed over."""
    return list_files(folder).images


def describe_unknown(unknown: Counter[str]) -> str:
    """Return the counts of files by suffix in words: ``2 .heic, 1 .dng``."""
    return ", ".join(f"{count} {printable(suffix)}" for suffix, count in unknown.most_common())


def image_header(path: str) -> ImageHeader:
    """Return what the header of an image says, without decoding; width and height are those of the upright picture.

    Raises:
        UserError: the file is missing, not an image, or so large that decoding it would fill the memory.
    """
    try:
        with open(path, "rb") as file:
            return _header_of(file, path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror if error.errno else NOT_AN_IMAGE}") from error


NOT_AN_IMAGE = "not an image that can be read; replace or remove it"


def _header_of(file, path: str) -> ImageHeader:
    """Return the header of an open file; ``path`` is for the message."""
    try:
        with Image.open(file, formats=FORMATS) as image:
            width, height = image.size
            orientation = image.getexif().get(EXIF_ORIENTATION, 1) if "exif" in image.info else 1
            is_deep = ";16" in str(image.tile)  # the name of how Pillow's decoders are to unpack the values
            passes = image.info.get("progressive", 0)
            kind = image.format or ""
    except OSError:  # Pillow's UnidentifiedImageError is one
        raise
    except Exception as error:  # what Pillow raises on damaged bytes is open-ended: SyntaxError, struct.error, ...
        raise UserError(f"{path}: not an image that can be read ({error}); replace or remove it") from error
    bytes_per_pixel = DECODING_BYTES.get(kind, DECODING_BYTES_DEEP if is_deep or passes else DECODING_BYTES_OTHERS)
    refuse_large(path, width, height, bytes_per_pixel)
    if orientation not in UPRIGHT:
        orientation = 1
    if UPRIGHT[orientation][0]:
        width, height = height, width
    return ImageHeader(width, height, orientation, is_deep)


def refuse_large(path: str, width: int, height: int, bytes_per_pixel: int) -> None:
    """Refuse a picture that would fill the memory.

    Raises:
        UserError: says how large the picture is, and how large it may be.
    """
    if width * height * bytes_per_pixel > MAX_DECODING_BYTES:
        limit = MAX_DECODING_BYTES // bytes_per_pixel // 1_000_000
        raise UserError(
            f"{path}: {width}x{height} pixels are too many to decode (at most {limit} million of this kind); "
            "make it smaller or cut it into tiles"
        )


def read_image(path: str, expected_wh: tuple[int, int], orientation: int = 1, reduce: int = 1) -> np.ndarray:
    """Decode an image as uint8 BGR [H W 3].

    Args:
        path: the file.
        expected_wh: the size that the annotations speak of, in pixels.
        orientation: the EXIF orientation to undo.
        reduce: 1, 2, 4 or 8: divide the sides by this (a JPEG is decoded so, at less cost; others are shrunk after it).

    Raises:
        UserError: the file cannot be read, is cut off, or has another size than the annotations say.
    """
    image = upright(decode_image(path, reduce), orientation)
    width, height = expected_wh
    reduced_wh = (-(-width // reduce), -(-height // reduce))  # rounded up, as by the JPEG decoder
    if (image.shape[1], image.shape[0]) != reduced_wh:
        # A reduced picture may be a pixel off by rounding: the full size decides whether the annotation is wrong.
        full = upright(decode_image(path, 1), orientation) if reduce > 1 else image
        found_wh = (full.shape[1], full.shape[0])
        if found_wh != (width, height):
            raise UserError(f"{path}: {other_size(found_wh, expected_wh)}")
    return image


def other_size(found_wh: tuple[int, int], expected_wh: tuple[int, int]) -> str:
    """Return the words that say that an image has another size than its annotation says."""
    found, expected = ("{}x{}".format(*size) for size in (found_wh, expected_wh))
    return f"the image is {found}, but its annotation says {expected}; correct the one or the other"


def decode_image(path: str, reduce: int = 1) -> np.ndarray:
    """Decode an image file as uint8 BGR [H W 3], as it is stored (EXIF orientation ignored).

    A JPEG file that lacks its end marker is taken if its picture is complete. Of several pictures in a file the first
    is taken. Values of more than 8 bits are scaled by the file's own depth, see :func:`to_eight_bits`.

    Raises:
        UserError: the file cannot be opened, is empty, cut off, too large, or not an image.
    """
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    image = _decode_jpeg(data, path, reduce) if is_jpeg(data) else _decode_other(data, path, reduce)
    if image is None:
        raise UserError(f"{path}: {NOT_AN_IMAGE}")
    return image


def _decode_jpeg(data: bytes, path: str, reduce: int) -> np.ndarray | None:
    width, height, is_progressive = jpeg_frame(data)
    refuse_large(path, width, height, DECODING_BYTES_DEEP if is_progressive else DECODING_BYTES_OTHERS)
    if not data.endswith(END) and end_of_jpeg(data) == len(data):
        if _picture_ends_early(data):
            raise UserError(f"{path}: the JPEG file is cut off; replace or remove it")
        data = data.rstrip(b"\xff") + END
    image = _opencv(data, REDUCED[reduce])
    if image is None:
        image = _pillow(data)
        image = image if image is None else _shrink(image, reduce)
    return image


def is_cut_off(path: str) -> bool:
    """Whether a file is a JPEG whose picture is incomplete, with an end marker or without."""
    with open(path, "rb") as file:
        data = file.read()
    return is_jpeg(data) and _picture_ends_early(data)


def _picture_ends_early(data: bytes) -> bool:
    try:
        return ends_early(data)
    except Exception:  # what Pillow raises on damaged bytes is open-ended; OpenCV says the rest
        return True


def _decode_other(data: bytes, path: str, reduce: int) -> np.ndarray | None:
    try:
        _header_of(BytesIO(data), path)
    except OSError as error:
        raise UserError(f"{path}: {NOT_AN_IMAGE}") from error
    image = _opencv(data, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    image = _pillow(data) if image is None else to_eight_bits(image)
    return image if image is None else _shrink(image, reduce)


def _opencv(data: bytes, flags: int) -> np.ndarray | None:
    """Return what OpenCV makes of the content of a file, None where it cannot decode it."""
    try:
        return cv2.imdecode(np.frombuffer(data, dtype=np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        return None


def _pillow(data: bytes) -> np.ndarray | None:
    """Return what Pillow makes of the content of a file, None where it cannot decode it."""
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            return np.ascontiguousarray(np.asarray(image.convert("RGB"))[..., ::-1])
    except Exception:  # what Pillow raises on damaged bytes is open-ended
        return None


def _shrink(image: np.ndarray, reduce: int) -> np.ndarray:
    if reduce == 1:
        return image
    size = (-(-image.shape[1] // reduce), -(-image.shape[0] // reduce))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def to_eight_bits(image: np.ndarray) -> np.ndarray | None:
    """Return a decoded picture as uint8; None where its values are no whole numbers.

    Wider values are scaled by the depth of the file: 8, 10, 12, 14 or 16 bits, the first that holds its largest value.
    So a picture of 12 bits that is stored in 16 is as bright as one of 8 bits would be.
    """
    if image.dtype == np.uint8:
        return image
    if image.dtype != np.uint16:
        return None
    depth = next(bits for bits in DEPTHS if int(image.max()) < 1 << bits)
    return np.right_shift(image, depth - 8, out=image).astype(np.uint8)


def upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """Turn a stored picture [H W 3] upright by its EXIF orientation (1..8)."""
    transpose, flip = UPRIGHT[orientation]
    if transpose:
        image = cv2.transpose(image)
    return image if flip is None else cv2.flip(image, flip)
