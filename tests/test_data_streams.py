"""Live sources: captures that break and come back, several at once, and a real server that is stopped and started."""

import http.server
import itertools
import threading
import time
from contextlib import closing, contextmanager, suppress

import cv2
import numpy as np
import pytest

from data import streams
from data.sources import open_source
from data.streams import LiveStream, LiveStreams
from data.video import VideoFrames, VideoOptions
from utils.errors import UserError

BOUNDARY = "frame"


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch):
    monkeypatch.setattr(streams, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(streams, "LONGEST_WAIT", 0.05)


class Camera:
    """A capture with as many frames as it is told, each of one grey value."""

    def __init__(self, values, gate=None, length=0):
        self.values, self.gate, self.length, self.released = iter(values), gate, length, False

    def read(self):
        if self.gate:
            self.gate.acquire()
        value = next(self.values, None)
        return (False, None) if value is None else (True, np.full((4, 6, 3), value, np.uint8))

    def get(self, what):
        return {cv2.CAP_PROP_FPS: 20.0, cv2.CAP_PROP_FRAME_COUNT: self.length}[what]

    def release(self):
        self.released = True


def live(*captures, options=None, name="cam"):
    """A stream whose first capture is open, and the others come when it is reached again; None is a failure."""
    rest = iter(captures[1:])
    stream = LiveStream(name, name, captures[0], options or VideoOptions(every_frame=True))
    return stream, lambda address, is_live: next(rest, None)


def values_of(source):
    return [[(p.stream, p.frame, int(p.image_bgr[0, 0, 0])) for p in batch] for batch in source.batches(1)]


def test_a_stream_that_breaks_goes_on_and_says_so_once(monkeypatch, capsys):
    first = Camera([1, 2])
    stream, opens = live(first, None, Camera([]), None, Camera([3, 4, 5]))
    monkeypatch.setattr(streams, "open_capture", opens)
    batches = values_of(LiveStreams([stream]))
    assert list(itertools.chain(*batches)) == [(0, 0, 1), (0, 1, 2), (0, 2, 3), (0, 3, 4), (0, 4, 5)]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" after")[0] for line in lines] == [
        "cam: has stopped sending; trying to reach it again",
        "cam: is back",
        "cam: has stopped sending; trying to reach it again",
        "cam: did not come back in 10 attempts (--reconnect)",
    ]
    assert first.released


def test_waits_double_up_to_the_longest(monkeypatch):
    monkeypatch.setattr(streams, "FIRST_WAIT", 1.0)
    monkeypatch.setattr(streams, "LONGEST_WAIT", 30.0)
    waits = []

    class Event(threading.Event):
        def wait(self, timeout=None):
            waits.append(timeout)
            return False

    stream, opens = live(Camera([1]), options=VideoOptions(every_frame=True, reconnect=8))
    monkeypatch.setattr(streams, "open_capture", opens)
    stream.read(threading.Condition(), Event())
    assert waits == [1, 2, 4, 8, 16, 30, 30, 30]


def test_without_attempts_it_ends_where_it_stops(monkeypatch, capsys):
    stream, opens = live(Camera([1, 2]), Camera([3]), options=VideoOptions(every_frame=True, reconnect=0))
    monkeypatch.setattr(streams, "open_capture", opens)
    assert len(values_of(LiveStreams([stream]))) == 2 and capsys.readouterr().out == ""


def test_a_file_that_a_server_sends_is_not_begun_again(monkeypatch):
    stream, opens = live(Camera([1, 2, 3], length=3), Camera([9]))
    monkeypatch.setattr(streams, "open_capture", opens)
    assert len(values_of(LiveStreams([stream]))) == 3


def test_a_stream_without_a_single_picture_is_an_error():
    stream, _ = live(Camera([]))
    with pytest.raises(UserError, match="cam: opens, but gives no picture"):
        values_of(LiveStreams([stream]))


def test_an_exception_of_the_thread_is_raised_where_its_frames_are_used():
    class Broken(Camera):
        def read(self):
            raise OSError(5, "Input/output error", "/dev/video0")

    with pytest.raises(OSError, match="Input/output"):
        values_of(LiveStreams([live(Broken([]))[0]]))


def test_the_newest_frame_wins():
    """While the first frame is looked at, eight more arrive: the next one that is looked at is the last of them."""
    gate = threading.Semaphore(0)
    stream, _ = live(Camera(range(10, 20), gate), options=VideoOptions(reconnect=0))
    with closing(LiveStreams([stream]).batches(1)) as batches:
        gate.release()
        (picture,) = next(batches)
        assert picture.frame == 0
        for _ in range(8):
            gate.release()
        while [number for number, *_ in list(stream.frames)] != [8]:
            time.sleep(0.001)
        (picture,) = next(batches)
        assert picture.frame == 8 and picture.image_bgr[0, 0, 0] == 18 and picture.seconds > 0
        gate.release(50)


def test_every_frame_waits_in_bounded_memory():
    stream, _ = live(Camera(range(200)), options=VideoOptions(every_frame=True, reconnect=0))
    numbers = []
    for batch in LiveStreams([stream]).batches(1):
        assert len(stream.frames) <= streams.MOST_FRAMES
        numbers.append(batch[0].frame)
    assert numbers == list(range(200))


def test_every_nth_frame_of_a_stream():
    stream, _ = live(Camera(range(10)), options=VideoOptions(vid_stride=4, every_frame=True, reconnect=0))
    assert [batch[0][1] for batch in values_of(LiveStreams([stream]))] == [0, 4, 8]
    assert stream.fps == 5.0


def test_several_streams_come_in_one_batch_and_one_may_end(monkeypatch):
    monkeypatch.setattr(streams, "open_capture", lambda *_: None)
    gates = [threading.Semaphore(0), threading.Semaphore(0)]
    options = VideoOptions(every_frame=True, reconnect=0)
    both = [
        live(Camera(values, gate), options=options)[0] for values, gate in zip(([1, 2, 3], [7]), gates, strict=True)
    ]
    with closing(LiveStreams(both).batches(1)) as batches:
        for gate in gates:
            gate.release()
        got = set()
        while len(got) < 2:
            got |= {(picture.stream, int(picture.image_bgr[0, 0, 0])) for picture in next(batches)}
        assert got == {(0, 1), (1, 7)}
        for gate in gates:
            gate.release(9)
        assert [p.image_bgr[0, 0, 0] for batch in batches for p in batch] == [2, 3]


def test_one_of_several_streams_that_never_gives_a_picture_is_named(capsys):
    silent, _ = live(Camera([]), name="silent")
    sending, _ = live(Camera([7, 8]), options=VideoOptions(every_frame=True, reconnect=0))
    assert values_of(LiveStreams([silent, sending])) == [[(1, 0, 7)], [(1, 1, 8)]]
    assert capsys.readouterr().out == "silent: opens, but gives no picture; going on without it\n"


def test_one_of_several_streams_that_cannot_be_opened_is_named_and_left_out(tmp_path, monkeypatch, capsys):
    captures = {"rtsp://a": None, "rtsp://b": Camera([7])}
    monkeypatch.setattr("data.sources.open_capture", lambda address, is_live: captures[address])
    listing = tmp_path / "streams.txt"
    listing.write_text("rtsp://a\nrtsp://b\n")
    (source,) = open_source(str(listing), VideoOptions(every_frame=True, reconnect=0))
    assert values_of(source) == [[(0, 0, 7)]]
    assert capsys.readouterr().out == "rtsp://a: cannot be opened as a camera or stream; going on without it\n"
    captures["rtsp://b"] = None
    with pytest.raises(UserError, match="rtsp://a: cannot be opened"):
        open_source(str(listing))


@pytest.mark.parametrize("suffix, is_live", [("mp4", False), ("ts", True), ("flv", True)])
def test_a_server_s_transport_stream_may_have_no_end(monkeypatch, suffix, is_live):
    asked = []
    monkeypatch.setattr("data.sources.open_capture", lambda _, live: asked.append(live) or Camera([1]))
    (source,) = open_source(f"http://host/channel.{suffix}")
    assert asked == [is_live] and source.is_live == is_live


def test_leaving_early_stops_the_threads():
    camera = Camera(itertools.repeat(5))
    before = threading.active_count()
    with closing(LiveStreams([live(camera)[0]]).batches(1)) as batches:
        next(batches)
    assert camera.released and threading.active_count() == before


def test_lists_of_streams_and_of_images_are_told_apart(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr("data.sources.open_capture", lambda address, is_live: opened.append(address) or Camera([]))
    listing = tmp_path / "streams.txt"
    listing.write_text("# two cameras and a stream\n0\n\nrtsp://host/a\n  1 \n")
    (source,) = open_source(str(listing))
    assert opened == [0, "rtsp://host/a", 1]
    assert [stream.name for stream in source.videos] == ["camera 0", "rtsp://host/a", "camera 1"] and source.is_live
    listing.write_text("rtsp://host/a\nphotos/b.jpg\n")
    with pytest.raises(UserError, match=r"streams.txt:2: 'photos/b.jpg' is no camera"):
        open_source(str(listing))
    listing.write_text("photos/b.jpg\n0\n")
    assert open_source(str(listing))[0].paths == (str(tmp_path / "photos/b.jpg"),)


def test_a_server_s_file_is_a_video_that_ends(monkeypatch):
    monkeypatch.setattr("data.sources.open_capture", lambda *_: Camera([1, 2], length=2))
    (source,) = open_source("http://host/film")
    assert isinstance(source, VideoFrames) and not source.is_live and len(source) == 2


@contextmanager
def mjpeg_server(port, values, stalls_after=None):
    """Serve the grey values as a Motion JPEG stream on a port of this machine, as IP cameras do.

    With ``stalls_after`` the first connection stays open after so many pictures, and nothing comes any more.
    """
    stop = threading.Event()
    connections = itertools.count()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", f"multipart/x-mixed-replace; boundary={BOUNDARY}")
            self.end_headers()
            first = next(connections) == 0
            with suppress(ConnectionError):  # the reader hangs up when it has seen enough
                for number, value in enumerate(itertools.cycle(values)):
                    if first and number == stalls_after:
                        stop.wait()
                    content = cv2.imencode(".jpg", np.full((48, 64, 3), value, np.uint8))[1].tobytes()
                    head = f"--{BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(content)}\r\n\r\n"
                    self.wfile.write(head.encode() + content + b"\r\n")
                    if stop.wait(0.02):
                        break

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.server_port
    finally:
        stop.set()
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_server_that_is_stopped_and_started_again(capsys):
    with mjpeg_server(0, [50]) as port:
        try:
            (source,) = open_source(f"http://127.0.0.1:{port}/cam", VideoOptions(reconnect=1000))
        except UserError:
            pytest.skip("this OpenCV opens no streams")
        batches = source.batches(1)
        (picture,) = next(batches)
        assert picture.image_bgr.shape == (48, 64, 3) and abs(int(picture.image_bgr[0, 0, 0]) - 50) < 4
    with mjpeg_server(port, [200]), closing(batches):
        for batch in batches:
            if abs(int(batch[0].image_bgr[0, 0, 0]) - 200) < 4:
                break
    out = capsys.readouterr().out
    assert out.count("has stopped sending") == 1 and out.count("is back after") == 1


def test_a_server_that_stalls_is_reached_again(monkeypatch, capsys):
    monkeypatch.setattr("data.video.STALL_MS", 500)
    with mjpeg_server(0, [50], stalls_after=40) as port:
        try:
            (source,) = open_source(f"http://127.0.0.1:{port}/cam", VideoOptions(reconnect=1000))
        except UserError:
            pytest.skip("this OpenCV opens no streams")
        with closing(source.batches(1)) as batches:
            for _ in batches:
                if source.videos[0].num_frames > 45:  # more than the first connection sends
                    break
    assert "has stopped sending" in capsys.readouterr().out
