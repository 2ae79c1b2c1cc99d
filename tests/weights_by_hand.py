"""A ``.weights`` file written number by number, and plain formulas over its arrays, for tests of single sections."""

import struct

import numpy as np

from models.checkpoints.darknet_weights import load_darknet_weights, save_darknet_weights
from models.network import build_network_from_text

EPSILON = 1e-5


class HandmadeWeights:
    """Draws arrays in the order of the file, which it keeps."""

    def __init__(self, seed=0):
        self.generator = np.random.default_rng(seed)
        self.bytes = struct.pack("<3iQ", 0, 2, 5, 7)

    def draw(self, *shape, low=-1.0, high=1.0):
        numbers = self.generator.uniform(low, high, shape).astype("<f4")
        self.bytes += numbers.tobytes()
        return numbers.astype(np.float64)

    def connected(self, inputs, outputs, normalised=False):
        """Return a function of a vector: the matrix, batch norm and bias of one connected layer."""
        bias, matrix = self.draw(outputs), self.draw(outputs, inputs)
        scale, mean, variance = np.ones(outputs), np.zeros(outputs), np.full(outputs, 1 - EPSILON)
        if normalised:
            scale, mean, variance = self.draw(outputs), self.draw(outputs), self.draw(outputs, low=0.5, high=2.0)
        return lambda x: (matrix @ x - mean) / np.sqrt(variance + EPSILON) * scale + bias

    def convolution(self, inputs, outputs, size, normalised=False):
        """Return a function of a map [C H W]: a convolution with stride 1 that keeps the size, and its batch norm."""
        bias = self.draw(outputs)
        scale, mean, variance = np.ones(outputs), np.zeros(outputs), np.full(outputs, 1 - EPSILON)
        if normalised:
            scale, mean, variance = self.draw(outputs), self.draw(outputs), self.draw(outputs, low=0.5, high=2.0)
        kernels = self.draw(outputs, inputs, size, size)

        def apply(x):
            total = windows(x, kernels)
            return (total - mean[:, None, None]) / np.sqrt(variance + EPSILON)[:, None, None] * scale[
                :, None, None
            ] + bias[:, None, None]

        return apply

    def network(self, text, folder):
        """Return the network of a cfg filled from the file; writing it must give the file again, byte for byte."""
        path, copy = folder / "hand.weights", folder / "copy.weights"
        path.write_bytes(self.bytes)
        network = build_network_from_text(text, "x.cfg").eval()
        assert load_darknet_weights(network, path).complete
        save_darknet_weights(network, copy, seen=7)
        assert copy.read_bytes() == self.bytes
        return network


def windows(x, kernels, outside=0.0):
    """Slide kernels [out in size size] over a map [C H W], cell by cell; ``outside`` surrounds the map."""
    size = kernels.shape[-1]
    padded = np.pad(x, ((0, 0), (size // 2,) * 2, (size // 2,) * 2), constant_values=outside)
    rows, cols = x.shape[1:]
    out = np.zeros((len(kernels), rows, cols))
    for row in range(rows):
        for col in range(cols):
            patch = padded[:, row : row + size, col : col + size]
            out[:, row, col] = (kernels * patch).sum(axis=(1, 2, 3))
    return out


def logistic(x):
    return 1 / (1 + np.exp(-x))


def leaky(x):
    return np.where(x > 0, x, 0.1 * x)
