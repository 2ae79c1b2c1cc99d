"""What detect.py looks at: an image, a folder, a glob, a list, a video, a camera or a stream, one picture at a time."""

from __future__ import annotations

import glob
import os
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from data.image_files import (
    IMAGE_SUFFIXES,
    VIDEO_SUFFIXES,
    decode_image,
    describe_unknown,
    image_header,
    list_files,
    upright,
)
from data.streams import LiveStream, LiveStreams
from data.video import Picture, VideoFrames, VideoOptions, announced_frames, in_batches, open_capture, picture_bytes
from utils.errors import UserError
from utils.files import MAX_LIST_BYTES, printable, read_text
from utils.overlap import computed_ahead

STREAM_SCHEMES = ("rtsp://", "rtmp://", "http://", "https://", "tcp://", "udp://")
SENT_LIVE = frozenset((".flv", ".ts"))  # suffixes of files that servers also give to streams without an end


DECODING_THREADS = 2
IMAGES_AHEAD = 4  # that are decoded before they are used


@dataclass
class ImageFiles:
    """Image files, in order; those that cannot be read are passed over and listed in ``problems``."""

    paths: tuple[str, ...]
    problems: list[str] = field(default_factory=list)  # a line each, filled while iterating
    is_video = False
    is_live = False
    videos = ()  # what is written as a video each

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[Picture]:
        return self._images(IMAGES_AHEAD)

    def batches(self, size: int) -> Generator[list[Picture], None, None]:
        """Yield the images in lists of ``size``, the last one perhaps shorter."""
        return in_batches(self._images(IMAGES_AHEAD + size), size)

    def _images(self, depth: int) -> Generator[Picture, None, None]:
        """Yield the images, of which ``depth`` are decoded ahead."""
        read = computed_ahead(_read_image, self.paths, depth, picture_bytes, DECODING_THREADS)
        with closing(read):
            for picture in read:
                if isinstance(picture, UserError):
                    self.problems.append(str(picture))
                else:
                    yield picture


Source = ImageFiles | VideoFrames | LiveStreams


def open_source(text: str, options: VideoOptions | None = None) -> list[Source]:
    """Open what ``--source`` names: a path, a glob, a camera number or a URL.

    Returns:
        The images as one source, if there are any, then each video as one of its own; cameras and streams as one.

    Raises:
        UserError: it does not exist, holds no image or video, or cannot be opened.
    """
    options = options or VideoOptions()
    if _is_stream(text):
        return [_open_streams([text], options)]
    path = Path(os.path.expanduser(text))
    if path.suffix.lower() == ".txt" and path.is_file() and (streams := _listed_streams(path)):
        return [_open_streams(streams, options)]
    paths = _files(text)
    images = tuple(path for path in paths if Path(path).suffix.lower() in IMAGE_SUFFIXES)
    videos = [path for path in paths if Path(path).suffix.lower() in VIDEO_SUFFIXES]
    if not images and not videos:
        known = " ".join(sorted(IMAGE_SUFFIXES | VIDEO_SUFFIXES))
        raise UserError(f"{text}: no image or video there (known: {known})")
    opened: list[Source] = [_open_video(path, options) for path in videos]
    return [ImageFiles(images), *opened] if images else opened


def _is_stream(text: str) -> bool:
    """Whether a text names a camera, by its number, or a stream; more than five digits are no camera."""
    return (text.isdecimal() and len(text) < 6) or text.lower().startswith(STREAM_SCHEMES)


def _listed_streams(path: Path) -> list[str]:
    """Return the cameras and streams of a list, one a line and ``#`` before a comment; none of a list of files.

    The first line decides which of both it is.

    Raises:
        UserError: a stream comes first, but not all others are streams.
    """
    lines = enumerate(read_text(path, MAX_LIST_BYTES, keep_bytes=True).splitlines(), start=1)
    named = [(number, line.strip()) for number, line in lines if line.strip() and not line.startswith("#")]
    if not named or not _is_stream(named[0][1]):
        return []
    for number, line in named:
        if not _is_stream(line):
            raise UserError(f"{path}:{number}: '{line:.60}' is no camera's number and no URL, as the first line is")
    return [line for _, line in named]


def _open_streams(texts: list[str], options: VideoOptions) -> Source:
    """Open cameras and streams together; a single file that a server sends is a video that ends.

    One of several that cannot be opened is named and left out.

    Raises:
        UserError: none can be opened.
    """
    opened = []
    failures = []
    for text in texts:
        is_camera = text.isdecimal()
        is_live = is_camera or not text.lower().endswith(tuple(VIDEO_SUFFIXES - SENT_LIVE))
        name = f"camera {text}" if is_camera else text
        address = int(text) if is_camera else text
        capture = open_capture(address, is_live)
        if capture is None:
            failures.append(f"{name}: cannot be opened as a {'camera or stream' if is_live else 'video'}")
            continue
        is_file = not is_live or (text.lower().startswith("http") and announced_frames(capture))
        if is_file and len(texts) == 1:
            return VideoFrames(name, capture, options)
        opened.append(LiveStream(address, name, capture, options))
    if not opened:
        raise UserError(failures[0])
    for failure in failures:
        print(f"{printable(failure)}; going on without it")
    return LiveStreams(opened)


def _open_video(path: str, options: VideoOptions) -> VideoFrames:
    capture = open_capture(path, is_live=False)
    if capture is None:
        raise UserError(f"{path}: cannot be opened as a video")
    return VideoFrames(path, capture, options, is_local=True)


def _read_image(path: str) -> Picture | UserError:
    try:
        orientation = image_header(path).orientation
        return Picture(upright(decode_image(path), orientation), path, 0)
    except UserError as error:
        return error


def _files(text: str) -> list[str]:
    """Return the files that a path or glob names."""
    path = Path(os.path.expanduser(text))
    if path.is_dir():
        videos = sorted(str(item) for item in path.iterdir() if item.suffix.lower() in VIDEO_SUFFIXES)
        listing = list_files(path)
        if listing.unknown:
            print(f"{printable(text)}: passed over, of no kind that is read: {describe_unknown(listing.unknown)}")
        return listing.images + videos
    if path.suffix.lower() == ".txt" and path.is_file():
        lines = [line.strip() for line in read_text(path, MAX_LIST_BYTES, keep_bytes=True).splitlines()]
        named = [line for line in lines if line and not line.startswith("#")]
        for line in named:
            if Path(line).suffix.lower() not in IMAGE_SUFFIXES | VIDEO_SUFFIXES:
                print(f"{printable(text)}: passed over, of no kind that is read: {printable(line)}")
        return [_beside(path, line) for line in named]
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
