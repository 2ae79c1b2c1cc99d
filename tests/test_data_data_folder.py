"""What an unzipped folder is: the layouts of the usual tools, by their names."""

import json
from pathlib import Path

import pytest

from data.data_folder import describe_folder
from utils.errors import UserError


def make(folder: Path, *files: str) -> Path:
    """Write files; those whose name ends with / become folders, lists name an image."""
    for name in files:
        path = folder / name
        path.mkdir(parents=True) if name.endswith("/") else path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".txt":
            path.write_text("images/a.jpg\n")
        elif path.suffix == ".yaml":
            path.write_text("train: train/images\nnames: [x]\n")
        elif path.suffix == ".data":
            path.write_text("classes = 1\ntrain = data/train.txt\n")
        elif not name.endswith("/"):
            path.write_text(json.dumps({}))
    return folder


@pytest.mark.parametrize(
    "files, expected",
    [
        # Roboflow: with and without its yaml, and with a COCO JSON in each folder.
        (["data.yaml", "train/images/", "valid/images/"], {"train": "train/images"}),
        (["train/images/", "valid/images/", "test/images/"], {"train": "train", "valid": "valid", "test": "test"}),
        (
            ["train/_annotations.coco.json", "valid/_annotations.coco.json"],
            {"train": "train/_annotations.coco.json", "valid": "valid/_annotations.coco.json"},
        ),
        (["images/train/", "images/val/", "labels/train/"], {"train": "images/train", "valid": "images/val"}),
        (["training/", "validation/"], {"train": "training", "valid": "validation"}),
        (["train2017/", "val2017/"], {"train": "train2017", "valid": "val2017"}),
        # COCO: the annotations decide, those of other tasks do not count.
        (
            [
                "annotations/instances_train2017.json",
                "annotations/instances_val2017.json",
                "annotations/captions_val2017.json",
                "annotations/person_keypoints_val2017.json",
                "images/train2017/",
                "images/val2017/",
            ],
            {"train": "annotations/instances_train2017.json", "valid": "annotations/instances_val2017.json"},
        ),
        (["train.json", "val.json", "images/"], {"train": "train.json", "valid": "val.json"}),
        # VOC: the lists of all classes.
        (
            ["ImageSets/Main/train.txt", "ImageSets/Main/val.txt", "ImageSets/Main/cat_train.txt", "JPEGImages/"],
            {"train": "ImageSets/Main/train.txt", "valid": "ImageSets/Main/val.txt"},
        ),
        # Darknet and YOLO: lists, which the label of an image called "train.jpg" is not.
        (["train.txt", "val.txt", "images/"], {"train": "train.txt", "valid": "val.txt"}),
        (["obj.data", "train.txt", "obj_train_data/"], {"train": "train.txt"}),
        (
            ["ImageSets/Main/trainval.txt", "ImageSets/Main/test.txt"],
            {"train": "ImageSets/Main/trainval.txt", "test": "ImageSets/Main/test.txt"},
        ),
        (["coco8.yaml", "other.json", "train/images/"], {"train": "train/images"}),
        # A zip that holds one folder.
        (["inner/data.yaml", "inner/train/images/"], {"train": "inner/train/images"}),
    ],
)
def test_layouts_with_splits(tmp_path, files, expected):
    data = describe_folder(make(tmp_path, *files))
    assert not data.is_one_set
    assert {split: data.sources(split)[0].relative_to(tmp_path).as_posix() for split in data.splits} == expected


@pytest.mark.parametrize(
    "files, expected",
    [
        (["a.jpg", "a.xml"], ""),
        (["images/a.jpg", "labels/a.txt"], ""),
        (["data/a.jpg", "labels.json"], "labels.json"),  # FiftyOne
        (["images/a.jpg", "annotations/instances_default.json"], "annotations/instances_default.json"),  # CVAT
        (["JPEGImages/a.jpg", "ImageSets/Main/default.txt"], "ImageSets/Main/default.txt"),  # CVAT
        (["train_station/a.jpg", "val-thorens/b.jpg"], ""),  # words that only begin like a split
        (["test.txt.jpg", "a.txt"], ""),
    ],
)
def test_layouts_without_splits_are_one_set(tmp_path, files, expected):
    data = describe_folder(make(tmp_path, *files))
    assert data.is_one_set
    assert {data.sources(split) for split in ("train", "valid", "test")} == {(tmp_path / expected,)}


@pytest.mark.parametrize(
    "files",
    [
        ["train/", "train2017/"],
        ["images/val/", "images/valid/"],
        ["annotations/train.json", "annotations/train_2.json"],
    ],
)
def test_two_things_called_after_one_split_are_not_guessed_at(tmp_path, files):
    with pytest.raises(UserError, match=r"both look like '(train|valid)'; name the one that is meant"):
        describe_folder(make(tmp_path, *files))


def test_a_yaml_that_names_no_images_is_passed_over(tmp_path):
    make(tmp_path, "images/train/", "images/val/")
    (tmp_path / "tool.yaml").write_text("version: 2\n")
    assert describe_folder(tmp_path).splits.keys() == {"train", "valid"}


def test_a_label_file_called_like_a_split_is_no_list(tmp_path):
    make(tmp_path, "train.jpg", "val.jpg")
    (tmp_path / "train.txt").write_text("0 .5 .5 .2 .2\n")
    (tmp_path / "val.txt").write_text("")
    assert describe_folder(tmp_path).is_one_set


def test_only_training_images_are_not_taken_for_validation(tmp_path):
    data = describe_folder(make(tmp_path, "train/images/"))
    with pytest.raises(UserError, match=r"has no 'valid' \(it has train\); --val-fraction 0\.2 holds a fifth"):
        data.sources("valid")
