"""A network whose input is wider than high: every script works at that size."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml

import analyze
import detect
import kmeans_anchors
import test as test_script
import train
from data.augment import AugmentOptions
from data.labels.read import read_dataset
from data.loader import LoaderSettings, training_batches
from data.splits import open_data
from models.checkpoints.format import read_checkpoint
from tests.tiny_project import CFG, make_project

BASICS = ("--data", "tiny.data", "--cfg", "tiny.cfg", "--workers", 0, "--device", "cpu")
QUICK = (*BASICS, "--batch-size", 4, "--epochs", 1)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A cfg of 96 x 64 that stretches, as Darknet's, and one of the same network that letterboxes."""
    make_project(tmp_path, num_images=8)
    (tmp_path / "boxed.cfg").write_text(CFG.replace("channels=3", "channels=3\nletter_box=1"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def shapes_seen(monkeypatch):
    """The (width, height) of every batch that is trained on."""
    seen = []
    update = train.EpochBar.update

    def spy(bar, losses, batch):
        seen.append(tuple(batch.images.shape[:1:-1]))
        update(bar, losses, batch)

    monkeypatch.setattr(train.EpochBar, "update", spy)
    return seen


def line(run_main, script, *arguments):
    """Run a script and return the line in which it says what it chose."""
    status, out, error = run_main(script, *arguments)
    assert status == 0, error
    name = script.__name__.split("_")[0]
    return next(one for one in out.splitlines() if one.startswith(f"{name}"))


def test_every_script_takes_the_shape_of_the_cfg(project, run_main, shapes_seen):
    assert "stretch to 96x64 (as Darknet: no letter_box=1 in the cfg)," in line(run_main, train, *QUICK)
    assert set(shapes_seen) == {(96, 64)}
    trained = "stretch to 96x64 (as these weights were trained)"
    assert trained in line(run_main, test_script, "--weights", "runs/train/exp2/best.pt", "--workers", 0)
    metrics = json.loads(Path("runs/test/exp/metrics.json").read_text())
    assert metrics["options"]["img_size"] == [96, 64] and metrics["options"]["resize"] == "stretch"
    assert trained in line(run_main, detect, "--weights", "runs/train/exp2/best.pt", "--source", "images")
    about = ("--data", "tiny.data", "--cfg", "tiny.cfg")
    assert "stretch to 96x64" in line(run_main, kmeans_anchors, *about, "--num", 3)
    status, out, _ = run_main(analyze, "--anchor-stats", *about)
    assert status == 0 and "Matches at 96 x 64" in out
    assert trained in line(
        run_main, analyze, "--matching-stats", "--weights", "runs/train/exp2/best.pt", "--workers", 0
    )


def test_a_cfg_that_letterboxes_does_so_in_a_rectangle(project, run_main, shapes_seen):
    options = [*QUICK]
    options[options.index("tiny.cfg")] = "boxed.cfg"
    assert "letterbox to 96x64 (letter_box=1 in the cfg)" in line(run_main, train, *options, "--name", "boxed")
    assert set(shapes_seen) == {(96, 64)}
    weights = ("--weights", "runs/train/boxed/best.pt")
    assert "letterbox to 96x64 (as these" in line(run_main, test_script, *weights, "--workers", 0)
    assert "stretch to 64x96 (--resize)" in line(
        run_main, detect, *weights, "--source", "images", "--resize", "stretch", "--img-size", 64, 96
    )


def test_training_and_testing_at_two_sizes(project, run_main, shapes_seen):
    said = line(
        run_main, train, *QUICK, "--img-size", 64, 96, "--test-size", 32, "--resize", "letterbox", "--name", "two"
    )
    assert "letterbox to 64x96 (--resize), tested at 32x32" in said
    assert set(shapes_seen) == {(64, 96)}
    assert "letterbox to 32x32" in line(run_main, detect, "--weights", "runs/train/two/best.pt", "--source", "images")
    status, _, error = run_main(train, *QUICK, "--test-size", 64, 64, 64)
    assert status == 2 and "--test-size takes width and height in pixels, or one number for a square" in error


def test_resume_goes_on_in_the_same_shape(project, run_main, shapes_seen, monkeypatch):
    assert run_main(train, *QUICK, "--name", "cut")[0] == 0
    del shapes_seen[:]
    said = line(run_main, train, "--resume", "runs/train/cut", "--epochs", 2)
    assert "stretch to 96x64 (as before)" in said and set(shapes_seen) == {(96, 64)}


def as_before_there_was_a_resize(path, **options):
    """Rewrite what a run left as an earlier version would have."""
    checkpoint = read_checkpoint(path)
    kept = {name: value for name, value in checkpoint["options"].items() if name not in ("resize", "test_size")}
    torch.save({**checkpoint, "options": {**kept, **options}}, path)
    config = path.with_name("config.yaml")
    kept = {name: value for name, value in yaml.safe_load(config.read_text()).items() if name in kept}
    config.write_text(yaml.safe_dump(kept | options))


@pytest.mark.parametrize(
    ("img_size", "size", "tested"), [([], 96, ""), ([64], 64, ""), ([64, 32], 64, ", tested at 32x32")]
)
def test_an_older_run_goes_on_as_it_was(project, run_main, shapes_seen, img_size, size, tested):
    assert run_main(train, *QUICK, "--name", "old", "--img-size", 64)[0] == 0
    path = project / "runs/train/old/last.pt"
    as_before_there_was_a_resize(path, img_size=img_size)
    del shapes_seen[:]
    said = line(run_main, train, "--resume", path, "--epochs", 2)
    assert f"letterbox to {size}x{size} (as before){tested}," in said and set(shapes_seen) == {(size, size)}
    if img_size:  # as a recipe, which knows no cfg
        as_before_there_was_a_resize(path, img_size=img_size)
        said = line(run_main, train, "--hyp", "runs/train/old/config.yaml", "--epochs", 1, "--name", "again")
        assert f"letterbox to {size}x{size} (--resize){tested}," in said


def test_new_anchors_fit_into_the_rectangle(project, run_main):
    # Objects as high as their images are 64 pixels high in an input of 96 x 64, stretched or not; in a square, 96.
    for path in Path("labels").glob("*.txt"):
        path.write_text("0 0.5 0.5 0.25 1\n")
    line(run_main, kmeans_anchors, "--data", "tiny.data", "--cfg", "tiny.cfg", "--num", 1, "--method", "iou")
    result = json.loads(Path("runs/analyze/kmeans-anchors/results.json").read_text())
    assert result["statistics"]["found"]["anchors"] == [[24, 64]]


@pytest.mark.parametrize("resize", ["letterbox", "stretch"])
@pytest.mark.parametrize("mosaic", [0.0, 1.0])
def test_boxes_move_with_their_pixels_in_rectangles_of_many_sizes(tmp_path, mosaic, resize):
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    for number, (width, height) in enumerate([(120, 80), (90, 130), (64, 64), (200, 70)] * 2):
        image = np.zeros((height, width, 3), np.uint8)
        cv2.rectangle(image, (width // 4, height // 4), (width * 3 // 4 - 1, height * 3 // 4 - 1), (255, 255, 255), -1)
        cv2.imwrite(str(tmp_path / f"images/{number}.png"), image)
        x1, y1, x2, y2 = width // 4, height // 4, width * 3 // 4, height * 3 // 4
        row = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
        (tmp_path / f"labels/{number}.txt").write_text("0 " + " ".join(f"{value:.6f}" for value in row) + "\n")
    annotations = read_dataset(open_data(str(tmp_path)), "train")
    still = AugmentOptions(hsv_h=0.0, hsv_s=0.0, hsv_v=0.0, translate=0.1, scale=0.2, fliplr=0.5, mosaic=mosaic)
    settings = LoaderSettings((64, 160), 2, stride=32, resize=resize, multi_scale=True)
    batches = training_batches(annotations, settings, still)
    shapes = set()
    for epoch in range(6):
        batches.set_epoch(epoch)
        for batch in batches:
            height, width = batch.images.shape[2:]
            shapes.add((width, height))
            white = (batch.images > 190).all(dim=1)
            for image, (cx, cy, w, h) in zip(batch.targets.image, batch.targets.boxes_cxcywh, strict=True):
                x1, x2 = (round(float(value) * width) for value in (cx - w / 2, cx + w / 2))
                y1, y2 = (round(float(value) * height) for value in (cy - h / 2, cy + h / 2))
                inside = white[image, y1 + 2 : y2 - 2, x1 + 2 : x2 - 2]
                assert inside.all(), (width, height)
    assert len(shapes) > 3 and all(0.3 <= height / width <= 0.5 or height == 32 for width, height in shapes)
