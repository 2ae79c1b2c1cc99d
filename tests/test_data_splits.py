"""From what a user names to annotations: exports of annotation tools, images held out, classes of both splits."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from data.labels.read import held_out_images, read_dataset
from data.splits import open_data, open_split, open_training_splits, split_shown
from utils.errors import UserError

XML = "<annotation><size><width>40</width><height>30</height></size>{}</annotation>"
OBJECT = "<object><name>{}</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>11</xmax><ymax>12</ymax></bndbox></object>"


def image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((30, 40, 3), 90, np.uint8))


def yolo_folder(folder: Path, count: int, row: str = "0 0.5 0.5 0.25 0.5") -> Path:
    """Write images with labels beside them."""
    for index in range(count):
        image(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(row + "\n")
    return folder


def voc_folder(folder: Path, *names: str) -> Path:
    """Write an image with an XML file for each list of class names, which are separated by spaces."""
    for index, text in enumerate(names):
        image(folder / f"{index}.jpg")
        (folder / f"{index}.xml").write_text(XML.format("".join(map(OBJECT.format, text.split()))))
    return folder


@pytest.mark.parametrize(
    "data, fraction, images, names",
    [
        ("roboflow_yolov5/data.yaml", 0, (6, 2), "cat dog bird"),
        ("roboflow_yolov5/data-dict.yaml", 0, (6, 2), "cat dog bird"),
        ("roboflow_yolov5", 0, (6, 2), "cat dog bird"),
        ("roboflow_coco", 0, (6, 2), "cat dog bird"),
        ("coco_ids_from_0", 0, (10, 10), "cat dog bird"),
        ("labelimg_voc", 0, (10, 10), "bird cat dog"),
        ("cvat_yolo11/obj.data", 0.2, (8, 2), "cat dog bird"),
        ("cvat_yolo11", 0.2, (8, 2), "cat dog bird"),
    ],
)
def test_exports_of_annotation_tools_are_read_as_they_are_unzipped(shared, capsys, data, fraction, images, names):
    path = shared / "data" / "exports" / data
    train, valid = open_training_splits(str(path), fraction)
    assert (len(train), len(valid)) == images and train.names == valid.names == tuple(names.split())
    if images == (8, 2):
        assert len(train.labels) + len(valid.labels) == 52
    else:
        assert (len(train.labels), len(valid.labels)) == ((28, 20) if images == (6, 2) else (52, 52))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{path}: 3 classes ({', '.join(train.names)})"
    assert lines[1].startswith(f"  {images[0]} training images, {len(train.labels)} objects: {shared / 'data'}")
    assert lines[2].startswith(f"  {images[1]} validation images, {len(valid.labels)} objects: {shared / 'data'}")
    assert any("one set of images" in line for line in lines[3:]) == (images == (10, 10))


def test_two_exports_of_the_same_images_say_the_same_boxes(shared):
    exports = shared / "data" / "exports"
    yolo, coco = (open_split(str(exports / kind), "train") for kind in ("roboflow_yolov5", "roboflow_coco"))
    assert yolo.labels.tolist() == coco.labels.tolist()
    np.testing.assert_allclose(yolo.boxes_xyxy, coco.boxes_xyxy, atol=0.01)  # as many decimals as the rows have


def test_without_validation_images_a_share_must_be_held_out(shared, capsys):
    data = str(shared / "data/exports/cvat_yolo11/obj.data")
    with pytest.raises(UserError, match=r"obj\.data: has no 'valid' \(it has train\); --val-fraction 0\.2 holds"):
        open_training_splits(data)
    train, valid = open_training_splits(data, 0.2)
    assert not set(train.image_paths) & set(valid.image_paths) and len(train) + len(valid) == 10
    assert "data/train.txt is read from" in capsys.readouterr().out


def test_what_is_held_out_depends_on_the_file_names_alone(tmp_path):
    ten = read_dataset(open_data(str(yolo_folder(tmp_path / "a", 10))), "train")
    moved = read_dataset(open_data(str(yolo_folder(tmp_path / "b" / "c", 10))), "train")
    held = held_out_images(ten, 0.3)
    assert held.sum() == 3 and held.tolist() == held_out_images(moved, 0.3).tolist()
    backwards = ten.select_images(np.arange(9, -1, -1))
    assert held_out_images(backwards, 0.3).tolist() == held.tolist()[::-1]
    more = read_dataset(open_data(str(yolo_folder(tmp_path / "a", 11))), "train")
    before, after = (
        {Path(one.image_paths[index]).name for index in np.flatnonzero(held_out_images(one, 0.3))}
        for one in (ten, more)
    )
    assert len(before - after) <= 1  # a new image takes the place of one at most
    assert held_out_images(ten, 0.001).sum() == 1 and held_out_images(ten, 0.999).sum() == 9


@pytest.mark.parametrize("fraction", [1.0, -0.1, float("nan"), 20])
def test_a_share_is_a_number_between_0_and_1(tmp_path, fraction):
    with pytest.raises(UserError, match="must be a share of the training images"):
        open_data(str(yolo_folder(tmp_path, 3)), fraction)


def test_nothing_is_held_out_where_validation_images_are_named(tmp_path):
    yolo_folder(tmp_path / "train", 3)
    yolo_folder(tmp_path / "valid", 3)
    with pytest.raises(UserError, match=r"has images for validation \('valid'\); leave --val-fraction out"):
        open_data(str(tmp_path), 0.2)
    with pytest.raises(UserError, match="the data set has only one"):
        read_dataset(open_data(str(yolo_folder(tmp_path / "one", 1)), 0.2), "valid")


def test_one_set_of_images_is_called_all_and_its_parts_are_not(tmp_path):
    data = str(yolo_folder(tmp_path / "one", 4))
    assert split_shown(data, "valid") == "all" and split_shown(data, "valid", 0.25) == "valid"
    assert split_shown("shapes.data", "valid") == "valid"


def test_classes_that_only_one_split_names_are_those_of_both(tmp_path, capsys):
    voc_folder(tmp_path / "train", "dog bird", "dog")
    voc_folder(tmp_path / "valid", "cat dog")
    train, valid = open_training_splits(str(tmp_path))
    assert train.names == valid.names == ("bird", "dog", "cat")
    assert train.labels.tolist() == [1, 0, 1] and valid.labels.tolist() == [2, 1]
    assert len(set(valid.category_ids)) == 3
    assert "3 classes (bird, dog, cat)" in capsys.readouterr().out
    single, _ = open_training_splits(str(tmp_path), single_cls=True)
    assert single.names == ("object",)


def test_classes_that_the_splits_number_differently_are_mapped_by_name(tmp_path, capsys):
    coco(tmp_path / "train")
    coco(tmp_path / "valid", categories=[{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}])
    train, valid = open_training_splits(str(tmp_path))
    assert train.names == valid.names == ("cat", "dog")
    assert train.labels.tolist() == [0, 1] and valid.labels.tolist() == [1, 0]
    assert valid.to_coco()["annotations"][0]["category_id"] == 1  # the file's own number of dogs
    assert "number the classes differently: mapped by name" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["classes.txt", "obj.names", "classes.names"])
@pytest.mark.parametrize("place", ["labels", ".", "images"])
def test_the_names_file_of_annotation_tools_is_found(tmp_path, name, place):
    yolo_folder(tmp_path / "images", 2, "1 0.5 0.5 0.25 0.5")
    (tmp_path / "labels").mkdir()
    for path in (tmp_path / "images").glob("*.txt"):
        path.rename(tmp_path / "labels" / path.name)
    (tmp_path / place / name).write_text("cat\ndog\n")
    notes = open_split(str(tmp_path), "train")
    assert notes.names == ("cat", "dog") and notes.labels.tolist() == [1, 1]
    (tmp_path / place / name).write_text("cat\n")
    with pytest.raises(UserError, match=rf"class 1 is outside 0\.\.0, the classes of .*{name}"):
        open_split(str(tmp_path), "train")


def test_a_list_of_images_with_paths_of_another_machine(tmp_path):
    yolo_folder(tmp_path / "obj_train_data", 3)
    lines = ["data/obj_train_data/0.png", r"C:\work\obj_train_data\1.png", "/home/x/obj_train_data/2.png", "obj/9.png"]
    (tmp_path / "train.txt").write_text("\n".join(lines))
    notes = read_dataset(open_data(str(tmp_path / "train.txt")), "train")
    assert [Path(path).name for path in notes.image_paths] == ["0.png", "1.png", "2.png"]
    assert [problem.kind for problem in notes.problems] == ["image is not on the disk, left out"]


def test_a_voc_list_of_one_class_takes_the_images_that_have_it(tmp_path):
    voc_folder(tmp_path / "all", "cat", "dog", "cat dog")
    for folder, suffix in (("JPEGImages", "jpg"), ("Annotations", "xml")):
        (tmp_path / folder).mkdir()
        for path in (tmp_path / "all").glob(f"*.{suffix}"):
            path.rename(tmp_path / folder / path.name)
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    flags = "0  1\n1 -1\n2  0\n"
    for name, kept in (("cat_train", ["0.jpg"]), ("cat_trainval", ["0.jpg"]), ("train", ["0.jpg", "1.jpg", "2.jpg"])):
        (lists / f"{name}.txt").write_text(flags)
        notes = read_dataset(open_data(str(lists / f"{name}.txt")), "train")
        assert [Path(path).name for path in notes.image_paths] == kept
    (lists / "cow_train.txt").write_text("0 -1\n1 -1\n2 0\n")
    with pytest.raises(UserError, match="no image has the class of the list"):
        read_dataset(open_data(str(lists / "cow_train.txt")), "train")


def coco(folder: Path, **changes) -> str:
    """Write a COCO JSON of two images with an object each; return its path."""
    top = {
        "images": [{"id": 4, "file_name": "a.png", "width": 40, "height": 30}, {"id": 7, "file_name": "b.png"}],
        "annotations": [
            {"id": 1, "image_id": 4, "category_id": 1, "bbox": [1, 2, 10, 10]},
            {"id": 2, "image_id": 7, "category_id": 2, "bbox": [1, 2, 10, 10]},
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }
    for name in ("a", "b"):
        image(folder / "data" / f"{name}.png")
    (folder / "labels.json").write_text(json.dumps({**top, **changes}))
    return str(folder / "labels.json")


@pytest.mark.parametrize(
    "ids, expected, note",
    [
        (("000012", "7"), [12, 7], False),  # words that are numbers
        (("65a", "65b"), [1, 2], True),  # FiftyOne's
        ((0, 1), [0, 1], False),
    ],
)
def test_coco_files_with_odd_ids_and_sizes(tmp_path, ids, expected, note):
    images = [{"id": id_, "file_name": f"{name}.png", "width": -1} for id_, name in zip(ids, "ab", strict=True)]
    annotations = [{"image_id": id_, "category_id": "2", "bbox": [1, 2, 10, 10]} for id_ in ids]
    notes = open_split(coco(tmp_path, images=images, annotations=annotations), "train")
    assert notes.image_ids.tolist() == expected and notes.image_wh.tolist() == [[40, 30]] * 2
    assert notes.labels.tolist() == [1, 1] and notes.annotation_ids.tolist() == [1, 2]
    assert [Path(path).name for path in notes.image_paths] == ["a.png", "b.png"]
    assert any("image ids are words" in str(problem) for problem in notes.problems) == note


@pytest.mark.parametrize("prefix", ["data\\", "C:\\x\\data\\", "/home/x/", "train/sub/", "data/"])
def test_coco_files_with_paths_of_another_machine(tmp_path, prefix):
    images = [{"id": 4, "file_name": f"{prefix}a.png"}, {"id": 7, "file_name": f"{prefix}b.png"}]
    notes = open_split(coco(tmp_path, images=images), "train")
    assert [Path(path).name for path in notes.image_paths] == ["a.png", "b.png"] and len(notes.labels) == 2


def test_a_supercategory_that_no_annotation_uses_is_no_class(tmp_path):
    parent = {"id": 0, "name": "pets", "supercategory": "none"}
    children = [{"id": 1, "name": "cat", "supercategory": "pets"}, {"id": 2, "name": "dog", "supercategory": "pets"}]
    notes = open_split(coco(tmp_path, categories=[parent, *children]), "train")
    assert notes.names == ("cat", "dog") and notes.category_ids == (1, 2)
    assert "category that no annotation uses" in str(notes.problems[0])
    # One that annotations use is a class, and so is one that nobody calls a supercategory.
    used = [{"id": 1, "image_id": 4, "category_id": 0, "bbox": [1, 2, 10, 10]}]
    assert open_split(coco(tmp_path, categories=[parent, *children], annotations=used), "train").names[0] == "pets"
    cow = {"id": 3, "name": "cow", "supercategory": "animal"}
    assert open_split(coco(tmp_path, categories=[*children, cow]), "train").names == ("cat", "dog", "cow")


def test_categories_that_no_annotation_uses_are_left_out_where_the_data_file_has_fewer_classes(tmp_path):
    categories = [{"id": 0, "name": "all"}, {"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    coco(tmp_path, categories=categories)
    (tmp_path / "x.data").write_text("train = labels.json\nclasses = 2\n")
    assert open_split(str(tmp_path / "x.data"), "train").names == ("cat", "dog")
    (tmp_path / "x.data").write_text("train = labels.json\nclasses = 1\n")
    with pytest.raises(UserError, match=r"has 3 categories, but .* says classes = 1"):
        open_split(str(tmp_path / "x.data"), "train")


@pytest.mark.parametrize(
    "names, found",
    [
        ("motorbike aeroplane", ("motorbike", "aeroplane")),  # in Darknet's words
        ("one two", ("one", "two")),  # nothing in common: another language, perhaps
        ("Motorcycle air-plane", ("Motorcycle", "air-plane")),
        ("airplane motorcycle", None),  # the other way round
        ("airplane zebra", None),
        ("zebra motorbike", None),
    ],
)
def test_names_in_other_words_are_a_note_and_at_another_place_a_conflict(tmp_path, names, found):
    coco(tmp_path, categories=[{"id": 1, "name": "motorcycle"}, {"id": 2, "name": "airplane"}])
    (tmp_path / "x.names").write_text(names.replace(" ", "\n"))
    (tmp_path / "x.data").write_text("train = labels.json\nnames = x.names\n")
    if found is None:
        with pytest.raises(
            UserError, match=r"labels\.json: class [01] is '.*' \(category id [12]\), but .* gives class"
        ):
            open_split(str(tmp_path / "x.data"), "train")
    else:
        notes = open_split(str(tmp_path / "x.data"), "train")
        assert notes.names == found and "in other words" in str(notes.problems[0])


def test_darknets_own_names_fit_the_annotations_of_coco(shared, tmp_path, capsys):
    names = shared / "data/weights/yolo-fastest-1.1/coco.names"
    json_path = shared / "data/coco/annotations/instances_val2017.json"
    (tmp_path / "x.data").write_text(f"valid = {json_path}\nnames = {names}\n")
    notes = open_split(str(tmp_path / "x.data"), "valid")
    assert notes.names[3] == "motorbike" and len(notes) == 128
    assert "classes in the same order, but in other words" in capsys.readouterr().out
