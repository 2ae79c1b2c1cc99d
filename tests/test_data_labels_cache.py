"""The label cache: gives the same annotations, never misses an edit, harms no file and no read-only folder."""

import dataclasses
import os
import zipfile

import cv2
import numpy as np
import pytest

from data.description import DataDescription
from data.labels import cache, read
from data.labels.annotations import Annotations
from data.labels.read import read_dataset
from utils.array_files import read_arrays


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "MIN_IMAGES", 1)
    for index in range(3):
        for folder in ("images", "labels"):
            (tmp_path / folder).mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / "images" / f"ü{index}.png"), np.zeros((20 + index, 30, 3), np.uint8))
        (tmp_path / "labels" / f"ü{index}.txt").write_text(f"{index} .5 .5 .5 .5\nbad\n")
    return DataDescription(tmp_path / "x.data", 3, ("a", "b", "c"), {"train": (str(tmp_path / "images"),)})


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
    def refuse(path, arrays):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(cache, "write_arrays", refuse)
    assert len(read_dataset(data, "train").labels) == 3
    assert not (tmp_path / "images.cache.npz").exists()


def test_small_sets_leave_nothing_behind(data, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "MIN_IMAGES", 1000)
    read_dataset(data, "train")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "labels"]


def resealed(path, change):
    """Write the cache with one array changed, as numpy writes it: its own checksums are right, ours is not."""
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files}
    change(arrays)
    np.savez(path, **arrays)


DAMAGES = {
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-200]),
    "only its start": lambda path: path.write_bytes(path.read_bytes()[:600]),
    "a box moved": lambda path: resealed(path, lambda a: a["boxes_xyxy"].__setitem__((0, 0), 3.0)),
    "labels that no class has": lambda path: resealed(path, lambda a: a.update(labels=a["labels"] + 100)),
    "other types": lambda path: resealed(path, lambda a: a.update(image_wh=a["image_wh"].astype("U3"))),
    "an array less": lambda path: resealed(path, lambda a: a.pop("crowd")),
    "no checksum": lambda path: resealed(path, lambda a: a.pop("checksum")),
    "another header": lambda path: resealed(path, lambda a: a.update(header=a["header"][:-1])),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_parsed_anew_and_replaced(data, tmp_path, damage):
    first = read_dataset(data, "train")
    path = tmp_path / "images.cache.npz"
    whole = path.read_bytes()
    DAMAGES[damage](path)
    assert equal(first, read_dataset(data, "train"))
    assert path.read_bytes() == whole


def test_a_cache_that_would_fill_the_memory_is_not_unpacked(data, tmp_path, monkeypatch):
    first = read_dataset(data, "train")
    path = tmp_path / "images.cache.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("boxes_xyxy.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (50_000_000, 4)})
        for _ in range(20):
            file.write(bytes(1 << 20))
    assert path.stat().st_size < 100_000
    monkeypatch.setattr(np, "load", None)  # nothing of it is read
    with pytest.raises(ValueError, match="more bytes than the file has"):
        read_arrays(path)
    assert equal(first, read_dataset(data, "train"))
