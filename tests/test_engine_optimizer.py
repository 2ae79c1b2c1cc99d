"""Parameter groups, and the learning rate, momentum and accumulation of every batch, by hand."""

import pytest
import torch
from torch import nn

from engine.optimizer import OptimizerOptions, Schedule, build_optimizer


def small_network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))


def test_only_convolution_weights_decay():
    # 3*4*9 = 108 and 4*2 = 8 convolution weights; biases: 4 of the batch norm and 2 of the last convolution.
    groups = build_optimizer(small_network(), OptimizerOptions(weight_decay=0.1), images_per_step=32).param_groups
    assert [sum(p.numel() for p in group["params"]) for group in groups] == [6, 4, 116]
    assert [group["weight_decay"] for group in groups] == [0, 0, 0.05]  # 0.1 * 32 / 64


def test_frozen_parameters_are_left_out():
    network = small_network()
    network[0].weight.requires_grad_(False)
    groups = build_optimizer(network, OptimizerOptions(), 64).param_groups
    assert sum(p.numel() for p in groups[2]["params"]) == 8


@pytest.mark.parametrize("kind, middle", [("cosine", 0.55), ("linear", 0.55)])
def test_decay_starts_at_one_and_ends_at_lrf(kind, middle):
    schedule = Schedule(OptimizerOptions(lrf=0.1, schedule=kind), epochs=11, batches_per_epoch=7, accumulate=1)
    assert schedule.decay(0) == 1
    assert schedule.decay(10) == pytest.approx(0.1)
    assert schedule.decay(5) == pytest.approx(middle)  # half way between 1 and 0.1 for both


def test_cosine_is_slower_at_the_start_than_linear():
    cosine, linear = (
        Schedule(OptimizerOptions(lrf=0.0, schedule=kind), 11, 7, 1).decay(1) for kind in ("cosine", "linear")
    )
    assert linear == pytest.approx(0.9)
    assert cosine == pytest.approx(0.97553, abs=1e-5)  # (1 + cos(pi / 10)) / 2


def test_warmup_raises_rates_momentum_and_accumulation():
    options = OptimizerOptions(
        lr0=0.01, warmup_bias_lr=0.1, momentum=0.9, warmup_momentum=0.5, warmup_epochs=1, lrf=1.0
    )
    schedule = Schedule(options, epochs=10, batches_per_epoch=200, accumulate=4)
    assert schedule.warmup_batches == 200
    optimizer = build_optimizer(small_network(), options, 64)
    schedule.set_rates(optimizer, 99)  # half way
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.055, 0.005, 0.005])
    assert optimizer.param_groups[0]["momentum"] == pytest.approx(0.7)
    schedule.set_rates(optimizer, 500)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.01] * 3)
    assert [schedule.accumulation(batch) for batch in (0, 100, 200, 999)] == [1, 2, 4, 4]


def test_warmup_never_takes_more_than_half_of_the_run():
    assert Schedule(OptimizerOptions(), epochs=2, batches_per_epoch=10, accumulate=1).warmup_batches == 10


def test_impossible_values_are_refused():
    with pytest.raises(ValueError, match="lr0"):
        OptimizerOptions(lr0=0)
    with pytest.raises(ValueError, match="momentum"):
        OptimizerOptions(momentum=1.0)


def test_adam_and_sgd():
    assert isinstance(build_optimizer(small_network(), OptimizerOptions(optimizer="AdamW"), 64), torch.optim.AdamW)
    assert build_optimizer(small_network(), OptimizerOptions(), 64).defaults["nesterov"]
