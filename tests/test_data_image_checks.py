"""Images that cannot be used are bad rows: left out, named, counted, and only too many of them stop a command."""

import json
import os

import cv2
import numpy as np
import pytest

from data.augment import AugmentOptions
from data.image_checks import ImageCheckOptions, bad_images, too_many
from data.loader import LoaderSettings, evaluation_batches, training_batches
from data.splits import open_split
from tests.tiny_project import load_script, make_project, run_script
from utils.errors import UserError


def make_set(folder, count=20, suffix="jpg"):
    for number in range(count):
        image = np.random.default_rng(number).integers(0, 256, (48, 64, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{number:02}.{suffix}"), image)
        (folder / f"{number:02}.txt").write_text("0 .5 .5 .5 .5\n")


def cut(path, end=b""):
    """Keep half of a file: its header stays whole."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + end)


@pytest.mark.parametrize(
    ("bad", "total", "max_bad", "stops"),
    [(0, 10, 0.0, False), (1, 10, 0.0, True), (1, 10, 0.01, False), (2, 10, 0.01, True), (2, 10, 0.2, False),
     (3, 10, 0.2, True), (10, 1000, 0.01, False), (11, 1000, 0.01, True), (1, 1, 1.0, True), (10, 10, 1.0, True)],
)  # fmt: skip
def test_how_many_are_too_many(bad, total, max_bad, stops):
    assert too_many(bad, total, max_bad) == stops


def test_bad_headers_are_found_at_once_and_said_together(tmp_path, capsys):
    make_set(tmp_path)
    (tmp_path / "03.jpg").write_bytes(b"")
    (tmp_path / "07.jpg").write_bytes(b"<html>")
    with pytest.raises(UserError, match=r"2 of 20 images cannot be used, more than --max-bad 0\.01 .*03\.jpg"):
        open_split(str(tmp_path), "train")
    said = capsys.readouterr().out
    assert "WARNING: 2 of 20 images cannot be used and are left out:" in said
    assert all(f"  {tmp_path}/{name}.jpg: not an image" in said for name in ("03", "07"))
    notes = open_split(str(tmp_path), "train", checks=ImageCheckOptions(max_bad=0.1))
    assert len(notes) == 18 and len(bad_images(notes)) == 2 and len(notes.labels) == 18


def test_whole_files_are_read_where_that_is_wanted(tmp_path):
    make_set(tmp_path)
    cut(tmp_path / "03.jpg")
    cut(tmp_path / "07.jpg", end=b"\xff\xd9")  # its lower half is grey
    assert len(open_split(str(tmp_path), "train")) == 20
    notes = open_split(str(tmp_path), "train", checks=ImageCheckOptions(max_bad=0.1, verify_images=True))
    reasons = {os.path.basename(problem.file): problem.what for problem in bad_images(notes)}
    assert len(notes) == 18 and reasons.keys() == {"03.jpg", "07.jpg"}
    assert "cut off" in reasons["03.jpg"] and "ends early, the rest of it is grey" in reasons["07.jpg"]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_breaks_later_is_left_out_and_counted_once(tmp_path, capsys, workers):
    make_set(tmp_path, suffix="png")
    notes = open_split(str(tmp_path), "train")
    cut(tmp_path / "03.png")
    settings = LoaderSettings((64, 64), 4, workers=workers, max_bad=0.1)
    for _ in range(2):
        batches = evaluation_batches(notes, settings)
        assert sum(len(batch.images) for batch in batches) == 19
        assert batches.unread_image_ids() == {int(notes.image_ids[3])}
    batches = training_batches(notes, settings, AugmentOptions())
    for epoch in range(2):  # another image takes its place: batches stay whole
        batches.set_epoch(epoch)
        assert [len(batch.images) for batch in batches] == [4] * 5
    said = capsys.readouterr().out
    assert said.count("03.png") == 3 and "left out (1 of 20 images so far)" in said


def test_what_takes_the_place_does_not_depend_on_the_number_of_workers(tmp_path):
    make_set(tmp_path, suffix="png")
    notes = open_split(str(tmp_path), "train")
    for name in ("03", "11"):
        cut(tmp_path / f"{name}.png")
    first, second = (
        [batch.images for batch in training_batches(notes, settings, AugmentOptions())]
        for settings in (LoaderSettings((64, 64), 4, workers=workers, max_bad=0.1) for workers in (0, 2))
    )
    assert all((one == other).all() for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_that_break_later_stop_the_run(tmp_path, workers):
    make_set(tmp_path, suffix="png")
    notes = open_split(str(tmp_path), "train")
    for name in ("03", "07", "11"):
        cut(tmp_path / f"{name}.png")
    settings = LoaderSettings((64, 64), 4, workers=workers, max_bad=0.1)
    with pytest.raises(UserError, match=r"3 of 20 images cannot be used, --max-bad 0\.1 allows no more"):
        list(evaluation_batches(notes, settings))


def test_the_evaluation_leaves_the_truth_of_a_lost_image_out(tmp_path, monkeypatch, capsys):
    make_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    script = load_script("test")
    cut(tmp_path / "images/004.png")
    assert run_script(script, monkeypatch, "--workers", 0, "--save-json", "--batch-size", 1) == 0
    assert "WARNING: without 1 image that cannot be used" in capsys.readouterr().out
    truth = json.loads((tmp_path / "runs/test/exp/ground_truth.json").read_text())
    assert "004.png" not in {image["file_name"] for image in truth["images"]} and len(truth["images"]) == 6
    assert {row["image_id"] for row in truth["annotations"]} <= {image["id"] for image in truth["images"]}
    metrics = json.loads((tmp_path / "runs/test/exp/metrics.json").read_text())
    (tmp_path / "images/004.png").unlink()
    assert run_script(script, monkeypatch, "--workers", 0, "--batch-size", 1, "--name", "without") == 0
    assert json.loads((tmp_path / "runs/test/without/metrics.json").read_text())["ap"] == metrics["ap"]


@pytest.mark.parametrize("command", ["test", "detect", "train"])
@pytest.mark.parametrize("name", [b"gr\xfcn.png", b"\xff\xfe.png", "日本.png".encode("shift_jis")])
def test_names_that_are_not_utf8_work(tmp_path, monkeypatch, capsys, command, name):
    make_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    try:
        os.rename(b"images/004.png", b"images/" + name)
        os.rename(b"labels/004.txt", b"labels/" + os.path.splitext(name)[0] + b".txt")
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    (tmp_path / "list.txt").write_bytes(b"".join(b"images/" + one + b"\n" for one in sorted(os.listdir(b"images"))))
    (tmp_path / "tiny.data").write_text("classes=3\ntrain=list.txt\nvalid=list.txt\nnames=tiny.names\n")
    arguments = {
        "test": ["--save-json", "--workers", 0],
        "detect": ["--source", "images", "--save-txt", "--save-json"],
        "train": ["--cfg", "tiny.cfg", "--data", "tiny.data", "--epochs", 1, "--img-size", 64, "--workers", 0],
    }[command]
    assert run_script(load_script(command), monkeypatch, *arguments) == 0
    capsys.readouterr().out.encode()
    folder = tmp_path / f"runs/{command}"
    (run,) = (one for one in folder.iterdir() if one.name != "exp" or command != "train")
    written = os.listdir(os.fsencode(run))
    if command == "detect":
        assert name in written and len(written) == 7 + 2
        assert cv2.imdecode(np.fromfile(os.fsencode(run) + b"/" + name, np.uint8), 1).shape == (130, 90, 3)
        names = [row["file_name"] for row in json.loads((run / "detections.json").read_text())]
        assert any("\\x" in one for one in names)
    elif command == "test":
        assert len(json.loads((run / "ground_truth.json").read_text())["images"]) == 7
    else:
        assert {b"best.pt", b"results.csv", b"train_batch0.jpg"} <= set(written)
