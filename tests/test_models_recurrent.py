"""Recurrent sections from a file of weights, against the formulas of Darknet's sources with a state of zeros.

The order in which the parts are drawn is that of ``save_weights_upto`` in Darknet's src/parser.c.
"""

import numpy as np
import pytest
import torch
from weights_by_hand import HandmadeWeights, leaky, logistic

from models.network import build_network_from_text
from utils.errors import UserError

NET = "[net]\nwidth=5\nheight=4\nchannels=2\n"
ZEROS = np.zeros((3, 4, 5))


def image():
    return np.random.default_rng(1).random((2, 4, 5)).astype(np.float32)


def check(weights, text, folder, expected):
    with torch.no_grad():
        (output,) = weights.network(NET + text, folder)(torch.from_numpy(image())[None])
    found = output[0].double().numpy().reshape(expected.shape)
    assert np.abs(found - expected).max() < 1e-5 * np.ptp(expected)


@pytest.mark.parametrize(
    ("keys", "of_state"), [("", np.tanh), ("logistic=1\n", logistic), ("logistic=2\n", lambda x: 2 * logistic(x) - 1)]
)
def test_rnn(tmp_path, keys, of_state):
    weights = HandmadeWeights()
    of_input, state, out = (weights.connected(n, m, True) for n, m in ((40, 6), (6, 6), (6, 3)))
    hidden = np.tanh(of_input(image().ravel())) + of_state(state(np.zeros(6)))
    text = f"[rnn]\nhidden=6\noutput=3\nbatch_normalize=1\nactivation=tanh\n{keys}"
    check(weights, text, tmp_path, np.tanh(out(hidden)))


@pytest.mark.parametrize("normalised", [False, True])
def test_gru(tmp_path, normalised):
    weights = HandmadeWeights()
    z, _, h = (weights.connected(40, 3, normalised) for _ in range(3))
    z_state, _, h_state = (weights.connected(3, 3, normalised) for _ in range(3))
    x, zeros = image().ravel(), np.zeros(3)
    share = logistic(z(x) + z_state(zeros))
    expected = (1 - share) * logistic(h(x) + h_state(zeros))
    check(weights, f"[gru]\noutput=3\nbatch_normalize={int(normalised)}\n", tmp_path, expected)


@pytest.mark.parametrize("normalised", [False, True])
def test_lstm(tmp_path, normalised):
    weights = HandmadeWeights()
    _, wi, wg, wo = (weights.connected(3, 3, normalised) for _ in range(4))
    _, ui, ug, uo = (weights.connected(40, 3, normalised) for _ in range(4))
    x, zeros = image().ravel(), np.zeros(3)
    cell = logistic(ui(x) + wi(zeros)) * np.tanh(ug(x) + wg(zeros))
    expected = logistic(uo(x) + wo(zeros)) * np.tanh(cell)
    check(weights, f"[lstm]\noutput=3\nbatch_normalize={int(normalised)}\n", tmp_path, expected)


def test_crnn(tmp_path):
    weights = HandmadeWeights()
    of_input, state, out = (weights.convolution(n, m, 3, True) for n, m in ((2, 3), (3, 3), (3, 4)))
    hidden = leaky(of_input(image())) + leaky(state(ZEROS))
    text = "[crnn]\nhidden=3\noutput=4\nsize=3\npad=1\nbatch_normalize=1\nactivation=leaky\n"
    check(weights, text, tmp_path, leaky(out(hidden)))


@pytest.mark.parametrize("peephole", [0, 1])
def test_conv_lstm(tmp_path, peephole):
    weights = HandmadeWeights()
    _, vi, vo = (weights.convolution(3, 3, 3, True) for _ in range(3)) if peephole else [lambda x: np.zeros_like(x)] * 3
    _, wi, wg, wo = (weights.convolution(3, 3, 3, True) for _ in range(4))
    _, ui, ug, uo = (weights.convolution(2, 3, 3, True) for _ in range(4))
    x = image()
    # Each gate's convolution has the activation of the section, here leaky, before the parts are added.
    i = leaky(ui(x)) + leaky(wi(ZEROS)) + leaky(vi(ZEROS))
    cell = logistic(i) * np.tanh(leaky(ug(x)) + leaky(wg(ZEROS)))
    o = leaky(uo(x)) + leaky(wo(ZEROS)) + leaky(vo(cell))
    text = f"[conv_lstm]\noutput=3\npad=1\nbatch_normalize=1\nactivation=leaky\npeephole={peephole}\n"
    check(weights, text, tmp_path, logistic(o) * np.tanh(cell))


def test_conv_lstm_with_a_bottleneck(tmp_path):
    weights = HandmadeWeights()
    joint = weights.convolution(4, 2, 3)
    _, ui, ug, uo = (weights.convolution(2, 2, 3) for _ in range(4))
    joined = leaky(joint(np.concatenate((np.zeros((2, 4, 5)), image()))))
    expected = logistic(uo(joined)) * leaky(logistic(ui(joined)) * leaky(ug(joined)))
    expected[:1] += joined[:1]  # shortcut=1: the first half of its channels
    text = "[conv_lstm]\noutput=2\npad=1\nbottleneck=1\nshortcut=1\nlstm_activation=leaky\n"
    check(weights, text, tmp_path, expected)


@pytest.mark.parametrize("kind", ["rnn", "gru", "lstm", "crnn", "conv_lstm"])
def test_they_are_not_trained(kind):
    text = NET + f"[{kind}]\noutput=2\n" + ("pad=1\nsize=3\n" if "c" in kind else "")
    network = build_network_from_text(text, "x.cfg")
    with pytest.raises(UserError, match=rf"x\.cfg:5: \[{kind}\] is for detection only: its state over the frames"):
        network.require_trainable()


ERRORS = [
    ("[crnn]\nsize=3\n", "x.cfg:5: [crnn] changes the grid, which its state cannot follow"),
    ("[conv_lstm]\npad=1\nstride=2\n", "x.cfg:5: [conv_lstm] changes the grid"),
    ("[conv_lstm]\npad=1\noutput=5\nbottleneck=1\n", "x.cfg:8: [conv_lstm] bottleneck=1 needs output=2"),
    (
        "[crnn]\nsize=1\noutput=3\nhidden=4\ngroups=2\n",
        "x.cfg:9: [crnn] groups=2 must divide its 4 inputs",
    ),
]


@pytest.mark.parametrize(("text", "message"), ERRORS)
def test_impossible_sections_name_the_line(text, message):
    with pytest.raises(UserError) as caught:
        build_network_from_text(NET + text, "x.cfg")
    assert message in str(caught.value)
