"""--profile: which steps are measured, what is said of them, and that the training stays the same."""

import json
from types import SimpleNamespace

import pytest
import torch

from engine.profiling import PARTS, STEPS, TRACE, WARM_UP, StepProfiler, operator_rows, verdict
from engine.train_loop import train_one_epoch
from models.learner import MapsLearner
from tests.test_engine_train_loop import PLAIN, Schedule, batch_of, mean_brightness, new_state

CPU = torch.device("cpu")


def train(clock, count):
    """Train on so many batches, each of which makes an optimizer step."""
    state = new_state(PLAIN)
    learner = MapsLearner(state.model, mean_brightness)
    if clock:
        learner.part = clock.part
    arguments = (state, learner, [batch_of(9)] * count, Schedule(PLAIN, 1, count, 1))
    train_one_epoch(*arguments, lambda *_: None, **({"clock": clock} if clock else {}))
    return state.model.weight


def test_ten_steps_are_measured_and_the_training_is_the_same(tmp_path, capsys):
    clock = StepProfiler(tmp_path, CPU, workers=2)
    weights = train(clock, WARM_UP + STEPS + 4)
    clock.finish()
    assert torch.equal(weights, train(None, WARM_UP + STEPS + 4))
    assert {name: len(seconds) for name, seconds in clock.seconds.items()} == dict.fromkeys(PARTS, STEPS)
    assert sum(map(sum, clock.seconds.values())) <= sum(clock.steps) and len(clock.steps) == STEPS
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"--profile: {STEPS} steps of ") and all(f"{name} " in lines[0] for name in PARTS)
    assert lines[1].split() == ["operator", "calls", "ms", "share"] and any("aten::" in line for line in lines)
    assert "the loader" in lines[-2] and lines[-1].startswith(f"trace: {tmp_path / TRACE}")
    trace = json.loads((tmp_path / TRACE).read_text())
    names = [event.get("name", "") for event in trace["traceEvents"] if event.get("ph") == "X"]
    assert names.count("forward of a step") == STEPS


def test_the_ten_steps_may_belong_to_several_epochs(tmp_path):
    clock = StepProfiler(tmp_path, CPU, workers=0)
    for _ in range(3):
        train(clock, 5)
    assert len(clock.steps) == STEPS
    assert len(clock.seconds["optimizer"]) == STEPS


@pytest.mark.parametrize("count, words", [(WARM_UP + 2, "--profile: 2 steps of "), (2, "has only 2 batches")])
def test_a_short_run_says_what_there_is(tmp_path, capsys, count, words):
    clock = StepProfiler(tmp_path, CPU, workers=0)
    train(clock, count)
    assert capsys.readouterr().out == ""
    clock.finish()
    assert words in capsys.readouterr().out
    assert (tmp_path / TRACE).exists() == (count > WARM_UP)


def event(key, cpu_us, gpu_us):
    return SimpleNamespace(key=key, count=3, self_cpu_time_total=cpu_us, self_device_time_total=gpu_us)


def test_operators_are_sorted_by_their_own_time_where_the_network_is():
    events = [event("conv", 3000.0, 500.0), event("add", 1000.0, 1500.0), event("forward of a step", 9000.0, 9000.0)]
    assert operator_rows(events, on_gpu=False)[1:] == [["conv", "3", "3.0", "75.0%"], ["add", "3", "1.0", "25.0%"]]
    assert operator_rows(events, on_gpu=True)[1:] == [["add", "3", "1.5", "75.0%"], ["conv", "3", "0.5", "25.0%"]]


def test_who_waits_for_whom():
    assert verdict(0.3, 2).startswith("the loader is the limit: the step waits for it 30% of the time")
    assert verdict(0.02, 2).startswith("the step is the limit")
    assert "--workers 2" in verdict(0.3, 0)
