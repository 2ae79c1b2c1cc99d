"""The loop of one epoch on a network small enough to follow by hand."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from engine.ema import AveragedModel
from engine.optimizer import OptimizerOptions, Schedule, build_optimizer
from engine.train_loop import TrainState, set_training_mode, train_one_epoch
from models.learner import BatchLoss, MapsLearner
from utils.errors import UserError
from utils.structures import Batch, ImageMeta, Targets


class Result(BatchLoss):
    def __init__(self, parts):
        super().__init__(parts, counts=1)


def mean_brightness(raw_maps, targets, crowd):
    return Result({"box": raw_maps.sum(), "obj": raw_maps.sum() * 2})


def batch_of(value: int, size: int = 2) -> Batch:
    images = torch.full((size, 3, 4, 4), value, dtype=torch.uint8)
    return Batch(
        images, Targets.empty(), Targets.empty(), tuple(ImageMeta(i, f"image{i}.jpg", (4, 4)) for i in range(size))
    )


def new_state(options: OptimizerOptions, scaled: bool = False) -> TrainState:
    model = nn.Conv2d(3, 1, 4, bias=False)
    nn.init.constant_(model.weight, 0.1)
    scaler = torch.amp.GradScaler("cpu", enabled=scaled)
    return TrainState(model, AveragedModel(model), build_optimizer(model, options, 64), scaler)


def run_epoch(options, batches, accumulate=1, loss=mean_brightness, scaled=False):
    state = new_state(options, scaled)
    schedule = Schedule(options, epochs=1, batches_per_epoch=len(batches), accumulate=accumulate)
    losses, counts = train_one_epoch(state, MapsLearner(state.model, loss), batches, schedule, lambda *_: None)
    return state, losses, counts


PLAIN = OptimizerOptions(
    lr0=0.01, lrf=1.0, momentum=0.0, warmup_momentum=0.0, weight_decay=0.0, warmup_epochs=0, clip_norm=0
)


def test_one_plain_step_by_hand():
    # White images: every input is 1, so each of the 48 weights has gradient 3 (box + 2 box) per image, 6 for the batch.
    # Without momentum: 0.1 - 0.01 * 6 = 0.04. Loss per image: 48 * 0.1 = 4.8 and twice that.
    state, losses, counts = run_epoch(PLAIN, [batch_of(255)])
    assert torch.allclose(state.model.weight, torch.full((1, 3, 4, 4), 0.04), atol=1e-6)
    assert losses == {"box": pytest.approx(4.8), "obj": pytest.approx(9.6)}
    assert counts == 1 and state.average.updates == 1


def test_accumulation_sums_gradients_and_the_rest_is_not_lost():
    # Three batches, two per step: one step of two batches and one of the last: in all 3 * 6 * 0.01 below 0.1.
    state, _, counts = run_epoch(PLAIN, [batch_of(255)] * 3, accumulate=2)
    assert torch.allclose(state.model.weight, torch.full((1, 3, 4, 4), 0.1 - 0.18), atol=1e-6)
    assert state.average.updates == 2 and counts == 3


@pytest.mark.parametrize("scaled", [False, True])
def test_large_gradients_are_clipped(scaled):
    clipped = OptimizerOptions(**{**PLAIN.__dict__, "clip_norm": 1.0})
    state, _, _ = run_epoch(clipped, [batch_of(255)], scaled=scaled)
    # The gradient has norm 6 * sqrt(48); clipped to 1 each of 48 equal parts is 1 / sqrt(48).
    assert torch.allclose(state.model.weight, torch.full((1, 3, 4, 4), 0.1 - 0.01 / 48**0.5), atol=1e-6)


def test_a_loss_that_is_not_finite_names_the_images():
    with pytest.raises(UserError, match=r"not finite.*image0\.jpg, image1\.jpg"):
        run_epoch(PLAIN, [batch_of(255)], loss=lambda *_: Result({"box": torch.tensor(float("nan"))}))


def test_a_gradient_that_is_not_finite_changes_nothing_and_names_the_images():
    def loss(raw_maps, targets, crowd):
        return Result(
            {"box": raw_maps.sum() * 0 + (raw_maps.sum() * 0).sqrt()}
        )  # the root of 0 is finite, its slope is not

    state = new_state(PLAIN)
    before = state.model.weight.detach().clone()
    schedule = Schedule(PLAIN, epochs=1, batches_per_epoch=1, accumulate=1)
    with pytest.raises(UserError, match=r"gradient is not finite.*image0\.jpg"):
        train_one_epoch(state, MapsLearner(state.model, loss), [batch_of(255)], schedule, lambda *_: None)
    assert torch.equal(state.model.weight, before)


def without_a_slope(raw_maps, targets, crowd):
    return Result({"box": raw_maps.sum() * 0 + (raw_maps.sum() * 0).sqrt()})


def test_a_step_that_the_scaler_leaves_out_does_not_move_the_average():
    calls = []

    def loss(raw_maps, targets, crowd):
        calls.append(1)
        return (without_a_slope if len(calls) == 1 else mean_brightness)(raw_maps, targets, crowd)

    state, _, _ = run_epoch(PLAIN, [batch_of(255)] * 2, loss=loss, scaled=True)
    # Of two steps one is taken, from 0.1 to 0.04; the scale of 65536 is halved.
    assert torch.allclose(state.model.weight, torch.full((1, 3, 4, 4), 0.04), atol=1e-6)
    assert state.average.updates == 1 and state.scaler.get_scale() == 2**15


def test_a_scaler_that_finds_no_scale_ends_the_run():
    state = new_state(PLAIN, scaled=True)
    schedule = Schedule(PLAIN, epochs=1, batches_per_epoch=40, accumulate=1)
    seen = []
    with pytest.raises(UserError, match=r"gradient is not finite.*--no-amp"):
        train_one_epoch(state, MapsLearner(state.model, without_a_slope), [batch_of(255)] * 40, schedule,
                        lambda *_: seen.append(1))  # fmt: skip
    assert len(seen) == 16  # 2^16 is halved 16 times to 1, and once more
    assert state.average.updates == 0 and torch.equal(state.model.weight, torch.full((1, 3, 4, 4), 0.1))


def test_frozen_batch_norms_keep_their_statistics():
    model = nn.Sequential(nn.BatchNorm2d(1), nn.BatchNorm2d(1))
    model[0].requires_grad_(False)
    set_training_mode(model)
    assert [layer.training for layer in model] == [False, True]


def test_state_round_trip_is_exact(tmp_path):
    options = OptimizerOptions()
    state, _, _ = run_epoch(options, [batch_of(200)] * 3)
    state.epoch, state.best_fitness, state.history = 1, 0.25, [{"epoch": 1, "lr": 0.1}]
    torch.save(state.state_dict(), tmp_path / "state.pt")

    other = new_state(options)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(other.model.weight, state.model.weight)
    assert torch.equal(other.average.model.weight, state.average.model.weight)
    assert (other.epoch, other.best_fitness, other.history, other.average.updates) == (1, 0.25, state.history, 3)


@pytest.mark.parametrize("first, second", [(False, True), (True, False), (True, True)])
def test_a_run_goes_on_with_and_without_float16(tmp_path, first, second):
    state, _, _ = run_epoch(PLAIN, [batch_of(200)], loss=without_a_slope if first else mean_brightness, scaled=first)
    other = new_state(PLAIN, scaled=second)
    other.load_state_dict(state.state_dict())
    assert torch.equal(other.model.weight, state.model.weight)
    assert other.scaler.get_scale() == (2**15 if first and second else 2**16 if second else 1)


def test_two_processes_train_as_one_with_all_images(tmp_path):
    script = Path(__file__).with_name("share_batch.py")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(script.parent.parent)}
    for start, name in (([sys.executable], "alone"), (launcher, "shared")):
        (tmp_path / name).mkdir()
        done = subprocess.run([*start, str(script), str(tmp_path / name)], capture_output=True, text=True, timeout=120,
                              env=environment)  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
    alone, *shared = (
        json.loads((tmp_path / name / f"process{rank}.json").read_text())
        for name, rank in (("alone", 0), ("shared", 0), ("shared", 1))
    )
    # By hand: raw = s * w of 48 equal weights, s = value / 255, so the loss is sum((48 w s)^2) and each weight's
    # gradient sum(2 * 48 w s * s); one step with all eight images.
    squares = sum((value / 255) ** 2 for value in (10, 60, 120, 250, 200, 30, 90, 5))
    assert alone["weight"] == pytest.approx([0.1 - 1e-4 * 2 * 48 * 0.1 * squares] * 48, rel=1e-5)
    assert alone["losses"]["box"] == pytest.approx((48 * 0.1) ** 2 * squares / 8, rel=1e-5) and alone["images"] == 8
    for one in shared:
        for key in ("weight", "average", "losses", "images"):
            assert one[key] == pytest.approx(alone[key], rel=1e-6), key
        assert one["exchanges"] == 1  # the gradients of two accumulated batches travel once
        # A thread that outlives the interpreter would abort the process, now and then: see utils/distributed.py.
        assert (one["threads"] > 0) == Path("/proc/self/task").is_dir() and one["threads_after_stop"] == 0
