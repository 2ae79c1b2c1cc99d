"""--compile: what is said of its cost, and that the trial leaves the network as it was."""

import re

import pytest
import torch

import train
from data.loader import LoaderSettings
from engine import compiling
from engine.compiling import compile_network, require_compilable, verdict
from models.families.dense_heads import DenseLearner
from models.families.effdet_networks import LevelMaps
from models.families.own_loss import OwnLossLearner
from models.learner import Learner, MapsLearner
from models.network import build_network_from_text
from tests.tiny_project import CFG, make_project
from utils.errors import UserError

SETTINGS = LoaderSettings((64, 96), 2)


@pytest.mark.parametrize(
    ("plain", "fast", "batches", "words"),
    [
        (
            0.100,
            0.098,
            10**6,
            "does not pay on this machine: it took 30 s, a pass takes 98 instead of 100 ms; leave it",
        ),
        (0.100, 0.120, 10**6, "does not pay on this machine"),
        (0.100, 0.050, 599, "does not pay in this run of 599 batches: .*, which pays after 601"),  # 30 / 0.05
        (0.100, 0.050, 601, "pays after 601 of 601 batches"),
    ],
)
def test_what_compiling_costs_and_gains(plain, fast, batches, words):
    assert re.match(words, verdict(plain, fast, 30.0, batches))


def tiny():
    torch.manual_seed(0)
    return build_network_from_text(CFG, "tiny.cfg", 3)


def test_the_trial_leaves_the_network_as_it_was(monkeypatch, capsys):
    network, expected = tiny(), tiny().state_dict()
    monkeypatch.setattr(torch, "compile", lambda module: module)
    learner = MapsLearner(network, None)
    compile_network(learner, SETTINGS, 100)
    assert learner.network is network
    assert all(torch.equal(value, expected[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert capsys.readouterr().out.startswith("--compile: ")


def test_without_a_compiler_there_is_one_line(monkeypatch):
    def fails(*_):
        raise torch._dynamo.exc.BackendCompilerFailed(lambda: None, RuntimeError("no C++ compiler"), [])

    monkeypatch.setattr(compiling, "_seconds_of_pass", fails)
    with pytest.raises(UserError, match=r"--compile: torch cannot compile here .*no C\+\+ compiler.*leave it out"):
        compile_network(MapsLearner(tiny(), None), SETTINGS, 100)


class TwoListsOfMaps(torch.nn.Module):
    """Says of images what an EfficientDet does: a list of maps of classes, and one of boxes."""

    def __init__(self):
        super().__init__()
        self.classes, self.boxes = (torch.nn.Conv2d(3, channels, 3, padding=1) for channels in (2, 4))

    def forward(self, images):
        sizes = [images, images[..., ::2, ::2]]
        return LevelMaps([self.classes(one) for one in sizes], [self.boxes(one) for one in sizes])


def test_a_network_that_returns_lists_of_maps_is_timed_in_full(monkeypatch):
    network = TwoListsOfMaps()
    reached = set()
    for name, parameter in network.named_parameters():
        parameter.register_hook(lambda gradient, name=name: reached.add(name) if gradient.any() else None)
    monkeypatch.setattr(torch, "compile", lambda module: module)
    compile_network(MapsLearner(network, None), SETTINGS, 100)
    assert reached == {"classes.weight", "classes.bias", "boxes.weight", "boxes.bias"}


@pytest.mark.slow
def test_a_network_that_returns_lists_of_maps_compiles():
    learner = MapsLearner(TwoListsOfMaps(), None)
    compile_network(learner, SETTINGS, 100)
    images = torch.rand(2, 3, 64, 96)
    for found, expected in zip(learner.network(images), learner.network._orig_mod(images), strict=True):
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [OwnLossLearner, DenseLearner])
def test_a_network_that_a_step_does_not_call_as_one_is_refused(kind):
    learner = kind.__new__(kind)
    Learner.__init__(learner, tiny())
    with pytest.raises(UserError, match=r"--compile: leave it out; a training step does not call tiny\.cfg as one"):
        require_compilable(learner)
    require_compilable(MapsLearner(tiny(), lambda *_: None))


def test_it_is_refused_before_a_run_has_a_folder(tmp_path, monkeypatch, run_main):
    pytest.importorskip("torchvision.models.detection", exc_type=(ImportError, RuntimeError))
    make_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    size = ["--img-size", 128, "--device", "cpu", "--no-amp", "--project", tmp_path / "mine"]
    status, _, error = run_main(train, "--data", "tiny.data", "--cfg", "fcos_resnet50_fpn", "--compile", *size)
    assert status == 2 and "--compile: leave it out" in error and not (tmp_path / "mine").exists()


@pytest.mark.slow
def test_a_compiled_network_learns_the_same():
    network = tiny().train()
    images = torch.rand(2, 3, 64, 96)
    learner = MapsLearner(network, None)
    compile_network(learner, SETTINGS, 100)
    gradients = []
    for one in (network, learner.network):
        sum(raw.square().mean() for raw in one(images)).backward()
        gradients.append([parameter.grad.clone() for parameter in network.parameters()])
        network.zero_grad(set_to_none=True)
    for plain, other in zip(*gradients, strict=True):
        torch.testing.assert_close(other, plain, rtol=1e-4, atol=1e-6)
