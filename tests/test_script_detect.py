"""detect.py as a user types it: what it writes, draws, prints and refuses."""

import json
import signal
import subprocess
import sys
from collections import Counter

import cv2
import numpy as np
import pytest

from models.nms_variants import NMS_KINDS
from tests.tiny_project import NAMES, REPOSITORY, load_script, make_project, run_script


@pytest.fixture
def project(tmp_path, monkeypatch):
    make_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    return tmp_path


@pytest.fixture(scope="module")
def script():
    return load_script("detect")


def test_without_arguments_as_a_user_types_it(project):
    command = [sys.executable, str(REPOSITORY / "detect.py"), "--view-img"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=project, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "runs/train/exp/best.pt" in lines[0] and "validation images of tiny.data" in lines[0]
    if sys.platform.startswith("linux"):
        assert any("no window" in line for line in lines)
    of_images = [line for line in lines if line.startswith("image ")]
    assert len(of_images) == 7 and of_images[0].startswith("image 1/7 ") and "Done. (" in of_images[0]
    folder = project / "runs/detect/exp"
    assert sorted(path.name for path in folder.iterdir()) == [f"00{n}.png" for n in range(7)]
    changed = cv2.imread(str(folder / "000.png")) != cv2.imread(str(project / "images/000.png"))
    assert changed.any() and changed.shape == (80, 120, 3)


def test_labels_and_json_hold_the_same_boxes(project, script, monkeypatch):
    arguments = ("--source", "images", "--save-txt", "--save-conf", "--save-json", "--nosave", "--conf-thres", 0.2)
    assert run_script(script, monkeypatch, *arguments) == 0
    folder = project / "runs/detect/exp"
    assert sorted(path.name for path in folder.iterdir()) == ["detections.json", "labels"]
    results = json.loads((folder / "detections.json").read_text())
    assert len(results) > 7
    for number, (width, height) in ((0, (120, 80)), (1, (90, 130))):
        rows = np.loadtxt(folder / f"labels/00{number}.txt", ndmin=2)
        mine = [result for result in results if result["image_id"] == number]
        assert [result["file_name"] for result in mine] == [f"00{number}.png"] * len(rows)
        assert [result["category_id"] for result in mine] == (rows[:, 0] + 1).tolist()  # COCO ids count from 1
        x, y, w, h = np.array([result["bbox"] for result in mine]).T
        expected = np.stack(((x + w / 2) / width, (y + h / 2) / height, w / width, h / height), axis=1)
        np.testing.assert_allclose(rows[:, 1:5], expected, atol=2e-4)
        np.testing.assert_allclose(rows[:, 5], [result["score"] for result in mine], atol=1e-6)
        assert (np.diff(rows[:, 5]) <= 0).all()


def test_classes_by_name_or_number_and_lines(project, script, monkeypatch, capsys):
    arguments = ("--source", "images/*.png", "--nosave", "--save-json", "--classes", NAMES[1], "2")
    assert run_script(script, monkeypatch, *arguments) == 0
    results = json.loads((project / "runs/detect/exp/detections.json").read_text())
    assert {result["category_id"] for result in results} == {2, 3}
    words = capsys.readouterr().out
    assert NAMES[1] in words and NAMES[2] in words and NAMES[0] not in words
    assert run_script(script, monkeypatch, *arguments[:-3], "--classes", "Wurfel") == 2
    assert run_script(script, monkeypatch, *arguments[:-3], "--classes", "9" * 5000) == 2
    assert "did you mean 'Würfel'" in capsys.readouterr().err


def test_agnostic_suppresses_more(project, script, monkeypatch):
    for flags in ((), ("--agnostic-nms",)):
        arguments = ("--source", "images", "--nosave", "--save-json", "--iou-thres", 0.2, "--conf-thres", 0.01)
        assert run_script(script, monkeypatch, *arguments, *flags) == 0
    each, together = (
        len(json.loads((project / f"runs/detect/{name}/detections.json").read_text())) for name in ("exp", "exp2")
    )
    assert 0 < together < each


def test_kinds_of_suppression_and_views(project, script, monkeypatch, capsys):
    arguments = ("--source", "images", "--nosave", "--save-json", "--iou-thres", 0.3, "--conf-thres", 0.2)
    found = []
    for flags in ((), *(("--nms", kind) for kind in NMS_KINDS), ("--augment", "--augment-scales", 1, 1)):
        assert run_script(script, monkeypatch, *arguments, *flags, "--exist-ok") == 0
        found.append(json.loads((project / "runs/detect/exp/detections.json").read_text()))
    plain, cfg, greedy, diou, soft_linear, soft_gaussian, merge, views = found
    assert plain == cfg == greedy
    assert all(other != plain for other in (diou, soft_linear, soft_gaussian, merge, views))
    assert [one["score"] for one in merge] == [one["score"] for one in plain]
    assert "--max-det" not in capsys.readouterr().out
    assert run_script(script, monkeypatch, *arguments, "--nms", "soft-linear", "--tile", 64) == 2
    assert "--nms soft-linear would lower scores in each tile" in capsys.readouterr().err


def test_what_the_limit_drops_is_said_once(project, script, monkeypatch, capsys):
    arguments = ("--source", "images", "--nosave", "--save-json", "--conf-thres", 0.2, "--exist-ok")
    assert run_script(script, monkeypatch, *arguments) == 0
    found = json.loads((project / "runs/detect/exp/detections.json").read_text())
    counts = Counter(one["image_id"] for one in found)
    above = [count - 2 for count in counts.values() if count > 2]
    capsys.readouterr()
    assert run_script(script, monkeypatch, *arguments, "--max-det", 2) == 0
    line = f"--max-det 2 dropped {sum(above):,} weaker detections in {len(above)} of 7 pictures"
    assert above and capsys.readouterr().out.count(line) == 1


def write_video(path, num_frames=5, size=(64, 48)):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 4.0, size)
    if not writer.isOpened():
        pytest.skip("this OpenCV writes no videos")
    generator = np.random.default_rng(0)
    for _ in range(num_frames):
        writer.write(cv2.resize(generator.integers(0, 256, (6, 6, 3), dtype=np.uint8), size))
    writer.release()


def test_video_is_drawn_frame_by_frame(project, script, monkeypatch, capsys):
    write_video(project / "film.avi")
    assert run_script(script, monkeypatch, "--source", "film.avi", "--save-txt", "--save-json") == 0
    assert "video 1/1 5/5 film.avi" in capsys.readouterr().out
    folder = project / "runs/detect/exp"
    drawn = cv2.VideoCapture(str(folder / "film.mp4"))
    assert drawn.get(cv2.CAP_PROP_FRAME_COUNT) == 5 and drawn.get(cv2.CAP_PROP_FPS) == 4
    assert drawn.read()[1].shape == (48, 64, 3)
    assert len(list(folder.glob("labels/film_*.txt"))) == 5
    assert {result["frame"] for result in json.loads((folder / "detections.json").read_text())} <= set(range(5))
    assert not list(folder.glob(".*"))


def interrupt_at(number, script, monkeypatch):
    """Raise KeyboardInterrupt, as Ctrl-C does, at the picture of this number, from 1."""
    real, seen = script.detect_batch, []

    def interrupted(*arguments):
        seen.append(1)
        if len(seen) == number:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(script, "detect_batch", interrupted)


def test_interrupt_keeps_the_video_so_far(project, script, monkeypatch):
    write_video(project / "film.avi")
    interrupt_at(4, script, monkeypatch)
    assert run_script(script, monkeypatch, "--source", "film.avi") == 130
    drawn = cv2.VideoCapture(str(project / "runs/detect/exp/film.mp4"))
    assert drawn.get(cv2.CAP_PROP_FRAME_COUNT) == 3


def test_files_of_one_name_are_all_kept(project, script, monkeypatch):
    picture = (project / "images/000.png").read_bytes()
    for name in ("p/a.png", "p/A.bmp", "q/a.png", "q/a_2.png"):
        (project / name).parent.mkdir(exist_ok=True)
        (project / name).write_bytes(picture)
    assert run_script(script, monkeypatch, "--source", "[pq]/*", "--save-txt") == 0
    folder = project / "runs/detect/exp"
    names = {"A", "a_2", "a_3", "a_2_2"}
    assert {path.stem for path in folder.glob("*.*")} == names == {path.stem for path in (folder / "labels").iterdir()}


def test_videos_of_one_name_are_both_kept(project, script, monkeypatch):
    for name in ("p", "q"):
        (project / name).mkdir()
        write_video(project / name / "film.avi")
    assert run_script(script, monkeypatch, "--source", "[pq]/film.avi", "--save-txt") == 0
    folder = project / "runs/detect/exp"
    assert {path.name for path in folder.glob("*.mp4")} == {"film.mp4", "film_2.mp4"}
    assert len(list((folder / "labels").iterdir())) == 10 and (folder / "labels/film_2_4.txt").is_file()


def test_an_interrupt_keeps_what_was_found_so_far(project, script, monkeypatch):
    interrupt_at(3, script, monkeypatch)
    assert run_script(script, monkeypatch, "--source", "images", "--save-json", "--nosave", "--conf-thres", 0.2) == 130
    results = json.loads((project / "runs/detect/exp/detections.json").read_text())
    assert {result["image_id"] for result in results} == {0, 1}


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--source", "nothing.jpg"], "nothing.jpg"),
        (["--source", "broken.png"], "broken.png"),
        (["--source", "labels"], "no image or video"),
        (["--source", "images", "--names", "short.names"], "2 class names"),
        (["--source", "images", "--img-size", "100"], "96 or 104"),
        (["--source", "images", "--conf-thres", "-1"], "between 0 and 1"),
        (["--source", "images", "--weights", "tiny.names"], "neither a checkpoint"),
    ],
)
def test_a_mistake_is_one_line_and_status_two(project, script, monkeypatch, capsys, arguments, words):
    (project / "broken.png").write_bytes(b"no picture")
    (project / "short.names").write_text("a\nb\n")
    assert run_script(script, monkeypatch, *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and words in error


def test_images_that_cannot_be_read_do_not_end_the_run(project, script, monkeypatch, capsys):
    (project / "images/001.png").write_bytes(b"no picture")
    (project / "images/003.png").write_bytes(b"")
    assert run_script(script, monkeypatch, "--source", "images") == 2
    printed = capsys.readouterr()
    assert sorted(path.name for path in (project / "runs/detect/exp").iterdir()) == [
        f"00{n}.png" for n in (0, 2, 4, 5, 6)
    ]
    assert "5 pictures" in printed.out and "003.png" in printed.out
    assert printed.err.count("\n") == 1 and "001.png" in printed.err and "1 more" in printed.err


def test_names_of_the_data_that_the_user_names_come_before_those_of_the_weights(project, script, monkeypatch, capsys):
    data = (project / "tiny.data").read_text()
    (project / "other.names").write_text("alpha\nbeta\ngamma\n")
    (project / "other.data").write_text(data.replace("tiny.names", "other.names"))
    assert run_script(script, monkeypatch, "--source", "images", "--nosave", "--data", "other.data") == 0
    printed = capsys.readouterr().out
    assert "alpha" in printed and NAMES[0] not in printed
    assert run_script(script, monkeypatch, "--source", "images", "--nosave", "--data", "images") == 0
    assert NAMES[0] in capsys.readouterr().out  # a folder has no names: those of the weights


def test_the_faster_road_is_named(project, script, monkeypatch, capsys):
    monkeypatch.chdir(project)
    monkeypatch.setattr("engine.speed.find_spec", lambda _name: object())
    assert run_script(script, monkeypatch, "--source", "images/000.png", "--device", "cpu") == 0
    assert "export.py --format openvino" in capsys.readouterr().out


def test_a_folder_that_cannot_be_written(project, script, monkeypatch, capsys):
    (project / "runs/detect").write_text("a file where a folder is needed")
    assert run_script(script, monkeypatch, "--source", "images") == 2
    assert "cannot write here" in capsys.readouterr().err


def lines_and_files(project, capsys, name):
    """The printed lines without their times, and the content of every file of a run."""
    lines = [line.split("Done.")[0] for line in capsys.readouterr().out.splitlines() if "Done." in line]
    folder = project / "runs/detect" / name
    return lines, {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("size", [2, 3, 16])
def test_a_batch_finds_what_single_images_give(project, script, monkeypatch, capsys, size):
    (project / "images/004.png").write_bytes(b"no picture")
    arguments = ("--source", "images", "--save-txt", "--conf-thres", 0.2)
    assert run_script(script, monkeypatch, *arguments) == 2
    lines, files = lines_and_files(project, capsys, "exp")
    assert run_script(script, monkeypatch, *arguments, "--batch-size", size) == 2
    batched_lines, batched_files = lines_and_files(project, capsys, "exp2")
    assert lines == batched_lines and len(lines) == 6 and files.keys() == batched_files.keys()
    for path in files:
        if path.suffix == ".txt":
            rows, batched = (np.fromstring(text, sep=" ") for text in (files[path], batched_files[path]))
            np.testing.assert_allclose(rows, batched, atol=2e-5)


def test_frames_of_a_video_in_batches(project, script, monkeypatch, capsys):
    write_video(project / "film.avi")
    seen = []
    real = script.detect_batch
    monkeypatch.setattr(
        script, "detect_batch", lambda d, pictures, *a: seen.append(len(pictures)) or real(d, pictures, *a)
    )
    assert run_script(script, monkeypatch, "--source", "film.avi", "--batch-size", 3) == 0
    assert seen == [3, 2]
    assert [f"video 1/1 {n}/5" in line for n, line in enumerate(lines_and_files(project, capsys, "exp")[0], 1)] == [
        True
    ] * 5
    drawn = cv2.VideoCapture(str(project / "runs/detect/exp/film.mp4"))
    assert drawn.get(cv2.CAP_PROP_FRAME_COUNT) == 5


def test_a_picture_that_cannot_be_written_ends_the_run_with_its_line(project, script, monkeypatch, capsys):
    def refuse(path, image):
        if "003" in str(path):
            raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("engine.writers.write_image", refuse)
    assert run_script(script, monkeypatch, "--source", "images", "--save-json", "--conf-thres", 0.2) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "003.png" in error and "No space left" in error
    results = json.loads((project / "runs/detect/exp/detections.json").read_text())
    assert {0, 1, 2} <= {result["image_id"] for result in results} <= {0, 1, 2, 4, 5, 6}


def test_every_nth_frame(project, script, monkeypatch, capsys):
    write_video(project / "film.avi", num_frames=8)
    assert run_script(script, monkeypatch, "--source", "film.avi", "--save-txt", "--vid-stride", 3) == 0
    assert "video 1/1 3/3 film.avi" in capsys.readouterr().out
    folder = project / "runs/detect/exp"
    assert {path.stem for path in (folder / "labels").iterdir()} == {"film_0", "film_3", "film_6"}
    drawn = cv2.VideoCapture(str(folder / "film.mp4"))
    assert drawn.get(cv2.CAP_PROP_FRAME_COUNT) == 3 and abs(drawn.get(cv2.CAP_PROP_FPS) - 4 / 3) < 0.01


def test_coordinates_and_files_of_all_kinds_tell_the_same(project, script, monkeypatch, capsys):
    kinds = ("--save-json", "--save-csv", "--save-crop", "--save-as", "darknet-json", "voc", "--ext-output")
    assert run_script(script, monkeypatch, "--source", "images", "--conf-thres", 0.2, "--nosave", *kinds) == 0
    folder = project / "runs/detect/exp"
    results = json.loads((folder / "detections.json").read_text())
    printed = [line for line in capsys.readouterr().out.splitlines() if "left_x:" in line]
    darknet = json.loads((folder / "result.json").read_text())
    voc = [line for path in (folder / "results").iterdir() for line in path.read_text().splitlines()]
    table = (folder / "detections.csv").read_text().splitlines()
    crops = list(folder.glob("crops/*/*.jpg"))
    counts = {len(results), len(printed), sum(len(image["objects"]) for image in darknet), len(voc), len(table) - 1}
    assert counts == {len(results)} and results
    assert 0 < len(crops) <= len(results)
    assert {path.name for path in (folder / "results").iterdir()} == {f"comp4_det_test_{name}.txt" for name in NAMES}


class Camera:
    """A capture of grey pictures."""

    def __init__(self, num_frames):
        self.images = iter([np.full((48, 64, 3), 5 * n, np.uint8) for n in range(num_frames)])

    def read(self):
        image = next(self.images, None)
        return image is not None, image

    def get(self, what):
        return 10.0 if what == cv2.CAP_PROP_FPS else 0

    def release(self):
        pass


def test_two_streams_of_a_list_make_two_videos_that_play(project, script, monkeypatch, capsys):
    monkeypatch.setattr("data.sources.open_capture", lambda address, is_live: Camera(4))
    (project / "streams.txt").write_text("0\nrtsp://host/door\n")
    arguments = ("--source", "streams.txt", "--every-frame", "--reconnect", 0, "--save-json", "--conf-thres", 0.1)
    assert run_script(script, monkeypatch, *arguments) == 0
    lines = [line.split(":")[0] for line in capsys.readouterr().out.splitlines() if "Done." in line]
    for number, name in ((1, "camera 0"), (2, "rtsp")):
        assert [line for line in lines if line.startswith(f"video {number}/2")] == [
            f"video {number}/2 {n} {name}" for n in range(1, 5)
        ]
    folder = project / "runs/detect/exp"
    assert sorted(path.name for path in folder.glob("*.mp4")) == ["camera_0.mp4", "host_door.mp4"]
    for path in folder.glob("*.mp4"):
        assert cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FRAME_COUNT) == 4
    files = {result["file_name"] for result in json.loads((folder / "detections.json").read_text())}
    assert files <= {"camera 0", "door"}


def test_ctrl_c_ends_a_camera_and_its_video_plays(project, script, monkeypatch):
    monkeypatch.setattr("data.sources.open_capture", lambda address, is_live: Camera(50))
    interrupt_at(4, script, monkeypatch)
    assert run_script(script, monkeypatch, "--source", "0", "--every-frame") == 0
    drawn = cv2.VideoCapture(str(project / "runs/detect/exp/camera_0.mp4"))
    assert drawn.get(cv2.CAP_PROP_FRAME_COUNT) == 3 and drawn.read()[0]


def test_tiles_change_nothing_where_an_image_fits_into_one(project, script, monkeypatch, capsys):
    arguments = ("--source", "images", "--save-json", "--nosave", "--conf-thres", 0.2)
    assert run_script(script, monkeypatch, *arguments) == 0
    assert run_script(script, monkeypatch, *arguments, "--tile", 130) == 0
    assert run_script(script, monkeypatch, *arguments, "--tile", 64, "--overlap", 0.25) == 0
    whole, one_tile, tiles = (
        json.loads((project / f"runs/detect/{name}/detections.json").read_text()) for name in ("exp", "exp2", "exp3")
    )
    assert whole == one_tile and tiles != whole
    assert all(min(x, y) >= 0 and max(x + w, y + h) <= 130 for x, y, w, h in (one["bbox"] for one in tiles))


def test_tracks_stand_in_json_csv_and_mot(project, script, monkeypatch):
    pytest.importorskip("trackers")
    write_video(project / "film.avi", num_frames=1)
    capture = cv2.VideoCapture(str(project / "film.avi"))
    image = capture.read()[1]
    writer = cv2.VideoWriter(str(project / "still.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 4.0, (64, 48))
    for _ in range(5):  # the same picture: every object stays where it is
        writer.write(image)
    writer.release()
    kinds = ("--track", "--save-json", "--save-csv", "--conf-thres", 0.3)
    assert run_script(script, monkeypatch, "--source", "still.avi", *kinds) == 0
    folder = project / "runs/detect/exp"
    results = json.loads((folder / "detections.json").read_text())
    tracked = [result for result in results if result["track_id"] is not None]
    assert tracked and {result["frame"] for result in tracked} == {1, 2, 3, 4}
    rows = np.loadtxt(folder / "still.txt", delimiter=",", ndmin=2)
    assert rows.shape == (len(tracked), 10)
    for row, result in zip(rows, tracked, strict=True):
        x, y, width, height = result["bbox"]
        expected = [result["frame"] + 1, result["track_id"], x + 1, y + 1, width, height, result["score"], -1, -1, -1]
        np.testing.assert_allclose(row, expected, atol=0.006)
    ids = [line.rsplit(",", 1)[1] for line in (folder / "detections.csv").read_text().splitlines()[1:]]
    assert ids == [str(result["track_id"] or "") for result in results]


def test_tracking_without_its_package_is_one_line(project, script, monkeypatch, capsys):
    write_video(project / "film.avi")
    monkeypatch.setitem(sys.modules, "trackers", None)
    assert run_script(script, monkeypatch, "--source", "film.avi", "--track") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "requirements-tracking.txt" in error


@pytest.mark.skipif(sys.platform == "win32", reason="no signals to send")
def test_ctrl_c_in_a_long_video_leaves_a_file_that_plays(project):
    write_video(project / "film.avi", num_frames=3000)
    command = [sys.executable, "-u", str(REPOSITORY / "detect.py"), "--source", "film.avi", "--save-json", "--save-csv"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": project}
    # Ctrl-C counts as in a terminal, although a shell lets commands ignore it that it starts in the background.
    with subprocess.Popen(command, **pipes, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)) as run:
        for line in run.stdout:
            if line.startswith("video 1/1 25/3000 "):
                run.send_signal(signal.SIGINT)
                break
        rest, error = run.communicate(timeout=60)
    assert run.returncode == 130 and error == "interrupted\n"
    printed = 25 + sum(line.startswith("video 1/1 ") for line in rest.splitlines())
    folder = project / "runs/detect/exp"
    assert sorted(path.name for path in folder.iterdir()) == ["detections.csv", "detections.json", "film.mp4"]
    drawn = cv2.VideoCapture(str(folder / "film.mp4"))
    frames = 0
    while drawn.read()[0]:
        frames += 1
    assert printed - 1 <= frames <= printed  # the signal may come between the line and the frame
    assert {result["frame"] for result in json.loads((folder / "detections.json").read_text())} <= set(range(frames))
