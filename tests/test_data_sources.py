"""What --source may name: image, folder, glob, list, video; and what it may not."""

import shutil

import cv2
import numpy as np
import pytest

from data.sources import open_source
from utils.errors import UserError

CAPTURE = cv2.VideoCapture


@pytest.fixture
def folder(tmp_path):
    for name, red in (("b.png", 200), ("a.jpg", 100)):
        cv2.imwrite(str(tmp_path / name), np.full((20, 30, 3), (0, 0, red), np.uint8))
    writer = cv2.VideoWriter(str(tmp_path / "v.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 12.0, (32, 24))
    for value in range(5):
        writer.write(np.full((24, 32, 3), value * 40, np.uint8))
    writer.release()
    (tmp_path / "notes.md").write_text("no picture")
    return tmp_path


def test_folder_glob_list_and_single_file(folder):
    images, video = open_source(str(folder))
    assert [picture.path.rsplit("/", 1)[-1] for picture in images] == ["a.jpg", "b.png"]
    picture = list(images)[1]
    assert picture.image_rgb.shape == (20, 30, 3) and picture.image_rgb[0, 0].tolist() == [200, 0, 0]
    assert not images.is_video and video.is_video and not video.is_live
    (only,) = open_source(str(folder / "*.png"))
    assert len(only) == 1
    (folder / "list.txt").write_text(f"b.png\n{folder}/a.jpg\n")
    assert [p.path.rsplit("/", 1)[-1] for p in open_source(str(folder / "list.txt"))[0]] == ["b.png", "a.jpg"]
    assert len(open_source(str(folder / "a.jpg"))[0]) == 1


def test_video_frames_in_order_with_their_rate(folder):
    (video,) = open_source(str(folder / "v.avi"))
    frames = list(video)
    assert [picture.frame for picture in frames] == [0, 1, 2, 3, 4]
    assert video.fps == 12.0 and len(video) == 5
    assert [round(picture.image_rgb.mean() / 40) for picture in frames] == [0, 1, 2, 3, 4]


def test_a_video_that_is_cut_off_is_named(folder, capsys):
    writer = cv2.VideoWriter(str(folder / "whole.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 12.0, (64, 48))
    for _ in range(40):
        writer.write(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8))
    writer.release()
    content = (folder / "whole.avi").read_bytes()
    (folder / "cut.avi").write_bytes(content[: len(content) // 2])
    (cut,), (whole,) = open_source(str(folder / "cut.avi")), open_source(str(folder / "whole.avi"))
    given = len(list(cut))
    assert 10 < given < 30 and len(cut) == len(list(whole)) == 40
    assert capsys.readouterr().out == f"{folder}/cut.avi: ended after {given} of 40 frames; is it whole?\n"


def test_lines_of_a_list_that_are_passed_over_are_named(folder, capsys):
    (folder / "list.txt").write_text("# photos\nb.png\nphoto.heic\nrtsp://camera/1\na.jpg\n")
    (images,) = open_source(str(folder / "list.txt"))
    assert len(images) == 2
    said = capsys.readouterr().out.splitlines()
    words = f"{folder}/list.txt: passed over, of no kind that is read: "
    assert said == [f"{words}photo.heic", f"{words}rtsp://camera/1"]


def test_videos_are_open_only_while_they_are_looked_at(folder, monkeypatch):
    captures = []
    monkeypatch.setattr(cv2, "VideoCapture", lambda *arguments: captures.append(CAPTURE(*arguments)) or captures[-1])
    for number in range(8):
        shutil.copy(folder / "v.avi", folder / f"w{number}.avi")
    sources = open_source(str(folder / "w*.avi"))
    assert len(captures) == 8 and not any(capture.isOpened() for capture in captures)
    first = sources[0].batches(2)
    assert len(next(first)) == 2
    assert [capture.isOpened() for capture in captures] == [False] * 8 + [True]
    first.close()
    assert not captures[-1].isOpened()
    assert [len(list(source)) for source in sources] == [5] * 8
    (folder / "w3.avi").unlink()
    with pytest.raises(UserError, match=r"w3\.avi: cannot be opened as a video any more"):
        list(sources[3])


@pytest.mark.parametrize(
    "source, message",
    [
        ("nothing/*.jpg", "no such file, folder or glob"),
        ("notes.md", "no image or video there"),
        ("broken.mp4", "cannot be opened as a video"),
        ("987", "camera 987: cannot be opened as a camera or stream"),
        ("9" * 200, "no such file, folder or glob"),
        ("123456", "no such file, folder or glob"),
        ("~nobody-of-this-name/x.jpg", "no such file, folder or glob"),
    ],
)
def test_what_cannot_be_opened(folder, monkeypatch, source, message):
    monkeypatch.chdir(folder)
    (folder / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(UserError, match=message):
        open_source(source)


def test_an_unreadable_image_is_named(folder):
    (folder / "a.jpg").write_bytes(b"\xff\xd8 no more")
    (source,) = (one for one in open_source(str(folder)) if not one.is_video)
    read = [picture.path for picture in source]
    assert len(read) == len(source) - 1 and str(folder / "a.jpg") not in read
    (problem,) = source.problems
    assert "a.jpg: not an image that can be read" in problem
