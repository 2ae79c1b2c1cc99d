"""Label files of the three formats: what is read, what is refused, and that every problem names its file and line."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from data.data_file import read_data_file
from data.description import DataDescription
from data.labels.annotations import summarise_problems
from data.labels.find import label_candidates
from data.labels.read import read_dataset
from data.labels.voc import parse_voc
from data.labels.yolo import parse_yolo_text
from data.splits import open_data
from utils.errors import UserError


def write_image(path: Path, width: int, height: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((height, width, 3), 90, np.uint8))


def describe(folder: Path, num_classes: int = 2, names: tuple = ("cat", "dog"), **splits: str) -> DataDescription:
    return DataDescription(folder / "x.data", num_classes, names, {k: (str(v),) for k, v in splits.items()})


def yolo_set(folder: Path, texts: dict[str, str], size=(200, 100)) -> DataDescription:
    for name, text in texts.items():
        write_image(folder / "images" / f"{name}.png", *size)
        (folder / "labels").mkdir(exist_ok=True)
        if text is not None:
            (folder / "labels" / f"{name}.txt").write_text(text)
    return describe(folder, train=folder / "images")


def test_yolo_rows_become_pixels_of_the_original_image(tmp_path):
    # Image 200 x 100: centre (.5, .5) -> (100, 50), size (.1, .4) -> 20 x 40: corners 90 30 110 70.
    data = yolo_set(tmp_path, {"b": "1 0.5 0.5 0.1 0.4\n0 0.25 0.25 0.5 0.5\n", "a": ""})
    notes = read_dataset(data, "train")
    assert [Path(path).name for path in notes.image_paths] == ["a.png", "b.png"]
    assert notes.image_wh.tolist() == [[200, 100]] * 2
    assert notes.box_image.tolist() == [1, 1]
    assert notes.labels.tolist() == [1, 0]
    np.testing.assert_allclose(notes.boxes_xyxy, [[90, 30, 110, 70], [0, 0, 100, 50]])
    np.testing.assert_allclose(notes.areas, [800, 5000])
    assert notes.rows_of(0) == slice(0, 0) and notes.rows_of(1) == slice(0, 2)
    assert notes.problems == () and notes.names == ("cat", "dog") and notes.category_ids == (1, 2)


@pytest.mark.parametrize(
    "row, kind",
    [
        ("0 0.5 0.5 0.1", "fewer than 5 columns"),
        ("0 0.5 0.5 0.1 0.1 0.9", "neither 5 columns nor a class and a polygon"),
        ("cat 0.5 0.5 0.1 0.1", "not a number"),
        ("0 nan 0.5 0.1 0.1", "not a finite number"),
        ("0 0.5 0.5 inf 0.1", "not a finite number"),
        ("0.5 0.5 0.5 0.1 0.1", "class index is not 0 or a positive whole number"),
        ("-1 0.5 0.5 0.1 0.1", "class index is not 0 or a positive whole number"),
        ("0 0.5 0.5 0 0.1", "zero or negative size"),
        ("0 0.5 0.5 0.1 -0.1", "zero or negative size"),
        ("0 1.5 0.5 0.1 0.1", "coordinate outside 0..1"),
        ("0 320 240 40 40", "coordinate outside 0..1"),
        ("1 0.5 0.5 0.2 0.2", "duplicate box"),
    ],
)
def test_a_bad_yolo_row_is_named_and_only_it_is_dropped(tmp_path, row, kind):
    text = f"1 0.5 0.5 0.2 0.2\n\n{row}\n0 0.1 0.1 0.1 0.1\n"
    data = yolo_set(tmp_path, {"a": text})
    before = (tmp_path / "labels" / "a.txt").read_bytes()
    notes = read_dataset(data, "train")
    assert notes.labels.tolist() == [1, 0]
    (problem,) = notes.problems
    assert (problem.file, problem.line, problem.kind) == (str(tmp_path / "labels" / "a.txt"), 3, kind)
    assert (tmp_path / "labels" / "a.txt").read_bytes() == before
    assert summarise_problems(notes.problems)[0].startswith(f"1 x {kind}; first: {tmp_path / 'labels' / 'a.txt'}:3")


def test_ten_numbers_in_rows_of_four_and_six_are_not_two_rows():
    # The fast path counts words: 4 + 6 = 10 = 2 x 5 words in 2 lines must still be refused line by line.
    rows, lines, problems = parse_yolo_text("0 .5 .5 .1\n0 .5 .5 .1 .1 .1\n", "f")
    assert len(rows) == 0 and len(lines) == 0 and [problem.line for problem in problems] == [1, 2]


def test_a_polygon_is_read_as_the_box_around_it():
    # x: .1 .5 .3, y: .2 .2 .6 -> centre (.3, .4), size (.4, .4)
    rows, _, problems = parse_yolo_text("3 .1 .2 .5 .2 .3 .6\n", "f")
    np.testing.assert_allclose(rows, [[3, 0.3, 0.4, 0.4, 0.4]])
    assert problems == []


def test_a_box_over_the_edge_is_cut_and_noted(tmp_path):
    # Centre x 195, width 40 of 200: 175..215, cut at 200.
    notes = read_dataset(yolo_set(tmp_path, {"a": "0 0.975 0.5 0.2 0.2\n"}), "train")
    np.testing.assert_allclose(notes.boxes_xyxy, [[175, 40, 200, 60]])
    assert [problem.kind for problem in notes.problems] == [
        "box reaches over the edge of the image; training uses its inside"
    ]


def test_a_class_index_too_large_is_refused_with_file_and_line(tmp_path):
    data = yolo_set(tmp_path, {"a": "0 .5 .5 .1 .1\n2 .5 .5 .1 .1\n"})
    with pytest.raises(UserError, match=r"a\.txt:2: class 2 is outside 0\.\.1, the classes of .*x\.data \(1 such row"):
        read_dataset(data, "train")


def test_no_labels_at_all_is_an_error_and_some_missing_is_a_note(tmp_path):
    data = yolo_set(tmp_path, {"a": None, "b": None})
    with pytest.raises(UserError, match=r"none of its 2 images has a label file .*labels/a\.txt"):
        read_dataset(data, "train")
    (tmp_path / "labels" / "b.txt").write_text("0 .5 .5 .1 .1\n")
    notes = read_dataset(data, "train")
    assert notes.box_image.tolist() == [1]
    assert [problem.kind for problem in notes.problems] == ["images without a label file, taken as empty"]


def test_no_images_and_empty_lists_are_errors(tmp_path):
    (tmp_path / "images").mkdir()
    with pytest.raises(UserError, match="has no image"):
        read_dataset(describe(tmp_path, train=tmp_path / "images"), "train")
    (tmp_path / "list.txt").write_text("\n")
    with pytest.raises(UserError, match="list of images is empty"):
        read_dataset(describe(tmp_path, train=tmp_path / "list.txt"), "train")
    (tmp_path / "list.txt").write_text("nowhere.jpg\n")
    with pytest.raises(UserError, match="none of its 1 images is on the disk"):
        read_dataset(describe(tmp_path, train=tmp_path / "list.txt"), "train")
    with pytest.raises(UserError, match=r"train = .*missing is not on the disk"):
        read_dataset(describe(tmp_path, train=tmp_path / "missing"), "train")


def test_an_image_list_may_be_relative_to_itself_and_keeps_its_order(tmp_path):
    yolo_set(tmp_path, {"a": "0 .5 .5 .1 .1\n", "b": "1 .5 .5 .1 .1\n"})
    (tmp_path / "list.txt").write_text("./images/b.png\nimages/gone.png\nimages/a.png\n")
    notes = read_dataset(describe(tmp_path, train=tmp_path / "list.txt"), "train")
    assert [Path(path).name for path in notes.image_paths] == ["b.png", "a.png"]
    assert notes.labels.tolist() == [1, 0]
    (problem,) = notes.problems
    assert (problem.line, problem.kind) == (2, "image is not on the disk, left out")


def test_label_places():
    assert label_candidates("/d/images/images/x.jpg")[:2] == ["/d/images/labels/x.txt", "/d/images/images/x.txt"]
    assert label_candidates("/voc/JPEGImages/x.jpg") == [
        "/voc/labels/x.txt", "/voc/JPEGImages/x.txt", "/voc/Annotations/x.xml", "/voc/JPEGImages/x.xml",
    ]  # fmt: skip


def test_unreadable_header_is_an_error_with_the_path(tmp_path):
    data = yolo_set(tmp_path, {"a": "0 .5 .5 .1 .1\n"})
    (tmp_path / "images" / "a.png").write_bytes(b"not a picture")
    with pytest.raises(UserError, match=r"a\.png: not an image that can be read"):
        read_dataset(data, "train")


VOC = """<annotation><filename>a.jpg</filename><size><width>{w}</width><height>{h}</height></size>
<object><name>dog</name><part><name>head</name><bndbox><xmin>0</xmin><ymin>0</ymin><xmax>1</xmax><ymax>1</ymax></bndbox></part>
<bndbox><xmin>10</xmin><ymin>20</ymin><xmax>30.5</xmax><ymax>60</ymax></bndbox></object>
<object><name>cat</name><difficult>1</difficult>
<bndbox><xmin>5</xmin><ymin>5</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>
<object><name>dgo</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>
<object><name>dog</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>1</xmax><ymax>1</ymax></bndbox></object>
<object><name>dog</name><bndbox><xmin>1</xmin></bndbox></object>
</annotation>
"""


def voc_set(folder: Path, text: str) -> DataDescription:
    write_image(folder / "JPEGImages" / "a.jpg", 200, 100)
    (folder / "Annotations").mkdir()
    (folder / "Annotations" / "a.xml").write_text(text)
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    (folder / "ImageSets" / "Main" / "train.txt").write_text("a\n")
    return describe(folder, train=folder / "ImageSets" / "Main" / "train.txt")


@pytest.mark.parametrize("size", [(200, 100), (0, 0)])  # (0, 0): the file does not say, the header does
def test_voc_objects_parts_difficult_and_problems(tmp_path, size):
    notes = read_dataset(voc_set(tmp_path, VOC.format(w=size[0], h=size[1])), "train")
    assert notes.boxes_xyxy.tolist() == [[10, 20, 30.5, 60], [5, 5, 9, 9]]
    assert notes.labels.tolist() == [1, 0] and notes.crowd.tolist() == [False, True]
    assert notes.image_wh.tolist() == [[200, 100]]
    found = {(problem.line, problem.kind) for problem in notes.problems}
    assert found == {
        (6, "unknown class name"),
        (7, "zero or negative size"),
        (8, "object without four numbers in <bndbox>"),
    }
    assert any("'dgo'; did you mean 'dog'?" in problem.what for problem in notes.problems)


def test_voc_file_cut_off_loses_its_image_not_the_run(tmp_path):
    data = voc_set(tmp_path, VOC.format(w=200, h=100))
    write_image(tmp_path / "JPEGImages" / "b.jpg", 200, 100)
    (tmp_path / "Annotations" / "b.xml").write_text(VOC[:300])
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("b  1\na -1\n")
    notes = read_dataset(data, "train")
    assert [Path(path).name for path in notes.image_paths] == ["a.jpg"]
    assert "label file that cannot be read, its image left out" in {problem.kind for problem in notes.problems}
    with pytest.raises(ValueError, match=r"^2: not well-formed XML"):
        parse_voc(b"<annotation>\n<object></annotation>")


def test_voc_annotations_are_enough_without_images(tmp_path):
    data = voc_set(tmp_path, VOC.format(w=200, h=100))
    (tmp_path / "JPEGImages" / "a.jpg").unlink()
    with pytest.raises(UserError, match="none of its 1 images is on the disk"):
        read_dataset(data, "train")
    notes = read_dataset(data, "train", need_images=False)
    assert len(notes.labels) == 2 and notes.image_paths == [""]


def test_names_come_from_the_data_where_no_names_file_gives_them(tmp_path):
    notes = read_dataset(open_data(str(yolo_folder(tmp_path))), "valid")
    assert notes.names == ("0", "1", "2", "3")


def yolo_folder(folder: Path) -> Path:
    yolo_set(folder, {"a": "3 .5 .5 .1 .1\n"})
    return folder / "images"


def test_ids_are_numbers_in_the_file_names_where_all_are(tmp_path):
    notes = read_dataset(yolo_set(tmp_path, {"000012": "0 .5 .5 .1 .1\n", "7": ""}), "train")
    assert notes.image_ids.tolist() == [12, 7]
    notes = read_dataset(yolo_set(tmp_path, {"x": ""}), "train")
    assert notes.image_ids.tolist() == [1, 2, 3]


def test_selecting_images_keeps_rows_with_their_images(tmp_path):
    data = yolo_set(tmp_path, {"a": "0 .5 .5 .1 .1\n1 .5 .5 .2 .2\n", "b": "", "c": "1 .5 .5 .3 .3\n"})
    notes = read_dataset(data, "train")
    part = notes.select_images(np.array([2, 1, 0]))
    assert part.labels.tolist() == [1, 0, 1] and part.box_image.tolist() == [0, 2, 2]
    np.testing.assert_allclose(part.boxes_xyxy, notes.boxes_xyxy[[2, 0, 1]])
    assert notes.select_images(np.array([False, True, False])).labels.tolist() == []
    single = notes.as_single_class()
    assert single.labels.tolist() == [0, 0, 0] and single.names == ("object",)


def test_pycocotools_reads_what_to_coco_gives(tmp_path):
    notes = read_dataset(yolo_set(tmp_path, {"a": "1 .5 .5 .1 .4\n", "b": ""}), "train")
    (tmp_path / "gt.json").write_text(json.dumps(notes.to_coco()))
    coco = COCO(str(tmp_path / "gt.json"))
    assert coco.getImgIds() == [1, 2]
    (row,) = coco.loadAnns(coco.getAnnIds())
    np.testing.assert_allclose(row["bbox"], [90, 30, 20, 40])
    assert (row["category_id"], row["iscrowd"], row["image_id"]) == (2, 0, 1)
    assert row["area"] == pytest.approx(800)


def test_bccd_reads_all_but_the_two_boxes_without_area(shared):
    # 364 images and 4,888 boxes in data/README.md, two of zero size.
    root = shared / "data" / "bccd" / "ImageSets" / "Main"
    splits = {"train": root / "train.txt", "valid": root / "val.txt", "test": root / "test.txt"}
    data = describe(root, 3, ("RBC", "WBC", "Platelets"), **splits)
    parts = [read_dataset(data, split) for split in splits]
    assert [len(part) for part in parts] == [205, 87, 72]
    assert sum(len(part.labels) for part in parts) == 4886
    kinds = [problem.kind for part in parts for problem in part.problems]
    assert kinds == ["zero or negative size"] * 2
    lines = Path(parts[0].problems[0].file).read_text().splitlines()
    assert "<object>" in lines[parts[0].problems[0].line - 1]


def test_coco_names_give_coco_category_ids():
    data = read_data_file("coco2017.data")
    from data.labels.annotations import category_ids_for

    assert len(data.names) == 80
    ids = category_ids_for(data.names)
    assert (ids[0], ids[11], ids[79]) == (1, 13, 90)


@pytest.mark.parametrize("side", ["99999999999999999999999", "1e300", "9" * 5000, "nan", "inf", "²", "-5", "0"])
def test_a_voc_size_that_cannot_be_is_read_from_the_image(tmp_path, side):
    notes = read_dataset(voc_set(tmp_path, VOC.format(w=side, h=100)), "train")
    assert notes.image_wh.tolist() == [[200, 100]]


def test_a_voc_file_of_a_hundred_thousand_levels_is_one_bad_file(tmp_path):
    data = voc_set(tmp_path, "<annotation>" + "<object>" * 100_000)
    with pytest.raises(UserError, match="nested more than 50 deep"):
        read_dataset(data, "train")


@pytest.mark.parametrize("number", ["1000000000", "100000", "999999999999999"])
def test_without_names_a_class_that_no_data_set_has_is_refused(tmp_path, number):
    yolo_set(tmp_path, {"a": f"{number} 0.5 0.5 0.1 0.1\n"})
    data = describe(tmp_path, 0, (), train=tmp_path / "images")
    with pytest.raises(UserError, match=rf"the labels have the class {number}, but no data set has more than 100,000"):
        read_dataset(data, "train")


@pytest.mark.parametrize("number", ["1e300", "9" * 5000, "nan", "1e19"])
def test_a_class_that_is_no_number_is_one_bad_row(tmp_path, number):
    notes = read_dataset(yolo_set(tmp_path, {"a": f"{number} .5 .5 .1 .1\n0 .5 .5 .1 .1\n"}), "train")
    assert notes.labels.tolist() == [0] and len(notes.problems) == 1
