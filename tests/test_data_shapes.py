"""The demo set: deterministic, its boxes tight around what shows, of all the kinds that the analysis looks for."""

import json

import numpy as np
import pytest

from data import shapes
from data.description import DataDescription
from data.labels.read import read_dataset
from utils.errors import UserError


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(shapes, "NUM_IMAGES", {"train": 6, "val": 3})


def describe(folder):
    splits = {"train": (str(folder / "images" / "train"),), "valid": (str(folder / "images" / "val"),)}
    return DataDescription(folder / "x.data", len(shapes.CLASSES), shapes.CLASSES, splits)


def test_drawn_twice_is_the_same(few, tmp_path):
    for name in ("a", "b"):
        shapes.ensure_drawn(tmp_path / name)
    for path in sorted((tmp_path / "a").rglob("*.*")):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()
    notes = read_dataset(describe(tmp_path / "a"), "train")
    assert len(notes) == 6 and notes.problems == () and len(notes.labels) > 10


def test_an_unfinished_or_outdated_drawing_is_done_again_and_a_current_one_is_kept(few, tmp_path):
    folder = shapes.ensure_drawn(tmp_path / "set")
    image = folder / "images" / "val" / "val_0001.jpg"
    image.write_bytes(b"changed")
    assert shapes.ensure_drawn(folder) == folder and image.read_bytes() == b"changed"
    image.unlink()
    shapes.ensure_drawn(folder)
    assert image.stat().st_size > 1000
    marker = folder / shapes.MARKER
    marker.write_text(json.dumps({"version": "old"}))
    (folder / "labels" / "val" / "val_0001.txt").write_text("old")
    shapes.ensure_drawn(folder)
    assert (folder / "labels" / "val" / "val_0001.txt").read_text() != "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]


def test_a_folder_of_the_user_is_not_touched(few, tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match="was not drawn by"):
        shapes.ensure_drawn(tmp_path / "mine")


def test_boxes_are_the_extent_of_what_shows():
    # Two rectangles of 40 x 20 by masks: the second covers the right half of the first.
    first, second = np.zeros((60, 80), np.uint8), np.zeros((60, 80), np.uint8)
    first[10:30, 10:50] = 255
    second[5:40, 30:70] = 255
    chosen = [shapes.Shape(0, first, (10, 10, 50, 30)), shapes.Shape(1, second, (30, 5, 70, 40))]
    masks = shapes._visible_masks(chosen)
    assert [shapes._extent(mask) for mask in masks] == [(10, 10, 30, 30), (30, 5, 70, 40)]
    # Covering 85 % of the first takes it away: 800 pixels, of which 120 (6 columns) show.
    second[5:40, 16:70] = 255
    assert [shape.label for shape in shapes._visible_shapes(chosen)] == [1]


def test_the_set_has_small_large_elongated_crowded_and_occluded_objects():
    sizes, aspects, pairs, crowded = [], [], 0, 0
    for index in range(150):
        image, rows = shapes.draw_image(np.random.default_rng((2026, 0, index)))
        height, width = image.shape[:2]
        assert 240 <= height <= 360 and 240 <= width <= 360 and image.dtype == np.uint8
        boxes = np.array([row[1:] for row in rows]).reshape(-1, 4) * (width, height, width, height)
        assert (boxes[:, :2] - boxes[:, 2:] / 2 >= -1e-6).all()
        assert (boxes[:, :2] + boxes[:, 2:] / 2 <= (width + 1e-6, height + 1e-6)).all()
        assert (boxes[:, 2:] >= shapes.MIN_PIXELS - 1e-6).all()
        sizes += np.sqrt(boxes[:, 2:].prod(axis=1)).tolist()
        aspects += (boxes[:, 2:].max(axis=1) / boxes[:, 2:].min(axis=1)).tolist()
        gaps = np.abs(boxes[:, None, :2] - boxes[None, :, :2]) - (boxes[:, None, 2:] + boxes[None, :, 2:]) / 2
        pairs += int(((gaps < 0).all(axis=2).sum() - len(boxes)) // 2)
        distance = np.linalg.norm(boxes[:, None, :2] - boxes[None, :, :2], axis=2)
        crowded += (distance < 10).sum() - len(boxes) >= 14  # seven coincident pairs, the analysis's crowded image
    sizes, aspects = np.array(sizes), np.array(aspects)
    assert np.mean(sizes < 16) > 0.08 and np.mean(sizes > 80) > 0.08
    assert np.mean(aspects >= 4) > 0.02
    assert pairs > 80 and crowded >= 1


def test_the_json_has_the_boxes_of_the_text_and_the_masks_of_what_shows(few, tmp_path):
    folder = shapes.ensure_drawn(tmp_path / "set")
    splits = {"train": (str(folder / "annotations/train.json"),)}
    described = DataDescription(folder / "x.data", 5, shapes.CLASSES, splits, {"train": str(folder / "images/train")})
    found = read_dataset(described, "train", wants=frozenset({"masks"}))
    text = read_dataset(describe(folder), "train")
    assert found.problems == () and found.labels.tolist() == text.labels.tolist()
    assert np.allclose(found.boxes_xyxy, text.boxes_xyxy, atol=1e-3)
    for index in range(len(found)):
        _, objects = shapes.draw_scene(np.random.default_rng((2026, 0, index)))
        rows, (width, height) = found.rows_of(index), found.image_wh[index]
        painted = np.empty((len(objects), height, width), np.uint8)
        found.polygons.select(np.arange(rows.start, rows.stop)).paint(painted)
        assert np.array_equal(painted, np.stack(list(objects.values())))
        assert found.areas[rows].tolist() == painted.sum(axis=(1, 2)).tolist()
