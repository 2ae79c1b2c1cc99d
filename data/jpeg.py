"""JPEG files as bytes: the size that their header says, where they end, and whether their picture ends before that."""

from __future__ import annotations

import re
from collections.abc import Iterator
from io import BytesIO

import numpy as np
from PIL import Image

START, END = b"\xff\xd8", b"\xff\xd9"
# A marker that begins a segment, and the end of the image. Within the compressed data only restart markers (D0 to D7)
# and 00 follow a byte of FF, so the next marker after it is found, too.
MARKER = re.compile(rb"\xff[\x02-\xcf\xd9-\xfe]")
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # markers of the segment that says the size
PROGRESSIVE = frozenset((0xC2, 0xC6, 0xCA, 0xCE))  # those of pictures that are decoded in several passes
# Compressed data of no meaning, and a restart marker of each number, from where a decoder in want of data goes on.
FILLING = b"".join(b"\x55\x2a\x91" * 40 + bytes((0xFF, marker)) for marker in range(0xD0, 0xD8))


def is_jpeg(data: bytes) -> bool:
    """Whether the content of a file begins as a JPEG."""
    return data.startswith(START)


def jpeg_frame(data: bytes) -> tuple[int, int, bool]:
    """Return (width, height, whether it is progressive) as the header says; zeros where it has no size."""
    for place in _markers(data):
        if data[place + 1] in FRAMES:
            height, width = (int.from_bytes(data[place + at : place + at + 2], "big") for at in (5, 7))
            return width, height, data[place + 1] in PROGRESSIVE
    return 0, 0, False


def end_of_jpeg(data: bytes) -> int:
    """Return the place of the end marker of the first picture, the length of the data where it is missing."""
    if data.endswith(END) and data.count(END) == 1:  # no thumbnail, no second picture
        return len(data) - len(END)
    return next((place for place in _markers(data) if data[place + 1] == END[1]), len(data))


def ends_early(data: bytes) -> bool:
    """Whether the compressed data end before the picture is complete; the decoder makes the rest of it grey.

    Bytes that are added at the end of a complete picture change nothing; where the decoder still waits for data, it
    takes them for such.

    Raises:
        OSError: it is not an image that Pillow can read.
    """
    data = data[: end_of_jpeg(data)].rstrip(b"\xff")  # half an end marker is none
    as_it_is = _decode(data + END)
    try:
        return not np.array_equal(as_it_is, _decode(data + FILLING + END))
    except OSError:
        return True


def _markers(data: bytes) -> Iterator[int]:
    """Yield the place of each segment up to the end of the picture, and of that."""
    place = 2
    while found := MARKER.search(data, place):
        yield found.start()
        if data[found.start() + 1] == END[1]:
            return
        place = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")


def _decode(data: bytes) -> np.ndarray:
    """Return the decoded picture, at an eighth of its size where each of its parts is coded only once."""
    with Image.open(BytesIO(data), formats=("JPEG",)) as image:
        if not image.info.get("progressive"):
            image.draft(None, (max(image.width // 8, 1), max(image.height // 8, 1)))
        return np.asarray(image)
