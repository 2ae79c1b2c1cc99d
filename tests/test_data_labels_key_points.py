"""YOLO rows with key points and polygons of the same length: told apart by what is said, by all rows, or refused."""

import cv2
import numpy as np
import pytest

from data.description import DataDescription
from data.labels.read import read_dataset
from utils.errors import UserError

KIND = "rows with a box and key points, of which the box is taken"


def boxes_and_points(generator, num_points):
    """A box ``cx cy w h`` inside the image and points [K 2] inside of it."""
    size = generator.uniform(0.1, 0.6, 2)
    center = generator.uniform(size / 2, 1 - size / 2)
    return np.concatenate((center, size)), center + generator.uniform(-0.5, 0.5, (num_points, 2)) * size


def pose_rows(num_points, numbers, count=12, seed=0):
    generator = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        box, points = boxes_and_points(generator, num_points)
        if numbers == 3:
            visible = generator.integers(0, 3, (num_points, 1))
            points = np.concatenate((points * (visible > 0), visible), axis=1)
        rows.append([0, *box, *points.flatten()])
    return rows


def polygon_rows(num_corners, count=12, seed=0, radius=0.2):
    """Corners around a centre, in the order of their angle."""
    generator = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        angle = (np.arange(num_corners) + generator.uniform(0, 0.9, num_corners)) / num_corners * 2 * np.pi
        center = generator.uniform(0.25, 0.75, 2)
        corners = center + radius * generator.uniform(0.3, 1, (num_corners, 1)) * np.stack(
            (np.cos(angle), np.sin(angle)), 1
        )
        rows.append([0, *corners.flatten()])
    return rows


def rectangles(count=12, angle=0.0, closed=False):
    generator = np.random.default_rng(0)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    rows = []
    for _ in range(count):
        box, _ = boxes_and_points(generator, 0)
        corners = box[:2] + np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) / 4 * box[2:] @ turn.T
        rows.append([0, *corners.flatten(), *(corners[0] if closed else ())])
    return rows


def read(folder, *files, shape=None):
    """Read label files, each a list of rows, of images of 100 x 100 pixels."""
    for folder_name in ("images", "labels"):
        (folder / folder_name).mkdir(exist_ok=True)
    for number, rows in enumerate(files):
        cv2.imwrite(str(folder / f"images/{number}.png"), np.zeros((100, 100, 3), np.uint8))
        text = "".join(
            " ".join(value if isinstance(value, str) else f"{value:.6f}".rstrip("0").rstrip(".") for value in row)
            + "\n"
            for row in rows
        )
        (folder / f"labels/{number}.txt").write_text(text)
    splits = {"train": (str(folder / "images"),)}
    return read_dataset(DataDescription(folder / "x.data", 1, ("a",), splits, keypoint_shape=shape), "train")


def from_boxes(rows):
    """The corners in pixels of rows that begin with a box."""
    boxes = np.array([row[1:5] for row in rows]) * 100
    return np.concatenate((boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2), axis=1)


def from_corners(rows):
    return (
        np.array([[*np.reshape(row[1:], (-1, 2)).min(0), *np.reshape(row[1:], (-1, 2)).max(0)] for row in rows]) * 100
    )


@pytest.mark.parametrize("said", [True, False])
@pytest.mark.parametrize("shape", [(17, 3), (4, 3), (1, 3), (5, 2), (17, 2), (2, 2), (1, 2)])
def test_the_box_of_a_pose_row_is_taken(tmp_path, shape, said):
    rows = pose_rows(*shape)
    notes = read(tmp_path, rows[:5], [], rows[5:], shape=shape if said else None)
    np.testing.assert_allclose(notes.boxes_xyxy, from_boxes(rows), atol=1e-3)
    (problem,) = notes.problems
    assert problem.kind == KIND and problem.what == f"12 rows of {5 + shape[0] * shape[1]} columns"


@pytest.mark.parametrize("said", [True, False])
@pytest.mark.parametrize(
    "rows",
    [
        [*polygon_rows(5), *polygon_rows(8), *polygon_rows(11)],
        polygon_rows(7, radius=0.15),
        polygon_rows(4, radius=0.05),  # number plates, for instance
        [[0, 0.1, 0.2, 0.5, 0.2, 0.3, 0.6]],
        rectangles(),  # as Roboflow writes a box among polygons
        rectangles(angle=0.5),  # oriented boxes
        rectangles(closed=True),
        [[0, 0, 0, 0.5, 0, 1, 0, 1, 1, 0, 1]],  # 0 and 1 where a visibility would stand
    ],
)
def test_polygons_stay_polygons(tmp_path, rows, said):
    notes = read(tmp_path, rows[:2], rows[2:], shape=(0, 0) if said else None)
    np.testing.assert_allclose(notes.boxes_xyxy, from_corners(rows).clip(0, 100), atol=1e-3)
    assert KIND not in [problem.kind for problem in notes.problems]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", ["nan", "inf", "x", "1e308", "-1e308"])
def test_rows_that_are_no_numbers_decide_nothing(tmp_path, value):
    rows = pose_rows(5, 2)
    notes = read(tmp_path, rows, [[*rows[0][:1], *([value] * 14)]])
    np.testing.assert_allclose(notes.boxes_xyxy, from_boxes(rows), atol=1e-3)
    assert len(notes.problems) == 2


def test_a_few_rows_that_may_be_either_do_not_stop_a_set_of_boxes(tmp_path):
    rows = [[0, 0.2, 0.2 + number / 100, 0.1, 0.1] for number in range(9)]
    polygon = [0, 0.4, 0.4, 0.5, 0.4, 0.5, 0.5, 0.45, 0.55]
    notes = read(tmp_path, [*rows, polygon])
    np.testing.assert_allclose(notes.boxes_xyxy[-1], [40, 40, 50, 55])


def test_boxes_may_stand_among_pose_rows(tmp_path):
    rows = [*pose_rows(17, 3), [0, 0.5, 0.5, 0.1, 0.2]]
    notes = read(tmp_path, rows)
    np.testing.assert_allclose(notes.boxes_xyxy, from_boxes(rows), atol=1e-3)


def test_a_row_of_another_length_among_pose_rows_is_named(tmp_path):
    rows = [*pose_rows(17, 3), [0, 0.5, 0.5, 0.1, 0.2, 0.5, 0.5]]
    notes = read(tmp_path, rows)
    np.testing.assert_allclose(notes.boxes_xyxy, from_boxes(rows[:-1]), atol=1e-3)
    kinds = {problem.kind: problem.line for problem in notes.problems}
    assert kinds["neither 5 columns nor the 56 of a box with key points"] == 13


@pytest.mark.parametrize("shape", [(5, 2), (2, 2)])
def test_what_may_be_either_is_refused_with_the_remedy(tmp_path, shape):
    rows = pose_rows(*shape, count=3)  # too few to be sure
    columns = 5 + 2 * shape[0]
    with pytest.raises(UserError) as caught:
        read(tmp_path, rows)
    assert str(caught.value) == (
        f"{tmp_path}/labels/0.txt: rows of {columns} columns may be polygons of {(columns - 1) // 2} corners or boxes "
        f"with {shape[0]} key points; say which in a data.yaml, with kpt_shape: [0, 0] or kpt_shape: [{shape[0]}, 2]"
    )
    assert len(read(tmp_path, rows, shape=shape).labels) == len(read(tmp_path, rows, shape=(0, 0)).labels) == 3


def test_a_wrong_shape_names_the_rows(tmp_path):
    notes = read(tmp_path, pose_rows(17, 3), [[0, 0.5, 0.5, 0.1, 0.2]], shape=(4, 3))
    assert len(notes.labels) == 1
    assert {problem.kind for problem in notes.problems} == {"neither 5 columns nor the 17 of a box with key points"}


def test_a_very_long_row_costs_no_memory(tmp_path):
    corners = np.random.default_rng(0).uniform(0.4, 0.5, (12, 100_000)).round(3)
    corners += np.arange(12)[:, None] / 100
    notes = read(tmp_path, [[0, *row] for row in corners])
    assert len(notes.labels) == 12
