"""Pictures, and where moving ones come from: OpenCV's captures, and the frames of a video file in order."""

from __future__ import annotations

import itertools
import os
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass

import cv2
import numpy as np

from utils.config import option
from utils.errors import UserError
from utils.files import printable, utf8_path
from utils.overlap import computed_ahead

FRAMES_AHEAD = 4  # that are decoded before they are used
FEW = 0.9  # share of the announced frames, which some formats estimate, below which a video has ended early
STALL_MS = 10_000  # a stream that sends nothing for so long has stopped


@dataclass(frozen=True)
class VideoOptions:
    """Which frames of videos, cameras and streams are looked at."""

    vid_stride: int = option(1, "look at every Nth frame only")
    every_frame: bool = option(False, "of cameras and streams, too, look at each frame in its turn, not at the newest")
    reconnect: int = option(10, "attempts to reach a stream again that has stopped, after 1, 2, 4 … up to 30 seconds")

    def __post_init__(self) -> None:
        if self.vid_stride < 1:
            raise ValueError("--vid-stride must be at least 1")
        if self.reconnect < 0:
            raise ValueError("--reconnect must not be negative; 0 means never")


@dataclass(frozen=True)
class Picture:
    """One image or one frame of a video."""

    image_bgr: np.ndarray  # [h w 3] uint8, upright; of a large picture the memory may not hold another copy
    path: str  # the file, or the camera or stream as the user named it
    frame: int  # number of the frame from 0; 0 for an image
    stream: int = 0  # which of the source's streams it is from
    seconds: float | None = None  # since the source was opened, when a frame of a live one arrived

    @property
    def image_rgb(self) -> np.ndarray:
        """The same pixels as RGB, not copied."""
        return self.image_bgr[..., ::-1]


class VideoFrames:
    """The frames of a video file, or of a file that a server sends."""

    is_video = True
    is_live = False

    def __init__(self, name: str, capture: cv2.VideoCapture, options: VideoOptions, is_local: bool = False) -> None:
        """Ask an opened video for its rate and length.

        Args:
            name: the file or its URL.
            capture: of it; one of a local file is closed until its frames are wanted, for there may be thousands.
            options: which frames are looked at.
            is_local: whether the name is a file that can be opened again.
        """
        self.name = name
        self.fps = frames_per_second(capture) / options.vid_stride
        self.videos = (self,)  # what is written as a video each
        self._stride = options.vid_stride
        self._length = -(-announced_frames(capture) // self._stride)
        self._capture: cv2.VideoCapture | None = capture
        if is_local:
            self._close()

    def __len__(self) -> int:
        """Return the number of frames that the file announces and that are looked at, 0 where it announces none."""
        return self._length

    def __iter__(self) -> Iterator[Picture]:
        return self._frames(FRAMES_AHEAD)

    def batches(self, size: int) -> Generator[list[Picture], None, None]:
        """Yield the frames in lists of ``size``, the last one perhaps shorter."""
        return in_batches(self._frames(FRAMES_AHEAD + size), size)

    def _frames(self, depth: int) -> Generator[Picture, None, None]:
        """Yield the frames, of which ``depth`` are decoded ahead."""
        numbers = itertools.count(0, self._stride)
        frames = computed_ahead(self._read, numbers, depth, picture_bytes)
        number = 0
        if self._capture is None:
            self._capture = open_capture(self.name, is_live=False)
        if self._capture is None:
            raise UserError(f"{self.name}: cannot be opened as a video any more")
        try:
            with closing(frames):
                for picture in frames:
                    if picture is None:
                        break
                    number += 1
                    yield picture
        finally:
            self._close()
        if number == 0:
            raise UserError(f"{self.name}: opens, but gives no picture")
        if number < FEW * len(self):
            print(f"{printable(self.name)}: ended after {number} of {len(self)} frames; is it whole?")

    def _close(self) -> None:
        if self._capture is not None:
            self._capture.release()
        self._capture = None

    def _read(self, number: int) -> Picture | None:
        """Return the frame of a number, None behind the last one; those between it and the one before are skipped."""
        assert self._capture is not None
        for _ in range(min(number, self._stride - 1)):
            self._capture.grab()
        arrived, image = self._capture.read()
        return Picture(image, self.name, number) if arrived else None


def picture_bytes(picture: object) -> int:
    """Return how much memory the pixels of a picture take, 0 where it is none."""
    return picture.image_bgr.nbytes if isinstance(picture, Picture) else 0


def in_batches(pictures: Generator[Picture, None, None], size: int) -> Generator[list[Picture], None, None]:
    """Yield pictures in lists of ``size``, the last one perhaps shorter; closing this closes their generator."""
    with closing(pictures):
        while batch := list(itertools.islice(pictures, size)):
            yield batch


def open_capture(address: str | int, is_live: bool) -> cv2.VideoCapture | None:
    """Open a video, a camera by its number, or a stream; return None where it cannot be opened."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # whoever asks for it says it in one line
    set_log_level = getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel  # OpenCV 4.8 has the first
    level = set_log_level(0)
    if isinstance(address, int):
        capture = cv2.VideoCapture(address)
    elif is_live:
        limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, STALL_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, STALL_MS]
        capture = cv2.VideoCapture(address, cv2.CAP_FFMPEG, limits)
        if not capture.isOpened():
            capture = cv2.VideoCapture(address)
    else:
        with utf8_path(address) as readable:
            capture = cv2.VideoCapture(readable)
    set_log_level(level)
    if not capture.isOpened():
        return None
    if is_live:
        capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # the newest picture, not one of seconds ago
    return capture


def frames_per_second(capture: cv2.VideoCapture) -> float:
    """Return frames per second; 30 where the source says nothing usable."""
    fps = capture.get(cv2.CAP_PROP_FPS)
    return float(fps) if np.isfinite(fps) and 0 < fps < 1000 else 30.0


def announced_frames(capture: cv2.VideoCapture) -> int:
    """Return the number of frames that a video announces, 0 where it does not."""
    return max(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0)
