"""Drawn videos: H.264 with the sound of their source where PyAV is installed, else OpenCV's MPEG-4, silent."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack
from fractions import Fraction
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, cast

import cv2
import numpy as np

from utils.errors import UserError
from utils.files import atomic_path, printable, utf8_path

H264_ENCODERS = ("libx264", "libopenh264")  # the first that this build of FFmpeg has
X264_OPTIONS = {"preset": "veryfast", "crf": "23"}  # faster than most networks; a quality at which boxes stay sharp
COPIED_SOUND = ("aac", "mp3")  # what browsers play in an mp4; other sound is encoded as AAC
SOUND_RATE = 48_000  # of encoded sound; AAC does not know every rate
SLOWEST = Fraction(1, 1001)  # pictures per second, with every 100,000th frame for instance
LIVE_TICKS = 1000  # per second; frames of a live source come when they come


class VideoEncoder(Protocol):
    """What takes the pictures of one video."""

    def add(self, image_bgr: np.ndarray, seconds: float | None) -> None:
        """Append a picture; ``seconds`` is when it is shown, None one frame after the last."""

    def close(self) -> None:
        """End the file."""


@cache
def h264_encoder() -> str:
    """Return the name of FFmpeg's H.264 encoder, "" where there is none; says so once."""
    try:
        import av
    except ImportError as error:
        reason = f"PyAV cannot be imported ({error}); pip install av"
    else:
        for name in H264_ENCODERS:
            if name in av.codecs_available:
                return name
        reason = "this PyAV has no H.264 encoder"
    print(f"videos are written as MPEG-4, silent, which browsers do not play: {reason}")
    return ""


class Mp4Writer:
    """One mp4 video, a context manager: opened with its first picture, whole or absent on the disk.

    A block that ends well gives the file its name, a block that raises removes it; without a picture there is no file.
    """

    def __init__(self, path: Path, fps: float, sound_of: str = "") -> None:
        """Prepare to write; nothing is touched yet.

        Args:
            path: of the video, with the suffix ``.mp4``; its folder is made where it is missing.
            fps: pictures per second, above 0.
            sound_of: video file whose sound goes into this one, from its beginning.
        """
        self.path = path
        self.fps = fps
        self.sound_of = sound_of
        self._stack = ExitStack()
        self._encoder: VideoEncoder | None = None
        self._size_wh = (0, 0)

    def __enter__(self) -> Mp4Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, value, trace)

    def add(self, image_bgr: np.ndarray, seconds: float | None = None) -> None:
        """Append a picture.

        Args:
            image_bgr: [h w 3] uint8; brought to the size of the first, if a camera has changed its own.
            seconds: when it is shown, of a live source; None one frame after the last.

        Raises:
            UserError: there is no encoder here.
        """
        if self._encoder is None:
            self._size_wh = (image_bgr.shape[1], image_bgr.shape[0])
            self._encoder = self._open()
        if image_bgr.shape[1::-1] != self._size_wh:
            image_bgr = cv2.resize(image_bgr, self._size_wh)
        self._encoder.add(image_bgr, seconds)

    def _open(self) -> VideoEncoder:
        named = self._stack.enter_context(utf8_path(self._stack.enter_context(atomic_path(self.path))))
        codec = h264_encoder()
        encoder: VideoEncoder
        if codec:
            encoder = H264Encoder(named, codec, self._size_wh, self.fps, self.sound_of)
        else:
            encoder = Mpeg4Encoder(named, self._size_wh, self.fps)
        self._stack.callback(encoder.close)  # before the file gets its name
        if isinstance(encoder, Mpeg4Encoder) and not encoder.is_open:
            raise UserError(
                f"{self.path}: this OpenCV cannot write mp4 videos; use --nosave with --save-txt or --save-json"
            )
        return encoder


class Mpeg4Encoder:
    """OpenCV's MPEG-4 part 2; the time of a picture is its number."""

    def __init__(self, path: str, size_wh: tuple[int, int], fps: float) -> None:
        self._writer = cv2.VideoWriter(path, cv2.VideoWriter.fourcc(*"mp4v"), fps, size_wh)

    @property
    def is_open(self) -> bool:
        """Whether this OpenCV has an encoder."""
        return self._writer.isOpened()

    def add(self, image_bgr: np.ndarray, seconds: float | None) -> None:
        """Append a picture."""
        self._writer.write(image_bgr)

    def close(self) -> None:
        """End the file."""
        self._writer.release()


class H264Encoder:
    """H.264 in 4:2:0, as every browser plays it, with the index at the front so that it starts while it loads.

    4:2:0 needs even sides: the last row or column of an odd one is written twice.
    """

    def __init__(self, path: str, codec: str, size_wh: tuple[int, int], fps: float, sound_of: str) -> None:
        import av

        self._av = av
        self._rate = max(Fraction(fps).limit_denominator(1001), SLOWEST)  # 30000/1001 is NTSC's
        self._container = av.open(path, "w", format="mp4", options={"movflags": "faststart"})
        options = X264_OPTIONS if codec == "libx264" else {}
        self._stream = cast(Any, self._container.add_stream(codec, rate=self._rate, options=options))
        self._stream.width, self._stream.height = (side + side % 2 for side in size_wh)
        self._stream.pix_fmt = "yuv420p"
        self._sound = Sound(sound_of, self._container) if sound_of else None
        self._ticks = -1  # of the last picture

    def add(self, image_bgr: np.ndarray, seconds: float | None) -> None:
        """Append a picture, and the sound up to it."""
        if self._ticks < 0:
            self._time_base = 1 / self._rate if seconds is None else Fraction(1, LIVE_TICKS)
            self._stream.codec_context.time_base = self._time_base
        wanted = self._ticks + 1 if seconds is None else round(seconds * LIVE_TICKS)
        self._ticks = max(self._ticks + 1, wanted)
        height, width = image_bgr.shape[:2]
        if height % 2 or width % 2:
            image_bgr = cv2.copyMakeBorder(image_bgr, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
        frame = self._av.VideoFrame.from_ndarray(image_bgr, format="bgr24")
        frame.pts, frame.time_base = self._ticks, self._time_base
        self._container.mux(self._stream.encode(frame))
        if self._sound:
            self._sound.copy_until(float((self._ticks + 1) * self._time_base))

    def close(self) -> None:
        """Write what the encoder still holds, and end the file."""
        try:
            self._container.mux(self._stream.encode(None))
        finally:
            if self._sound:
                self._sound.close()
            self._container.close()


class Sound:
    """The first sound track of a video file on its way into another one; where there is none, nothing happens."""

    def __init__(self, path: str, output: Any) -> None:
        import av

        self._errors = (av.FFmpegError, OSError, ValueError)
        self._path = path
        self._output = output
        self._stack = ExitStack()
        self._packets: Any = None
        self._next: Any = None
        try:
            named = self._stack.enter_context(utf8_path(path))
            source = self._stack.enter_context(av.open(named))
            if source.streams.audio:
                self._begin(source)
        except self._errors as error:
            self._give_up(error)

    def _begin(self, source: Any) -> None:
        """Read the first packet, and only then promise the output a sound track."""
        track = source.streams.audio[0]
        begin = begin_of_pictures(source)
        if track.codec_context.name in COPIED_SOUND:
            packets = (packet for packet in source.demux(track) if packet.dts is not None)
            self._packets = from_zero(packets, begin)
            self._next = next(self._packets, None)
            if self._next is not None:
                self._stream = self._output.add_stream_from_template(track)
            return
        frames = source.decode(track)
        first = next(frames, None)
        if first is not None:
            layout = "mono" if first.layout.nb_channels == 1 else "stereo"
            self._stream = self._output.add_stream("aac", rate=SOUND_RATE, layout=layout)  # resampled by PyAV
            self._packets = from_zero(self._encoded(itertools.chain([first], frames)), begin)
            self._next = next(self._packets, None)

    def _encoded(self, frames: Any) -> Any:
        """Yield packets of AAC."""
        for frame in frames:
            yield from self._stream.encode(frame)
        yield from self._stream.encode(None)

    def copy_until(self, seconds: float) -> None:
        """Write the packets that begin before a time of the video."""
        try:
            while self._next is not None and self._next.dts * self._next.time_base < seconds:
                self._next.stream = self._stream
                self._output.mux(self._next)
                self._next = next(self._packets, None)
        except self._errors as error:
            self._give_up(error)

    def close(self) -> None:
        """Close the source."""
        self._next = None
        self._stack.close()

    def _give_up(self, error: Exception) -> None:
        """Go on without sound."""
        self._next = None
        print(f"{printable(self._path)}: its sound is left out from here on ({error})")


def begin_of_pictures(source: Any) -> Fraction:
    """Return when the first picture of a source is shown, in seconds; a transport stream hardly ever begins at 0."""
    pictures = source.streams.video[0] if source.streams.video else None
    return pictures.start_time * pictures.time_base if pictures and pictures.start_time else Fraction(0)


def from_zero(packets: Iterator[Any], begin: Fraction) -> Iterator[Any]:
    """Yield packets of a sound in the times of the drawn video, whose first picture is shown at 0."""
    for packet in packets:
        ticks = round(begin / packet.time_base)
        packet.dts -= ticks
        packet.pts = None if packet.pts is None else packet.pts - ticks
        yield packet
