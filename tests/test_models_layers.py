"""Layers against Darknet's index arithmetic in plain loops, and against numbers worked by hand."""

import math

import pytest
import torch
from torch import nn

from models.activations import build_activation
from models.darknet.schema import ACTIVATION_ALIASES, ACTIVATION_NAMES
from models.layers import (
    Blur,
    Convolution,
    DropBlock,
    GlobalAverage,
    Implicit,
    MaxDepth,
    Pool,
    Product,
    Reorg,
    Route,
    Shortcut,
    Softmax,
    Sum,
    Upsample,
    YoloMap,
)


def grid(*rows):
    return torch.tensor([[rows]], dtype=torch.float32)


# ---- pooling


def test_size_2_stride_1_repeats_the_border():
    # One border cell at the right and bottom, as in yolov3-tiny: the last column and row see only themselves.
    pooled = Pool(2, (1, 1), padding=1)(grid((1, 5, 2), (4, 3, 9)))
    assert pooled.tolist() == [[[[5, 9, 9], [4, 9, 9]]]]


def test_size_2_stride_2_of_an_odd_side_keeps_the_rest():
    pooled = Pool(2, (2, 2), padding=1)(grid((1, 5, -2), (4, 3, -9), (-7, -8, -6)))
    assert pooled.tolist() == [[[[5, -2], [-7, -6]]]]  # outside counts as minus infinity, not as 0


def darknet_pool(x, size, stride_xy, padding, average):
    """One window at a time: window i starts at -(padding // 2) + i * stride; cells outside do not count."""
    batch, channels, rows, cols = x.shape
    out_cols = (cols + padding - size) // stride_xy[0] + 1
    out_rows = (rows + padding - size) // stride_xy[1] + 1
    out = torch.empty(batch, channels, out_rows, out_cols)
    for i in range(out_rows):
        for j in range(out_cols):
            top, left = i * stride_xy[1] - padding // 2, j * stride_xy[0] - padding // 2
            window = x[:, :, max(top, 0) : top + size, max(left, 0) : left + size].flatten(2)
            out[:, :, i, j] = window.mean(2) if average else window.amax(2)
    return out


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize(
    ("size", "stride_xy", "padding"),
    [(2, (2, 2), 1), (2, (1, 1), 1), (3, (2, 2), 2), (3, (1, 2), 2), (5, (1, 1), 4), (9, (1, 1), 8), (13, (1, 1), 12),
     (3, (2, 2), 0), (2, (2, 2), 0), (3, (3, 2), 1), (4, (2, 2), 3), (3, (1, 1), 3), (1, (1, 1), 0), (4, (3, 1), 5)],
)  # fmt: skip
@pytest.mark.parametrize(("rows", "cols"), [(7, 12), (8, 5)])
def test_pooling_windows_are_darknets(size, stride_xy, padding, average, rows, cols):
    x = torch.randn(2, 3, rows, cols) - 3  # negative, so that a zero from outside would be the maximum
    ours = Pool(size, stride_xy, padding, average)(x)
    torch.testing.assert_close(ours, darknet_pool(x, size, stride_xy, padding, average))


def test_global_average():
    assert GlobalAverage()(grid((1, 2, 3), (4, 5, 9))).tolist() == [[[[4]]]]


def test_max_over_every_second_channel():
    x = torch.tensor([1.0, 7, 5, 2, -3]).view(1, 5, 1, 1)  # channels 0, 2, 4 and 1, 3
    assert MaxDepth(2)(x).flatten().tolist() == [5, 7]


def test_blur_by_hand():
    x = grid((0, 0, 0, 0), (0, 16, 0, 0), (0, 0, 0, 0), (0, 0, 0, 0)).repeat(1, 2, 1, 1)
    # 3 x 3 binomial (1 2 1)(1 2 1)/16, one border cell, every second cell: centres (0, 0), (0, 2), (2, 0), (2, 2).
    assert Blur(2, 3, (2, 2))(x)[0].tolist() == [[[1, 1], [1, 1]]] * 2
    assert Blur(2, 2, (2, 2))(x)[0].tolist() == [[[4, 0], [0, 0]]] * 2  # mean of 2 x 2


# ---- rearranging


def darknet_reorg(x, width, height, channels, stride, forward):
    """Darknet's reorg_cpu, for one image, on flat lists; returns the output as a flat list."""
    small = channels // (stride * stride)
    out = [None] * len(x)
    for k in range(channels):
        for j in range(height):
            for i in range(width):
                one = i + width * (j + height * k)
                offset = k // small
                w2, h2 = i * stride + offset % stride, j * stride + offset // stride
                two = w2 + width * stride * (h2 + height * stride * (k % small))
                if forward:
                    out[two] = x[one]
                else:
                    out[one] = x[two]
    return out


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("reverse", [False, True])
def test_reorg_moves_cells_as_darknet_does(flat, reverse):
    stride, channels, rows, cols = 2, 16, 4, 6
    x = torch.arange(2 * channels * rows * cols, dtype=torch.float32).view(2, channels, rows, cols)
    shape = (channels // 4, rows * 2, cols * 2) if reverse else (channels * 4, rows // 2, cols // 2)
    # [reorg] hands the input's sizes to reorg_cpu, [reorg3d] the output's.
    depth, height, width = (channels, rows, cols) if flat else shape
    expected = [darknet_reorg(image.flatten().tolist(), width, height, depth, stride, reverse) for image in x]
    ours = Reorg(stride, reverse, flat)(x.to(memory_format=torch.channels_last))
    assert ours.shape == (2, *shape)
    assert ours.flatten(1).tolist() == expected


def test_reorg3d_of_one_channel_by_hand():
    # Channels: even rows even columns, even rows odd columns, odd rows even columns, odd rows odd columns.
    assert Reorg(2, False, flat=False)(grid((1, 2), (3, 4))).flatten().tolist() == [1, 2, 3, 4]


def test_upsample_repeats_and_scales():
    assert Upsample(2, 3.0)(grid((1, 2))).tolist() == [[[[3, 3, 6, 6], [3, 3, 6, 6]]]]


def test_route_takes_its_group_of_every_source():
    one, two = torch.tensor([1.0, 2, 3, 4]).view(1, 4, 1, 1), torch.tensor([5.0, 6]).view(1, 2, 1, 1)
    assert Route()(one, two).flatten().tolist() == [1, 2, 3, 4, 5, 6]
    assert Route(2, 1)(one, two).flatten().tolist() == [3, 4, 6]
    assert Route()(one) is one


# ---- sums and products


def channels(*values):
    return torch.tensor(values, dtype=torch.float32).view(1, len(values), 1, 1)


def test_shortcut_adds_the_channels_that_both_have():
    assert Shortcut("linear")(channels(1, 2, 3), channels(10, 20)).flatten().tolist() == [11, 22, 3]
    assert Shortcut("linear")(channels(1, 2), channels(10, 20, 30)).flatten().tolist() == [11, 22]
    assert Shortcut("relu")(channels(1, -30), channels(1, 2), channels(1, 3)).flatten().tolist() == [3, 0]


def test_shortcut_leaves_its_sources_alone():
    first = channels(-1, -2)
    Shortcut("leaky")(first, channels(-1, -1))
    assert first.flatten().tolist() == [-1, -2]


@pytest.mark.parametrize(
    ("normalization", "weights", "expected"),
    [
        ("none", (2.0, 3.0), (2 * 1 + 3 * 10, 2 * 2 + 3 * 20)),
        ("relu", (1.0, 3.0), ((1 + 3 * 10) / 4.0001, (2 + 3 * 20) / 4.0001)),  # weights over their sum plus 1e-4
        ("relu", (-5.0, 2.0), (2 * 10 / 2.0001, 2 * 20 / 2.0001)),
        ("softmax", (0.0, math.log(3)), ((1 / 3 + 10) / (4 / 3 + 1e-4), (2 / 3 + 20) / (4 / 3 + 1e-4))),
    ],
)
def test_shortcut_weights_per_feature(normalization, weights, expected):
    layer = Shortcut("linear", (2,), normalization)
    layer.weights.data = torch.tensor(weights)
    out = layer(channels(1, 2), channels(10, 20)).flatten()
    assert out.tolist() == pytest.approx(expected, rel=1e-6)


def test_shortcut_weights_per_channel():
    layer = Shortcut("linear", (2, 3), "relu")
    layer.weights.data = torch.tensor([[1.0, 1.0, 0.0], [3.0, 0.0, 2.0]])  # source, channel
    out = layer(channels(1, 2, 3).expand(1, 3, 2, 2), channels(10, 20, 30).expand(1, 3, 2, 2))
    expected = [31 / 4.0001, 2 / 1.0001, 60 / 2.0001]
    assert out.mean((0, 2, 3)).tolist() == pytest.approx(expected, rel=1e-6)
    narrow = layer(channels(1, 2, 3), channels(10, 20)).flatten()  # the third channel has only its own part
    assert narrow.tolist() == pytest.approx([31 / 4.0001, 2 / 1.0001, 0.0], rel=1e-6)


def test_gates_and_vectors_broadcast():
    wide = grid((1, 2), (3, 4)).repeat(1, 2, 1, 1)
    assert Product("linear")(channels(2, 3), wide)[0, 1].tolist() == [[3, 6], [9, 12]]
    assert Product("relu")(grid((1, -1), (0, 2)), wide)[0, 0].tolist() == [[1, 0], [0, 8]]
    assert Sum("linear")(wide, channels(10, 20))[0, 1].tolist() == [[21, 22], [23, 24]]


def test_implicit_vector_has_one_copy_per_image():
    layer = Implicit(3, 1, mean=1.0, std=0.0, uniform=False)
    assert layer(torch.zeros(2, 5, 4, 4)).shape == (2, 3, 1, 1)
    assert layer.weights.flatten().tolist() == [1, 1, 1]
    spread = Implicit(500, 2, mean=0.0, std=0.2, uniform=True).weights
    assert spread.shape == (1, 500, 2, 1)
    assert spread.abs().max() <= 0.2


def test_softmax_over_groups_and_over_cells():
    x = torch.tensor([0.0, math.log(3), 0.0, math.log(4)]).view(1, 4, 1, 1)
    assert Softmax(2, 1.0, False)(x).flatten().tolist() == pytest.approx([0.25, 0.75, 0.2, 0.8])
    assert Softmax(1, 1.0, False)(x).flatten().tolist() == pytest.approx([1 / 9, 3 / 9, 1 / 9, 4 / 9])
    assert Softmax(1, 2.0, False)(2 * x).flatten().tolist() == pytest.approx([1 / 9, 3 / 9, 1 / 9, 4 / 9])
    cells = Softmax(1, 1.0, True)(torch.randn(2, 3, 4, 5))
    torch.testing.assert_close(cells.sum(1), torch.ones(2, 4, 5))


# ---- dropping


def test_dropblock_drops_the_share_and_keeps_the_mean():
    layer = DropBlock(0.05, size=3, share=0.0)  # of 12 x 9 cells a square has 1/12
    x = torch.ones(16, 64, 12, 9)
    out = layer(x)
    assert (out == 0).float().mean().item() == pytest.approx(0.05, abs=0.01)
    torch.testing.assert_close(out.mean((1, 2, 3)), torch.ones(16))
    lost = (out[0] == 0).flatten(1).sum(1)
    assert set(lost.tolist()) == {0, 9}  # a channel loses nothing or one square of 3 x 3
    assert layer.eval()(x) is x


def test_dropblock_larger_than_the_map_drops_whole_channels():
    out = DropBlock(0.5, size=50, share=0.0)(torch.ones(4, 32, 3, 5))
    assert set((out == 0).float().mean((2, 3)).flatten().tolist()) == {0.0, 1.0}


# ---- activations


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


ACTIVATIONS = {  # Darknet's src/activations.h, for single numbers
    "linear": lambda x: x,
    "logistic": sigmoid,
    "loggy": lambda x: 2 / (1 + math.exp(-x)) - 1,
    "relu": lambda x: x * (x > 0),
    "relu6": lambda x: min(max(x, 0), 6),
    "elu": lambda x: (x >= 0) * x + (x < 0) * (math.exp(x) - 1),
    "selu": lambda x: (x >= 0) * 1.0507 * x + (x < 0) * 1.0507 * 1.6732 * (math.exp(x) - 1),
    "relie": lambda x: x if x > 0 else 0.01 * x,
    "ramp": lambda x: x * (x > 0) + 0.1 * x,
    "leaky": lambda x: x if x > 0 else 0.1 * x,
    "revleaky": lambda x: x if x > 0 else 0.1 * x,
    "tanh": lambda x: 2 / (1 + math.exp(-2 * x)) - 1,
    "gelu": lambda x: 0.5 * x * (1 + math.tanh(0.797885 * x + 0.035677 * x**3)),
    "plse": lambda x: 0.01 * (x + 4) if x < -4 else 0.01 * (x - 4) + 1 if x > 4 else 0.125 * x + 0.5,
    "stair": lambda x: math.floor(x / 2) + (x - math.floor(x)) * (math.floor(x) % 2 != 0),
    "hardtan": lambda x: min(max(x, -1), 1),
    "lhtan": lambda x: 0.001 * x if x < 0 else 0.001 * (x - 1) + 1 if x > 1 else x,
    "swish": lambda x: x * sigmoid(x),
    "mish": lambda x: x * math.tanh(math.log1p(math.exp(x))),
    "hard_mish": lambda x: x if x > 0 else x * x / 2 + x if x > -2 else 0,
    "hard_swish": lambda x: x * min(max(x + 3, 0), 6) / 6,
}
POINTS = [-30.0, -5.25, -4.0, -3.0, -2.5, -2.0, -1.5, -1.0, -0.25, 0.0, 0.25, 1.0, 1.5, 2.75, 3.5, 4.0, 5.0, 7.0, 30.0]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_number_by_number(name):
    ours = build_activation(name, inplace=False)(torch.tensor(POINTS))
    assert ours.tolist() == pytest.approx([ACTIVATIONS[name](x) for x in POINTS], rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", [n for n in ACTIVATION_NAMES if n not in ACTIVATION_ALIASES])
def test_activation_has_finite_gradients_and_keeps_its_input(name):
    x = torch.tensor(POINTS[1:-1]).view(1, -1, 1, 1).requires_grad_()
    before = x.detach().clone()
    build_activation(name, inplace=False)(x).sum().backward()
    assert torch.isfinite(x.grad).all()
    assert torch.equal(x.detach(), before)


def test_channel_normalisation_by_hand():
    x = channels(1, -2, 3)
    out = build_activation("normalize_channels")(x).flatten().tolist()
    assert out == pytest.approx([1 / 4.0001, 0, 3 / 4.0001])
    powers = [math.exp(v) for v in (1, -2, 3)]
    plain = build_activation("normalize_channels_softmax")(x).flatten().tolist()
    assert plain == pytest.approx([p / (sum(powers) + 1e-4) for p in powers])
    safe = build_activation("normalize_channels_softmax_maxval")(x + 500).flatten().tolist()
    assert safe == pytest.approx([p / (sum(powers) + 1e-4 * math.exp(3)) for p in powers], rel=1e-5)


# ---- convolution and head


def random_convolution(groups=1):
    layer = Convolution(nn.Conv2d(4, 6, 3, padding=1, groups=groups, bias=False), nn.BatchNorm2d(6, eps=1e-5), "leaky")
    with torch.no_grad():
        layer.bn.weight.uniform_(0.5, 2)
        layer.bn.bias.normal_()
        layer.bn.running_mean.normal_()
        layer.bn.running_var.uniform_(0.1, 3)
    return layer.eval()


@pytest.mark.parametrize("groups", [1, 2])
def test_fused_convolution_is_the_same_function(groups):
    layer = random_convolution(groups)
    x = torch.randn(2, 4, 5, 7)
    before = layer(x)
    layer.fuse()
    assert layer.bn is None
    torch.testing.assert_close(layer(x), before, atol=1e-5, rtol=1e-5)
    layer.fuse()  # a second time changes nothing
    torch.testing.assert_close(layer(x), before, atol=1e-5, rtol=1e-5)


def test_yolo_map_is_a_view_and_keeps_anchors_apart():
    x = torch.arange(2 * 14 * 3 * 4.0).view(2, 14, 3, 4).to(memory_format=torch.channels_last)  # 2 anchors, 2 classes
    raw = YoloMap(2, 2)(x)
    assert raw.shape == (2, 2, 3, 4, 7)
    assert raw.data_ptr() == x.data_ptr()
    assert raw[1, 1, 2, 3].tolist() == x[1, 7:14, 2, 3].tolist()
