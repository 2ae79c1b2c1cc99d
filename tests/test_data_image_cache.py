"""--cache: the same batches from memory and from a file, which is taken again until an image changes."""

import os
import shutil
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from data import image_cache
from data.augment import AugmentOptions
from data.dataset import DetectionDataset
from data.decoded_file import DecodedFile
from data.labels.read import read_dataset
from data.loader import LoaderSettings, training_batches
from data.splits import open_data
from tests.test_data_loader import epoch_of, same
from utils.errors import UserError

WIDTHS = (90, 200, 64, 400, 130, 71)  # at 96 pixels, the second is decoded at 1/2 and the fourth at 1/4


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "set" / "images"
    folder.mkdir(parents=True)
    for number, width in enumerate(WIDTHS):
        pixels = np.random.default_rng(number).integers(0, 256, (5, 6, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{number}.jpg"), cv2.resize(pixels, (width, 61)))
        (folder / f"{number}.txt").write_text("0 .5 .5 .4 .4\n")
    return folder


def batches_of(images, cache="", **settings):
    annotations = read_dataset(open_data(str(images)), "train")
    return training_batches(annotations, LoaderSettings((64, 96), 4, cache=cache, **settings), AugmentOptions())


def cache_files(images):
    return sorted(images.parent.glob("images.decoded-*.cache"))


@pytest.mark.parametrize("cache", ["ram", "disk"])
def test_cached_images_change_nothing(images, cache, capsys):
    plain, cached = batches_of(images), batches_of(images, cache)
    # 61 rows each, 31 of the one decoded at half its size, 16 at a quarter; three bytes a pixel.
    pixels = 61 * (90 + 64 + 130 + 71) + 31 * 100 + 16 * 100
    if cache == "disk":
        assert cache_files(images)[0].stat().st_size == 128 + 3 * pixels + len(WIDTHS)
    else:
        assert sum(image.nbytes for image in cached.dataset.cached) == 3 * pixels
    for index in range(len(WIDTHS)):
        assert np.array_equal(cached.dataset.pixels(index), plain.dataset.pixels(index))
    assert all(same(a, b) for a, b in zip(epoch_of(plain, 1), epoch_of(cached, 1), strict=True))
    assert f"--cache {cache}: " in (said := capsys.readouterr().out) and "6 images, 0.00 GB of the " in said


def test_the_next_run_decodes_nothing_until_an_image_changes(images, monkeypatch, capsys):
    batches_of(images, "disk")
    decoded = []
    decode = DetectionDataset.decode
    monkeypatch.setattr(DetectionDataset, "decode", lambda self, index: decoded.append(index) or decode(self, index))
    epoch_of(batches_of(images, "disk", workers=0), 0)
    assert decoded == [] and "of an earlier run" in capsys.readouterr().out

    path = images / "3.jpg"
    cv2.imwrite(str(path), 255 - cv2.imread(str(path)))
    os.utime(path, ns=(1, 1))
    changed = batches_of(images, "disk")
    assert sorted(decoded) == list(range(6)) and len(cache_files(images)) == 1
    assert np.array_equal(changed.dataset.pixels(3), decode(changed.dataset, 3))


def test_other_lists_of_a_folder_have_files_of_their_own(images, capsys):
    batches_of(images, "disk")
    (images / "list.txt").write_text(f"{images / '1.jpg'}\n{images / '2.jpg'}\n")
    batches_of(images / "list.txt", "disk")
    first, second = (path.name for path in cache_files(images))
    said = capsys.readouterr().out
    assert "other lists or sizes are kept beside it, 0.00 GB: images.decoded-" in said
    assert first in said and second in said


@pytest.mark.parametrize("damage", ["cut", "flag", "key", "gone"])
def test_a_damaged_file_is_written_anew_or_not_used(images, damage):
    whole = batches_of(images, "disk")
    (path,) = cache_files(images)
    content = path.read_bytes()
    damaged = {"cut": content[:-1], "flag": content[:-1] + b"\0", "key": b"x" + content[1:], "gone": content}[damage]
    path.write_bytes(damaged)
    if damage == "gone":
        path.unlink()
        again = whole
    elif damage == "key":  # it may be anybody's
        with pytest.raises(UserError, match="another file has this name"):
            batches_of(images, "disk")
        assert path.read_bytes() == damaged
        return
    else:
        again = batches_of(images, "disk")
        assert path.read_bytes() == (damaged if damage == "flag" else content)
    for index in range(6):
        assert np.array_equal(again.dataset.pixels(index), batches_of(images).dataset.pixels(index))


def test_an_image_that_cannot_be_read_is_left_out_or_refused(images):
    batches = batches_of(images)
    data = (images / "2.jpg").read_bytes()
    (images / "2.jpg").write_bytes(data[: len(data) // 2])  # its header stays
    annotations = batches.dataset.annotations
    settings = LoaderSettings((64, 96), 4, cache="disk")
    with pytest.raises(UserError, match="cut off"):
        training_batches(annotations, settings, AugmentOptions())
    assert os.listdir(images.parent) == ["images"]
    lenient = training_batches(annotations, LoaderSettings((64, 96), 4, cache="disk", max_bad=0.5), AugmentOptions())
    epoch_of(lenient, 0)
    assert list(lenient.unread) == [2]


def test_too_little_room_is_one_line(images, monkeypatch):
    monkeypatch.setattr(image_cache, "free_memory", lambda: 50_000)
    with pytest.raises(UserError, match=r"--cache ram needs 0.00 GB of memory, 0.00 GB are free; --cache disk"):
        batches_of(images, "ram")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=70_000))
    with pytest.raises(UserError, match=r"--cache disk needs 0.00 GB in .*set, 0.00 GB are free there"):
        batches_of(images, "disk")
    assert os.listdir(images.parent) == ["images"]


def test_a_disk_that_fills_up_leaves_nothing(images, monkeypatch):
    def write(self, decode, threads):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(DecodedFile, "write", write)
    with pytest.raises(UserError, match=r"images\.decoded-.*: No space left on device; make room"):
        batches_of(images, "disk")


def test_a_container_has_less_memory_than_its_machine(tmp_path, monkeypatch):
    limit, used, detail = (tmp_path / name for name in ("max", "current", "stat"))
    monkeypatch.setattr(image_cache, "LIMITS", ((limit, used, detail),))
    machine = image_cache.free_memory()
    limit.write_text("1000000\n")
    used.write_text("700000\n")
    detail.write_text("anon 1\ninactive_file 200000\n")
    assert image_cache.free_memory() == 500_000
    limit.write_text("max\n")
    assert abs(image_cache.free_memory() - machine) < 2e9
