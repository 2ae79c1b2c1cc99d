"""How anchors fit the objects: a case by hand, in network pixels; and the command that finds better ones."""

import shlex

import numpy as np
import pytest

import kmeans_anchors
from data.labels.annotations import Annotations
from data.labels.read import read_dataset
from data.splits import open_data
from engine.anchor_check import ENOUGH, anchor_fit, anchor_line, anchors_of, object_sizes, search_command
from models.heads import Head
from models.network import build_network
from tests.tiny_project import make_project


def test_by_hand():
    anchors_wh = np.array([[10.0, 10.0], [40.0, 10.0]])
    # 10 x 10: the first, for the second is exactly 4 times as wide; 30 x 9: both; 100 x 100: none
    sizes_wh = np.array([[10.0, 10.0], [30.0, 9.0], [100.0, 100.0]])
    assert anchor_fit(anchors_wh, sizes_wh) == (pytest.approx(2 / 3), pytest.approx(1.0))


def test_the_measure_is_that_of_a_plain_loop():
    rng = np.random.default_rng(0)
    sizes_wh, anchors_wh = rng.uniform(2, 300, (60, 2)), rng.uniform(2, 300, (5, 2))
    fitting = [
        sum(min(w / aw, aw / w, h / ah, ah / h) > 1 / 4 for aw, ah in anchors_wh.tolist()) for w, h in sizes_wh.tolist()
    ]
    expected = (sum(count > 0 for count in fitting) / 60, sum(fitting) / 60)
    assert anchor_fit(anchors_wh, sizes_wh) == pytest.approx(expected) and 0 < expected[0] < 1


@pytest.fixture
def annotations(tmp_path, monkeypatch) -> Annotations:
    monkeypatch.chdir(tmp_path)
    make_project(tmp_path, num_images=4)
    return read_dataset(open_data("tiny.data"), "train")


def test_sizes_are_those_in_the_input(annotations):
    objects = annotations.select_boxes(~annotations.crowd)
    stretched = object_sizes(annotations, (320, 64), "stretch")
    width, height = objects.image_wh[objects.box_image[0]]
    expected = (objects.boxes_xyxy[0, 2:] - objects.boxes_xyxy[0, :2]) * (320 / width, 64 / height)
    np.testing.assert_allclose(stretched[0], expected)
    letterboxed = object_sizes(annotations, (320, 64), "letterbox")
    ratio = letterboxed[0] / (objects.boxes_xyxy[0, 2:] - objects.boxes_xyxy[0, :2])
    assert ratio[0] == pytest.approx(ratio[1], rel=0.05)  # the shape is kept, up to whole pixels


def test_the_command_is_named_where_they_do_not_fit(annotations):
    fitting = Head(tuple((w, w) for w in (4.0, 10.0, 25.0, 60.0, 150.0)), 16, 3)
    line = anchor_line([fitting], annotations, (96, 64), "letterbox", "python kmeans_anchors.py")
    assert "best possible recall 1.0000" in line and "kmeans" not in line
    tiny = Head(((0.1, 0.1),), 16, 3)
    line = anchor_line([tiny], annotations, (96, 64), "letterbox", "python kmeans_anchors.py")
    assert line.startswith("anchors: 0.00 per object") and line.endswith("kmeans_anchors.py")
    assert anchor_line([], annotations, (96, 64), "letterbox", "") == ""


def test_the_command_finds_anchors_for_the_inputs_of_the_training(annotations, run_main):
    network = build_network("tiny.cfg", 3)
    (own_resize, _), own_wh = network.own_resize, tuple(network.input_wh)
    plain = "python kmeans_anchors.py --data tiny.data --cfg tiny.cfg --write better.cfg"
    assert search_command(network, "tiny.data", "tiny.cfg", own_wh, own_resize) == plain
    assert "--data 'my set.data'" in search_command(network, "my set.data", "tiny.cfg", own_wh, own_resize)
    other = "stretch" if own_resize == "letterbox" else "letterbox"
    command = search_command(network, "tiny.data", "tiny.cfg", (320, 640), other)
    status, _, error = run_main(kmeans_anchors, *shlex.split(command)[2:])
    assert status == 0, error
    anchors_wh = anchors_of(build_network("better.cfg", 3).heads)
    assert anchor_fit(anchors_wh, object_sizes(annotations, (320, 640), other))[0] >= ENOUGH
    assert (
        anchor_fit(anchors_wh, object_sizes(annotations, own_wh, own_resize))[0] < ENOUGH
    )  # objects are smaller there
