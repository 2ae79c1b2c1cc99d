"""Small files that ask for much, and numbers that no data set has: one line with the place, or the row left out."""

import json

import cv2
import numpy as np
import pytest

from data.data_file import read_data_file
from data.labels.read import read_dataset
from data.labels.voc import parse_voc
from data.labels.yolo import parse_yolo_text
from data.splits import open_data
from utils.class_names import MAX_CLASSES, read_names
from utils.errors import UserError


def refusal(attempt):
    with pytest.raises(UserError) as caught:
        attempt()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    return str(caught.value)


@pytest.mark.parametrize("number", ["1000000000", "100001", "9" * 5000, "²", "١" * 9, "-1", "0", "1e3", "2.0", "nan"])
def test_a_number_of_classes_that_no_data_set_has(tmp_path, number):
    (tmp_path / "x.data").write_text(f"train = images\nclasses = {number}\n")
    assert "x.data:2: classes = " in refusal(lambda: read_data_file(tmp_path / "x.data"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"".join(b"%d\n" % n for n in range(MAX_CLASSES + 1)), f"x.names:{MAX_CLASSES + 1}: more than 100,000"),
        (b"x" * 10_000_001, "x.names: has more than 10,000,000 bytes"),
        (b"a\nb\n" + b"c" * 500 + b"\n" + b"c" * 500, "x.names:4: duplicate class name 'ccc"),
        (b"a\nb\xff\n", "x.names:2: is not a UTF-8"),
    ],
)
def test_names_files_have_a_limit(tmp_path, content, words):
    (tmp_path / "x.names").write_bytes(content)
    assert words in refusal(lambda: read_names(tmp_path / "x.names"))


@pytest.fixture
def folder(tmp_path):
    """Three pictures of 40 x 30 with a YOLO label each; returns the folder."""
    for index in range(3):
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "labels").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / "images" / f"{index}.png"), np.zeros((30, 40, 3), np.uint8))
        (tmp_path / "labels" / f"{index}.txt").write_text("0 .5 .5 .2 .2\n")
    return tmp_path


@pytest.mark.parametrize("label", ["1000000000", "100000", "2147483647"])
def test_a_class_number_that_no_data_set_has(folder, label):
    (folder / "labels/1.txt").write_text(f"1 .5 .5 .1 .1\n{label} .5 .5 .2 .2\n")
    assert f"1.txt:2: class {label} is outside" in refusal(
        lambda: read_dataset(open_data(str(folder / "images")), "train")
    )
    (folder / "x.data").write_text("classes = 3\ntrain = images\n")
    assert f"1.txt:2: class {label} is outside 0..2" in refusal(
        lambda: read_dataset(open_data(str(folder / "x.data")), "train")
    )


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "row", ["1e300 .5 .5 .2 .2", "9" * 400 + " .5 .5 .2 .2", "2147483648 .5 .5 .2 .2", "0 1e300 .5 .2 .2",
            "0 .5 .5 1e300 .2", "0 .5 .5 .2 nan", "0 1e308 1e308 1e308 -1e308 1e308 -1e308"]
)  # fmt: skip
def test_a_row_of_absurd_numbers_is_left_out_by_line(folder, row):
    rows, lines, problems = parse_yolo_text(f"1 .5 .5 .1 .1\n{row}\n", "f")
    assert rows.tolist() == [[1, 0.5, 0.5, 0.1, 0.1]] and lines.tolist() == [1]
    assert [problem.line for problem in problems] == [2]
    (folder / "labels/1.txt").write_text(row)
    assert len(read_dataset(open_data(str(folder / "images")), "train").labels) == 2


VOC = (
    "<annotation>\n<size><width>{w}</width><height>30</height></size>\n<object><name>a</name><bndbox><xmin>1</xmin>"
    "<ymin>1</ymin><xmax>{x}</xmax><ymax>9</ymax></bndbox></object>\n</annotation>"
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<annotation>\n" + "<a>" * 300_000, "2: elements nested more than 50 deep"),
        ("<annotation>" + "<a>\n" * 51, "50: elements nested more than 50 deep"),
        ('<!DOCTYPE a [\n<!ENTITY x "lol">]>\n<a>&x;</a>', "2: declares an entity"),
        ('<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><a>&x;</a>', "1: declares an entity"),
        ("<annotation>\n\x00", "2: not well-formed"),
    ],
)
def test_xml_is_read_to_a_limited_depth_and_without_entities(text, words):
    with pytest.raises(ValueError, match=words):
        parse_voc(text.encode())


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "side", ["99999999999999999999", "9" * 400, "1e300", "²", "2147483648", "-5", "nan", "", "4.0.0"]
)
def test_a_voc_size_that_no_picture_has_is_that_of_the_picture(folder, side):
    for index in range(3):
        (folder / "labels" / f"{index}.txt").unlink()
        (folder / "images" / f"{index}.xml").write_text(VOC.format(w=side, x=8))
    found = read_dataset(open_data(str(folder / "images")), "train")
    assert found.image_wh.tolist() == [[40, 30]] * 3 and len(found.labels) == 3


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("corner", "kept"), [("1e300", 1), ("1e309", 0), ("nan", 0), ("-1e308", 0), ("9" * 5000, 0), ("", 0)]
)
def test_a_voc_corner_that_no_box_has(folder, corner, kept):
    for index in range(3):
        (folder / "labels" / f"{index}.txt").unlink()
        (folder / "images" / f"{index}.xml").write_text(VOC.format(w=40, x=corner if index == 0 else 8))
    found = read_dataset(open_data(str(folder / "images")), "train")
    assert len(found.labels) == 2 + kept and len(found.problems) == 1
    assert np.isfinite(found.areas).all() and found.boxes_xyxy.max() <= 40


COCO = {
    "images": [{"id": 1, "width": 50, "height": 40, "file_name": "a.jpg"}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}],
    "categories": [{"id": 1, "name": "a"}],
}
LONG = "9" * 5000


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 200_000, "not a JSON text file"),
        ('{"a":' * 200_000, "not a JSON text file"),
        (json.dumps(COCO).replace('"id": 1, "width"', f'"id": {LONG}, "width"'), "not a JSON text file (Exceeds"),
        (json.dumps(COCO).replace("[1, 2, 3, 4]", f"[1, 2, 3, {LONG}]"), "not a JSON text file (Exceeds"),
        (json.dumps(COCO).replace('"a"', '"\\ud83d"'), "the name of category 1 is no text"),
        (json.dumps(COCO | {"categories": [{"id": 1, "name": "a"}] * 50_000}), "duplicate category id 1"),
    ],
)
def test_coco_files_that_ask_for_much(tmp_path, text, words):
    (tmp_path / "x.json").write_text(text)
    assert words in refusal(lambda: read_dataset(open_data(str(tmp_path / "x.json")), "train", need_images=False))


@pytest.mark.parametrize("name", ["a\0b.jpg", "\ud800.jpg", "x" * 5000, "/" * 3000, "../" * 2000 + "a.jpg"])
def test_an_image_name_that_no_file_can_have_is_not_on_the_disk(folder, name):
    images = [
        {"id": 1, "width": 40, "height": 30, "file_name": "images/0.png"},
        {"id": 2, "width": 9, "height": 9, "file_name": name},
    ]
    (folder / "x.json").write_text(json.dumps(COCO | {"images": images}))
    found = read_dataset(open_data(str(folder / "x.json")), "train")
    assert found.image_ids.tolist() == [1] and "not on the disk" in found.problems[0].kind
    if "\0" in name:
        return  # a list with such a byte is no text file
    (folder / "x.txt").write_bytes(b"images/0.png\n" + name.encode("utf-8", "replace") + b"\n")
    assert len(read_dataset(open_data(str(folder / "x.txt")), "train")) == 1


def test_an_unknown_user_in_a_path_is_no_traceback(folder):
    (folder / "x.data").write_text("classes = 3\ntrain = ~nobody-of-this-name/pictures\n")
    assert "is not on the disk" in refusal(lambda: read_dataset(open_data(str(folder / "x.data")), "train"))
    assert "does not exist" in refusal(lambda: open_data("~nobody-of-this-name/x.data"))
