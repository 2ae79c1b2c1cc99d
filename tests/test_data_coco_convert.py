"""Conversions there and back, on real files where they are and on made ones."""

import json

import cv2
import numpy as np
import pytest

from data.coco_convert import write_coco, write_yolo
from data.description import DataDescription
from data.labels.read import read_dataset
from data.splits import open_data
from utils.class_names import read_names
from utils.errors import UserError


@pytest.fixture
def notes(tmp_path):
    """Two classes, three images (one without objects), a crowd region, boxes with fractions of pixels."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "coco" / "images" / "val2017"
    folder.mkdir(parents=True)
    (tmp_path / "coco" / "annotations").mkdir()
    images, rows = [], []
    for index, (width, height) in enumerate([(64, 48), (33, 77), (50, 50)]):
        cv2.imwrite(str(folder / f"{index + 5}.png"), np.zeros((height, width, 3), np.uint8))
        images.append({"id": index + 5, "width": width, "height": height, "file_name": f"{index + 5}.png"})
        for _ in range(4 * (index != 1)):
            xy = rng.random(2) * (width / 2, height / 2)
            box = [*xy.tolist(), *(rng.random(2) * (width / 2, height / 2) + 0.1).tolist()]
            rows.append({"id": len(rows) + 1, "image_id": index + 5, "category_id": 1 + len(rows) % 2, "bbox": box})
    rows[3]["iscrowd"] = 1
    top = {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]}
    path = tmp_path / "coco" / "annotations" / "instances_val2017.json"
    path.write_text(json.dumps(top))
    return read_dataset(open_data(str(path)), "valid")


def test_coco_to_yolo_and_back(notes, tmp_path):
    line = write_yolo(notes, tmp_path / "yolo", "valid")
    assert "3 files, 7 objects (1 crowd region left out)" in line
    names = tuple((tmp_path / "yolo" / "classes.names").read_text().split())
    images = str(tmp_path / "yolo" / "images" / "valid")
    back = read_dataset(DataDescription(tmp_path / "x.data", 2, names, {"valid": (images,)}), "valid")
    kept = notes.select_boxes(~notes.crowd)
    assert back.names == ("a", "b") and back.image_ids.tolist() == [5, 6, 7]
    assert np.array_equal(back.image_wh, notes.image_wh)
    assert back.labels.tolist() == kept.labels.tolist() and back.box_image.tolist() == kept.box_image.tolist()
    np.testing.assert_allclose(back.boxes_xyxy, kept.boxes_xyxy, atol=1e-5)

    write_coco(back, tmp_path / "again.json")
    data = DataDescription(tmp_path / "x.data", 2, names, {"valid": (str(tmp_path / "again.json"),)}, {"valid": images})
    again = read_dataset(data, "valid")
    np.testing.assert_allclose(again.boxes_xyxy, back.boxes_xyxy, atol=1e-9)
    assert again.labels.tolist() == back.labels.tolist() and again.image_ids.tolist() == back.image_ids.tolist()
    assert [path.rsplit("/", 1)[-1] for path in again.image_paths] == ["5.png", "6.png", "7.png"]


def test_nothing_is_overwritten(notes, tmp_path):
    write_yolo(notes, tmp_path / "yolo", "valid")
    with pytest.raises(UserError, match="is not empty"):
        write_yolo(notes, tmp_path / "yolo", "valid")
    (tmp_path / "x.json").write_text("mine")
    with pytest.raises(UserError, match="exists"):
        write_coco(notes, tmp_path / "x.json")
    assert (tmp_path / "x.json").read_text() == "mine"


def test_bccd_to_coco_and_back(shared, tmp_path):
    root = shared / "data" / "bccd"
    names = ("RBC", "WBC", "Platelets")
    voc = read_dataset(
        DataDescription(tmp_path / "x.data", 3, names, {"test": (str(root / "ImageSets" / "Main" / "test.txt"),)}),
        "test",
    )
    write_coco(voc, tmp_path / "test.json")
    data = DataDescription(
        tmp_path / "x.data", 3, names, {"test": (str(tmp_path / "test.json"),)}, {"test": str(root / "JPEGImages")}
    )
    coco = read_dataset(data, "test")
    assert coco.names == names and coco.image_paths == voc.image_paths
    assert np.array_equal(coco.boxes_xyxy, voc.boxes_xyxy) and np.array_equal(coco.labels, voc.labels)
    assert np.array_equal(coco.areas, voc.areas)


def test_a_name_with_line_breaks_stays_one_line_of_the_names_file(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((40, 50, 3), np.uint8))
    names = ("a\nb", "c\r\nd", "e\u2028f")
    (tmp_path / "x.json").write_text(json.dumps({
        "images": [{"id": 1, "width": 50, "height": 40, "file_name": "a.png"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}],
        "categories": [{"id": number, "name": name} for number, name in enumerate(names, 1)],
    }))  # fmt: skip
    write_yolo(read_dataset(open_data(str(tmp_path / "x.json")), "train"), tmp_path / "out", "train")
    assert read_names(tmp_path / "out/classes.names") == ("a b", "c d", "e f")
