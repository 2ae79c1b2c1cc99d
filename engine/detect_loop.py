"""The loop of detect.py: pictures are read ahead by threads, and drawn and written behind by another one.

Lines are printed and files are written in the order of the pictures, whatever is done at the same time.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass

import numpy as np

from data.sources import Source
from data.video import Picture
from engine.tracking import Tracker
from engine.video_writer import Mp4Writer
from engine.window import PictureWindow
from engine.writers import DetectionWriter
from utils.draw import DrawStyle, draw_detections
from utils.files import printable
from utils.overlap import LeftToThread
from utils.structures import Detections
from utils.words import how_many

Detect = Callable[[Sequence[Picture]], tuple[list[Detections], float]]  # -> in each picture, milliseconds of one
PICTURES_BEHIND = 4  # that may wait to be written


@dataclass(frozen=True)
class Looking:
    """What is done with each picture."""

    detect: Detect
    writer: DetectionWriter
    window: PictureWindow
    style: DrawStyle
    batch_size: int = 1
    coordinates: bool = False  # printed, as Darknet's -ext_output
    new_tracker: Callable[[float], Tracker] | None = None  # of a video with so many frames per second


def look_at_all(sources: Sequence[Source], looking: Looking) -> None:
    """Detect in all pictures of all sources, until they or the user end it.

    Raises:
        KeyboardInterrupt: the user has ended it; what was found before is kept.
    """
    num_videos = sum(len(source.videos) for source in sources)
    first = 1
    for source in sources:
        places = [f"video {number}/{num_videos}" for number in range(first, first + len(source.videos))]
        first += len(source.videos)
        if not look_at(source, places or ["image"], looking):
            break


def look_at(source: Source, places: Sequence[str], looking: Looking) -> bool:
    """Detect in all pictures of one source; return False when the user closed the window or ended a live source.

    Args:
        source: of the pictures.
        places: how the lines of each of its videos begin; one for images.
        looking: what is done with a picture.
    """
    closed = interrupted = False
    numbers = Counter[int]()  # pictures so far, of each video
    trackers = [looking.new_tracker(video.fps) for video in source.videos] if looking.new_tracker else []
    total = f"/{len(source)}" if len(source) else ""
    with ExitStack() as stack:
        videos = [stack.enter_context(looking.writer.video(video.name, video.fps)) for video in source.videos]
        behind = stack.enter_context(LeftToThread(max(PICTURES_BEHIND, looking.batch_size)))
        batches = stack.enter_context(closing(source.batches(looking.batch_size)))
        try:
            for pictures in batches:
                results, milliseconds = looking.detect(pictures)
                for picture, result in zip(pictures, results, strict=True):
                    numbers[picture.stream] += 1
                    found = trackers[picture.stream].update(result, picture.seconds) if trackers else result
                    place = f"{places[picture.stream]} {numbers[picture.stream]}{total}"
                    print_found(place, picture, found, milliseconds, looking)
                    video = videos[picture.stream] if videos else None
                    kept = behind.submit(picture.image_bgr.nbytes, keep, picture, found, video, looking)
                    closed = looking.window.is_open and looking.window.show(kept.result(), source.is_video)
                    if closed:
                        break
                if closed:
                    break
        except KeyboardInterrupt:
            # The video so far is kept; Ctrl-C is the way to end a camera.
            interrupted = True
    if interrupted and not source.is_live:
        raise KeyboardInterrupt
    return not closed and not interrupted


def print_found(place: str, picture: Picture, found: Detections, milliseconds: float, looking: Looking) -> None:
    """Print the line of a picture, and one for each detection where coordinates are wanted."""
    names = looking.writer.names
    print(f"{place} {printable(picture.path)}: {in_words(found, names)}Done. ({milliseconds:.1f} ms)")
    if looking.coordinates:
        for line in coordinate_lines(found, names):
            print(line)


def keep(picture: Picture, found: Detections, video: Mp4Writer | None, looking: Looking) -> np.ndarray | None:
    """Write what is wanted of a picture; return it [h w 3] BGR with the detections drawn, None where nobody asks."""
    writer = looking.writer
    if writer.crops:
        writer.write_crops(picture, found, video)
    drawn = None
    if writer.pictures or looking.window.is_open:
        draw_detections(picture.image_bgr, found, writer.names, looking.style)
        drawn = picture.image_bgr
    writer.write(picture, found, drawn, video)
    return drawn


def in_words(found: Detections, names: Sequence[str]) -> str:
    """Return the counts of the classes for the line of a picture, as ``2 persons, 1 dog, ``."""
    counts = Counter(found.labels.tolist())
    return "".join(f"{how_many(n, names[label])}, " for label, n in sorted(counts.items()))


def coordinate_lines(found: Detections, names: Sequence[str]) -> list[str]:
    """Return a line per detection, from left to right, as Darknet's ``-ext_output`` prints it.

    The form is that of AlexeyAB/darknet ``src/image.c: draw_detections_v3``; pixels are rounded, halves away from 0.
    """
    lines = []
    rows = zip(found.boxes_xyxy.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True)
    for (x1, y1, x2, y2), score, label in sorted(rows, key=lambda row: row[0][0]):
        left, top, width, height = (math.copysign(math.floor(abs(v) + 0.5), v) for v in (x1, y1, x2 - x1, y2 - y1))
        lines.append(
            f"{names[label]}: {score * 100:.0f}%\t"
            f"(left_x: {left:4.0f}   top_y: {top:4.0f}   width: {width:4.0f}   height: {height:4.0f})"
        )
    return lines
