"""What a Python program may hand over as images -> pictures, one at a time: files, arrays, PIL images, tensors."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data.sources import ImageFiles, open_source
from data.video import Picture
from utils.errors import UserError

OneImage: TypeAlias = "str | os.PathLike[str] | np.ndarray | Image.Image | Tensor | Picture"
Images: TypeAlias = "OneImage | Iterable[OneImage]"
COLORS = ("bgr", "rgb")


def open_pictures(images: Images, color: str = "bgr") -> Iterator[Picture]:
    """Return the pictures, each read when it is asked for.

    Args:
        images: one or any number of: a text or path that :func:`data.sources.open_source` opens; an array [h w 3] of
            uint8; a PIL image, as it is shown without its EXIF orientation; a tensor [3 h w] of uint8, RGB; a picture.
        color: "bgr" or "rgb", of the arrays.

    Raises:
        UserError: another ``color``; and when it is its turn: no image, or one that cannot be read.
    """
    if color not in COLORS:
        raise UserError(f"color '{color}' is not one of {', '.join(COLORS)}")
    is_batch = isinstance(images, np.ndarray | Tensor) and images.ndim == 4
    if isinstance(images, str | os.PathLike | Image.Image | Picture | np.ndarray | Tensor) and not is_batch:
        return _pictures([images], color)
    if not isinstance(images, Iterable):
        raise UserError(f"images: a {type(images).__name__} is no image, and no list or generator of images")
    return _pictures(images, color)


def _pictures(images: Iterable[OneImage], color: str) -> Iterator[Picture]:
    for number, image in enumerate(images):
        if isinstance(image, str | os.PathLike):
            yield from _from_files(os.fspath(image))
        elif isinstance(image, Picture):
            yield image
        else:
            yield Picture(_pixels(image, color, f"image {number}"), "", 0)


def _from_files(text: str) -> Iterator[Picture]:
    """Yield the images and frames that a text names, up to the first that cannot be read."""
    for source in open_source(text):
        for pictures in source.batches(1):  # live streams come in nothing else
            _refuse_unread(source)
            yield from pictures
        _refuse_unread(source)


def _refuse_unread(source: object) -> None:
    if isinstance(source, ImageFiles) and source.problems:
        raise UserError(source.problems[0])


def _pixels(image: object, color: str, place: str) -> np.ndarray:
    """Return an image as [h w 3] uint8, BGR; ``place`` begins a message."""
    if isinstance(image, Image.Image):
        try:
            pixels, is_rgb = np.asarray(image.convert("RGB")), True
        except OSError as error:  # it is decoded only now
            raise UserError(f"{place}: PIL cannot decode it ({error})") from error
    elif isinstance(image, Tensor):
        if image.dtype != torch.uint8 or image.ndim != 3:  # NumPy does not know all of them
            raise _no_picture(place, image, str(image.dtype).removeprefix("torch."))
        pixels, is_rgb = image.detach().cpu().movedim(0, -1).numpy(), True
    elif isinstance(image, np.ndarray):
        pixels, is_rgb = image, color == "rgb"
    else:
        raise UserError(f"{place}: a {type(image).__name__} is no path, array, PIL image or tensor")
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise _no_picture(place, pixels if isinstance(image, Image.Image) else image, str(pixels.dtype))
    return np.ascontiguousarray(pixels[..., ::-1]) if is_rgb else pixels


def _no_picture(place: str, image: np.ndarray | Tensor, dtype: str) -> UserError:
    wanted = "a tensor [3 h w]" if isinstance(image, Tensor) else "an array [h w 3]"
    shape = " ".join(map(str, image.shape))
    return UserError(f"{place}: has the shape [{shape}] of {dtype}; give {wanted} of uint8, 0..255")
