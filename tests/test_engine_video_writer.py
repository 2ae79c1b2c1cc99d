"""Written videos as other programs see them: codec, size, times and sound; and what happens without PyAV."""

import builtins
from fractions import Fraction
from itertools import pairwise

import cv2
import numpy as np
import pytest

from engine import video_writer
from engine.video_writer import Mp4Writer

SECONDS, FPS = 3, 10
SOUND_RATE = 48_000


@pytest.fixture
def av():
    module = pytest.importorskip("av")
    if not video_writer.h264_encoder():
        pytest.skip("this PyAV has no H.264 encoder")
    return module


def grey(value, size_wh=(64, 48)):
    return np.full((size_wh[1], size_wh[0], 3), value, np.uint8)


def write(path, num_frames, fps=FPS, size_wh=(64, 48), sound_of=""):
    with Mp4Writer(path, fps, sound_of) as video:
        for number in range(num_frames):
            video.add(grey(20 * number % 256, size_wh))


def make_film(av, path, sound_codec, rate=SOUND_RATE, layout="mono", begin=0):
    """A video of three seconds with a tone, whose times begin at some second."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=FPS)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        sound = container.add_stream(sound_codec, rate=rate, layout=layout)
        for number in range(SECONDS * FPS):
            picture = av.VideoFrame.from_ndarray(grey(8 * number), format="bgr24")
            picture.pts, picture.time_base = begin * FPS + number, Fraction(1, FPS)
            container.mux(video.encode(picture))
        container.mux(video.encode(None))
        tone = (8000 * np.sin(np.arange(SECONDS * rate) * 2 * np.pi * 440 / rate)).astype(np.int16)
        for start in range(0, len(tone), 1024):
            part = tone[start : start + 1024]
            part = part.repeat(6 if layout == "5.1" else 1)[None]
            frame = av.AudioFrame.from_ndarray(part, format="s16", layout=layout)
            frame.sample_rate, frame.pts = rate, begin * rate + start
            container.mux(sound.encode(frame))
        container.mux(sound.encode(None))


def sound_seconds(av, path):
    """Return codec, seconds and loudness of the sound of a file, decoded."""
    with av.open(str(path)) as container:
        if not container.streams.audio:
            return "", 0.0, 0.0
        track = container.streams.audio[0]
        samples = np.concatenate([frame.to_ndarray().ravel() for frame in container.decode(track)])
        channels = track.codec_context.channels
        return track.codec_context.name, len(samples) / channels / track.codec_context.sample_rate, abs(samples).max()


def test_h264_that_a_browser_plays(av, tmp_path):
    path = tmp_path / "v.mp4"
    write(path, 12, fps=30000 / 1001)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264" and stream.codec_context.pix_fmt == "yuv420p"
        assert abs(float(stream.average_rate) - 29.97) < 0.01 and not container.streams.audio
        frames = [frame.to_ndarray(format="bgr24") for frame in container.decode(stream)]
    assert [round(frame.mean() / 20) for frame in frames] == list(range(12))
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")  # it starts to play while it loads


def test_odd_sides_are_made_even(av, tmp_path):
    write(tmp_path / "v.mp4", 3, size_wh=(63, 45))
    capture = cv2.VideoCapture(str(tmp_path / "v.mp4"))
    assert capture.read()[1].shape == (46, 64, 3) and capture.get(cv2.CAP_PROP_FRAME_COUNT) == 3


def test_a_camera_that_changes_its_size(av, tmp_path):
    with Mp4Writer(tmp_path / "v.mp4", 5.0) as video:
        for size_wh in ((64, 48), (128, 96), (64, 48)):
            video.add(grey(100, size_wh))
    capture = cv2.VideoCapture(str(tmp_path / "v.mp4"))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 3 and capture.read()[1].shape == (48, 64, 3)


def test_so_few_frames_that_their_rate_is_nearly_0(av, tmp_path):
    write(tmp_path / "v.mp4", 2, fps=30 / 100_000)
    capture = cv2.VideoCapture(str(tmp_path / "v.mp4"))
    assert [capture.read()[0] for _ in range(3)] == [True, True, False]


@pytest.mark.parametrize(
    "suffix, codec, rate, layout",
    [
        (".mp4", "aac", SOUND_RATE, "mono"),  # copied
        (".avi", "pcm_s16le", SOUND_RATE, "mono"),
        (".avi", "pcm_s16le", 11_127, "mono"),  # a rate that AAC does not have
        (".mkv", "pcm_s16le", 44_100, "5.1"),
    ],
)
def test_the_sound_of_the_source_goes_along(av, tmp_path, suffix, codec, rate, layout):
    film = tmp_path / f"film{suffix}"
    make_film(av, film, codec, rate, layout)
    for num_frames in (SECONDS * FPS, FPS):  # the whole of it, and interrupted after a second
        path = tmp_path / f"{num_frames}.mp4"
        write(path, num_frames, sound_of=str(film))
        name, seconds, loudness = sound_seconds(av, path)
        assert name == "aac" and abs(seconds - num_frames / FPS) < 0.15 and loudness > 0.1
        assert cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FRAME_COUNT) == num_frames


@pytest.mark.parametrize("suffix, codec", [(".ts", "aac"), (".mkv", "aac"), (".mkv", "pcm_s16le")])
def test_the_sound_of_a_source_that_begins_late_keeps_step_with_the_pictures(av, tmp_path, suffix, codec):
    film = tmp_path / f"film{suffix}"
    make_film(av, film, codec, begin=5)  # as a part of a broadcast does
    write(tmp_path / "v.mp4", SECONDS * FPS, sound_of=str(film))
    name, seconds, loudness = sound_seconds(av, tmp_path / "v.mp4")
    assert name == "aac" and abs(seconds - SECONDS) < 0.15 and loudness > 0.1
    with av.open(str(tmp_path / "v.mp4")) as container:
        assert abs(next(container.decode(audio=0)).time) < 0.05


def test_a_source_without_sound_or_with_a_broken_one(av, tmp_path, capsys):
    write(tmp_path / "silent.mp4", 5)
    write(tmp_path / "a.mp4", 5, sound_of=str(tmp_path / "silent.mp4"))
    assert capsys.readouterr().out == ""
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    write(tmp_path / "b.mp4", 5, sound_of=str(tmp_path / "broken.mp4"))
    assert capsys.readouterr().out.count("\n") == 1
    for name in ("a", "b"):
        assert sound_seconds(av, tmp_path / f"{name}.mp4")[0] == ""
        assert cv2.VideoCapture(str(tmp_path / f"{name}.mp4")).get(cv2.CAP_PROP_FRAME_COUNT) == 5


def test_frames_of_a_live_source_keep_their_times(av, tmp_path):
    times = [0.0, 0.1, 0.5, 0.5, 2.0, 2.04]
    with Mp4Writer(tmp_path / "v.mp4", 25.0) as video:
        for seconds in times:
            video.add(grey(100), seconds)
    with av.open(str(tmp_path / "v.mp4")) as container:
        shown = [float(frame.pts * frame.time_base) for frame in container.decode(video=0)]
    assert np.allclose(shown, [0.0, 0.1, 0.5, 0.501, 2.0, 2.04], atol=0.0011)
    assert all(a < b for a, b in pairwise(shown))


def test_without_pyav_it_is_mpeg4_and_said_once(tmp_path, monkeypatch, capsys):
    real = builtins.__import__

    def refuse(name, *arguments, **keywords):
        if name == "av":
            raise ImportError("No module named 'av'")
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", refuse)
    video_writer.h264_encoder.cache_clear()
    try:
        for name in ("a", "b"):
            write(tmp_path / f"{name}.mp4", 4)
    finally:
        video_writer.h264_encoder.cache_clear()
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1 and "pip install av" in printed
    capture = cv2.VideoCapture(str(tmp_path / "b.mp4"))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 4 and capture.get(cv2.CAP_PROP_FPS) == FPS
