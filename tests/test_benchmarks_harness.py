"""What the benchmarks share: the order of the calls, what is left out, what random objects and maps look like."""

import pytest
import torch

from benchmarks import harness
from models.heads import Head

CPU = torch.device("cpu")


def test_functions_are_called_in_turns_and_the_first_round_is_left_out():
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in "abc"}
    seconds = harness.seconds_alternating(functions, CPU, rounds=2)
    assert "".join(calls) == "cbaabccba"
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2, "c": 2}
    assert all(value >= 0 for values in seconds.values() for value in values)


def test_a_slow_call_is_not_repeated_for_long(monkeypatch):
    # A call takes 4 s: warm-up, then one that starts before 5 s are over, one more that does, and no third.
    clock = [100.0]
    monkeypatch.setattr(harness.time, "perf_counter", lambda: clock[0])
    results = iter(range(100))

    def slow():
        clock[0] += 4.0
        return next(results)

    assert harness.time_ms(slow, CPU, repeats=30) == harness.Timing(4000.0, 4000.0, result=2)
    assert harness.time_ms(lambda: 7, CPU, repeats=3).result == 7


def test_random_objects_are_the_same_for_each_image_and_lie_in_it():
    targets = harness.random_targets(4, 12, 80, CPU)
    assert torch.bincount(targets.image).tolist() == [3, 3, 3, 3]
    boxes = targets.boxes_cxcywh
    assert boxes[:, :2].min() >= 0 and boxes[:, :2].max() <= 1
    assert boxes[:, 2:].min() >= 6 / 640 and boxes[:, 2:].max() <= 400 / 640
    assert targets.label.max() < 80


def test_random_maps_have_the_shape_of_a_network():
    heads = (Head(((10.0, 20.0),), 16, 3), Head(((40.0, 40.0), (60.0, 30.0)), 32, 3))
    maps = harness.random_maps(2, heads, 64, CPU)
    assert [tuple(raw.shape) for raw in maps] == [(2, 1, 4, 4, 8), (2, 2, 2, 2, 8)]
    assert not maps[1].is_contiguous()  # as a network's: the values of a cell lie together


@pytest.mark.skipif(not harness.Path("/proc/self/clear_refs").exists(), reason="reads Linux's /proc")
def test_the_peak_counts_memory_that_is_given_back():
    assert harness.peak_mib(lambda: torch.ones(2**24).sum(), CPU) == pytest.approx(64, abs=8)  # 2**24 float32
