"""What detect.py looks at: an image, a folder, a glob, a list, a video, a camera or a stream, one picture at a time."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from data.image_files import (
    IMAGE_SUFFIXES,
    VIDEO_SUFFIXES,
    decode_image,
    describe_unknown,
    image_header,
    list_files,
    upright,
)
from utils.errors import UserError
from utils.files import printable, utf8_path

STREAM_SCHEMES = ("rtsp://", "rtmp://", "http://", "https://", "tcp://", "udp://")


@dataclass(frozen=True)
class Picture:
    """One image or one frame of a video."""

    image_bgr: np.ndarray  # [h w 3] uint8, upright; of a large picture the memory may not hold another copy
    path: str  # the file, or the camera or stream as the user named it
    frame: int  # number of the frame from 0; 0 for an image

    @property
    def image_rgb(self) -> np.ndarray:
        """The same pixels as RGB, not copied."""
        return self.image_bgr[..., ::-1]


@dataclass
class ImageFiles:
    """Image files, in order; those that cannot be read are passed over and listed in ``problems``."""

    paths: tuple[str, ...]
    problems: list[str] = field(default_factory=list)  # a line each, filled while iterating
    is_video = False
    is_live = False
    fps = 0.0

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[Picture]:
        for path in self.paths:
            try:
                orientation = image_header(path).orientation
                image = upright(decode_image(path), orientation)
            except UserError as error:
                self.problems.append(str(error))
                continue
            yield Picture(image, path, 0)


class VideoFrames:
    """The frames of a video file, a camera or a stream; a live one ends when it stops sending."""

    is_video = True

    def __init__(self, name: str, capture: cv2.VideoCapture, is_live: bool) -> None:
        self.name = name
        self.is_live = is_live
        self.fps = _sensible_fps(capture.get(cv2.CAP_PROP_FPS))
        self._length = 0 if is_live else max(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0)
        self._capture = capture

    def __len__(self) -> int:
        """Return the number of frames that the file announces, 0 where it does not or the source is live."""
        return self._length

    def __iter__(self) -> Iterator[Picture]:
        number = 0
        try:
            while True:
                arrived, image = self._capture.read()
                if not arrived:
                    break
                yield Picture(image, self.name, number)
                number += 1
        finally:
            self._capture.release()
        if number == 0:
            raise UserError(f"{self.name}: opens, but gives no picture")


def open_source(text: str) -> list[ImageFiles | VideoFrames]:
    """Open what ``--source`` names: a path, a glob, a camera number or a URL.

    Returns:
        The images as one source, if there are any, then each video as one of its own.

    Raises:
        UserError: it does not exist, holds no image or video, or cannot be opened.
    """
    if text.isdecimal():
        return [_open_video(int(text), f"camera {text}", is_live=True)]
    if text.lower().startswith(STREAM_SCHEMES):
        return [_open_video(text, text, is_live=not text.lower().endswith(tuple(VIDEO_SUFFIXES)))]
    paths = _files(text)
    images = tuple(path for path in paths if Path(path).suffix.lower() in IMAGE_SUFFIXES)
    videos = [path for path in paths if Path(path).suffix.lower() in VIDEO_SUFFIXES]
    if not images and not videos:
        known = " ".join(sorted(IMAGE_SUFFIXES | VIDEO_SUFFIXES))
        raise UserError(f"{text}: no image or video there (known: {known})")
    opened: list[ImageFiles | VideoFrames] = [_open_video(path, path, is_live=False) for path in videos]
    return [ImageFiles(images), *opened] if images else opened


def _files(text: str) -> list[str]:
    """Return the files that a path or glob names."""
    path = Path(text).expanduser()
    if path.is_dir():
        videos = sorted(str(item) for item in path.iterdir() if item.suffix.lower() in VIDEO_SUFFIXES)
        listing = list_files(path)
        if listing.unknown:
            print(f"{printable(text)}: passed over, of no kind that is read: {describe_unknown(listing.unknown)}")
        return listing.images + videos
    if path.suffix.lower() == ".txt" and path.is_file():
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines()]
        return [_beside(path, line) for line in lines if line]
    if path.is_file():
        return [str(path)]
    found = sorted(_glob(path))
    if not found:
        raise UserError(f"{text}: no such file, folder or glob")
    return found


def _glob(pattern: Path) -> Iterator[str]:
    """Yield what a pattern names; ``**`` follows no links, which may point upwards, and enters no hidden folders."""
    if "**" not in pattern.parts:
        yield from glob.iglob(str(pattern))
        return
    root = Path(pattern.anchor)
    for path in root.glob(str(pattern.relative_to(root))):
        if not any(part.startswith(".") for part in path.parts if part not in (*pattern.parts, "..")):
            yield str(path)


def _beside(list_path: Path, line: str) -> str:
    """Return a line of an image list as a path: from the working directory, else from the list's folder."""
    return line if Path(line).exists() else str(list_path.parent / line)


def _open_video(address: str | int, name: str, is_live: bool) -> VideoFrames:
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # the error below says it in one line
    set_log_level = getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel  # OpenCV 4.8 has the first
    level = set_log_level(0)
    if isinstance(address, int):
        capture = cv2.VideoCapture(address)
    else:
        with utf8_path(address) as readable:
            capture = cv2.VideoCapture(readable)
    set_log_level(level)
    if not capture.isOpened():
        raise UserError(f"{name}: cannot be opened as a {'camera or stream' if is_live else 'video'}")
    if is_live:
        capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # the newest picture, not one of seconds ago
    return VideoFrames(name, capture, is_live)


def _sensible_fps(fps: float) -> float:
    """Return frames per second; 30 where the source says nothing usable."""
    return float(fps) if np.isfinite(fps) and 0 < fps < 1000 else 30.0
