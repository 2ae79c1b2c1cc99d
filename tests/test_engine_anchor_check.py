"""The anchor check: YOLOv5's measure in plain Python, and other anchors where these fit too few objects."""

from functools import partial

import numpy as np
import pytest
import torch

import kmeans_anchors
from data.labels.read import read_dataset
from data.splits import open_data
from engine import anchor_check
from engine.anchor_check import AnchorOptions, check_anchors, measure_anchors
from engine.train_options import TrainOptions
from models.anchor_fit import AnchorFitOptions
from models.network import build_network_from_text
from tests.tiny_project import CFG, make_project
from utils.errors import UserError

POOR = "anchors=100,14, 230,27, 370,40"  # about ten times as wide as the objects


@pytest.fixture(scope="module")
def notes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    make_project(folder, num_images=7)
    return read_dataset(open_data(str(folder / "tiny.data")), "train")


def network_with(anchors=POOR):
    return build_network_from_text(CFG.replace("anchors=10,14, 23,27, 37,40", anchors), "tiny.cfg", 3)


@pytest.fixture(autouse=True)
def _short_search(monkeypatch):
    monkeypatch.setattr(anchor_check, "AnchorFitOptions", partial(AnchorFitOptions, generations=50, restarts=2))


def checked(network, notes, auto=True):
    options = TrainOptions(cfg="tiny.cfg", data="tiny.data")
    return check_anchors(network, notes, (96, 96), "letterbox", AnchorOptions(auto), options)


def test_the_measure_by_hand():
    # Object 10 x 10: ratios with 20 x 10 and 40 x 40: 1/2 and 1/4, which is no fit. Object 80 x 10: 1/4 and 1/4.
    found = measure_anchors(np.array([[10.0, 10], [80, 10]]), np.array([[20.0, 10], [40, 40]]))
    assert (found.recall, found.per_object, found.best_ratio) == (0.5, 0.5, 0.375)


def test_the_measure_is_that_of_a_plain_loop():
    rng = np.random.default_rng(0)
    sizes, anchors = rng.uniform(2, 300, (60, 2)), rng.uniform(2, 300, (5, 2))
    best, fitting = [], 0
    for w, h in sizes.astype(np.float32).astype(float):
        ratios = [min(w / aw, aw / w, h / ah, ah / h) for aw, ah in anchors]
        best.append(max(ratios))
        fitting += sum(ratio > 1 / 4 for ratio in ratios)
    found = measure_anchors(sizes, anchors)
    assert found.recall == pytest.approx(sum(ratio > 1 / 4 for ratio in best) / 60)
    assert found.per_object == pytest.approx(fitting / 60) and found.best_ratio == pytest.approx(sum(best) / 60)


def test_poor_anchors_are_said_with_the_command_that_finds_others(notes, capfd, tmp_path, monkeypatch, run_main):
    network = network_with()
    assert checked(network, notes, auto=False) is network
    said = capfd.readouterr().out
    assert said.startswith("anchors: best possible recall 0.") and said.count("\n") == 1
    make_project(tmp_path / "p", num_images=7)
    monkeypatch.chdir(tmp_path / "p")
    _, *arguments = said.split("with: python ")[1].split()
    (tmp_path / "p/tiny.cfg").write_text(network.cfg_text)
    monkeypatch.setattr(kmeans_anchors, "write_result", lambda *_: None)
    status, _, error = run_main(kmeans_anchors, *arguments, "--generations", 20, "--restarts", 2)
    assert status == 0 and (tmp_path / "p/better.cfg").is_file(), error


def test_better_anchors_replace_poor_ones_and_nothing_else_changes(notes, capfd):
    network = network_with()
    network.layers[0].requires_grad_(False)
    other = checked(network, notes)
    said = capfd.readouterr().out
    assert said.startswith("--auto-anchor: best possible recall 0.") and "with other anchors: best possible" in said
    assert other.heads[0].anchors_wh != network.heads[0].anchors_wh
    rebuilt = build_network_from_text(other.cfg_text, "tiny.cfg", 3)  # as a resumed run does
    assert rebuilt.heads[0].anchors_wh == other.heads[0].anchors_wh
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), other.parameters(), strict=True))
    grads = [[parameter.requires_grad for parameter in one.parameters()] for one in (network, other)]
    assert grads[0] == grads[1] and not all(grads[0])
    assert checked(network, notes).heads[0].anchors_wh == other.heads[0].anchors_wh  # the same every time


def test_anchors_that_fit_stay(notes, capfd):
    network = network_with("anchors=10,14, 23,27, 37,40")
    assert checked(network, notes) is network
    assert capfd.readouterr().out.count("\n") == 1


def test_heads_with_lists_of_their_own_are_named(notes):
    second = CFG[CFG.index("[convolutional]\nfilters=24") :].replace("10,14, 23,27", "11,14, 23,27")
    network = build_network_from_text(CFG + "[route]\nlayers=-3\n" + second, "tiny.cfg", 3)
    with pytest.raises(UserError, match="other anchors than the first"):
        checked(network, notes)
    assert checked(network, notes, auto=False) is network
