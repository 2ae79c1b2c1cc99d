"""What the command line leaves open: newest run, weights alone, foreign weights, sizes, and numbers of classes."""

import os

import pytest

from data.splits import open_split
from engine.resolve import Resolved, Wanted, check_classes, class_names, resolve
from models.checkpoints.darknet_weights import save_darknet_weights
from models.checkpoints.format import read_checkpoint, save_checkpoint
from models.network import build_network_from_text
from tests.tiny_project import CFG, NAMES, make_project, random_network, save_run
from utils.errors import UserError


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A run that was trained at 96 pixels on tiny.data, with a cfg of 96 x 64; foreign weights of the same network."""
    make_project(tmp_path, num_images=2)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "foreign.cfg").write_text(CFG)
    save_darknet_weights(random_network(), tmp_path / "foreign.weights", seen=0)
    return tmp_path


def train_as(path, **options):
    """Change the options of the training in a checkpoint."""
    checkpoint = read_checkpoint(path)
    save_checkpoint(path, {**checkpoint, "options": {**checkpoint["options"], **options}})
    return str(path)


def test_nothing_given_is_the_newest_run(project):
    os.utime(project / "runs/train/exp/best.pt", (1, 1))
    save_run(project, random_network(1), "later")
    found = resolve(Wanted())
    assert found == Resolved("runs/train/later/best.pt", found.loaded, "tiny.data", (96, 96), False)


def test_no_run_yet(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"run train\.py first"):
        resolve(Wanted())


def test_weights_alone_bring_what_they_were_trained_with(project):
    weights = train_as("runs/train/exp/best.pt", data="mine.data", img_size=[64, 32], single_cls=True)
    found = resolve(Wanted(weights=weights))  # no file mine.data: it is named here, not opened
    assert (found.data, found.input_wh, found.single_cls) == ("mine.data", (32, 32), True)


def test_what_is_given_comes_first(project):
    found = resolve(Wanted(data="other.data", img_size=(64,), single_cls=True))
    assert (found.data, found.input_wh, found.single_cls) == ("other.data", (64, 64), True)
    assert resolve(Wanted(img_size=(64, 32))).input_wh == (64, 32)


def test_foreign_weights_need_a_data_set(project):
    with pytest.raises(UserError) as caught:
        resolve(Wanted(weights="foreign.weights"))
    message = "foreign.weights: does not say on which data it was trained; name the data set with --data"
    assert str(caught.value) == message
    assert resolve(Wanted(weights="foreign.weights"), needs_data=False).data == ""
    assert resolve(Wanted(weights="foreign.weights", data="tiny.data")).data == "tiny.data"


@pytest.mark.parametrize(
    "weights, img_size, square, expected",
    [
        ("foreign.weights", (), True, (96, 96)),  # the cfg says 96 x 64
        ("foreign.weights", (), False, (96, 64)),
        ("foreign.weights", (32,), False, (32, 32)),
        ("runs/train/exp/best.pt", (), True, (96, 96)),
        ("runs/train/exp/best.pt", (), False, (96, 96)),  # train.py's inputs are square
    ],
)
def test_size(project, weights, img_size, square, expected):
    wanted = Wanted(weights=weights, img_size=img_size)
    assert resolve(wanted, needs_data=False, square=square).input_wh == expected


def test_the_size_of_a_training_that_left_it_to_the_cfg(project):
    weights = train_as("runs/train/exp/best.pt", img_size=[])
    assert resolve(Wanted(weights=weights), square=False).input_wh == (96, 96)


@pytest.mark.parametrize("img_size", [(100,), (96, 100), (100, 96), (-8,), (0,)])
def test_a_size_that_does_not_fit_the_strides(project, img_size):
    with pytest.raises(UserError, match=r"image size (100|-8|0) is not a multiple of 8"):
        resolve(Wanted(img_size=img_size))


def test_other_number_of_classes(project):
    (project / "two.names").write_text("a\nb\n")
    (project / "two.data").write_text("classes=2\ntrain=images\nvalid=images\nnames=two.names\n")
    for path in project.glob("labels/*.txt"):
        path.write_text("1 0.5 0.5 0.2 0.2\n")
    annotations = open_split("two.data", "valid")
    with pytest.raises(UserError) as caught:
        check_classes(resolve(Wanted(data="two.data")), annotations)
    assert str(caught.value) == (
        "runs/train/exp/best.pt: detects 3 classes, two.data has 2; name the data set of these weights with --data"
    )
    with pytest.raises(UserError, match=r"two\.data has 2; take others"):
        check_classes(resolve(Wanted(data="two.data")), annotations, remedy="take others")
    check_classes(resolve(Wanted()), open_split("tiny.data", "valid"))
    check_classes(resolve(Wanted(data="two.data", single_cls=True)), annotations.as_single_class())


def test_names_of_the_classes(project):
    (project / "greek.names").write_text("alpha\nbeta\ngamma\n")
    (project / "greek.data").write_text("classes=3\ntrain=images\nvalid=images\nnames=greek.names\n")
    (project / "latin.names").write_text("a\nb\nc\n")
    found = resolve(Wanted())
    greek = ("alpha", "beta", "gamma")
    assert class_names(found) == NAMES
    assert class_names(found, data="greek.data") == greek
    assert class_names(found, data="images") == NAMES  # a folder has no names
    assert class_names(found, names_file="latin.names", data="greek.data") == ("a", "b", "c")
    foreign = resolve(Wanted(weights="foreign.weights"), needs_data=False)
    assert class_names(foreign) == ("class 0", "class 1", "class 2")
    (project / "short.names").write_text("a\nb\n")
    with pytest.raises(UserError) as caught:
        class_names(found, names_file="short.names")
    assert str(caught.value) == "short.names: has 2 class names, but runs/train/exp/best.pt detects 3 classes"


def test_names_of_foreign_weights_with_80_classes_are_those_of_coco(project):
    cfg = CFG.replace("classes=3", "classes=80").replace("filters=24", "filters=255")
    (project / "foreign.cfg").write_text(cfg)
    save_darknet_weights(build_network_from_text(cfg, "foreign.cfg"), project / "foreign.weights", seen=0)
    names = class_names(resolve(Wanted(weights="foreign.weights"), needs_data=False))
    assert len(names) == 80 and (names[0], names[79]) == ("person", "toothbrush")
