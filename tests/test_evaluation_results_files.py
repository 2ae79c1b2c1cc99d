"""Files of results: which column they belong to, and one line for each that is not a list of results of this truth."""

import json

import pytest

from evaluation.results_files import columns_of, read_results
from utils.errors import UserError

TRUTH = {
    "images": [{"id": 1, "width": 100, "height": 80}, {"id": 5, "width": 60, "height": 60}],
    "categories": [{"id": 3, "name": "a"}, {"id": 7, "name": "b"}],
    "annotations": [],
}
GOOD = {"image_id": 1, "category_id": 3, "bbox": [10, 10, 20, 20], "score": 0.5}


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_good_files_are_read_as_they_are(tmp_path):
    rows = [GOOD, {**GOOD, "image_id": 5, "score": 1, "more": "ignored"}, {**GOOD, "bbox": [0, 0, 0, 0], "score": -3.5}]
    assert read_results(write(tmp_path / "a.json", rows), TRUTH) == rows
    assert read_results(write(tmp_path / "a.json", []), TRUTH) == []
    mask = {key: GOOD[key] for key in ("image_id", "category_id", "score")}
    rows = [{**mask, "segmentation": {"size": [80, 100], "counts": [0, 8000]}}]
    assert read_results(write(tmp_path / "a.json", rows), TRUTH, "segm") == rows
    rows = [{**mask, "keypoints": [1, 2, 1] * 17}]
    assert read_results(write(tmp_path / "a.json", rows), TRUTH, "keypoints") == rows


BAD = [
    ("", "a.json:1: is not JSON"),
    ("[1, 2\n, ", "a.json:2: is not JSON; was it written to its end"),
    ('{"images": [], "annotations": []}', "is a ground truth, not a list of results"),
    ('{"a": 1}', "is a JSON object, not a list"),
    ("3", "is no list of results"),
    ([GOOD, 5], "result 1 is no JSON object"),
    ([{"image_id": 1, "category_id": 3, "score": 1}], "result 0 has no 'bbox'"),
    ([{**GOOD, "image_id": "1"}], "result 0 has a image_id that is no whole number"),
    ([{**GOOD, "category_id": 3.0}], "result 0 has a category_id that is no whole number"),
    ([{**GOOD, "score": "0.5"}], "has a score that is no finite number"),
    ("[" + json.dumps(GOOD).replace("0.5", "NaN") + "]", "has a score that is no finite number"),
    ([{**GOOD, "score": True}], "has a score that is no finite number"),
    ([{**GOOD, "bbox": [1, 2, 3]}], "has a bbox that is no list of 4 numbers"),
    ([{**GOOD, "bbox": [1, 2, 3, "4"]}], "has a bbox with something else than finite numbers"),
    ([{**GOOD, "bbox": [1, 2, 3, -4]}], "has a box of negative width or height"),
    (
        [GOOD, {**GOOD, "image_id": 2}],
        "50% of the results are of images that the ground truth does not have (such as",
    ),
    ([{**GOOD, "category_id": 1}], "the category 1 is none of the ground truth's (3 to 7)"),
    ([{**GOOD, "bbox": [60, 50, 95, 75]}, {**GOOD, "bbox": [5, 40, 99, 79]}], "2 of 2 boxes reach out of their"),
]


@pytest.mark.parametrize("content, words", BAD)
def test_a_file_that_is_none_is_one_line(tmp_path, content, words):
    with pytest.raises(UserError) as caught:
        read_results(write(tmp_path / "a.json", content), TRUTH)
    assert words in str(caught.value) and "a.json" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind, key, value", [
    ("segm", "segmentation", 5), ("keypoints", "keypoints", [1, 2]), ("keypoints", "keypoints", []),
    ("keypoints", "keypoints", [1, 2, None]), ("keypoints", "keypoints", "abc"),
])  # fmt: skip
def test_masks_and_key_points_that_are_none(tmp_path, kind, key, value):
    with pytest.raises(UserError, match="result 0 has"):
        read_results(write(tmp_path / "a.json", [{**GOOD, key: value}]), TRUTH, kind)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ([[1, 2, 3]], r"a\.json: result 1: image 1: its mask cannot be read .*flattened polygon"),
        ([5], "result 1: image 1: its mask cannot be read"),
        ({"size": [80, 100], "counts": "!!~~"}, "result 1: image 1: its mask cannot be read"),
        ({"size": [80, 100], "counts": [-1, 5]}, "result 1: image 1: its mask cannot be read"),
        ({"counts": [5]}, "result 1: image 1: its mask cannot be read"),
        (
            {"size": [100, 80], "counts": [0, 8000]},
            "image 1: its mask is 80 x 100 pixels large, and not 100 x 80",
        ),
    ],
)
def test_masks_that_cannot_be_laid_onto_their_images_are_one_line(tmp_path, value, says):
    good = {"image_id": 1, "category_id": 3, "score": 0.5, "segmentation": [[1, 2, 30, 2, 30, 40]]}
    path = write(tmp_path / "a.json", [good, {**good, "segmentation": value}])
    with pytest.raises(UserError, match=says):
        read_results(path, TRUTH, "segm")


def test_boxes_that_reach_out_of_their_images_are_no_corners_where_one_ends_before_it_begins(tmp_path):
    rows = [{**GOOD, "bbox": [60, 50, 95, 75]}, {**GOOD, "bbox": [50, 40, 99, 39]}]  # a Darknet that does not clip
    assert len(read_results(write(tmp_path / "a.json", rows), TRUTH)) == 2


def test_columns_are_named_by_the_user_or_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d").mkdir()
    for name in ("a.json", "b.json", "d/a.json", "x=y.json"):
        write(tmp_path / name, [])
    columns = columns_of(["a.json", "ours=b.json", "ours=d/a.json", "x=y.json"])
    assert [(one.name, [str(path) for path in one.paths]) for one in columns] == [
        ("a", ["a.json"]), ("ours", ["b.json", "d/a.json"]), ("x=y", ["x=y.json"]),
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"a\.json and d/a\.json have one name; give one, as in ours=d/a\.json"):
        columns_of(["a.json", "d/a.json"])
    with pytest.raises(UserError, match=r"--results ours=c\.json: there is no such file"):
        columns_of(["ours=c.json"])
