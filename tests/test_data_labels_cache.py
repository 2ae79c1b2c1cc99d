"""The label cache: gives the same annotations, never misses an edit, harms no file and no read-only folder."""

import dataclasses
import os

import cv2
import numpy as np
import pytest

from data.data_file import DataDescription
from data.labels import cache, read
from data.labels.annotations import Annotations
from data.labels.read import read_dataset


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "MIN_IMAGES", 1)
    for index in range(3):
        for folder in ("images", "labels"):
            (tmp_path / folder).mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / "images" / f"ü{index}.png"), np.zeros((20 + index, 30, 3), np.uint8))
        (tmp_path / "labels" / f"ü{index}.txt").write_text(f"{index} .5 .5 .5 .5\nbad\n")
    return DataDescription(tmp_path / "x.data", 3, ("a", "b", "c"), {"train": str(tmp_path / "images")})


def equal(first: Annotations, second: Annotations) -> bool:
    for name in Annotations.__dataclass_fields__:
        ours, theirs = getattr(first, name), getattr(second, name)
        if isinstance(ours, np.ndarray):
            if ours.dtype != theirs.dtype or not np.array_equal(ours, theirs):
                return False
        elif isinstance(ours, Annotations):
            if theirs is None or not equal(ours, theirs):
                return False
        elif ours != theirs:
            return False
    return True


def test_a_second_reading_parses_nothing_and_gives_the_same(data, tmp_path, monkeypatch):
    first = read_dataset(data, "train")
    assert (tmp_path / "images.cache.npz").is_file() and len(first.problems) == 3
    monkeypatch.setattr(read, "_read_pairs", None)
    assert equal(first, read_dataset(data, "train"))


def test_boxes_that_cannot_be_learned_come_back(data, tmp_path, monkeypatch):
    (tmp_path / "labels" / "ü1.txt").write_text("1 .5 .5 0 .5\n1 .5 .5 .5 .5\n")
    first = read_dataset(data, "train")
    monkeypatch.setattr(read, "_read_pairs", None)
    again = read_dataset(data, "train")
    assert len(again.unlearnable.labels) == 1 and equal(first.unlearnable, again.unlearnable)
    assert again.to_coco() == first.to_coco()


def test_another_shape_of_key_points_is_seen(data):
    read_dataset(data, "train")
    other = dataclasses.replace(data, keypoint_shape=(17, 3))
    read_dataset(other, "train")
    assert cache.content_key([], [], [], None) != cache.content_key([], [], [], (17, 3))


def test_an_edit_is_seen_even_with_size_and_time_unchanged(data, tmp_path):
    read_dataset(data, "train")
    label = tmp_path / "labels" / "ü1.txt"
    before = label.stat()
    label.write_text(label.read_text().replace("1 .5", "2 .5"))
    os.utime(label, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert label.stat().st_size == before.st_size
    assert read_dataset(data, "train").labels.tolist() == [0, 2, 2]


def test_other_names_another_image_or_a_new_label_are_seen(data, tmp_path):
    read_dataset(data, "train")
    other = DataDescription(data.path, 3, ("x", "b", "c"), data.splits)
    assert read_dataset(other, "train").names[0] == "x"
    cv2.imwrite(str(tmp_path / "images" / "ü0.png"), np.zeros((99, 30, 3), np.uint8))
    assert read_dataset(data, "train").image_wh[0].tolist() == [30, 99]
    (tmp_path / "labels" / "ü2.txt").unlink()
    assert len(read_dataset(data, "train").labels) == 2


def test_a_file_of_the_user_is_left_alone(data, tmp_path):
    path = tmp_path / "images.cache.npz"
    for content in (b"mine", None):
        if content is None:
            np.savez(path, header=np.arange(3), x=np.arange(4))
            content = path.read_bytes()
        else:
            path.write_bytes(content)
        assert len(read_dataset(data, "train").labels) == 3
        assert path.read_bytes() == content


def test_a_folder_that_cannot_be_written_to_is_no_error(data, tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(cache, "atomic_path", refuse)
    assert len(read_dataset(data, "train").labels) == 3
    assert not (tmp_path / "images.cache.npz").exists()


def test_small_sets_leave_nothing_behind(data, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "MIN_IMAGES", 1000)
    read_dataset(data, "train")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "labels"]
