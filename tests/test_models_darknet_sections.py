"""A cfg whose graph cannot be says so in one line that names the place, and takes no memory first."""

import random
from pathlib import Path

import pytest
import torch

from models.darknet import joins
from models.darknet.kinds import KINDS
from models.darknet.schema import SECTIONS
from models.network import build_network_from_text
from utils.errors import UserError

CFG = Path(__file__).resolve().parent.parent / "cfg"
NET = "[net]\nwidth=64\nheight=64\n"
CONV = "[convolutional]\nfilters=8\nstride=2\nactivation=leaky\n"
HEAD = "[convolutional]\nfilters=14\nactivation=linear\n"
YOLO = "[yolo]\nmask=0,1\nnum=2\nclasses=2\nanchors=4,5, 6,7\n"
SMALL = NET + CONV + HEAD + YOLO  # stride 2, two anchors, two classes


def build(text):
    return build_network_from_text(text, "x.cfg")


GATE = "[convolutional]\nfilters=3\n"
ERRORS = [
    ("[net]\nwidth=64\n[avgpool]\n", "x.cfg:1: [net] needs 'height = ...'"),
    (NET + "[route]\nlayers=0\n", "x.cfg:5: [route] layers=0 is not one of the layers"),
    (NET + CONV + "[route]\nlayers=-1,7\n", "x.cfg:9: [route] layers=7 is not one of the layers 0..0 before it"),
    (NET + CONV + "[route]\nlayers=-2\n", "x.cfg:9: [route] layers=-2 is not"),
    (NET + CONV + "[route]\n", "x.cfg:8: [route] needs 'layers = ...'"),
    (NET + CONV + "[route]\nlayers=-1\ngroups=2\ngroup_id=2\n", "x.cfg:11: [route] group_id=2 is not below groups=2"),
    (NET + CONV + "[route]\nlayers=-1\ngroups=3\n", "x.cfg:10: [route] groups=3 must divide layer 0's 8 channels"),
    (NET + CONV + CONV + "[route]\nlayers=-1,0\n", "x.cfg:13: [route] joins maps of different sizes"),
    (NET + CONV + CONV + "[shortcut]\nfrom=-2\n", "x.cfg:13: [shortcut] adds maps of different sizes: 16 x 16 x 8 and"),
    (NET + "[shortcut]\nfrom=-1\n", "x.cfg:4: [shortcut] cannot be the first layer"),
    (NET + CONV + GATE + "[sam]\nfrom=0\n", "x.cfg:11: [sam] multiplies maps of different sizes"),
    (NET + CONV + GATE + "[scale_channels]\nfrom=0\n", "x.cfg:11: [scale_channels] needs 1 x 1 x 8 before it"),
    (NET + CONV + GATE + "[shift_channels]\nfrom=0\n", "x.cfg:11: [shift_channels] needs 1 x 1 x 3 from its layer"),
    (
        NET + CONV + "[convolutional]\nfilters=6\ngroups=4\n",
        "x.cfg:10: [convolutional] groups=4 must divide its 8 inputs",
    ),
    (NET + "[convolutional]\nsize=3\ndilation=2\n", "x.cfg:6: [convolutional] dilation=2 needs an odd size and pad=1"),
    (NET + "[convolutional]\nsize=99\n", "x.cfg:4: [convolutional] leaves nothing"),
    (NET + "[maxpool]\nsize=2\npadding=4\n", "x.cfg:6: [maxpool] padding=4 makes windows of size 2 that lie outside"),
    (NET + "[maxpool]\nmaxpool_depth=1\nout_channels=4\n", "x.cfg:6: [maxpool] out_channels=4 is above its 3 inputs"),
    (NET + "[reorg]\nstride=2\n", "x.cfg:5: [reorg] stride=2 does not fit 64 x 64 x 3"),
    (NET + "[reorg3d]\nstride=2\nreverse=1\n", "x.cfg:5: [reorg3d] stride=2 must divide its 3 channels"),
    (
        NET + CONV + HEAD + YOLO.replace("classes=2", "classes=3"),
        "x.cfg:11: [yolo] needs 2 anchors x (5 + 3 classes) = 16",
    ),
    (NET + CONV + HEAD + YOLO.replace("0,1", "0,2"), "x.cfg:12: [yolo] mask=2 is not below num=2"),
    (
        NET + CONV + HEAD + YOLO.replace("num=2", "num=3").replace("0,1", "1,2"),
        "x.cfg:15: [yolo] num=3 needs 6 numbers in anchors, 4 are given",
    ),
    (NET + CONV + HEAD + YOLO.replace("6,7", "6,0"), "[yolo] anchors must be above 0"),
    (
        NET.replace("64", "30") + CONV + CONV + "[upsample]\nstride=2\n[route]\nlayers=-1,0\n",
        "multiples of the largest",
    ),
    (
        NET + CONV + HEAD.replace("linear", "logistic\nantialiasing=1") + YOLO + "new_coords=1\n",
        "x.cfg:11: [convolutional] anti",
    ),
    (SMALL + "[convolutional]\n", "x.cfg:16: [convolutional] reads layer 2, a [yolo] head"),
    (SMALL + "[route]\nlayers=2\n", "x.cfg:16: [route] reads layer 2, a [yolo] head"),
    (NET + CONV.replace("stride=2", "stride_x=2") + HEAD + YOLO, "x.cfg:11: [yolo] lies on a grid of stride 2 x 1"),
    (NET + CONV + "[upsample]\nstride=4\n" + HEAD + YOLO, "[yolo] lies on a grid of stride 1/2 x 1/2"),
    (NET + CONV + CONV + "[avgpool]\n" + HEAD + YOLO, "stride 0"),
    (
        NET + "[upsample]\nstride=64\n" * 2,
        "x.cfg:6: [upsample] an output of 262144 x 262144 x 3 is over the limit",
    ),
    (
        NET + "[maxpool]\nstride=64\nsize=64\n" + "[convolutional]\nfilters=30000\n" * 3,
        "parameters in all; the limit is",
    ),
    (NET.replace("64", "16384") + CONV, "x.cfg:1: [net] an output of 16384 x 16384 x 3 is over the limit"),
]


@pytest.mark.parametrize(("text", "message"), ERRORS)
def test_impossible_graphs_name_the_line(text, message):
    with pytest.raises(UserError) as caught:
        build(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_logistic_that_another_layer_needs_cannot_move():
    text = NET + CONV + HEAD.replace("linear", "logistic") + YOLO + "new_coords=1\n[route]\nlayers=1\n"
    with pytest.raises(
        UserError, match=r"x\.cfg:17: \[route\] reads layer 1, whose logistic belongs to the \[yolo\] head"
    ):
        build(text)


def mutated(text, generator):
    """Change, drop, double or cut a few characters or lines."""
    lines = text.splitlines(keepends=True)
    for _ in range(generator.randint(1, 3)):
        where = generator.randrange(len(lines))
        line = lines[where]
        place = generator.randrange(len(line) + 1)
        lines[where] = generator.choice(
            [
                line[:place] + generator.choice("0123456789=-,.#[]xy\0é ") + line[place + 1 :],
                line[:place] + generator.choice("0123456789=-,.") + line[place:],
                line[:place] + line[place + 1 :],
                line * 2,
                "",
                generator.choice(lines),
            ]
        )
    return "".join(lines)[: generator.choice([None, None, None, generator.randrange(len(text))])]


@pytest.mark.parametrize("name", ["yolov3-nano", "yolov3-tiny", "yolov5n"])
def test_mutated_cfgs_build_or_say_why(name):
    text = (CFG / f"{name}.cfg").read_text()
    generator = random.Random(0)
    refused = 0
    for _ in range(170):
        try:
            with torch.device("meta"):  # the limits are checked before memory is taken, so none need be
                build(mutated(text, generator))
        except UserError as error:
            refused += 1
            assert str(error).startswith("x.cfg:")
            assert "\n" not in str(error)
    assert refused > 50


def test_dilation_spreads_kernel_and_padding():
    # Darknet pads by size // 2 times the dilation: a kernel with its one number at the top left shifts by 2 cells.
    text = NET + "channels=1\n[convolutional]\nfilters=1\nsize=3\npad=1\ndilation=2\nactivation=linear\n"
    network = build(text)
    conv = network.layers[0].conv
    conv.weight.data = torch.tensor([[[[1.0, 0, 0], [0, 0, 0], [0, 0, 0]]]])
    conv.bias.data.zero_()
    image = torch.rand(1, 1, 5, 6)
    (shifted,) = network(image)
    assert shifted.shape == image.shape
    assert torch.equal(shifted[..., 2:, 2:], image[..., :-2, :-2])
    assert shifted[..., :2, :].abs().max() == 0


def test_strides_along_x_and_y():
    network = build(
        NET + "[convolutional]\nsize=3\npad=1\nstride_x=2\nstride=4\n[maxpool]\nsize=2\nstride=1\nstride_y=2\n"
    )
    assert network(torch.rand(1, 3, 16, 32))[0].shape == (1, 1, 2, 16)


def test_every_section_with_keys_has_a_builder_and_what_joins_layers_has_the_key_that_names_them():
    assert KINDS.keys() >= SECTIONS.keys()  # others have their keys in a file of their own
    naming = {kind.name for kind in KINDS.values() if {"from", "layers"} & kind.keys.keys()}
    without_input = {"implicit", "implicit_add", "implicit_mul"}  # vectors of their own, which others join
    assert naming | without_input == {kind.name for kind in joins.KINDS}
