"""Cameras and streams: each is read by a thread of its own, and is reached again when it has stopped sending."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Generator, Sequence

import cv2
import numpy as np

from data.video import Picture, VideoOptions, announced_frames, frames_per_second, open_capture
from utils.errors import UserError
from utils.files import printable
from utils.words import how_many

FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0  # seconds before an attempt to reach a stream again; each wait is twice the last
MOST_FRAMES = 8  # of a stream that may wait where every frame is wanted
CLOSING_SECONDS = 2.0  # threads that wait for a stalled stream longer than this are left behind


class LiveStream:
    """One camera or stream, and the thread that reads it."""

    def __init__(self, address: str | int, name: str, capture: cv2.VideoCapture, options: VideoOptions) -> None:
        self.name = name
        self.fps = frames_per_second(capture) / options.vid_stride
        self.frames: deque[tuple[int, np.ndarray, float]] = deque()  # number, [h w 3] BGR, seconds when it arrived
        self.num_frames = 0  # that have arrived so far
        self.has_ended = False
        self.error: Exception | None = None  # that has ended it
        self._length = announced_frames(capture)  # of a file that a server sends; 0 otherwise
        self._address = address
        self._capture: cv2.VideoCapture | None = capture
        self._options = options

    def read(self, changed: threading.Condition, stop: threading.Event) -> None:
        """Read until the stream has ended for good or ``stop`` is set; what a thread does.

        Args:
            changed: its lock guards ``frames`` and ``has_ended``; told of each frame, and of the end.
            stop: set by whoever does not want more frames.
        """
        try:
            while self._capture and not stop.is_set():
                arrived, image = self._capture.read()
                if arrived:
                    self._deliver(image, changed, stop)
                elif not self._reach_again(changed, stop):
                    break
        except Exception as error:  # whoever uses the frames raises it
            self.error = error
        finally:
            if self._capture:
                self._capture.release()
            with changed:
                self.has_ended = True
                changed.notify_all()

    def _deliver(self, image: np.ndarray, changed: threading.Condition, stop: threading.Event) -> None:
        number = self.num_frames
        self.num_frames += 1
        if number % self._options.vid_stride:
            return
        with changed:
            if not self._options.every_frame:
                self.frames.clear()
            changed.wait_for(lambda: len(self.frames) < MOST_FRAMES or stop.is_set())
            self.frames.append((number, image, time.monotonic()))
            changed.notify_all()

    def _reach_again(self, changed: threading.Condition, stop: threading.Event) -> bool:
        """Wait and connect until a frame arrives; return False where none does or ever did, or a file is at its end."""
        if self._capture:
            self._capture.release()
        attempts = self._options.reconnect
        if not self.num_frames or not attempts or stop.is_set() or 0 < self._length <= self.num_frames:
            return False
        _say(f"{self.name}: has stopped sending; trying to reach it again")
        wait, began = FIRST_WAIT, time.monotonic()
        for _ in range(attempts):
            if stop.wait(wait):
                return False
            wait = min(2 * wait, LONGEST_WAIT)
            self._capture = open_capture(self._address, is_live=True)
            arrived, image = self._capture.read() if self._capture else (False, None)
            if arrived and image is not None:
                _say(f"{self.name}: is back after {time.monotonic() - began:.0f} s")
                self._deliver(image, changed, stop)
                return True
        _say(f"{self.name}: did not come back in {how_many(attempts, 'attempt')} (--reconnect)")
        return False


class LiveStreams:
    """Cameras and streams that are looked at together, each batch with at most one frame of each."""

    is_video = True
    is_live = True

    def __init__(self, streams: Sequence[LiveStream]) -> None:
        self.videos = tuple(streams)  # what is written as a video each

    def __len__(self) -> int:
        """Return 0: nobody knows how many frames there will be."""
        return 0

    def batches(self, size: int) -> Generator[list[Picture], None, None]:
        """Yield what has arrived, as soon as anything has: by default the newest frame of each stream.

        Args:
            size: without a meaning here; a live source is not kept waiting.

        Raises:
            UserError: no stream has given a single frame.
        """
        changed, stop, began = threading.Condition(), threading.Event(), time.monotonic()
        waited_for = list(self.videos) if len(self.videos) > 1 else []  # of one alone the error below tells
        threads = [threading.Thread(target=one.read, args=(changed, stop), daemon=True) for one in self.videos]
        for thread in threads:
            thread.start()
        try:
            while True:
                with changed:
                    changed.wait_for(lambda: self._has_news(), timeout=1)
                    has_ended = all(one.has_ended for one in self.videos)
                    batch = [(index, *one.frames.popleft()) for index, one in enumerate(self.videos) if one.frames]
                    changed.notify_all()
                    silent = [one for one in waited_for if one.has_ended and not one.num_frames and not one.error]
                for one in silent:
                    waited_for.remove(one)
                    _say(f"{one.name}: opens, but gives no picture; going on without it")
                if batch:
                    yield [
                        Picture(image, self.videos[index].name, number, index, max(0.0, arrived - began))
                        for index, number, image, arrived in batch
                    ]
                elif has_ended:
                    break
        finally:
            stop.set()
            with changed:
                changed.notify_all()
            deadline = time.monotonic() + CLOSING_SECONDS
            for thread in threads:
                thread.join(max(0.0, deadline - time.monotonic()))
        for one in self.videos:
            if one.error:
                raise one.error
        if not any(one.num_frames for one in self.videos):
            raise UserError(f"{self.videos[0].name}: opens, but gives no picture")

    def _has_news(self) -> bool:
        return any(one.frames for one in self.videos) or all(one.has_ended for one in self.videos)


def _say(line: str) -> None:
    """Print a line in one piece, for other threads print, too."""
    print(f"{printable(line)}\n", end="", flush=True)
