"""COCO JSON: columns, broken files, sizes, and agreement with pycocotools on the real files."""

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from data.data_file import read_data_file
from data.description import DataDescription
from data.labels.annotations import COCO_CATEGORY_IDS
from data.labels.find import image_folder_candidates
from data.labels.read import read_dataset
from data.splits import open_data
from utils.errors import UserError

CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]


def write(folder: Path, images=None, annotations=(), categories=CATEGORIES, name="x.json") -> DataDescription:
    images = [{"id": 1, "width": 100, "height": 50, "file_name": "a.jpg"}] if images is None else images
    path = folder / name
    path.write_text(json.dumps({"images": images, "annotations": list(annotations), "categories": categories}))
    return open_data(str(path))


def note(**values):
    return {"id": 1, "image_id": 1, "category_id": 7, "bbox": [10, 5, 20, 30], "area": 12.5, "iscrowd": 0} | values


def read(data):
    return read_dataset(data, "train", need_images=False)


def test_categories_are_indexed_by_ascending_id_and_boxes_are_kept_exactly(tmp_path):
    segmentation = {"segmentation": [[1, 2.5, -3e-1, 4, 5, 6], [1, 2, 3, 4, 5, 6]]}
    rows = [
        {**segmentation, **note(bbox=[0.1, 0.2, 0.3, 0.4])},
        note(id=2, category_id=3, iscrowd=1, segmentation={"counts": [1, 2], "size": [50, 100]}),
        note(id=5, area=None),
    ]
    notes = read(write(tmp_path, annotations=rows))
    assert notes.names == ("cat", "dog") and notes.category_ids == (3, 7)
    assert notes.labels.tolist() == [1, 0, 1] and notes.crowd.tolist() == [False, True, False]
    assert notes.areas.tolist() == [12.5, 12.5, 600.0]
    assert notes.annotation_ids.tolist() == [1, 2, 5]
    out = notes.to_coco()
    assert [row["bbox"] for row in out["annotations"]] == [row["bbox"] for row in rows]  # to the last bit
    assert [row["category_id"] for row in out["annotations"]] == [7, 3, 7]
    assert out["categories"] == [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]


@pytest.mark.parametrize(
    "row, kind",
    [
        (note(bbox=[1, 2, 3]), "annotation without usable ids or bbox"),
        (note(bbox=[1, 2, 3, "x"]), "annotation without usable ids or bbox"),
        (note(bbox=None), "annotation without usable ids or bbox"),
        ({"id": 3, "image_id": 1}, "annotation without usable ids or bbox"),
        (note(image_id="one"), "annotation of an unknown image id"),
        (note(id=2**70), "annotation without usable ids or bbox"),
        (note(image_id=9), "annotation of an unknown image id"),
        (note(category_id=4), "annotation of an unknown category id"),
        (note(bbox=[float("nan"), 2, 3, 4]), "not a finite number"),
        (note(bbox=[1, 2, float("inf"), 4]), "not a finite number"),
        (note(bbox=[1.7e308, 2, 1.7e308, 4]), "not a finite number"),
        (note(bbox=[1, 2, 0, 4]), "zero or negative size"),
        (note(bbox=[1, 2, 4, -4]), "zero or negative size"),
        (note(bbox=[100, 2, 4, 4]), "box outside the image"),
    ],
)
def test_a_bad_annotation_is_counted_and_only_it_is_dropped(tmp_path, row, kind):
    notes = read(write(tmp_path, annotations=[note(id=11), {**row, "id": row.get("id", 1) + 20}, note(id=12)]))
    assert notes.annotation_ids.tolist() == [11, 12]
    assert notes.problems[0].kind == kind
    assert notes.boxes_xyxy.tolist() == [[10, 5, 30, 35]] * 2


@pytest.mark.parametrize("entry", [None, 5, "x", [1], True])
def test_an_annotation_that_is_no_object_is_counted_like_the_others(tmp_path, entry):
    notes = read(write(tmp_path, annotations=[note(id=11), entry, note(id=12)]))
    assert notes.annotation_ids.tolist() == [11, 12]
    (problem,) = [one for one in notes.problems if one.kind == "annotation without usable ids or bbox"]
    assert problem.what.startswith("annotations[1]")


def test_a_problem_names_its_annotation(tmp_path):
    rows = [note(id=11, bbox=[1, 2, 0, 4]), note(id=12), note(id=13), note(id=14, bbox=[95, 5, 20, 10])]
    said = {problem.kind.split(" (")[0]: problem.what for problem in read(write(tmp_path, annotations=rows)).problems}
    assert said["zero or negative size"].startswith("annotation 11, box")
    assert said["duplicate box"] == "annotation 13"
    assert said["box reaches over the edge of the image; training uses its inside"].startswith("annotation 14, box")


def test_notes_that_drop_nothing(tmp_path):
    rows = [note(id=0), note(id=0, bbox=[95, 5, 20, 10]), note(id=4)]
    notes = read(write(tmp_path, annotations=rows))
    assert len(notes.labels) == 3
    assert notes.annotation_ids.tolist() == [1, 2, 3]  # pycocotools takes id 0 for "no match"
    assert {problem.kind for problem in notes.problems} == {
        "annotation ids are not unique and positive",
        "box reaches over the edge of the image; training uses its inside",
        "duplicate box (kept, as COCO's evaluation does)",
    }


def test_an_area_that_is_no_number_becomes_that_of_the_box(tmp_path):
    notes = read(write(tmp_path, annotations=[note(area=float("nan")), note(id=2, area=-1), note(id=3, area=0)]))
    assert notes.areas.tolist() == [600, 600, 0]
    assert [problem.kind for problem in notes.problems][:2] == ["area is not a number, that of the box is taken"] * 2


def test_images_twice_without_id_or_size(tmp_path):
    good = {"id": 1, "width": 100, "height": 50, "file_name": "a.jpg"}
    images = [good, good, {"width": 3, "height": 3, "file_name": "b.jpg"}, {"id": 5, "file_name": "c.jpg"}, {"id": "x"}]
    notes = read(write(tmp_path, images, [note(), note(id=2, image_id=5)]))
    assert notes.image_ids.tolist() == [1] and len(notes.labels) == 1
    kinds = sorted(problem.kind for problem in notes.problems)
    assert "duplicate image id" in kinds and kinds.count("image entry without a usable id or size") == 2


@pytest.mark.parametrize(
    "text, message",
    [
        ("", r"x\.json:1: not valid JSON"),
        ('{"images": [{"id": 1,\n "file_na', r"x\.json:2: not valid JSON, perhaps cut off"),
        ('{"annotations": [{"segmentation": [[1,\n2,\n3]],\n "bbox": [1, 2', r"x\.json:4: not valid JSON"),
        ("[1, 2]", "not a COCO annotation file"),
        ('{"images": [], "annotations": []}', "it has no list 'categories'"),
        ('{"images": [], "annotations": [], "categories": []}', "has no images"),
        ('{"images": [{"id": 1, "file_name": "a"}], "annotations": [], "categories": []}', "'categories' is empty"),
        ('{"images": [{"id": 1, "file_name": "a"}], "annotations": [], "categories": [{"id": 1}]}', "id and a name"),
    ],
)
def test_a_broken_file_gives_one_clear_line(tmp_path, text, message):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match=message):
        read(open_data(str(tmp_path / "x.json")))


def test_binary_rubbish(tmp_path):
    (tmp_path / "x.json").write_bytes(b"\xff\xfe\x00\x81rubbish")
    with pytest.raises(UserError, match="not"):
        read(open_data(str(tmp_path / "x.json")))


def test_names_and_classes_must_be_those_of_the_data_file(tmp_path):
    path = str(write(tmp_path).path)
    with pytest.raises(UserError, match=r"has 2 categories, but .* says classes = 3"):
        read(DataDescription(tmp_path / "x.data", 3, (), {"train": (path,)}))
    with pytest.raises(UserError, match=r"class 0 is 'cat' \(category id 3\), but .* gives class 0 the name 'dog'"):
        read(DataDescription(tmp_path / "x.data", 2, ("dog", "cat"), {"train": (path,)}))


def test_images_are_found_by_cocos_layout_or_where_the_data_file_says(tmp_path):
    for place in ("images/val2017", "val2017", "pictures/deep"):
        root = tmp_path / place.replace("/", "_")
        (root / "annotations").mkdir(parents=True)
        (root / place).mkdir(parents=True)
        Image.new("RGB", (100, 50)).save(root / place / "a.jpg")
        data = write(root / "annotations", name="instances_val2017.json")
        if "pictures" in place:
            with pytest.raises(UserError, match=r"none of its 1 images is on the disk .*valid_images="):
                read_dataset(data, "valid")
            data = DataDescription(data.path, 0, (), data.splits, {"valid": str(root / place)})
        notes = read_dataset(data, "valid")
        assert notes.image_paths == [f"{root / place}/a.jpg"]
    assert image_folder_candidates(Path("/d/annotations/instances_train2017.json"))[:2] == [
        Path("/d/images/train2017"),
        Path("/d/train2017"),
    ]


def test_a_missing_image_is_left_out_and_counted_only_where_images_are_needed(tmp_path):
    images = [{"id": i, "width": 100, "height": 50, "file_name": f"{i}.jpg"} for i in (1, 2)]
    data = write(tmp_path, images, [note(), note(id=2, image_id=2)])
    Image.new("RGB", (100, 50)).save(tmp_path / "2.jpg")
    notes = read_dataset(data, "train")
    assert notes.image_ids.tolist() == [2] and notes.box_image.tolist() == [0]
    assert [problem.kind for problem in notes.problems] == ["image is not on the disk, left out"]
    assert read(data).image_ids.tolist() == [1, 2]


@pytest.mark.parametrize("name", ["train2017", "val2017"])
def test_the_real_files_agree_with_pycocotools(shared, name):
    path = shared / "data" / "coco" / "annotations" / f"instances_{name}.json"
    notes = read_dataset(open_data(str(path)), "train")
    referee = COCO(str(path))
    assert notes.image_ids.tolist() == referee.getImgIds()
    assert notes.category_ids == COCO_CATEGORY_IDS == tuple(referee.getCatIds())
    assert notes.names == read_data_file("coco2017.data").names
    assert notes.problems == ()
    for row in notes.to_coco()["annotations"]:
        theirs = referee.anns[row["id"]]
        assert all(row[key] == theirs[key] for key in ("image_id", "category_id", "bbox", "area", "iscrowd"))
    assert len(notes.labels) == len(referee.anns) == {"train2017": 939, "val2017": 906}[name]
    assert int(notes.crowd.sum()) == {"train2017": 10, "val2017": 8}[name]
    for index, image_id in enumerate(notes.image_ids[:20]):  # rows of an image keep the file's order
        theirs = [ann["id"] for ann in referee.imgToAnns[image_id]]
        assert notes.annotation_ids[notes.rows_of(index)].tolist() == theirs


def test_memory_stays_near_that_of_the_text(tmp_path):
    # 20,000 annotations as Python objects would take about 20 MB; as columns they take 20,000 x 200 B = 4 MB.
    rng = np.random.default_rng(0)
    rows = [note(id=i + 1, bbox=(rng.random(4) * 40 + 1).tolist(), segmentation=[[1.5] * 30]) for i in range(20000)]
    data = write(tmp_path, annotations=rows)
    text = (tmp_path / "x.json").stat().st_size
    tracemalloc.start()
    notes = read(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(notes.labels) == 20000
    assert peak < 2 * text + 8e6
