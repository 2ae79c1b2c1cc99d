"""Conversion between .pt and .weights, there and back."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from models import convert_weights
from models.checkpoints.darknet_weights import load_darknet_weights, save_darknet_weights
from models.checkpoints.load import load_network
from models.network import build_network, build_network_from_text
from utils.config import REPOSITORY
from utils.errors import UserError

NANO = "yolov3-nano.cfg"


@pytest.fixture
def convert(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def _convert(*arguments):
        monkeypatch.setattr(sys, "argv", ["convert_weights", *map(str, arguments)])
        convert_weights.main()

    return _convert


@pytest.fixture
def nano(tmp_path):
    network = build_network(REPOSITORY / "cfg" / NANO)
    save_darknet_weights(network, tmp_path / "nano.weights", seen=64_000, version=(0, 2, 0))
    return network


def test_there_and_back_gives_the_same_bytes(convert, nano, tmp_path):
    convert("nano.weights", "nano.pt", "--cfg", NANO)
    loaded = load_network(tmp_path / "nano.pt")
    assert all(
        torch.equal(a, b) for a, b in zip(loaded.network.state_dict().values(), nano.state_dict().values(), strict=True)
    )
    convert("nano.pt", "again.weights", "--seen", "64000")
    assert (tmp_path / "again.weights").read_bytes()[12:] == (tmp_path / "nano.weights").read_bytes()[12:]
    # The cfg beside it is the one of the checkpoint, so the file is complete by itself.
    assert (tmp_path / "again.cfg").read_text() == (REPOSITORY / "cfg" / NANO).read_text()
    assert load_network(tmp_path / "again.weights").report.seen == 64_000


def test_weights_to_weights_keeps_header_and_bytes(convert, nano, tmp_path):
    convert("nano.weights", "copy.weights", "--cfg", NANO)
    assert (tmp_path / "copy.weights").read_bytes() == (tmp_path / "nano.weights").read_bytes()


def test_a_backbone_is_cut_off_by_its_name(convert, nano, tmp_path, capsys):
    convert("nano.weights", "nano.conv.5", "--cfg", NANO)
    fresh = build_network(REPOSITORY / "cfg" / NANO)
    report = load_darknet_weights(fresh, tmp_path / "nano.conv.5")
    inside = [i for i in range(5) if list(nano.layers[i].parameters())]
    assert report.filled == len(inside) and "the first 5 layers" in capsys.readouterr().out
    assert torch.equal(fresh.layers[inside[-1]].conv.weight, nano.layers[inside[-1]].conv.weight)
    with pytest.raises(UserError, match="layers, not 999"):
        convert("nano.weights", "nano.conv.999", "--cfg", NANO)


def test_other_classes_get_a_cfg_that_says_so(convert, tmp_path):
    text = (
        "[net]\nwidth=32\nheight=32\n\n[convolutional]\nfilters=255 # of 80 classes\nsize=1\nactivation=linear\n\n"
        "[yolo]\nmask=0,1,2\nanchors=1,2, 3,4, 5,6\nnum=3\nclasses=80\n"
    )
    network = build_network_from_text(text, "a.cfg", num_classes=2)
    convert_weights.write_checkpoint(network, ("cat", "dog"), tmp_path / "a.pt")
    convert("a.pt", "b.weights")
    written = (tmp_path / "b.cfg").read_text()
    assert written == text.replace("filters=255 # of 80 classes", "filters=21").replace("classes=80", "classes=2")
    assert load_network(tmp_path / "b.weights").network.num_classes == 2


def test_for_darknet_moves_the_epsilon_into_the_variances(convert, tmp_path):
    text = (
        "[net]\nwidth=32\nheight=32\nbn_eps=0.001\n\n[convolutional]\nbatch_normalize=1\nfilters=4\nsize=3\npad=1\n"
        "activation=leaky\n\n[convolutional]\nfilters=21\nsize=1\nactivation=linear\n\n"
        "[yolo]\nmask=0,1,2\nanchors=1,2, 3,4, 5,6\nnum=3\nclasses=2\n"
    )
    network = build_network_from_text(text, "a.cfg").eval()
    nn.init.constant_(network.layers[0].bn.running_var, 1e-3)
    convert_weights.write_checkpoint(network, ("cat", "dog"), tmp_path / "a.pt")
    convert("a.pt", "b.weights", "--for-darknet")
    assert "bn_eps" not in (tmp_path / "b.cfg").read_text()
    other = load_network(tmp_path / "b.weights").network.eval()
    assert other.layers[0].bn.eps == 1e-5
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(other(images)[0], network(images)[0])


def test_the_official_yolov5n_becomes_darknets(convert, shared, tmp_path):
    convert(shared / "data/weights/yolov5n.pt", "n.weights", "--for-darknet")
    reference = load_network(shared / "data/weights/yolov5n.pt").network.eval()
    ours = load_network(tmp_path / "n.weights").network.eval()
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        for a, b in zip(ours(images), reference(images), strict=True):
            assert (a - b).abs().max() < 1e-4 * b.abs().max()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nano.weights", "x.onnx", "--cfg", NANO), "must end in .pt, .weights or .conv.N"),
        (("nano.weights", "x.pt", "--cfg", NANO, "--names", "three.names"), "3 class names for the"),
        (("nano.weights", "x.pt"), "which network is this"),
        (("nano.weights", "x.weights", "--cfg", NANO, "--seen", "-1"), "a number of images"),
        (("nothing.pt", "x.weights"), "do not exist"),
        (("nano.weights", "x.weights", "--cgf", NANO), "did you mean '--cfg'"),
    ],
)
def test_mistakes_are_named(convert, nano, tmp_path, arguments, message):
    (tmp_path / "three.names").write_text("a\nb\nc\n")
    with pytest.raises(UserError, match=message):
        convert(*arguments)


def test_the_command_runs(nano, tmp_path):
    command = [
        sys.executable,
        "-m",
        "models.convert_weights",
        tmp_path / "nano.weights",
        tmp_path / "a.pt",
        "--cfg",
        NANO,
    ]
    run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")
    assert "layers with weights filled (Darknet 0.2.0, 64,000 images seen)" in run.stdout
