"""Writers of detections by hand, without the script: which files, with which numbers, and none that is overwritten."""

import json
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from data.video import Picture
from engine import video_writer
from engine.result_files import VocFiles
from engine.video_writer import Mp4Writer
from engine.writers import DetectionWriter, free_stem, safe_stem
from utils.errors import UserError
from utils.structures import Detections

NAMES = ("disc", "bar")
RED_BGR = np.full((40, 80, 3), (0, 0, 255), np.uint8)  # 80 wide, 40 high
NOTHING = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
ONE = Detections(torch.tensor([[10.0, 5.0, 30.0, 25.0]]), torch.tensor([0.75]), torch.tensor([1]))


def picture(path, frame=0):
    return Picture(np.ascontiguousarray(RED_BGR[:, :, ::-1]), str(path), frame)


def files_in(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def make_mp4(path, num_frames, fps=5.0):
    with Mp4Writer(path, fps) as video:
        for _ in range(num_frames):
            video.add(RED_BGR)


@pytest.fixture
def needs_mp4(tmp_path):
    try:
        make_mp4(tmp_path / "try.mp4", 1)
    except UserError:
        pytest.skip("this OpenCV writes no mp4")
    (tmp_path / "try.mp4").unlink()


def test_label_line_by_hand(tmp_path):
    # Centre (20, 15), size (20, 20) of 80 x 40: 0.25 0.375 0.25 0.5.
    for scores, line in ((False, "1 0.250000 0.375000 0.250000 0.500000\n"),
                         (True, "1 0.250000 0.375000 0.250000 0.500000 0.750000\n")):  # fmt: skip
        folder = tmp_path / str(scores)
        writer = DetectionWriter(folder, NAMES, pictures=False, labels=True, scores=scores)
        writer.write(picture("p/a.jpg"), ONE, None, None)
        writer.write(picture("p/empty.jpg"), NOTHING, None, None)
        writer.close()
        assert files_in(folder) == ["labels/a.txt", "labels/empty.txt"]
        assert (folder / "labels/a.txt").read_text() == line
        assert (folder / "labels/empty.txt").read_text() == ""
        assert writer.num_detections == 1 and writer.written() == f"2 files in {folder}"


def test_coco_results_by_hand(tmp_path):
    writer = DetectionWriter(tmp_path, NAMES, pictures=False, coco=True)
    writer.write(picture("p/000042.jpg"), ONE, None, None)
    writer.write(picture("p/seven.png"), ONE, None, None)
    writer.write(picture("p/7.avi", frame=3), ONE, None, Mp4Writer(tmp_path / "7.mp4", 5.0))
    assert not (tmp_path / "detections.json").exists()
    writer.close()
    assert files_in(tmp_path) == ["detections.json"]
    common = {"category_id": 2, "bbox": [10.0, 5.0, 20.0, 20.0], "score": 0.75}  # category ids count from 1
    assert json.loads((tmp_path / "detections.json").read_text()) == [
        {"image_id": 42, **common, "file_name": "000042.jpg"},
        {"image_id": "seven", **common, "file_name": "seven.png"},
        {"image_id": "7", **common, "file_name": "7.avi", "frame": 3},
    ]


def test_without_any_detection_the_json_is_an_empty_list(tmp_path):
    writer = DetectionWriter(tmp_path, NAMES, coco=True)
    writer.close()
    assert (tmp_path / "detections.json").read_text() == "[]\n"


def test_images_keep_a_suffix_that_can_be_written(tmp_path):
    writer = DetectionWriter(tmp_path, NAMES)
    for name in ("a.png", "b.JPEG", "c.heic", "d"):
        writer.write(picture(name), ONE, RED_BGR, None)
    writer.close()
    assert files_in(tmp_path) == ["a.png", "b.JPEG", "c.jpg", "d.jpg"]
    assert (cv2.imread(str(tmp_path / "a.png")) == RED_BGR).all()


def test_nothing_to_keep(tmp_path):
    writer = DetectionWriter(tmp_path, NAMES, pictures=False)
    writer.write(picture("a.jpg"), ONE, RED_BGR, None)  # drawn for a window alone
    writer.close()
    assert files_in(tmp_path) == [] and writer.written() == "Nothing was to be kept" and writer.num_detections == 1


def test_pictures_of_one_name_are_all_kept(tmp_path):
    writer = DetectionWriter(tmp_path, NAMES, labels=True)
    for name in ("p/a.png", "q/A.png", "q/a_2.png", "r/a.jpg"):
        writer.write(picture(name), ONE, RED_BGR, None)
    # "A" is "a" where a system ignores case; "a_2" is then taken, too.
    assert files_in(tmp_path) == sorted(
        ["a.png", "A_2.png", "a_2_2.png", "a_3.jpg", *(f"labels/{stem}.txt" for stem in ("a", "A_2", "a_2_2", "a_3"))]
    )


def test_frames_go_into_their_video(tmp_path, needs_mp4):
    writer = DetectionWriter(tmp_path, NAMES, labels=True)
    for folder in ("p", "q"):
        with Mp4Writer(writer.video_path(f"{folder}/film.avi"), 5.0) as video:
            for frame in range(3):
                writer.write(picture(f"{folder}/film.avi", frame), ONE, RED_BGR, video)
    labels = [f"labels/{stem}_{frame}.txt" for stem in ("film", "film_2") for frame in range(3)]
    assert files_in(tmp_path) == ["film.mp4", "film_2.mp4", *labels]
    assert writer.num_detections == 6


def test_frames_that_leave_no_file_of_their_own_are_forgotten(tmp_path):
    writer = DetectionWriter(tmp_path, NAMES, pictures=False, files=[VocFiles(tmp_path, NAMES)])
    video = Mp4Writer(tmp_path / "rtsp_camera.mp4", 25.0)
    tracemalloc.start()
    sizes = []
    for number in range(4000):
        writer.write(picture("rtsp://camera", number), ONE, None, video)
        sizes += [tracemalloc.get_traced_memory()[0]] if number in (1999, 3999) else []
    tracemalloc.stop()
    writer.close()
    assert sizes[1] - sizes[0] < 50_000  # of 2000 frames; a string for each would be 100 kB and more
    lines = (tmp_path / "results/comp4_det_test_bar.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines] == [f"rtsp_camera_{number}" for number in range(4000)]


def test_a_video_is_whole_when_its_block_ends(tmp_path, needs_mp4):
    path = tmp_path / "new folder/v.mp4"
    with Mp4Writer(path, 5.0) as video:
        video.add(RED_BGR)
        assert not path.exists()
        video.add(RED_BGR)
    assert files_in(path.parent) == ["v.mp4"]
    read = cv2.VideoCapture(str(path))
    assert read.get(cv2.CAP_PROP_FRAME_COUNT) == 2 and read.get(cv2.CAP_PROP_FPS) == 5
    image = read.read()[1]
    assert image.shape == (40, 80, 3) and np.abs(image.astype(int) - RED_BGR).max() < 20  # mp4v is lossy


def test_a_video_is_absent_without_a_picture_or_after_an_error(tmp_path, needs_mp4):
    make_mp4(tmp_path / "empty.mp4", 0)
    with pytest.raises(KeyError), Mp4Writer(tmp_path / "v.mp4", 5.0) as video:
        video.add(RED_BGR)
        raise KeyError
    assert files_in(tmp_path) == []


def test_an_opencv_without_encoder_is_one_line(tmp_path, monkeypatch):
    class Closed:
        def __init__(self, *arguments):
            Path(arguments[0]).write_bytes(b"")  # as OpenCV may leave it

        fourcc = staticmethod(cv2.VideoWriter.fourcc)
        isOpened = staticmethod(lambda: False)  # noqa: N815
        release = staticmethod(lambda: None)

    monkeypatch.setattr(cv2, "VideoWriter", Closed)
    monkeypatch.setattr(video_writer, "h264_encoder", lambda: "")
    with pytest.raises(UserError, match="cannot write mp4 videos; use --nosave"):
        make_mp4(tmp_path / "v.mp4", 1)
    assert files_in(tmp_path) == []


def test_free_stems():
    taken = set()
    assert [free_stem(stem, taken) for stem in ("a", "A", "a_2", "b")] == ["a", "A_2", "a_2_2", "b"]


@pytest.mark.parametrize(
    "name, stem",
    [("a/b c/film.avi", "film"), ("rtsp://host:554/cam?x=1", "host_554_cam_x_1"), ("camera 0", "camera_0"), ("…", "_"),
     ("rtsp://", "video"), (f"http://{'h' * 99}", "h" * 80)],
)  # fmt: skip
def test_file_names_of_streams(name, stem):
    assert safe_stem(name) == stem


def test_a_stem_with_dots_names_video_and_labels_alike(tmp_path):
    writer = DetectionWriter(tmp_path, NAMES, pictures=False, labels=True)
    path = writer.video_path("rtsp://host/cam.sdp")
    assert path == tmp_path / "host_cam.sdp.mp4"
    writer.write(picture("rtsp://host/cam.sdp", 8), ONE, None, Mp4Writer(path, 5.0))
    assert files_in(tmp_path) == ["labels/host_cam.sdp_8.txt"]
