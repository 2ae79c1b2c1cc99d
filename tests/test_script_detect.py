"""detect.py as a user types it: what it writes, draws, prints and refuses."""

import json
import subprocess
import sys

import cv2
import numpy as np
import pytest

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
    real, seen = script.detect_one, []

    def interrupted(*arguments):
        seen.append(1)
        if len(seen) == number:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(script, "detect_one", interrupted)


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


def test_a_folder_that_cannot_be_written(project, script, monkeypatch, capsys):
    (project / "runs/detect").write_text("a file where a folder is needed")
    assert run_script(script, monkeypatch, "--source", "images") == 2
    assert "cannot write here" in capsys.readouterr().err
