"""Whatever stands in a label file: each line is a row or a named problem, and nothing but a UserError comes out."""

import json
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.labels.read import read_dataset
from data.labels.voc import parse_voc
from data.labels.yolo import parse_yolo_text
from data.splits import open_data
from utils.errors import UserError

NUMBERS = st.sampled_from(
    [
        "0",
        "1",
        "0.5",
        ".5",
        "1e-9",
        "-0.1",
        "nan",
        "inf",
        "-inf",
        "1e400",
        "0x1",
        "1_0",
        "٣",
        "",
        "a",
        "0.0001",
        "1.0005",
    ]
)
ROWS = st.lists(st.lists(NUMBERS, max_size=9).map(" ".join), max_size=6)


@given(ROWS, st.sampled_from(["\n", "\r\n"]))
@settings(max_examples=200, deadline=None)
def test_each_yolo_line_is_a_row_or_a_problem(rows, end):
    parsed, lines, problems = parse_yolo_text(end.join(rows), "f")
    wanted = {number for number, row in enumerate(rows, 1) if row.split()}
    found = [*lines.tolist(), *(problem.line for problem in problems)]
    assert sorted(found) == sorted(wanted)
    assert parsed.shape == (len(lines), 5)
    for row, line in zip(parsed.tolist(), lines.tolist(), strict=True):
        words = rows[line - 1].split()
        if len(words) == 5:
            assert row == [float(word) for word in words]
        assert row[3] > 0 and row[4] > 0 and row[0] == int(row[0]) >= 0


VALUES = st.sampled_from(
    [None, True, -1, 0, 1, 2, 3.5, 1e308, float("nan"), float("inf"), "1", "", [], [1, 2, 3, 4], [0, 0, 0, 0],
     [1, 2, None, 4], ["a"] * 4, {}, {"bbox": 1}, {"file_name": "x", "id": 1}, 2**80]
)  # fmt: skip
KEYS = st.sampled_from(
    ["id", "image_id", "category_id", "bbox", "area", "iscrowd", "width", "height", "file_name", "name"]
)
ITEMS = st.lists(st.one_of(VALUES, st.dictionaries(KEYS, VALUES, max_size=6)), max_size=4)
GOOD_IMAGE = {"id": 1, "width": 50, "height": 40, "file_name": "a.jpg"}
GOOD_NOTE = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}
CHANGES = st.lists(st.tuples(KEYS, VALUES), max_size=2).map(dict)


@pytest.mark.filterwarnings("error")
@given(ITEMS, ITEMS, ITEMS, st.lists(CHANGES, max_size=3))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_coco_json_gives_a_traceback(tmp_path, images, notes, categories, changes):
    path = tmp_path / "x.json"
    top = {
        "images": [GOOD_IMAGE, *images],
        "annotations": [GOOD_NOTE, *notes, *(GOOD_NOTE | change for change in changes)],
        "categories": [{"id": 1, "name": "a"}, *categories],
    }
    path.write_text(json.dumps(top))
    try:
        result = read_dataset(open_data(str(path)), "train", need_images=False)
    except UserError as error:
        assert "x.json" in str(error)
        return
    assert (result.boxes_xyxy[:, 2:] > result.boxes_xyxy[:, :2]).all() and len(set(result.annotation_ids)) == len(
        result.labels
    )
    dropped = len(top["annotations"]) - len(result.labels)
    assert dropped <= len(result.problems)  # nothing vanishes without a word
    json.dumps(result.to_coco(), allow_nan=False)


def test_no_voc_file_gives_anything_but_a_value_error():
    text = Path(__file__).parent.joinpath("test_data_labels_read.py").read_text().split('VOC = """')[1].split('"""')[0]
    chance = random.Random(0)
    for _ in range(500):
        data = bytearray(text.format(w=20, h=10).encode())
        for _ in range(chance.randrange(1, 4)):
            start = chance.randrange(len(data))
            kind = chance.randrange(3)
            if kind == 0:
                del data[start : start + chance.randrange(1, 40)]
            elif kind == 1:
                data[start:start] = chance.choice([b"<object>", b"</object>", b"nan", b"\xff", b"<name>", b"&x;"])
            else:
                del data[start:]
            if not data:
                break
        try:
            voc = parse_voc(bytes(data))
        except ValueError as error:
            assert str(error).split(":")[0].isdecimal()
        else:
            assert all(item.corners() is None or len(item.corners()) == 4 for item in voc.objects)
