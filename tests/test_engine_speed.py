"""Times per image: percentiles of what each batch took."""

from types import SimpleNamespace

import pytest
import torch

from engine import speed
from engine.speed import SpeedOptions, faster_road, percentiles, percentiles_line, time_batches
from models.exported.network import ExportedNetwork
from models.families.centernet import CenterNet
from models.network import Network
from utils.structures import Batch, ImageMeta, Targets


class SteppingDetector:
    """Takes one second of inference for its first batch, two for the next, and so on; half of it for NMS."""

    def __init__(self):
        self.seconds_inference = self.seconds_nms = 0.0
        self.calls = 0

    def __call__(self, images, metas):
        self.calls += 1
        self.seconds_inference += self.calls
        self.seconds_nms += self.calls / 2


def batch(images):
    metas = tuple(ImageMeta(number, "", (8, 8)) for number in range(images))
    return Batch(torch.zeros(images, 3, 8, 8), Targets.empty(), Targets.empty(), metas)


def test_milliseconds_are_per_image():
    # 1.5 s for two images, 3 s for two, 4.5 s for one.
    assert time_batches(SteppingDetector(), [batch(2), batch(2), batch(1)]) == [750.0, 1500.0, 4500.0]


def test_percentiles_by_hand():
    # Of 1, 2, ..., 101 the p-th percentile is p + 1.
    line = percentiles_line([float(number) for number in range(1, 102)])
    assert line == "Percentiles over 101 batches: p50 51.0, p90 91.0, p99 100.0 ms per image"
    assert percentiles([]) == [None, None, None]


@pytest.mark.parametrize(
    ("device", "kind", "installed", "is_said"),
    [("cpu", Network, True, True), ("cpu", Network, False, False), ("cuda", Network, True, False),
     ("cpu", ExportedNetwork, True, False), ("cpu", CenterNet, True, False)],
)  # fmt: skip
def test_the_faster_road_is_named_where_there_is_one(monkeypatch, device, kind, installed, is_said):
    monkeypatch.setattr(speed, "find_spec", lambda _name: object() if installed else None)
    detector = SimpleNamespace(device=torch.device(device), network=kind.__new__(kind))
    assert ("export.py --format openvino" in faster_road(detector)) == is_said


def test_threads_are_a_number_above_zero():
    with pytest.raises(ValueError, match="--threads"):
        SpeedOptions(threads=-1)
