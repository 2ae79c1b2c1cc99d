"""Whose size and orientation counts: that of the picture or that of its annotation, in every format."""

import json

import cv2
import numpy as np
import pytest
from PIL import Image

from data.image_files import read_image
from data.labels import headers
from data.labels.headers import AS_STORED, DEEP, OTHER_SIZE, UNREADABLE, check_images
from data.labels.read import read_dataset
from data.splits import open_data
from utils.errors import UserError


def save_turned(path, orientation, width=40, height=20):
    """Save a picture with a white corner, and return its pixels [h w 3] as an upright viewer shows them."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 4, : width // 4] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif)
    flips = {1: pixels, 2: pixels[:, ::-1], 3: pixels[::-1, ::-1], 4: pixels[::-1]}
    turned = {5: pixels.transpose(1, 0, 2), 6: np.rot90(pixels, -1), 8: np.rot90(pixels)}
    return {**flips, **turned, 7: pixels.transpose(1, 0, 2)[::-1, ::-1]}[orientation]


def voc(width, height):
    return (
        f"<annotation><size><width>{width}</width><height>{height}</height></size><object><name>a</name><bndbox>"
        "<xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox></object></annotation>"
    )


def coco(width, height):
    image = {"id": 1, "file_name": "a.png", "width": width, "height": height}
    return json.dumps({"images": [image], "annotations": [], "categories": [{"id": 1, "name": "a"}]})


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("side", [40, 20])
@pytest.mark.parametrize("form", ["coco", "voc", "yolo"])
def test_where_the_annotation_leaves_it_open_the_picture_is_turned(tmp_path, orientation, side, form):
    upright = save_turned(tmp_path / "a.png", orientation, side, 20)
    height, width = upright.shape[:2]
    files = {"coco": ("c.json", coco(width, height)), "voc": ("a.xml", voc(width, height)),
             "yolo": ("a.txt", "0 .5 .5 .2 .2\n")}  # fmt: skip
    name, text = files[form]
    (tmp_path / name).write_text(text)
    notes = read_dataset(open_data(str(tmp_path / "c.json" if form == "coco" else tmp_path)), "train")
    assert notes.image_wh.tolist() == [[width, height]] and not notes.problems
    found = read_image(str(tmp_path / "a.png"), (width, height), int(notes.orientation[0]))
    assert np.array_equal(found, upright)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
@pytest.mark.parametrize("form", ["coco", "voc"])
def test_where_the_annotation_says_the_size_before_it_is_not_turned_and_that_is_said(tmp_path, orientation, form):
    save_turned(tmp_path / "a.png", orientation)
    (tmp_path / ("c.json" if form == "coco" else "a.xml")).write_text((coco if form == "coco" else voc)(40, 20))
    notes = read_dataset(open_data(str(tmp_path / "c.json" if form == "coco" else tmp_path)), "train")
    assert notes.image_wh.tolist() == [[40, 20]] and notes.orientation.tolist() == [1]
    assert [problem.kind for problem in notes.problems] == [AS_STORED]


def test_one_xml_in_a_yolo_set_does_not_switch_the_turning_off(tmp_path):
    upright = save_turned(tmp_path / "a.png", 6)
    save_turned(tmp_path / "b.png", 1)
    (tmp_path / "a.txt").write_text("0 .5 .5 .2 .2\n")
    (tmp_path / "b.xml").write_text(voc(40, 20))
    (tmp_path / "x.names").write_text("a\n")
    (tmp_path / "x.data").write_text(f"classes = 1\nnames = x.names\ntrain = {tmp_path}\n")
    notes = read_dataset(open_data(str(tmp_path / "x.data")), "train")
    assert notes.image_wh.tolist() == [[20, 40], [40, 20]] and notes.orientation.tolist() == [6, 1]
    assert np.array_equal(read_image(notes.image_paths[0], (20, 40), 6), upright)


def test_bad_images_are_listed_together_and_left_out(tmp_path):
    for name in ("whole.png", "other.png", "empty.png", "page.png"):
        cv2.imwrite(str(tmp_path / name), np.zeros((20, 40, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "deep.png"), np.full((20, 40), 4095, np.uint16))
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "page.png").write_bytes(b"<html>404</html>")
    paths = [
        str(tmp_path / name) for name in ("whole.png", "other.png", "empty.png", "page.png", "deep.png", "gone.png")
    ]
    said_wh = np.array([[40, 20], [41, 20], [40, 20], [0, 0], [40, 20], [40, 20]])
    found = check_images(paths, said_wh)
    assert found.is_bad.tolist() == [False, True, True, True, False, True]
    assert {(problem.file.rsplit("/", 1)[1], problem.kind) for problem in found.problems} == {
        ("other.png", OTHER_SIZE), ("empty.png", UNREADABLE), ("page.png", UNREADABLE), ("gone.png", UNREADABLE),
        ("deep.png", DEEP),
    }  # fmt: skip
    with pytest.raises(UserError, match="of 2 images none can be used"):
        check_images(paths[2:4], said_wh[2:4])


@pytest.mark.parametrize("damage", [b"", b"[]", b"{", b'{"magic": 1}', None])
def test_headers_of_many_images_are_kept_and_damage_is_noticed(tmp_path, monkeypatch, damage):
    monkeypatch.setattr(headers, "MIN_IMAGES", 2)
    paths = []
    for number in range(3):
        paths.append(str(tmp_path / f"{number}.png"))
        cv2.imwrite(paths[-1], np.zeros((20, 40 + number, 3), np.uint8))
    cache, said_wh = tmp_path / "c.cache", np.zeros((3, 2), dtype=np.int64)
    first = check_images(paths, said_wh, cache)
    assert cache.is_file()
    with monkeypatch.context() as patch:
        patch.setattr(headers, "image_header", None)  # nothing is read again
        assert np.array_equal(check_images(paths, said_wh, cache).image_wh, first.image_wh)
    if damage is None:
        cache.write_text(cache.read_text().replace("41", "-1"))
    else:
        cache.write_bytes(damage)
    assert np.array_equal(check_images(paths, said_wh, cache).image_wh, first.image_wh)
    cv2.imwrite(paths[0], np.zeros((9, 9, 3), np.uint8))  # a picture that changes is read again
    assert check_images(paths, said_wh, cache).image_wh[0].tolist() == [9, 9]
