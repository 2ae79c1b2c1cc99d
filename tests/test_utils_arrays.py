"""Damaged .npz files: label caches are parsed anew, blocks of an interrupted run are named, and neither eats memory."""

import zipfile

import numpy as np
import pytest

from analysis.matching.blocks import ColumnBlock, read_blocks
from data.labels import cache
from data.labels.annotations import Annotations, Problem
from utils.arrays import read_arrays
from utils.errors import UserError


def annotations(boxes=5, images=3):
    rows = np.zeros(boxes, np.int32)
    return Annotations(
        image_paths=[f"/x/{index}.jpg" for index in range(images)],
        image_ids=np.arange(images),
        image_wh=np.full((images, 2), 9, np.int32),
        box_image=rows,
        boxes_xyxy=np.ones((boxes, 4)),
        labels=rows,
        crowd=rows > 0,
        areas=np.ones(boxes),
        annotation_ids=np.arange(1, boxes + 1),
        names=("cat",),
        category_ids=(1,),
        problems=(Problem("a", 1, "b", "c"),),
    )


def mutated(content, count):
    """Yield changed copies of some bytes: flipped, cut, doubled, filled."""
    generator = np.random.default_rng(0)
    for number in range(count):
        changed = bytearray(content)
        place, length = int(generator.integers(len(changed))), int(generator.integers(1, 40))
        if number % 4 == 0:
            del changed[place:]
        elif number % 4 == 1:
            changed[place : place + length] = generator.bytes(length)
        elif number % 4 == 2:
            changed[place] ^= 1 << int(generator.integers(8))
        else:
            changed[place:place] = changed[place : place + length]
        yield bytes(changed)


def same(one, other):
    return one.image_paths == other.image_paths and np.array_equal(one.boxes_xyxy, other.boxes_xyxy)


def test_a_damaged_label_cache_is_as_good_as_none(tmp_path):
    path, stored = tmp_path / "x.cache.npz", annotations()
    assert cache.store(path, "key", stored) and same(cache.load(path, "key"), stored)
    lost = 0
    for content in mutated(path.read_bytes(), 400):
        path.write_bytes(content)
        found = cache.load(path, "key")
        lost += found is None
        assert found is None or (len(found) == len(stored) and len(found.labels) == len(found.boxes_xyxy))
    assert lost > 200


@pytest.mark.parametrize(
    "change", [{"labels": np.full(5, 7)}, {"boxes_xyxy": np.ones((4, 4))}, {"box_image": np.arange(5) * 9}]
)
def test_a_label_cache_of_other_columns_is_as_good_as_none(tmp_path, change):
    path = tmp_path / "x.cache.npz"
    cache.store(path, "key", annotations())
    with np.load(path) as stored:
        columns = {name: stored[name] for name in stored.files}
    np.savez(path, **{**columns, **change})
    assert cache.load(path, "key") is None


def test_a_damaged_block_is_named(tmp_path):
    block = ColumnBlock()
    block.add(4, {"object/row": np.arange(3), "object/q": np.ones((3, 2)), "image/index": np.arange(2)})
    block.write(tmp_path)
    (path,) = tmp_path.glob("*.npz")
    columns, done = read_blocks(tmp_path)
    assert done == {4} and columns["object/row"].tolist() == [0, 1, 2]
    refused = 0
    for content in mutated(path.read_bytes(), 400):
        path.write_bytes(content)
        try:
            read_blocks(tmp_path)
        except UserError as error:
            assert str(path) in str(error) and "delete it" in str(error)
            refused += 1
    assert refused > 200


def test_a_small_archive_that_stands_for_large_arrays_is_not_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", bytes(1 << 24))
    assert (tmp_path / "x.npz").stat().st_size < 1 << 16
    with pytest.raises(ValueError, match="more than 1 MiB"):
        read_arrays(tmp_path / "x.npz", 1 << 20)
    for content in (b"", b"PK", b"not an archive"):
        (tmp_path / "y.npz").write_bytes(content)
        with pytest.raises(ValueError):
            read_arrays(tmp_path / "y.npz", 1 << 20)


def test_nothing_is_unpickled(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle"):
        read_arrays(tmp_path / "x.npz", 1 << 20)
