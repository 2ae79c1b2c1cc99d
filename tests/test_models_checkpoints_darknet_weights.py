"""Darknet's .weights: the place of every number, both headers, and damaged files."""

import os
import struct

import numpy as np
import pytest
import torch

from models.checkpoints.darknet_weights import is_darknet_weights, load_darknet_weights, save_darknet_weights
from models.checkpoints.report import LoadReport
from models.network import build_network, build_network_from_text
from tests import published_cfgs
from utils.config import REPOSITORY
from utils.errors import UserError

# Two convolutions (the second grouped, with a bias), a batch norm alone, a weighted shortcut, a head of 3 x 7 filters.
CFG = """
[net]
width=32
height=32

[convolutional]
batch_normalize=1
filters=4
size=3
pad=1
stride=2
activation=leaky

[convolutional]
filters=4
groups=2
size=1
activation=linear

[batchnorm]

[shortcut]
from=-3
weights_type=per_channel
activation=linear

[convolutional]
filters=21
size=1
activation=linear

[yolo]
mask=0,1,2
anchors=1,2, 3,4, 5,6
num=3
classes=2
"""
# Numbers per layer, by hand: 4 x (bias, scale, mean, variance) + 4x3x3x3 = 124; 4 + 4x2 = 12; 4x4 = 16; 2x4 = 8;
# 21 + 21x4 = 105
COUNTS = {0: 124, 1: 12, 2: 16, 3: 8, 4: 105}


def header(version=(0, 2, 5), seen=7):
    return struct.pack("<3i", *version) + struct.pack("<Q" if version[0] * 10 + version[1] >= 2 else "<I", seen)


def numbers(count=265):
    return np.random.default_rng(0).uniform(0.1, 1, count).astype("<f4")


@pytest.fixture
def network():
    return build_network_from_text(CFG, "small.cfg").eval()


@pytest.fixture
def write(tmp_path):
    def _write(content, name="a.weights"):
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return _write


def test_every_number_goes_where_darknet_puts_it(network, write):
    values = np.arange(1, 266, dtype="<f4") / 300
    report = load_darknet_weights(network, write(header() + values.tobytes()))
    assert report == LoadReport(report.source, 5, 5, 7, (0, 2, 5))

    first, second, norm, shortcut, last = (network.layers[i] for i in range(5))
    # Each comment is the range of positions in the file.
    expected = [
        (first.bn.bias, 0, 4),
        (first.bn.weight, 4, 8),
        (first.bn.running_mean, 8, 12),
        (first.bn.running_var, 12, 16),
        (first.conv.weight, 16, 124),
        (second.conv.bias, 124, 128),
        (second.conv.weight, 128, 136),
        (norm.bias, 136, 140),
        (norm.weight, 140, 144),
        (norm.running_mean, 144, 148),
        (norm.running_var, 148, 152),
        (shortcut.weights, 152, 160),
        (last.conv.bias, 160, 181),
        (last.conv.weight, 181, 265),
    ]
    for tensor, begin, end in expected:
        assert tensor.detach().flatten().tolist() == values[begin:end].tolist()
    assert second.conv.weight.shape == (4, 2, 1, 1)


@pytest.mark.parametrize(
    ("version", "seen"), [((0, 1, 0), 4_000_000_000), ((0, 2, 0), 32_013_312), ((0, 2, 5), 1 << 40), ((1, 0, 0), 5)]
)
def test_both_header_forms_round_trip_byte_for_byte(network, write, tmp_path, version, seen):
    content = header(version, seen) + numbers().tobytes()
    assert len(header(version, seen)) == (16 if version == (0, 1, 0) else 20)
    report = load_darknet_weights(network, write(content))
    assert (report.version, report.seen) == (version, seen)
    save_darknet_weights(network, tmp_path / "b.weights", seen=report.seen, version=report.version)
    assert (tmp_path / "b.weights").read_bytes() == content


def test_a_cut_off_file_fills_the_first_layers_and_says_so(network, write):
    before = network.layers[3].weights.clone()
    part = header() + numbers(COUNTS[0] + COUNTS[1] + COUNTS[2]).tobytes()
    report = load_darknet_weights(network, write(part, "small.conv.3"))
    assert (report.filled, report.total, report.complete) == (3, 5, False)
    assert "3 of 5 layers" in str(report) and "the other 2 start fresh" in str(report)
    assert torch.equal(network.layers[3].weights, before)
    assert network.layers[2].running_var.min() >= 0.1


def test_upto_reads_and_writes_a_backbone(network, write, tmp_path):
    whole = header() + numbers().tobytes()
    report = load_darknet_weights(network, write(whole), upto=2)
    assert report.filled == 2
    save_darknet_weights(network, tmp_path / "part", seen=7, upto=2)
    assert (tmp_path / "part").read_bytes() == whole[: 20 + 4 * 136]


def test_weights_of_other_classes_fill_all_but_the_last_layers(write):
    adapted = build_network_from_text(CFG, "small.cfg", num_classes=5).eval()
    values = numbers()
    report = load_darknet_weights(adapted, write(header() + values.tobytes()))
    assert (report.filled, report.total, report.skipped) == (4, 5, (4,))
    assert adapted.layers[3].weights.flatten().tolist() == values[152:160].tolist()
    assert "another number of classes" in str(report)


def edited(text, own, wanted):
    """Return a cfg with other classes in its heads and filters before them, as tutorials say to edit it."""
    for each in (5, 9):  # numbers of a box, without and with its uncertainties
        text = text.replace(f"filters={3 * (each + own)}", f"filters={3 * (each + wanted)}")
    return text.replace(f"classes={own}", f"classes={wanted}")


GAUSSIAN = CFG.replace("filters=21", "filters=33").replace("[yolo]", "[Gaussian_yolo]")
IMPLICIT = published_cfgs.implicit_detector().text
TWO_HEADS = (REPOSITORY / "cfg/yolov3-nano.cfg").read_text()


@pytest.mark.parametrize(
    ("text", "own", "heads"), [(CFG, 2, 1), (GAUSSIAN, 2, 1), (IMPLICIT, 80, 2), (TWO_HEADS, 80, 3)]
)
@pytest.mark.parametrize("wanted", [1, 3, 90])
def test_a_cfg_edited_for_other_classes_takes_the_layers_before_its_heads(tmp_path, text, own, heads, wanted):
    source = build_network_from_text(text, "published.cfg")
    for parameter in source.parameters():
        parameter.data.uniform_(0.1, 1)
    save_darknet_weights(source, tmp_path / "a.weights", seen=7)
    network = build_network_from_text(edited(text, own, wanted), "edited.cfg")
    assert network.num_classes == wanted
    before = network.head_convolution(0).conv.weight.clone()
    report = load_darknet_weights(network, tmp_path / "a.weights")
    assert (report.total - report.filled, len(report.skipped), report.classes) == (heads, heads, (own, wanted))
    assert f"{own} in the file and {wanted} here" in str(report)
    assert torch.equal(network.head_convolution(0).conv.weight, before)
    for name, tensor in source.named_parameters():
        if int(name.split(".")[1]) not in report.skipped:
            assert torch.equal(network.get_parameter(name), tensor)


def test_a_third_number_of_classes_is_found_as_well(write):
    # The cfg says 2, the data have 5, the file is of a network for 9: 3 x 7 more filters of 1 + 4 numbers.
    network = build_network_from_text(CFG, "small.cfg", num_classes=5)
    report = load_darknet_weights(network, write(header() + numbers(265 + 3 * 7 * 5).tobytes()))
    assert (report.classes, report.skipped, report.filled) == ((9, 5), (4,), 4)


def test_where_no_number_of_classes_fits_both_sizes_are_named(network, write):
    both = r"the file has 279 numbers, small.cfg with 2 classes has 265, and no other number of classes fits"
    with pytest.raises(UserError, match=both):
        load_darknet_weights(network, write(header() + numbers(279).tobytes()))


@pytest.mark.parametrize(
    ("version", "seen_bytes"), [((0, 0, 0), 8), ((0, 1, 0), 8), ((0, 2, 0), 4), ((0, 2, 5), 4), ((1, 0, 0), 4)]
)
@pytest.mark.parametrize("count", [265, 124, 280])  # all, a backbone of one layer, one class more
def test_a_count_of_images_in_the_other_size_is_told_by_the_length(network, write, version, seen_bytes, count):
    values = numbers(count)
    content = struct.pack("<3i", *version) + (77).to_bytes(seen_bytes, "little") + values.tobytes()
    report = load_darknet_weights(network, write(content))
    assert (report.seen, report.version) == (77, version)
    assert network.layers[0].bn.bias.tolist() == values[:4].tolist()
    usual = {4: 8, 8: 4}[seen_bytes]
    note = f"counts images in {seen_bytes} bytes, where version {version[0]}.{version[1]} has {usual}"
    assert str(report).endswith(note)


def test_the_count_of_an_untrained_network_is_told_as_well(network, write, tmp_path):
    # The biases of its batch norms are 0, as the upper half of a count is.
    save_darknet_weights(network, tmp_path / "usual.weights", seen=3)
    content = (tmp_path / "usual.weights").read_bytes()
    assert not any(content[16:36])
    report = load_darknet_weights(network, write(content[:16] + content[20:]))
    assert report.complete and report.seen == 3 and "in 4 bytes" in report.note


def test_a_surplus_number_is_not_taken_for_a_longer_count(network, write):
    with pytest.raises(UserError, match="1 numbers are left"):
        load_darknet_weights(network, write(header((0, 1, 0)) + numbers(266).tobytes()))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 bytes are no Darknet weights"),
        (b"\0" * 11, "11 bytes are no Darknet weights"),
        (header()[:15], "ends inside its header"),
        (header(), "holds a header and no weights"),
        (header() + b"\0\0", "ends inside a number"),
        (b"PK\x03\x04" + b"\0" * 100, "another kind of file"),
        (header((1001, 0, 0)), "version 1001.0.0"),
        (header((-1, 2, 5)), "version -1.2.5"),
        (header() + numbers(123).tobytes(), r"ends inside layer 0 \(\[convolutional\], small.cfg:6\), 123 of its 124"),
        (header() + numbers(264).tobytes(), r"ends inside layer 4 .* 104 of its 105"),
        (header() + numbers(266).tobytes(), r"1 numbers are left after the last layer, layer 4"),
    ],
)
def test_a_bad_file_is_refused_with_its_layer(network, write, content, message):
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(UserError, match=message):
        load_darknet_weights(network, write(content))
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (130, np.nan, "layer 1 .* not finite"),
        (264, np.inf, "layer 4 .* not finite"),
        (13, -1e-3, "layer 0 .* negative variance"),
        (13, -1e-5, "layer 0 .* negative variance"),
        (150, -2.0, "layer 2 .* negative variance"),
    ],
)
def test_bad_numbers_are_refused_before_anything_is_filled(network, write, position, value, message):
    values = numbers()
    values[position] = value
    before = network.layers[0].conv.weight.clone()
    with pytest.raises(UserError, match=message):
        load_darknet_weights(network, write(header() + values.tobytes()))
    assert torch.equal(network.layers[0].conv.weight, before)


def test_a_device_is_no_weight_file(network):
    with pytest.raises(UserError, match="not a file"):
        load_darknet_weights(network, "/dev/zero")


def test_a_fused_or_diverged_network_is_not_written(network, tmp_path):
    with pytest.raises(UserError, match=r"layer 0 .* fused"):
        save_darknet_weights(network.fuse(), tmp_path / "a.weights")
    with torch.no_grad():
        network.layers[3].weights[1, 2] = torch.nan
    with pytest.raises(UserError, match=r"layer 3 .* not finite"):
        save_darknet_weights(network, tmp_path / "a.weights")
    assert list(tmp_path.iterdir()) == []  # not even half a file


def test_the_kind_of_file_is_told_by_its_start(write):
    assert is_darknet_weights(write(header()))
    assert is_darknet_weights(write(header((0, 1, 0))))
    assert not is_darknet_weights(write(b"PK\x03\x04" + b"\0" * 20))
    assert not is_darknet_weights(write(b"short"))


@pytest.mark.parametrize("name", ["yolo-fastest-1.1", "yolo-fastest-1.1-xl"])
def test_real_files_come_out_as_they_went_in(shared, tmp_path, name):
    folder = shared / "data/weights/yolo-fastest-1.1"
    network = build_network(folder / f"{name}.cfg")
    report = load_darknet_weights(network, folder / f"{name}.weights")
    assert report.complete and report.version == (0, 2, 5)
    save_darknet_weights(network, tmp_path / "a.weights", seen=report.seen, version=report.version)
    assert (tmp_path / "a.weights").read_bytes() == (folder / f"{name}.weights").read_bytes()


SIZES = {"yolov3.cfg": 248_007_048, "yolov3-spp.cfg": 252_209_544, "yolov3-tiny.cfg": 35_434_956}
SHIPPED = sorted(path.name for path in (REPOSITORY / "cfg").glob("*.cfg"))
SMALL = ("-nano", "-tiny", "yolov5n", "yolov5s", "yolov2-voc")  # of the others there are 100 to 600 MB to write


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if any(part in name for part in SMALL) else pytest.mark.slow) for name in SHIPPED],
)
def test_random_weights_of_every_shipped_cfg_round_trip(tmp_path, name):
    network = build_network(REPOSITORY / "cfg" / name)
    first, second = tmp_path / "a.weights", tmp_path / "b.weights"
    save_darknet_weights(network, first, seen=123)
    # Darknet's own files of these networks have a header of 20 bytes in AlexeyAB's sizes, as ours.
    assert os.path.getsize(first) == SIZES.get(name, os.path.getsize(first))
    content = first.read_bytes()
    for parameter in network.parameters():
        parameter.data.zero_()
    load_darknet_weights(network, first)
    save_darknet_weights(network, second, seen=123)
    assert second.read_bytes() == content
