"""Networks that only Darknet's dialect has, through the scripts: one fixed input size, grey images, odd cfgs."""

import json

import pytest
import torch

from models.checkpoints.darknet_weights import save_darknet_weights
from models.convert_weights import main as convert
from models.network import build_network
from tests.tiny_project import CFG, load_script, run_script

STEM = "[convolutional]\nfilters=4\nsize=3\nstride=4\npad=1\nactivation=leaky\n"
YOLOV1 = (
    "[net]\nwidth=84\nheight=63\nseen=9\n" + STEM + "[connected]\noutput=637\nactivation=linear\n"
    "[detection]\nclasses=3\ncoords=4\nside=7\nnum=2\nsqrt=1\n"
)  # fmt: skip
UNEVEN = CFG.replace("width=96", "width=90")  # cells of 8.18 pixels
GREY = CFG.replace("channels=3", "channels=1")
ODD = CFG.replace("pad=1", "pad=1\npads=2").replace("leaky", "Leaky")


def write_network(name, text):
    with open(f"{name}.cfg", "w") as file:
        file.write(text)
    torch.manual_seed(0)
    network = build_network(f"{name}.cfg")
    for parameter in network.parameters():
        torch.nn.init.uniform_(parameter, -0.5, 1.0)
    save_darknet_weights(network, f"{name}.weights")
    return network


@pytest.mark.parametrize(
    ("text", "size"), [(YOLOV1, "84x63"), (UNEVEN, "90x64"), (GREY, "96x64")], ids=["yolov1", "uneven", "grey"]
)
def test_it_is_evaluated_and_detects_at_the_size_of_its_cfg(project, monkeypatch, capsys, text, size):
    write_network("net", text)
    options = ("--weights", "net.weights", "--data", "tiny.data")
    assert run_script(load_script("test"), monkeypatch, *options, "--workers", 0, "--save-json") == 0
    assert f"stretch to {size} (as Darknet: no letter_box=1 in the cfg)" in capsys.readouterr().out
    assert json.loads((project / "runs/test/exp/detections.json").read_text())
    assert run_script(load_script("detect"), monkeypatch, *options, "--source", "images", "--conf-thres", 0.05) == 0
    assert "7 pictures" in capsys.readouterr().out


@pytest.mark.parametrize(("text", "kind"), [(YOLOV1, "84 x 63"), (UNEVEN, "90 x 64")], ids=["yolov1", "uneven"])
def test_another_size_is_refused(project, monkeypatch, capsys, text, kind):
    write_network("net", text)
    for script in ("test", "detect"):
        options = ("--weights", "net.weights", "--data", "tiny.data", "--img-size", 96)
        assert run_script(load_script(script), monkeypatch, *options) == 2
        assert f"error: image size 96 x 96: net.cfg works at {kind} only" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (YOLOV1, "net.cfg:14: [detection] is for detection only: YOLOv1's loss is not among those of train.py"),
        (UNEVEN, "net.cfg:30: [yolo] is for detection only: its cells have 7.5 x 8 pixels; make width and height"),
        (CFG.replace("size=1", "size=1\nxnor=1"), "net.cfg:23: [convolutional] is for detection only: binary weights"),
    ],
    ids=["yolov1", "uneven", "xnor"],
)
def test_what_cannot_be_trained_says_so_before_a_run_begins(project, monkeypatch, capsys, text, line):
    write_network("net", text)
    options = ("--cfg", "net.cfg", "--data", "tiny.data", "--epochs", 1)
    assert run_script(load_script("train"), monkeypatch, *options) == 2
    assert line in capsys.readouterr().err
    assert not (project / "runs/train/exp2").exists()


def test_oddities_are_told_once_and_refused_on_request(project, monkeypatch, capsys):
    write_network("net", ODD)
    options = ("--weights", "net.weights", "--data", "tiny.data")
    key = "net.cfg:13: [convolutional] has no key 'pads'; without effect, in Darknet, too; did you mean 'pad'?"
    name = "net.cfg:14: Darknet does not know activation=Leaky and computes relu; here it is leaky"
    for script, more in (("test", ("--workers", 0)), ("detect", ("--source", "images", "--nosave"))):
        assert run_script(load_script(script), monkeypatch, *options, *more) == 0
        printed = capsys.readouterr().out.splitlines()
        assert [line for line in printed if line.startswith("net.cfg")] == [
            f"{key} (and in 2 more lines)", f"{name} (and in 1 more lines)"
        ]  # fmt: skip
        assert run_script(load_script(script), monkeypatch, *options, *more, "--strict") == 2
        assert f"error: {key} (and in 2 more lines) (--strict)" in capsys.readouterr().err
    options = ("--cfg", "net.cfg", "--data", "tiny.data", "--strict")
    assert run_script(load_script("train"), monkeypatch, *options) == 2
    assert "(--strict)" in capsys.readouterr().err


def test_weights_of_yolov1_come_back_byte_for_byte(project, monkeypatch):
    write_network("net", YOLOV1)
    for source, target in (("net.weights", "net.pt"), ("net.pt", "again.weights")):
        monkeypatch.setattr("sys.argv", ["convert_weights", source, target])
        convert()
    assert (project / "again.weights").read_bytes() == (project / "net.weights").read_bytes()
    assert (project / "again.cfg").read_text() == YOLOV1
