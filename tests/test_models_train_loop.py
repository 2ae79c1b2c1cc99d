"""The loop of one epoch on a network small enough to follow by hand."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from models.train_loop import TrainState, set_training_mode, train_one_epoch
from utils.ema import AveragedModel
from utils.errors import UserError
from utils.optimizer import OptimizerOptions, Schedule, build_optimizer
from utils.records import Batch, Frame, Targets


@dataclass
class Result:
    parts: dict
    counts: int = 1


def mean_brightness(raws, targets, crowd):
    return Result({"box": raws.sum(), "obj": raws.sum() * 2})


def batch_of(value: int, size: int = 2) -> Batch:
    images = torch.full((size, 3, 4, 4), value, dtype=torch.uint8)
    return Batch(
        images, Targets.empty(), Targets.empty(), tuple(Frame(i, f"image{i}.jpg", (4, 4)) for i in range(size))
    )


def new_state(options: OptimizerOptions) -> TrainState:
    model = nn.Conv2d(3, 1, 4, bias=False)
    nn.init.constant_(model.weight, 0.1)
    return TrainState(
        model, AveragedModel(model), build_optimizer(model, options, 64), torch.amp.GradScaler("cpu", enabled=False)
    )


def run_epoch(options, batches, accumulate=1, loss=mean_brightness):
    state = new_state(options)
    schedule = Schedule(options, epochs=1, batches_per_epoch=len(batches), accumulate=accumulate)
    losses, counts = train_one_epoch(state, state.model, batches, loss, schedule, None, lambda *_: None)
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


def test_large_gradients_are_clipped():
    clipped = OptimizerOptions(**{**PLAIN.__dict__, "clip_norm": 1.0})
    state, _, _ = run_epoch(clipped, [batch_of(255)])
    # The gradient has norm 6 * sqrt(48); clipped to 1 each of 48 equal parts is 1 / sqrt(48).
    assert torch.allclose(state.model.weight, torch.full((1, 3, 4, 4), 0.1 - 0.01 / 48**0.5), atol=1e-6)


def test_a_loss_that_is_not_finite_names_the_images():
    with pytest.raises(UserError, match=r"not finite.*image0\.jpg, image1\.jpg"):
        run_epoch(PLAIN, [batch_of(255)], loss=lambda *_: Result({"box": torch.tensor(float("nan"))}))


def test_a_gradient_that_is_not_finite_changes_nothing_and_names_the_images():
    def loss(raws, targets, crowd):
        return Result({"box": raws.sum() * 0 + (raws.sum() * 0).sqrt()})  # the root of 0 is finite, its slope is not

    state = new_state(PLAIN)
    before = state.model.weight.detach().clone()
    schedule = Schedule(PLAIN, epochs=1, batches_per_epoch=1, accumulate=1)
    with pytest.raises(UserError, match=r"gradient is not finite.*image0\.jpg"):
        train_one_epoch(state, state.model, [batch_of(255)], loss, schedule, None, lambda *_: None)
    assert torch.equal(state.model.weight, before)


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
    wanted = torch.rand(3)

    other = new_state(options)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(other.model.weight, state.model.weight)
    assert torch.equal(other.average.model.weight, state.average.model.weight)
    assert (other.epoch, other.best_fitness, other.history, other.average.updates) == (1, 0.25, state.history, 3)
    assert torch.equal(torch.rand(3), wanted)  # the generator goes on where it was
