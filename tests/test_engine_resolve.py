"""What the command line leaves open: newest run, weights alone, foreign weights, sizes, and numbers of classes."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from data.splits import open_split
from engine.network_input import Resize
from engine.resolve import Resolved, Wanted, fit_classes, name_classes, resolve, start_with_classes, wanted_by
from models.checkpoints.darknet_weights import save_darknet_weights
from models.checkpoints.format import read_checkpoint, save_checkpoint
from models.checkpoints.report import LoadReport
from models.network import build_network_from_text
from tests.tiny_project import CFG, NAMES, make_project, random_network, save_run
from utils.class_names import read_names
from utils.config import REPOSITORY
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
    save_checkpoint(Path(path), {**checkpoint, "options": {**checkpoint["options"], **options}})
    return str(path)


def test_options_that_a_script_lacks_are_left_to_the_weights():
    some = SimpleNamespace(weights="a.pt", img_size=(64,), strict=True, names="no field of Wanted")
    assert wanted_by(some) == Wanted(weights="a.pt", img_size=(64,), strict=True)
    every = Wanted("a.pt", "b.cfg", "c.data", (96, 64), True, 0.1, "stretch", True, "scaled")
    assert wanted_by(every) == every


def test_nothing_given_is_the_newest_run(project):
    os.utime(project / "runs/train/exp/best.pt", (1, 1))
    save_run(project, random_network(1), "later")
    found = resolve(Wanted())
    resize = Resize("letterbox", "as these weights were trained")
    assert found == Resolved("runs/train/later/best.pt", found.loaded, "tiny.data", (96, 96), resize, False)


def test_no_run_yet(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"run train\.py first"):
        resolve(Wanted())


def test_weights_alone_bring_what_they_were_trained_with(project):
    weights = train_as(
        "runs/train/exp/best.pt", data="mine.data", img_size=[64, 32], single_cls=True, resize="letterbox"
    )
    found = resolve(Wanted(weights=weights))  # no file mine.data: it is named here, not opened
    assert (found.data, found.input_wh, found.single_cls) == ("mine.data", (64, 32), True)
    assert resolve(Wanted(weights=train_as(weights, test_size=[32]))).input_wh == (32, 32)


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
    "weights, img_size, expected",
    [
        ("foreign.weights", (), (96, 64)),  # as the cfg says
        ("foreign.weights", (32,), (32, 32)),
        ("foreign.weights", (32, 64), (32, 64)),
        ("runs/train/exp/best.pt", (), (96, 96)),
        ("runs/train/exp/best.pt", (64, 32), (64, 32)),
    ],
)
def test_size(project, weights, img_size, expected):
    wanted = Wanted(weights=weights, img_size=img_size)
    assert resolve(wanted, needs_data=False).input_wh == expected


def test_the_size_of_a_training_that_left_it_to_the_cfg(project):
    weights = train_as("runs/train/exp/best.pt", img_size=[], resize="stretch")
    assert resolve(Wanted(weights=weights)).input_wh == (96, 64)


@pytest.mark.parametrize(
    "img_size, expected", [([], (96, 96)), ([64], (64, 64)), ([64, 32], (32, 32))], ids=["cfg", "one", "two"]
)
def test_a_training_before_there_was_a_resize_was_square_and_letterboxed(project, img_size, expected):
    found = resolve(Wanted(weights=train_as("runs/train/exp/best.pt", img_size=img_size)))
    assert (found.input_wh, found.resize.kind) == (expected, "letterbox")


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
        fit_classes(resolve(Wanted(data="two.data")), annotations)
    assert str(caught.value) == (
        "runs/train/exp/best.pt: detects 3 classes, two.data has 2, of which 'a', 'b' are not among these "
        "('disc', 'Würfel', 'bar'); name the data set of these weights with --data"
    )
    with pytest.raises(UserError, match=r"'bar'\); take others"):
        fit_classes(resolve(Wanted(data="two.data")), annotations, remedy="take others")
    with pytest.raises(UserError, match=r"foreign\.weights: detects 3 classes, two\.data has 2; name the data set"):
        fit_classes(resolve(Wanted(weights="foreign.weights", data="two.data")), annotations)
    for wanted in (Wanted(), Wanted(weights="foreign.weights", data="tiny.data")):
        found = resolve(wanted)
        assert fit_classes(found, open_split("tiny.data", "valid")) is found
    found = resolve(Wanted(data="two.data", single_cls=True))
    assert fit_classes(found, annotations.as_single_class()) is found


def test_names_of_the_classes(project):
    (project / "greek.names").write_text("alpha\nbeta\ngamma\n")
    (project / "greek.data").write_text("classes=3\ntrain=images\nvalid=images\nnames=greek.names\n")
    (project / "latin.names").write_text("a\nb\nc\n")
    found = resolve(Wanted())
    greek = ("alpha", "beta", "gamma")
    assert name_classes(found).loaded.names == NAMES
    assert name_classes(found, data="greek.data").loaded.names == greek
    assert name_classes(found, data="images").loaded.names == NAMES  # a folder has no names
    assert name_classes(found, names_file="latin.names", data="greek.data").loaded.names == ("a", "b", "c")
    foreign = resolve(Wanted(weights="foreign.weights"), needs_data=False)
    assert name_classes(foreign).loaded.names == ("class 0", "class 1", "class 2")
    (project / "short.names").write_text("a\nb\n")
    with pytest.raises(UserError) as caught:
        name_classes(found, names_file="short.names")
    assert str(caught.value) == "short.names: has 2 class names, but runs/train/exp/best.pt detects 3 classes"


def test_names_of_foreign_weights_with_80_classes_are_those_of_coco(project):
    cfg = CFG.replace("classes=3", "classes=80").replace("filters=24", "filters=255")
    (project / "foreign.cfg").write_text(cfg)
    save_darknet_weights(build_network_from_text(cfg, "foreign.cfg"), project / "foreign.weights", seen=0)
    names = name_classes(resolve(Wanted(weights="foreign.weights"), needs_data=False)).loaded.names
    assert len(names) == 80 and (names[0], names[79]) == ("person", "toothbrush")


def name_data(folder, *names):
    """Write named.data: the pictures of the project without an object, with classes of these names."""
    (folder / "named.names").write_text("".join(f"{name}\n" for name in names))
    (folder / "named.data").write_text(f"classes={len(names)}\ntrain=images\nvalid=images\nnames=named.names\n")
    for path in folder.glob("labels/*.txt"):
        path.write_text("")
    return open_split("named.data", "valid")


def maps_of(found):
    """Raw maps [B A H W 5+C] of a fixed picture."""
    picture = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    return found.loaded.network.eval()(picture)[0]


@pytest.mark.parametrize(
    "names, places, said",
    [
        (["bar", "disc", "Würfel"], [2, 0, 1], "numbers its classes unlike named.data; mapped by name"),
        (["BAR", "würfel"], [2, 1], "1 of its 3 classes are not in named.data; mapped by name; these are left out"),
        (["Würfel"], [1], "2 of its 3 classes are not in named.data; mapped by name; these are left out"),
        (["Disc", "würfel", "BAR"], [0, 1, 2], ""),
        (["0", "1", "2"], [0, 1, 2], ""),  # without names the numbers count
    ],
)
def test_classes_of_the_data_are_found_by_name(project, capsys, names, places, said):
    annotations = name_data(project, *names)
    capsys.readouterr()
    before = resolve(Wanted(data="named.data"))
    after = fit_classes(before, annotations)
    assert capsys.readouterr().out == (f"runs/train/exp/best.pt: {said}\n" if said else "")
    expected = maps_of(before)[..., [*range(5), *(5 + place for place in places)]]
    torch.testing.assert_close(maps_of(after), expected)
    assert after.loaded.network.num_classes == len(names)
    # detect.py reads the names alone, and finds the same.
    named = name_classes(before, data="named.data")
    assert named.loaded.names == tuple(names)
    torch.testing.assert_close(maps_of(named), expected)


@pytest.mark.parametrize("names", [("bar", "disc", "cube"), ("disc", "cube"), ("disc", "Würfel", "bar", "cube")])
def test_a_class_that_the_weights_do_not_know_is_refused(project, names):
    annotations = name_data(project, *names)
    with pytest.raises(UserError) as caught:
        fit_classes(resolve(Wanted(data="named.data")), annotations)
    assert str(caught.value) == (
        f"runs/train/exp/best.pt: detects 3 classes, named.data has {len(names)}, of which 'cube' is not among these "
        "('disc', 'Würfel', 'bar'); name the data set of these weights with --data"
    )
    with pytest.raises(UserError, match=r"cube|has \d class names"):
        name_classes(resolve(Wanted()), data="named.data")


def coco_weights(folder):
    """Write Darknet weights of a network with 80 classes, which know no names."""
    cfg = CFG.replace("classes=3", "classes=80").replace("filters=24", "filters=255")
    (folder / "foreign.cfg").write_text(cfg)
    save_darknet_weights(build_network_from_text(cfg, "foreign.cfg"), folder / "foreign.weights", seen=0)
    return resolve(Wanted(weights="foreign.weights", data="named.data"))


def test_foreign_weights_take_the_names_of_the_data(project, capsys):
    found = coco_weights(project)
    coco = read_names(REPOSITORY / "cfg/coco.names")
    in_darknet = ["motorbike" if name == "motorcycle" else name for name in coco]
    for names in (coco, in_darknet, [f"mine {number}" for number in range(80)]):
        capsys.readouterr()
        assert fit_classes(found, name_data(project, *names)) is found
        assert capsys.readouterr().out == ""
    annotations = name_data(project, *reversed(coco))
    capsys.readouterr()
    assert fit_classes(found, annotations) is found
    assert "knows no names; its classes are taken in the order of named.data" in capsys.readouterr().out


def test_foreign_weights_of_80_classes_know_those_of_coco_where_the_data_have_fewer(project, capsys):
    found = coco_weights(project)
    some = fit_classes(found, name_data(project, "car", "sofa"))
    torch.testing.assert_close(maps_of(some), maps_of(found)[..., [0, 1, 2, 3, 4, 5 + 2, 5 + 57]])
    assert "78 of its 80 classes are not in named.data" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"detects 80 classes, named\.data has 2; name the data set"):
        fit_classes(found, name_data(project, "car", "platelet"))


@pytest.mark.parametrize(
    "names, places",
    [
        (("bar", "disc", "Würfel"), [2, 0, 1]),
        (("cube", "disc", "Würfel"), [2, 0, 1]),  # an unknown class starts from the one that is not wanted
        (("disc", "cube", "bar"), None),
        (("a", "b", "c"), None),
        (("disc", "bar"), None),  # of another number of classes nothing was loaded
        (("0", "1", "2"), None),
    ],
)
def test_a_training_starts_with_the_classes_in_its_own_order(project, names, places):
    found = resolve(Wanted())
    network = found.loaded.network
    started = start_with_classes(network, LoadReport("x.pt", 1, 1, names=found.loaded.names), names)
    if places is None:
        assert started is network
    else:
        picture = torch.rand(1, 3, 96, 96)
        columns = [*range(5), *(5 + place for place in places)]
        torch.testing.assert_close(started.eval()(picture)[0], network.eval()(picture)[0][..., columns])
