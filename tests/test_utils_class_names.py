"""Lists of class names compared: which is the same class, which stands elsewhere, which are no names at all."""

import random

import pytest

from utils.class_names import are_numbers, first_moved, places_in, read_names
from utils.config import REPOSITORY

COCO = read_names(REPOSITORY / "cfg/coco.names")
# Where Darknet's data/coco.names has other words than COCO's JSON.
IN_DARKNET = {
    "motorcycle": "motorbike",
    "airplane": "aeroplane",
    "couch": "sofa",
    "potted plant": "pottedplant",
    "dining table": "diningtable",
    "tv": "tvmonitor",
}


def test_the_two_vocabularies_of_coco_are_one_order():
    darknet = [IN_DARKNET.get(name, name) for name in COCO]
    assert sum(a != b for a, b in zip(COCO, darknet, strict=True)) == 6
    assert places_in(COCO, darknet) == places_in(darknet, COCO) == list(range(80))
    assert first_moved(COCO, darknet) is first_moved(darknet, COCO) is None


def test_every_class_is_found_in_another_order_and_other_words():
    shuffled = random.Random(0).sample(COCO, 80)
    places = places_in(COCO, [IN_DARKNET.get(name, name).upper() for name in shuffled])
    assert [shuffled[place] for place in places] == list(COCO)


def test_voc_in_coco():
    voc = ["aeroplane", "bicycle", "diningtable", "tvmonitor"]
    assert places_in(voc, COCO) == [4, 1, 60, 62]  # the lines of coco.names, from 0


@pytest.mark.parametrize(
    "names, others, places",
    [
        (["traffic light", "Stop Sign"], ["stop-sign", "traffic_light"], [1, 0]),
        (["a", "b"], ["c", "d"], [None, None]),
        (["a", "b"], ["b"], [None, 0]),
        ([], ["a"], []),
        (["a"], [], [None]),
        # One list holds both spellings: then only the very same one is the same class.
        (["type 1", "type-1"], ["type-1", "type 1"], [1, 0]),
        (["type 1", "Type 1"], ["type_1", "x"], [None, None]),
        (["x", "type_1"], ["type 1", "Type 1"], [None, None]),
        (["sofa", "couch"], ["couch", "sofa"], [1, 0]),
    ],
)
def test_places(names, others, places):
    assert places_in(names, others) == places


@pytest.mark.parametrize(
    "names, others, moved",
    [
        (["a", "b", "c"], ["a", "b", "c"], None),
        (["a", "b", "c"], ["a", "x", "c"], None),  # another word for the second
        (["a", "b"], ["x", "y"], None),
        (["a", "b", "c"], ["a", "c", "b"], 1),
        (["a", "b", "c"], ["b", "x", "y"], 1),
        (["sofa", "bed"], ["bed", "couch"], 0),
        (["a", "b"], ["a", "b", "c"], None),
        ([], [], None),
    ],
)
def test_the_first_name_at_another_place(names, others, moved):
    assert first_moved(names, others) == moved


@pytest.mark.parametrize(
    "names, expected",
    [
        (["0", "1", "2"], True),
        (["class 0", "class 1"], True),  # of models/convert_weights.py
        (["class0", "class1"], True),  # of YOLOv5
        (["1", "2"], False),  # digits that are read off a meter, perhaps
        (["0", "cat"], False),
        (["person"], False),
    ],
)
def test_numbers_are_no_names(names, expected):
    assert are_numbers(names) == expected
