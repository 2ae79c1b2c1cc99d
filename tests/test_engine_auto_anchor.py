"""Other anchors before a training: where they fit more, and nothing else of the network changes."""

from functools import partial

import pytest
import torch

from data.labels.read import read_dataset
from data.splits import open_data
from engine import auto_anchor
from engine.auto_anchor import with_fitting_anchors
from models.anchor_fit import AnchorFitOptions
from models.families.table import open_network
from models.network import build_network_from_text
from tests.tiny_project import CFG, make_project
from utils.errors import UserError

POOR = "anchors=100,14, 230,27, 370,40"  # about ten times as wide as the objects


@pytest.fixture(scope="module")
def notes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    make_project(folder, num_images=7)
    return read_dataset(open_data(str(folder / "tiny.data")), "train")


@pytest.fixture(autouse=True)
def _short_search(monkeypatch):
    monkeypatch.setattr(auto_anchor, "AnchorFitOptions", partial(AnchorFitOptions, generations=20, restarts=2))


def network_with(anchors=POOR):
    return build_network_from_text(CFG.replace("anchors=10,14, 23,27, 37,40", anchors), "tiny.cfg", 3)


def fitted(network, notes):
    return with_fitting_anchors(network, notes, (96,), "letterbox", 0)


def test_better_anchors_replace_poor_ones_and_nothing_else_changes(notes, capfd):
    network = network_with()
    network.layers[0].requires_grad_(False)
    other = fitted(network, notes)
    said = capfd.readouterr().out
    assert said.startswith("--auto-anchor: best possible recall 0.") and ", with others 0.9" in said
    assert said.count("\n") == 1
    assert other.heads[0].anchors_wh != network.heads[0].anchors_wh
    rebuilt = build_network_from_text(other.cfg_text, "tiny.cfg", 3)  # as a resumed run does
    assert rebuilt.heads[0].anchors_wh == other.heads[0].anchors_wh
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), other.parameters(), strict=True))
    grads = [[parameter.requires_grad for parameter in one.parameters()] for one in (network, other)]
    assert grads[0] == grads[1] and not all(grads[0])
    assert fitted(network, notes).heads[0].anchors_wh == other.heads[0].anchors_wh  # the same every time


def test_anchors_that_fit_or_that_cannot_be_bettered_stay(notes, capfd, monkeypatch):
    network = network_with("anchors=10,14, 23,27, 37,40")
    assert fitted(network, notes) is network
    assert capfd.readouterr().out == "--auto-anchor: best possible recall 1.0000, the anchors stay as they are\n"
    network = network_with()
    monkeypatch.setattr(auto_anchor, "fit_anchors", lambda *_: torch.tensor(network.heads[0].anchors_wh).numpy())
    assert fitted(network, notes) is network
    assert capfd.readouterr().out.endswith(", the anchors stay as they are\n")
    monkeypatch.setattr(auto_anchor, "count_sizes", lambda _: ())
    assert fitted(network, notes) is network
    assert "0 sizes of objects are too few to find 3 other anchors" in capfd.readouterr().out


def test_networks_without_one_list_of_anchors_are_refused(notes):
    second = CFG[CFG.index("[convolutional]\nfilters=24") :].replace("10,14, 23,27", "11,14, 23,27")
    with pytest.raises(UserError, match="other anchors than the first"):
        fitted(build_network_from_text(CFG + "[route]\nlayers=-3\n" + second, "tiny.cfg", 3), notes)
    pytest.importorskip("torchvision")
    with torch.device("meta"), pytest.raises(UserError, match="--auto-anchor: is for networks of a Darknet cfg"):
        fitted(open_network("ssd300_vgg16", 3), notes)
