"""Outlines and key points are read where a network wants them, of COCO JSON and of YOLO text, and nowhere else."""

import json

import cv2
import numpy as np
import pytest
from pycocotools import mask as masks

from data.description import DataDescription
from data.labels import cache
from data.labels.annotations import Annotations
from data.labels.read import read_dataset
from data.splits import open_data, open_training_splits
from utils.errors import UserError
from utils.structures import KEY_POINTS, MASKS

BOTH = frozenset({MASKS, KEY_POINTS})
SQUARE = [10, 20, 40, 20, 40, 60, 10, 60]
IMAGES = [{"id": number, "width": 100, "height": 80, "file_name": f"{number}.png"} for number in (1, 2)]


def annotation(id_, image_id=1, **values):
    return {"id": id_, "image_id": image_id, "category_id": 1, "bbox": [10, 20, 30, 40], "area": 9.0, **values}


def read_json(folder, annotations, wants=BOTH, **category):
    path = folder / "x.json"
    categories = [{"id": 1, "name": "person", **category}]
    path.write_text(json.dumps({"images": IMAGES, "annotations": annotations, "categories": categories}))
    return read_dataset(open_data(str(path)), "train", need_images=False, wants=wants)


def kinds(annotations):
    return [problem.kind for problem in annotations.problems]


def test_a_json_gives_polygons_and_run_lengths_in_the_order_of_the_images(tmp_path):
    ring = np.zeros((80, 100), np.uint8, order="F")
    ring[20:60, 10:40] = 1
    ring[30:50, 20:30] = 0
    encoded = masks.encode(ring)
    runs = [len(list(group)) for group in np.split(ring.T.ravel(), np.flatnonzero(np.diff(ring.T.ravel())) + 1)]
    rows = [
        annotation(5, 2, segmentation=[SQUARE]),
        annotation(6, 1, segmentation={"size": [80, 100], "counts": encoded["counts"].decode()}),
        annotation(7, 1, segmentation={"size": [80, 100], "counts": runs}, bbox=[9, 20, 31, 40], iscrowd=1),
    ]
    found = read_json(tmp_path, rows)
    assert found.annotation_ids.tolist() == [6, 7, 5] and found.key_points is None and kinds(found) == []
    out = np.zeros((3, 80, 100), np.uint8)
    found.polygons.paint(out)
    assert np.array_equal(out[0], ring) and np.array_equal(out[1], ring) and found.polygons.to_coco(2) == [SQUARE]
    truth = found.to_coco()["annotations"]
    assert [one["segmentation"] for one in truth][2] == [SQUARE] and "keypoints" not in truth[0]
    chosen = found.select_images(np.array([1, 0])).select_boxes(np.array([True, False, True]))
    assert chosen.polygons.to_coco(0) == [SQUARE] and len(chosen.polygons) == 2


def test_boxes_stand_for_masks_that_are_missing(tmp_path):
    broken = {"size": [80, 100], "counts": "z" * 999}
    rows = [annotation(1, segmentation=[SQUARE]), annotation(2), annotation(3, segmentation=broken)]
    rows += [annotation(4, segmentation=[[1, 2, 3, 4]]), annotation(5, bbox=[200, 0, 5, 5], segmentation=[])]
    found = read_json(tmp_path, rows)
    assert found.polygons.to_coco(1) == found.polygons.to_coco(2) == found.polygons.to_coco(3) == [SQUARE]
    assert "segmentation that cannot be read, taken as missing" in kinds(found)
    assert str(found.problems[-1]).endswith("objects without a mask, whose boxes stand for it (3 of 4)")
    assert found.unlearnable.polygons.to_coco(0) == [[200, 0, 205, 0, 205, 5, 200, 5]]


def test_a_json_gives_key_points_and_their_mirror_by_name(tmp_path):
    names = ["nose", "left_eye", "right_eye"]
    points = [20, 30, 2, 15, 25, 1, 0, 0, 0]
    found = read_json(tmp_path, [annotation(1, 2, keypoints=points), annotation(2, 1)], keypoints=names)
    assert found.key_points.points.tolist() == [[[0, 0, 0]] * 3, [[20, 30, 2], [15, 25, 1], [0, 0, 0]]]
    assert found.key_points.mirrored.tolist() == [0, 2, 1] and found.num_key_points == 3
    assert found.to_coco()["annotations"][1]["keypoints"] == points
    assert found.to_coco()["annotations"][1]["num_keypoints"] == 2
    unnamed = read_json(tmp_path, [annotation(1, keypoints=points), annotation(2, 2, keypoints=[1, 2])])
    assert unnamed.key_points.mirrored.tolist() == [] and len(kinds(unnamed)) == 1


def test_nothing_is_read_that_nobody_wants(tmp_path):
    rows = [annotation(1, segmentation=[SQUARE], keypoints=[1, 2, 2])]
    found = read_json(tmp_path, rows, wants=frozenset())
    assert (
        found.polygons is None and found.key_points is None and "segmentation" not in found.to_coco()["annotations"][0]
    )
    assert read_json(tmp_path, rows, wants=frozenset({MASKS})).key_points is None
    assert read_json(tmp_path, rows, wants=frozenset({KEY_POINTS})).polygons is None


def read_text(folder, *files, shape=None, mirror=(), wants=BOTH, count=2):
    """Read label files of images of 100 x 80 pixels."""
    for name in ("images", "labels"):
        (folder / name).mkdir(exist_ok=True)
    for number, text in enumerate(files * (count // len(files))):
        if not (folder / f"images/{number:04d}.png").exists():  # whose time of change is part of a cache's key
            cv2.imwrite(str(folder / f"images/{number:04d}.png"), np.zeros((80, 100, 3), np.uint8))
        (folder / f"labels/{number:04d}.txt").write_text(text)
    splits = {"train": (str(folder / "images"),)}
    described = DataDescription(folder / "x.yaml", 1, ("a",), splits, keypoint_shape=shape, keypoint_mirror=mirror)
    return read_dataset(described, "train", wants=wants)


def test_text_gives_polygons(tmp_path):
    text = "0 0.1 0.25 0.4 0.25 0.4 0.75 0.1 0.75\n0 0.5 0.5 0.2 0.25\nnonsense\n0 0.1 0.25 0.4 0.25 0.4 0.5\n"
    found = read_text(tmp_path, text, "", wants=frozenset({MASKS}))
    assert found.polygons.to_coco(0) == [SQUARE] and found.polygons.to_coco(2) == [[10, 20, 40, 20, 40, 40]]
    assert found.polygons.to_coco(1) == [[40, 30, 60, 30, 60, 50, 40, 50]]  # its box
    assert "objects without a mask, whose boxes stand for it" in kinds(found)


@pytest.mark.parametrize("shape", [(2, 3), (2, 2)])
def test_text_gives_key_points(tmp_path, shape):
    points = "0.2 0.5 1 0 0 0" if shape[1] == 3 else "0.2 0.5 0 0"
    found = read_text(tmp_path, f"0 0.25 0.5 0.3 0.5 {points}\n0 0.5 0.5 0.2 0.25\n", "", shape=shape, mirror=(1, 0))
    visible = 1 if shape[1] == 3 else 2
    assert found.key_points.points.tolist() == [[[20, 40, visible], [0, 0, 0]], [[0, 0, 0], [0, 0, 0]]]
    assert found.key_points.mirrored.tolist() == [1, 0] and found.polygons is None and kinds(found) == []
    assert found.boxes_xyxy[0].tolist() == [10, 20, 40, 60]


def test_objects_that_cannot_be_learned_have_key_points_for_cocos_evaluation(tmp_path):
    text = "0 0.25 0.5 0.3 0.5 0.2 0.5 1\n0 0.5 0.5 0 0.25 0.5 0.5 2\n0 1.5 0.5 0.2 0.25 0.5 0.5 2\n"
    truth = read_text(tmp_path, text, "", shape=(1, 3)).to_coco()["annotations"]
    assert [(one["keypoints"], one["num_keypoints"]) for one in truth] == [([20, 40, 1], 1), *[([0, 0, 0], 0)] * 2]


def test_key_points_that_are_no_numbers_are_missing(tmp_path):
    found = read_text(tmp_path, "0 0.25 0.5 0.3 0.5 0.2 x 1\n0 0.5 0.5 0.2 0.2 0.5 0.5 2\n", "", shape=(1, 3))
    assert found.key_points.points.tolist() == [[[0, 0, 0]], [[50, 40, 2]]]
    assert kinds(found) == ["key points that are no numbers, taken as missing"]


@pytest.mark.parametrize("text", ["0 0.25 0.5 0.3 0.5\n", "0 0.25 0.5 0.3 0.5 0 0 0 0 0 0\n", ""])
def test_rows_without_a_labelled_point_have_no_key_points(tmp_path, text):
    assert read_text(tmp_path, text, "0 0.5 0.5 0.2 0.25\n", shape=(2, 3)).key_points is None
    with pytest.raises(UserError, match="its labels have no key points to learn"):
        path = tmp_path / "data.yaml"
        path.write_text("train: images\nnames: [a]\nkpt_shape: [2, 3]\n")
        open_training_splits(str(path), wants=frozenset({KEY_POINTS}))


def test_a_json_without_a_labelled_point_has_no_key_points(tmp_path):
    for points in ([], [0, 0, 0] * 3, [5, 5, 0] * 3):
        assert read_json(tmp_path, [annotation(1, keypoints=points)]).key_points is None


def test_what_longer_rows_hold_must_be_said_for_key_points(tmp_path):
    with pytest.raises(UserError, match=r"a data.yaml with kpt_shape: \[points, 3\] does"):
        read_text(tmp_path, "0 0.1 0.25 0.4 0.25 0.4 0.75 0.1 0.75\n", wants=frozenset({KEY_POINTS}))


def test_a_yaml_says_the_mirror(tmp_path):
    path = tmp_path / "data.yaml"
    path.write_text("train: images\nnames: [a]\nkpt_shape: [3, 2]\nflip_idx: [0, 2, 1]\n")
    described = open_data(str(path))
    assert (described.keypoint_mirror, described.notes) == ((0, 2, 1), ())
    path.write_text("train: images\nnames: [a]\nkpt_shape: [3, 2]\nflip_idx: [0, 2, 2]\n")
    with pytest.raises(UserError, match=r"data\.yaml:4: 'flip_idx' must be the numbers 0 to 2"):
        open_data(str(path))


def test_a_cache_gives_back_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "MIN_IMAGES", 1)
    text = "0 0.25 0.5 0.3 0.5 0.2 0.5 1\n0 1.5 1.5 0.1 0.1 0 0 0\n"
    pose = {"shape": (1, 3), "mirror": (0,)}
    first = read_text(tmp_path, text, text, **pose)
    boxes_alone = read_text(tmp_path, text, text, wants=frozenset(), **pose)
    assert {path.name for path in tmp_path.glob("*.npz")} == {"images.shapes.cache.npz", "images.cache.npz"}
    monkeypatch.setattr("data.labels.read._read_pairs", None)  # nothing is parsed again
    again = read_text(tmp_path, text, text, **pose)
    assert np.array_equal(first.key_points.points, again.key_points.points)
    assert again.key_points.mirrored.tolist() == [0] and len(again.unlearnable.labels) == 2
    assert boxes_alone.key_points is None
    assert read_text(tmp_path, text, text, wants=frozenset(), **pose).key_points is None


def test_a_cache_gives_back_the_same_outlines(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "MIN_IMAGES", 1)
    text = "0 0.1 0.25 0.4 0.25 0.4 0.75 0.1 0.75\n0 1.5 1.5 0.1 0.1\n"
    first = read_text(tmp_path, text, text, wants=frozenset({MASKS}))
    monkeypatch.setattr("data.labels.read._read_pairs", None)
    again = read_text(tmp_path, text, text, wants=frozenset({MASKS}))
    for found in (first, again):
        assert isinstance(found, Annotations) and found.polygons.to_coco(1) == [SQUARE]
        assert found.unlearnable.polygons.to_coco(0)[0][:2] == [100, 80]  # its box, as clipped to the image


def test_training_needs_what_the_network_learns(tmp_path):
    read_text(tmp_path, "0 0.5 0.5 0.2 0.25\n", "0 0.5 0.5 0.2 0.25\n")
    with pytest.raises(UserError, match="its labels have no masks to learn; take a network that finds boxes"):
        open_training_splits(str(tmp_path), wants=frozenset({MASKS}))


def test_training_and_validation_have_as_many_key_points(tmp_path):
    for name, count in (("train", 3), ("valid", 2)):
        points = [annotation(1, keypoints=[20, 30, 2] * count)]
        content = {"images": IMAGES[:1], "annotations": points, "categories": [{"id": 1, "name": "person"}]}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    cv2.imwrite(str(tmp_path / "1.png"), np.zeros((80, 100, 3), np.uint8))
    path = tmp_path / "x.data"
    path.write_text(f"classes = 1\ntrain = {tmp_path}/train.json\nvalid = {tmp_path}/valid.json\n")
    with pytest.raises(UserError, match=r"x\.data: an object has 3 key points to learn and 2 to validate"):
        open_training_splits(str(path), wants=frozenset({KEY_POINTS}))
    assert len(open_training_splits(str(path))) == 2  # for boxes it does not matter


@pytest.mark.parametrize("size", [[100, 80], [160, 200]])
def test_run_lengths_of_another_size_than_the_image_are_missing(tmp_path, size):
    height, width = size
    runs = {"size": size, "counts": [0, height * width]}
    found = read_json(tmp_path, [annotation(1, segmentation=runs), annotation(2, 2, segmentation=[SQUARE])])
    assert found.polygons.to_coco(0) == [SQUARE]  # its box
    (problem, *_) = found.problems
    assert problem.kind == "segmentation of another size than its image, taken as missing"
    assert f"annotation 1: {width} x {height}, not 100 x 80" in str(problem)


@pytest.mark.parametrize("value", [1e9, -1e300])
def test_what_lies_as_far_as_no_image_reaches_is_missing(tmp_path, value):
    rows = [annotation(1, segmentation=[[10, 20, value, 20, 40, 60]]), annotation(2, 2, segmentation=[SQUARE])]
    rows[0] |= {"keypoints": [20, 30, 2, value, 25, 1, 0, 0, 0]}
    rows[1] |= {"keypoints": [20, 30, 2, 15, 25, 1, 0, 0, 0]}
    found = read_json(tmp_path, rows)
    assert found.polygons.to_coco(0) == [SQUARE] and found.key_points.points[0].max() == 0
    assert kinds(found)[:2] == [
        f"{what} that cannot be read, taken as missing" for what in ("segmentation", "keypoints")
    ]


@pytest.mark.parametrize(
    ("names", "mirror"),
    [
        (["Left_eye", "RIGHT_EYE", "nose"], [1, 0, 2]),
        (["leftEye", "rightEye", "left_eye"], []),  # the last one has no other side
        (["l_eye", "r_eye", "tail"], [1, 0, 2]),
        (["eye.L", "eye.R", "bright spot"], [1, 0, 2]),
        (["left_eye_right_corner", "right_eye_left_corner", "lr"], [1, 0, 2]),
        (["left_eye", "left_eye", "right_eye"], []),  # two of one name
        (["left_eye", "nose", "mouth"], []),
        (["a", "b", "c"], [0, 1, 2]),
        ([["left"], None, 5], []),
    ],
)
def test_the_mirror_follows_from_left_and_right_in_the_names(tmp_path, names, mirror):
    points = [20, 30, 2, 15, 25, 1, 0, 0, 0]
    assert (
        read_json(tmp_path, [annotation(1, keypoints=points)], keypoints=names).key_points.mirrored.tolist() == mirror
    )


def test_objects_with_other_points_than_are_named_have_none(tmp_path):
    names = ["nose", "left_eye", "right_eye"]
    rows = [annotation(1, keypoints=[20, 30, 2] * 3), annotation(2, 2, keypoints=[20, 30, 2] * 4)]
    rows += [annotation(3, 2, keypoints=[20, 30, 2]), annotation(4, 2, keypoints=[])]
    found = read_json(tmp_path, rows, keypoints=names)
    assert found.num_key_points == 3 and found.key_points.mirrored.tolist() == [0, 2, 1]
    assert (found.key_points.points[:, :, 2] > 0).sum(axis=1).tolist() == [3, 0, 0, 0]
    kind = "keypoints of another number than the categories name, taken as missing"
    assert [str(one).split(": ", 1)[1] for one in found.problems if one.kind == kind] == [
        f"{kind} (annotation 2: 4 of 3)",
        f"{kind} (annotation 3: 1 of 3)",
    ]
    unnamed = read_json(tmp_path, rows, keypoints=[*names, "tail", "mouth"])  # which no object has
    assert unnamed.num_key_points == 4 and unnamed.key_points.mirrored.tolist() == []


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (
            "flip_idx: [1, 0]\n",
            r"data\.yaml:3: 'flip_idx' is about the key points of 'kpt_shape', which .* does not have",
        ),
        ("kpt_shape: [0, 0]\nflip_idx: [1, 0]\n", r"data\.yaml:4: 'flip_idx' is about the key points"),
        ("kpt_shape: [3, 2]\nflip_idx: [1, 2, 0]\n", r"data\.yaml:4: 'flip_idx' .* 1 beside 0, but 2 beside 1"),
    ],
)
def test_a_mirror_that_is_none_is_refused(tmp_path, lines, says):
    path = tmp_path / "data.yaml"
    path.write_text(f"train: images\nnames: [a]\n{lines}")
    with pytest.raises(UserError, match=says):
        open_data(str(path))


def test_before_there_is_nothing_to_learn_the_reasons_are_told(tmp_path, capsys):
    read_text(tmp_path, "0 0.5 0.5 0.2 0.25 0.5 0.5\n", "0 0.5 0.5 0.2 0.25\n", shape=(1, 2))
    path = tmp_path / "data.yaml"
    path.write_text("train: images\nnames: [a]\nkpt_shape: [5, 3]\n")
    with pytest.raises(UserError, match="no key points to learn"):
        open_training_splits(str(path), wants=frozenset({KEY_POINTS}))
    assert "1 x neither 5 columns nor the 20 of a box with key points; first: " in capsys.readouterr().out
