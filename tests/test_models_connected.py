"""Connected, local and cropped layers from a file of weights, against loops over Darknet's formulas."""

import numpy as np
import pytest
import torch
from weights_by_hand import HandmadeWeights, leaky, logistic

from models.network import build_network_from_text
from utils.errors import UserError

NET = "[net]\nwidth=6\nheight=5\nchannels=2\n"


def image(*shape):
    return np.random.default_rng(1).random(shape or (2, 5, 6)).astype(np.float32)


def run(network, x):
    with torch.no_grad():
        (output,) = network(torch.from_numpy(x)[None])
    return output[0].double().numpy()


def close(found, expected):
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 1e-5 * np.ptp(expected)


def test_connected_layers_read_the_numbers_of_a_map_channel_by_channel(tmp_path):
    weights = HandmadeWeights()
    first, second = weights.connected(60, 7), weights.connected(7, 4, normalised=True)
    text = NET + "[connected]\noutput=7\nactivation=leaky\n[conn]\noutput=4\nbatch_normalize=1\n"
    x = image()
    expected = logistic(second(leaky(first(x.astype(np.float64).ravel()))))  # Darknet's default is logistic
    close(run(weights.network(text, tmp_path), x)[:, 0, 0], expected)


@pytest.mark.parametrize(("size", "stride", "pad"), [(3, 1, 1), (3, 2, 1), (3, 1, 0), (2, 2, 0), (1, 1, 0)])
def test_a_local_layer_has_kernels_for_each_place(tmp_path, size, stride, pad):
    rows, cols = ((side + 2 * pad - size) // stride + 1 for side in (5, 6))
    weights = HandmadeWeights()
    bias, kernels = weights.draw(3, rows, cols), weights.draw(rows * cols, 3, 2, size, size)
    text = NET + f"[local]\nfilters=3\nsize={size}\nstride={stride}\npad={pad}\nactivation=leaky\n"
    x = image()
    padded = np.pad(x.astype(np.float64), ((0, 0), (pad, pad), (pad, pad)))
    expected = bias.copy()
    for place in range(rows * cols):
        row, col = divmod(place, cols)
        patch = padded[:, row * stride : row * stride + size, col * stride : col * stride + size]
        expected[:, row, col] += (kernels[place] * patch).sum(axis=(1, 2, 3))
    close(run(weights.network(text, tmp_path), x), leaky(expected))


def test_a_crop_takes_the_middle_and_spreads_it_from_minus_one_to_one():
    crop = "[crop]\ncrop_width=3\ncrop_height=2\nflip=1\nangle=7\n"
    x = image()
    # 5 - 2 rows are left, one of the three above; 6 - 3 columns, one of them at the left.
    close(run(build_network_from_text(NET + crop, "x.cfg"), x), 2 * x[:, 1:3, 1:4].astype(np.float64) - 1)
    close(run(build_network_from_text(NET + crop + "noadjust=1\n", "x.cfg"), x), x[:, 1:3, 1:4].astype(np.float64))


ERRORS = [
    ("[local]\nsize=5\npad=1\n", "x.cfg:7: [local] pad=1 does not fit size=5; write pad=2 or another size"),
    ("[local]\nsize=7\n", "x.cfg:5: [local] leaves nothing"),
    ("[crop]\ncrop_height=6\ncrop_width=3\n", "x.cfg:6: [crop] 3 x 6 does not fit into 6 x 5 x 2"),
    ("[connected]\noutput=1000000\n[connected]\noutput=1000000\n", "parameters in all; the limit is"),
    (
        "[detection]\ncoords=4\nside=2\nclasses=3\nnum=1\n",
        "needs side² x (5 x 1 boxes + 3 classes) = 32 numbers; the layer",
    ),
    ("[detection]\ncoords=5\n", "x.cfg:6: [detection] coords=5: a box has 4 numbers"),
]


@pytest.mark.parametrize(("text", "message"), ERRORS)
def test_impossible_sections_name_the_line(text, message):
    with pytest.raises(UserError) as caught, torch.device("meta"):
        build_network_from_text(NET + text, "x.cfg")
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_vector_may_be_the_input():
    network = build_network_from_text("[net]\ninputs=9\n[connected]\noutput=4\n", "x.cfg")
    assert network(torch.rand(3, 9, 1, 1))[0].shape == (3, 4, 1, 1)
    with pytest.raises(UserError, match=r"x\.cfg:1: \[net\] needs 'height"):
        build_network_from_text("[net]\ninputs=9\nwidth=3\n[connected]\n", "x.cfg")
