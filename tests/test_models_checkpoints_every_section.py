"""Every kind of section in a ``.weights`` file: as many numbers as Darknet writes for it, in and out byte for byte."""

import struct

import numpy as np
import pytest

from models.checkpoints.darknet_weights import load_darknet_weights, save_darknet_weights
from models.darknet.kinds import KINDS
from models.network import build_network_from_text
from utils.errors import UserError

# The section reads the map of this convolution, 8 x 8 cells of 12 channels, 768 numbers; itself it has 12 + 3 x 12.
BEFORE = "[net]\nwidth=8\nheight=8\nchannels=3\n[convolutional]\nfilters=12\nsize=1\nactivation=linear\n"
COUNT_BEFORE = 48
HEAD = "anchors=1,2\nnum=1\nclasses"
LSTM_IN = 4 * (2 + 2 * 12 * 9)

# Per kind: keys, other sections before it, and how many numbers all of these have.
CASES = [
    ("convolutional", "filters=4\nsize=3\npad=1", "", 4 + 4 * 12 * 9),
    ("convolutional", "batch_normalize=1\nfilters=4\nsize=3\npad=1\ngroups=2", "", 4 * 4 + 4 * 6 * 9),
    ("convolutional", "cbn=1\nfilters=4\nsize=1\nantialiasing=1\nstride=2", "", 4 * 4 + 4 * 12),
    ("convolutional", "batch_normalize=1\nfilters=4\nsize=1\nxnor=1", "", 4 * 4 + 4 * 12),
    ("convolutional", "filters=12\nsize=1\nshare_index=1", "[convolutional]\nfilters=12\nsize=1\n", 12 + 12 * 12),
    ("batchnorm", "", "", 4 * 12),
    ("shortcut", "from=0", "", 0),
    ("shortcut", "from=0\nweights_type=per_feature", "", 2),
    ("shortcut", "from=0,0\nweights_type=per_channel", "", 3 * 12),
    ("implicit", "filters=5\natoms=2", "", 10),
    ("implicit_add", "filters=5", "", 5),
    ("implicit_mul", "filters=5", "", 5),
    ("shift_channels", "from=1", "[implicit_add]\nfilters=12\n[route]\nlayers=0\n", 12),
    ("control_channels", "from=1", "[implicit_mul]\nfilters=12\n[route]\nlayers=0\n", 12),
    ("connected", "output=5", "", 5 + 5 * 768),
    ("connected", "output=5\nbatch_normalize=1", "", 4 * 5 + 5 * 768),
    ("local", "filters=2\nsize=3\npad=1", "", 64 * 2 + 64 * 2 * 12 * 9),
    ("rnn", "hidden=3\noutput=2", "", (3 + 3 * 768) + (3 + 3 * 3) + (2 + 2 * 3)),
    ("rnn", "hidden=3\noutput=2\nbatch_normalize=1", "", (12 + 3 * 768) + (12 + 3 * 3) + (8 + 2 * 3)),
    ("gru", "output=2", "", 3 * (2 + 2 * 768) + 3 * (2 + 2 * 2)),
    ("lstm", "output=2", "", 4 * (2 + 2 * 2) + 4 * (2 + 2 * 768)),
    ("crnn", "hidden=3\noutput=2\npad=1", "", (3 + 3 * 12 * 9) + (3 + 3 * 3 * 9) + (2 + 2 * 3 * 9)),
    ("conv_lstm", "output=2\npad=1", "", 4 * (2 + 2 * 2 * 9) + LSTM_IN),
    ("conv_lstm", "output=2\npad=1\npeephole=1", "", 7 * (2 + 2 * 2 * 9) + LSTM_IN),
    ("conv_lstm", "output=2\npad=1\nbatch_normalize=1", "", 4 * (8 + 2 * 2 * 9) + LSTM_IN + 4 * 6),
    ("conv_lstm", "output=12\npad=1\nbottleneck=1", "", (12 + 12 * 24 * 9) + 4 * (12 + 12 * 12 * 9)),
    ("yolo", f"{HEAD}=7", "", 0),
    ("region", f"{HEAD}=7", "", 0),
    ("gaussian_yolo", f"{HEAD}=3", "", 0),
    ("detection", "side=8\nnum=1\nclasses=7\ncoords=4", "", 0),
    ("scale_channels", "from=0", "[avgpool]\n", 0),
    ("sam", "from=0", "", 0),
    ("route", "layers=-1", "", 0),
    ("route_lhalf", "layers=-1", "", 0),
    ("crop", "crop_height=4\ncrop_width=4", "", 0),
    *((kind, "", "", 0) for kind in (
        "maxpool", "local_avgpool", "avgpool", "upsample", "dropout", "activation", "reorg", "reorg3d", "softmax",
        "contrastive", "cost", "silence")),
]  # fmt: skip


def test_no_kind_is_missing():
    assert {kind for kind, *_ in CASES} == KINDS.keys()


@pytest.mark.parametrize(("version", "seen"), [((0, 1, 0), "<I"), ((0, 2, 5), "<Q")])
@pytest.mark.parametrize(
    ("kind", "keys", "others", "count"), CASES, ids=[f"{case[0]}-{number}" for number, case in enumerate(CASES)]
)
def test_a_section_comes_out_as_it_went_in(tmp_path, kind, keys, others, count, version, seen):
    name = "Gaussian_yolo" if kind == "gaussian_yolo" else kind
    text = f"{BEFORE}{others}[{name}]\n{keys}\n[convolutional]\nfilters=2\nsize=1\n"
    if KINDS[kind].box_numbers or kind == "detection":
        text = f"{BEFORE}{others}[{name}]\n{keys}\n[route]\nlayers=0\n[convolutional]\nfilters=2\nsize=1\n"
    network = build_network_from_text(text, "x.cfg")
    behind = 2 + network.layers[-1].conv.weight.numel()
    numbers = np.random.default_rng(0).uniform(0.1, 1, COUNT_BEFORE + count + behind).astype("<f4")
    content = struct.pack("<3i", *version) + struct.pack(seen, 1234) + numbers.tobytes()
    (tmp_path / "a.weights").write_bytes(content)
    report = load_darknet_weights(network, tmp_path / "a.weights")
    assert report.complete and report.note == ""
    # What follows the section got its own numbers.
    assert network.layers[-1].conv.bias.tolist() == numbers[-behind:][:2].tolist()
    save_darknet_weights(network, tmp_path / "b.weights", seen=report.seen, version=report.version)
    assert (tmp_path / "b.weights").read_bytes() == content


@pytest.mark.parametrize("surplus", [-1, 1])
def test_a_number_too_few_or_too_many_is_refused(tmp_path, surplus):
    network = build_network_from_text(BEFORE, "x.cfg")
    numbers = np.ones(COUNT_BEFORE + surplus, "<f4")
    (tmp_path / "a.weights").write_bytes(struct.pack("<3iQ", 0, 2, 5, 1) + numbers.tobytes())
    with pytest.raises(UserError):
        load_darknet_weights(network, tmp_path / "a.weights")
