"""How an image gets into the input of a network, who decides it, and in which words it is told."""

import pytest

from engine.network_input import Resize, choose_resize, input_size
from models.checkpoints.report import LoadReport
from models.darknet.cfg import parse_cfg
from models.network import build_network, build_network_from_text
from tests.tiny_project import CFG
from utils.config import REPOSITORY
from utils.errors import UserError

AS_DARKNET = "as Darknet: no letter_box=1 in the cfg"
TRAINED = "as these weights were trained"


def network(letter_box=None):
    line = "" if letter_box is None else f"\nletter_box={letter_box}"
    return build_network_from_text(CFG.replace("channels=3", "channels=3" + line), "a.cfg")


@pytest.mark.parametrize(
    ("asked", "letter_box", "of_weights", "expected"),
    [
        ("auto", None, "", Resize("stretch", AS_DARKNET)),
        ("auto", 0, "", Resize("stretch", "letter_box=0 in the cfg")),
        ("auto", 1, "", Resize("letterbox", "letter_box=1 in the cfg")),
        ("auto", None, "letterbox", Resize("letterbox", TRAINED)),
        ("auto", 1, "stretch", Resize("stretch", TRAINED)),
        ("letterbox", 0, "stretch", Resize("letterbox", "--resize")),
        ("stretch", 1, "letterbox", Resize("stretch", "--resize")),
    ],
)
def test_the_user_comes_before_the_weights_and_these_before_the_cfg(asked, letter_box, of_weights, expected):
    weights = LoadReport("a.pt", 1, 1, resize=of_weights)
    assert choose_resize(asked, network(letter_box), weights) == expected
    if not of_weights:
        assert choose_resize(asked, network(letter_box)) == expected


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("yolov3-nano", "letterbox"),
        ("yolov5n", "letterbox"),
        ("yolov5s", "letterbox"),
        ("yolov5s-focus", "letterbox"),
        ("yolov2-tiny", "stretch"),
        ("yolov3-tiny", "stretch"),
    ],
)
def test_networks_of_darknet_are_stretched_and_the_others_are_not(name, kind):
    assert choose_resize("auto", build_network(REPOSITORY / f"cfg/{name}.cfg")).kind == kind


def test_every_cfg_of_yolov5_letterboxes():
    paths = sorted((REPOSITORY / "cfg").glob("yolov5*.cfg"))
    assert len(paths) == 18 and all(parse_cfg(path).net["letter_box"] for path in paths)


def test_damaged_weights_are_refused():
    with pytest.raises(UserError, match=r"a\.pt: damaged, its 'resize' is 'squash'"):
        choose_resize("auto", network(), LoadReport("a.pt", 1, 1, resize="squash"))


def test_a_size_is_width_and_height_or_the_side_of_a_square():
    assert input_size((), network()) == (96, 64)
    assert input_size((32,), network()) == (32, 32)
    assert input_size((64, 32), network()) == (64, 32)
    with pytest.raises(UserError, match="image size 36 is not a multiple of 8"):
        input_size((64, 36), network())


def test_it_is_told_in_words():
    resize = Resize("stretch", "--resize")
    assert resize.to((416, 256)) == "stretch to 416x256 (--resize)"
    assert resize.to((416, 256), (416, 256)) == "stretch to 416x256 (--resize)"
    assert resize.to((416, 256), (608, 352)) == "stretch to 416x256 (--resize), tested at 608x352"
