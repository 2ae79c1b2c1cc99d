"""What is made of the detections of one image: pictures, records, COCO results, supervision's detections."""

import csv
import json
import sys
import types

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as masks

from engine.image_result import ROW_FIELDS, ImageResult
from engine.predictor import load
from tests.tiny_project import NAMES, REPOSITORY, load_script, make_project, run_script
from utils.class_names import read_names
from utils.errors import UserError
from utils.masks import BoxMasks
from utils.structures import Detections

BOXES = [[10.0, 20.0, 30.5, 60.25], [0.0, 0.0, 120.0, 80.0]]


def result_of(path="photos/000042.jpg", frame=None, names=NAMES, count=2):
    found = Detections(torch.tensor(BOXES), torch.tensor([0.75, 0.5]), torch.tensor([1, 0])).select(slice(count))
    return ImageResult(found, np.full((80, 120, 3), 90, dtype=np.uint8), names, path, frame)


def test_arrays_and_size():
    result = result_of()
    assert result.boxes_xyxy.tolist() == BOXES and result.boxes_xyxy.dtype == np.float32
    assert result.scores.tolist() == [0.75, 0.5] and result.scores.dtype == np.float32
    assert result.labels.tolist() == [1, 0] and result.labels.dtype == np.int64
    assert result.size_wh == (120, 80) and len(result) == 2
    assert repr(result) == "<result photos/000042.jpg, 120x80: 2 detections>"
    assert repr(result_of("film.mp4", 3, count=1)) == "<result film.mp4 frame 3, 120x80: 1 detection>"
    assert repr(result_of("")) == "<result image, 120x80: 2 detections>"
    half = Detections(torch.tensor(BOXES), torch.tensor([0.75, 0.5]).half(), torch.tensor([1, 0]))
    assert ImageResult(half, result.image_bgr, NAMES).scores.dtype == np.float32


def test_masks_and_key_points():
    plain = result_of()
    assert plain.masks is None and plain.key_points is None and "segmentation" not in plain.to_coco(1)[0]
    boxes = torch.tensor(BOXES)
    found = Detections(
        boxes, torch.tensor([0.75, 0.5]), torch.tensor([1, 0]), masks=BoxMasks(torch.ones(2, 7, 7), boxes, (120, 80)),
        key_points=torch.tensor([[[1.0, 2.0, 9.0]], [[3.0, 4.0, -1.0]]]),
    )  # fmt: skip
    result = ImageResult(found, np.full((80, 120, 3), 90, dtype=np.uint8), NAMES, "000042.jpg")
    assert result.masks.shape == (2, 80, 120) and result.masks[0, 25:60, 12:30].all() and not result.masks[0, :15].any()
    assert result.key_points.tolist() == [[[1, 2, 9]], [[3, 4, -1]]]
    first = result.to_coco()[0]
    assert np.array_equal(masks.decode(first["segmentation"]), result.masks[0]) and first["keypoints"] == [1, 2, 1]
    assert json.loads(json.dumps(result.to_dict()))["detections"][1]["keypoints"] == [3, 4, 1]
    assert (result.plot()[40, 20] != 90).any()


def test_nothing_found():
    result = result_of(count=0)
    assert len(result) == 0 and result.boxes_xyxy.shape == (0, 4)
    assert result.to_rows() == result.to_coco() == result.to_dict()["detections"] == []
    assert np.array_equal(result.plot(), result.image_bgr)


def test_a_plot_is_a_new_picture_with_the_boxes():
    result = result_of()
    drawn = result.plot()
    assert drawn.shape == (80, 120, 3) and drawn.dtype == np.uint8
    assert (result.image_bgr == 90).all()
    assert (drawn[40, 10] != 90).any() and (drawn[40, 60] == 90).all()  # on the left edge; between the boxes


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_saved_whole_in_the_format_of_the_suffix(tmp_path, suffix):
    result = result_of()
    path = result.save(tmp_path / f"new folder/x{suffix}")
    assert path == tmp_path / f"new folder/x{suffix}"
    assert Image.open(path).format.lower() == suffix[1:].replace("jpg", "jpeg")
    assert np.abs(cv2.imread(str(path)).astype(int) - result.plot()).mean() < (0.01 if suffix == ".png" else 4)
    assert [item.name for item in path.parent.iterdir()] == [path.name]  # no temporary file is left


def test_saved_into_a_folder_under_its_own_name(tmp_path):
    assert result_of().save(tmp_path) == tmp_path / "000042.jpg"
    assert result_of("x/moving.gif").save(str(tmp_path)) == tmp_path / "moving.jpg"
    for nameless in (result_of(""), result_of("film.mp4", 3)):
        with pytest.raises(UserError, match=r"name a file that ends in one of \.jpg"):
            nameless.save(tmp_path)
    with pytest.raises(UserError, match=r"x\.gif"):
        result_of().save(tmp_path / "x.gif")


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "x.png"
    path.write_bytes(b"before")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        result_of().save(path)
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]


def test_records(tmp_path):
    result = result_of("film.mp4", 3)
    rows = result.to_rows()
    assert rows[0] == {
        "file": "film.mp4", "frame": 3, "label": 1, "name": NAMES[1], "score": 0.75,
        "x1": 10.0, "y1": 20.0, "x2": 30.5, "y2": 60.25,
    }  # fmt: skip
    assert [tuple(row) for row in rows] == [ROW_FIELDS] * 2
    with open(tmp_path / "x.csv", "w", newline="") as file:
        csv.DictWriter(file, ROW_FIELDS).writerows(rows)
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False)) == {
        "file": "film.mp4", "frame": 3, "width": 120, "height": 80,
        "detections": [
            {"label": 1, "name": NAMES[1], "score": 0.75, "box_xyxy": BOXES[0]},
            {"label": 0, "name": NAMES[0], "score": 0.5, "box_xyxy": BOXES[1]},
        ],
    }  # fmt: skip


def test_coco_results_are_those_of_detect_py(tmp_path, monkeypatch):
    make_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    arguments = ("--source", "images", "--save-json", "--nosave", "--conf-thres", 0.2)
    assert run_script(load_script("detect"), monkeypatch, *arguments) == 0
    expected = json.loads((tmp_path / "runs/detect/exp/detections.json").read_text())
    found = [row for result in load()("images", batch_size=1, confidence=0.2) for row in result.to_coco()]
    assert found == expected and len(found) > 7


def test_ids_of_coco_results():
    (first, second) = result_of().to_coco()
    assert first == {
        "image_id": 42, "category_id": 2, "bbox": [10.0, 20.0, 20.5, 40.25], "score": 0.75, "file_name": "000042.jpg",
    }  # fmt: skip
    assert second["bbox"] == [0, 0, 120, 80]
    assert result_of("x/dog.jpg").to_coco()[0]["image_id"] == "dog"
    assert result_of("7.mp4", 3).to_coco()[0] | {"bbox": 0} == {
        "image_id": "7", "category_id": 2, "bbox": 0, "score": 0.75, "file_name": "7.mp4", "frame": 3,
    }  # fmt: skip
    assert result_of().to_coco(image_id=9)[0]["image_id"] == 9 == result_of("").to_coco(image_id=9)[0]["image_id"]
    with pytest.raises(UserError, match="give it an image_id"):
        result_of("").to_coco()
    of_coco = result_of(names=read_names(REPOSITORY / "cfg/coco.names"))
    assert [row["category_id"] for row in of_coco.to_coco()] == [2, 1]


def test_supervision_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(UserError, match="pip install supervision") as caught:
        result_of().to_supervision()
    assert "\n" not in str(caught.value)


def test_what_supervision_is_given(monkeypatch):
    stub = types.SimpleNamespace(Detections=lambda **given: given)
    monkeypatch.setitem(sys.modules, "supervision", stub)
    for count in (2, 0):
        given = result_of(count=count).to_supervision()
        assert given["xyxy"].tolist() == BOXES[:count] and given["xyxy"].shape == (count, 4)
        assert given["confidence"].tolist() == [0.75, 0.5][:count] and given["class_id"].tolist() == [1, 0][:count]
        assert given["data"]["class_name"].tolist() == [NAMES[1], NAMES[0]][:count]


def test_supervision_itself_takes_it():
    supervision = pytest.importorskip("supervision", reason="supervision is not installed; nothing needs it")
    for count in (2, 0):
        found = result_of(count=count).to_supervision()
        assert isinstance(found, supervision.Detections) and len(found) == count
    strong = result_of().to_supervision()
    assert strong[strong.confidence > 0.6].data["class_name"].tolist() == [NAMES[1]]
