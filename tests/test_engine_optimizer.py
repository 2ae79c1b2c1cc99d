"""Parameter groups, and the learning rate, momentum and accumulation of every batch, by hand."""

import copy

import pytest
import torch
from torch import nn

from engine.optimizer import OptimizerOptions, Schedule, build_optimizer, layer_scales
from tests.tiny_project import random_network


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
    for name, kind in (("Adam", torch.optim.Adam), ("AdamW", torch.optim.AdamW), ("SGD", torch.optim.SGD)):
        options = OptimizerOptions(optimizer=name, warmup_epochs=1, warmup_bias_lr=0.1)
        optimizer = build_optimizer(small_network(), options, 64)
        assert type(optimizer) is kind
        Schedule(options, epochs=10, batches_per_epoch=200, accumulate=1).set_rates(optimizer, 0)
        assert (optimizer.param_groups[0]["lr"] > 0.01) == (name == "SGD")  # the biases of Adam warm up from 0
    assert build_optimizer(small_network(), OptimizerOptions(), 64).defaults["nesterov"]


def steps(network, optimizer, numbers, scaler=None):
    """Take a step per number, with gradients that follow from the number alone; infinite ones for -1."""
    for number in numbers:
        generator = torch.Generator().manual_seed(abs(number))
        for parameter in network.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
            parameter.grad = parameter.grad / (0 if number < 0 else 1)
        if scaler is None:
            optimizer.step()
        else:
            scaler.scale(torch.ones(1))
            scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
    return [parameter.detach().clone() for parameter in network.parameters()]


@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdamW"])
def test_fused_steps_are_the_same_and_go_on_to_the_bit_after_a_resume(kind):
    options = OptimizerOptions(optimizer=kind)
    torch.manual_seed(0)
    network = small_network()
    networks = [copy.deepcopy(network) for _ in range(4)]
    plain, whole, first, second = (
        build_optimizer(one, options, 64, fused=fused)
        for one, fused in zip(networks, (None, True, True, None), strict=True)
    )
    expected, undisturbed = steps(networks[0], plain, range(6)), steps(networks[1], whole, range(6))
    for one, other in zip(undisturbed, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)

    steps(networks[2], first, range(3))
    networks[3].load_state_dict(networks[2].state_dict())
    second.load_state_dict(
        first.state_dict()
    )  # the resumed run may have a device that would not begin with fused steps
    assert all(group["fused"] for group in second.param_groups)
    assert all(map(torch.equal, steps(networks[3], second, range(3, 6)), undisturbed))

    old = build_optimizer(networks[3], options, 64, fused=True)
    old.load_state_dict(plain.state_dict())
    assert not any(group["fused"] for group in old.param_groups)


@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
def test_a_fused_step_that_is_not_finite_is_left_out(kind):
    network = small_network()
    optimizer = build_optimizer(network, OptimizerOptions(optimizer=kind), 64, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    before = steps(network, optimizer, [0], scaler)
    assert all(map(torch.equal, steps(network, optimizer, [-1], scaler), before))
    assert scaler.get_scale() == 512


def test_what_memory_held_is_no_momentum_where_the_first_step_is_left_out():
    networks = [small_network() for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    options = OptimizerOptions(momentum=0.9, nesterov=False)
    skips, plain = (build_optimizer(network, options, 64, fused=True) for network in networks)
    torch.use_deterministic_algorithms(True)  # memory that nobody has written holds NaN
    try:
        skips.found_inf = torch.tensor(1.0)  # as torch's gradient scaler says it
        step(networks[0], skips)
        del skips.found_inf
        for optimizer, network in ((skips, networks[0]), (plain, networks[1])):
            step(network, optimizer)
    finally:
        torch.use_deterministic_algorithms(False)
    for one, other in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
        assert torch.equal(one, other) and torch.isfinite(one).all()


def step(network, optimizer):
    """Learn from one picture."""
    optimizer.zero_grad()
    network.eval()(torch.ones(1, 3, 8, 8)).square().sum().backward()
    optimizer.step()


def test_a_gpu_begins_with_fused_steps(device):
    groups = build_optimizer(small_network().to(device), OptimizerOptions(), 64).param_groups
    assert {group["fused"] for group in groups} == {True if device.type == "cuda" else None}


@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
@pytest.mark.parametrize("epochs, batches, rise", [(5, 8, 0.3), (2, 5, 0.5)])
def test_one_cycle_is_that_of_torch(kind, epochs, batches, rise):
    options = OptimizerOptions(
        optimizer=kind, schedule="one-cycle", lr0=0.02, lrf=0.001, momentum=0.95, one_cycle_momentum=0.8,
        one_cycle_start=0.1, one_cycle_rise=rise,
    )  # fmt: skip
    ours, theirs = (build_optimizer(small_network(), options, 64) for _ in range(2))
    schedule = Schedule(options, epochs, batches, accumulate=2)
    assert schedule.accumulation(0) == 2  # the rise takes the place of the warm-up
    # OneCycleLR's last rate is a share of its first: 0.001 = 0.1 / 100.
    referee = torch.optim.lr_scheduler.OneCycleLR(
        theirs, 0.02, epochs * batches, pct_start=rise, base_momentum=0.8, max_momentum=0.95, div_factor=10,
        final_div_factor=100,
    )  # fmt: skip
    for batch in range(epochs * batches):
        schedule.set_rates(ours, batch)
        for group, expected in zip(ours.param_groups, theirs.param_groups, strict=True):
            assert group["lr"] == pytest.approx(expected["lr"], rel=1e-9)
            key = "momentum" if kind == "SGD" else "betas"
            assert group[key] == pytest.approx(expected[key], rel=1e-9)
        theirs.step()
        if batch < epochs * batches - 1:
            referee.step()


@pytest.mark.parametrize("epochs, batches", [(1, 1), (1, 2), (2, 1), (1, 3)])
def test_one_cycle_of_the_shortest_runs(epochs, batches):
    schedule = Schedule(OptimizerOptions(schedule="one-cycle"), epochs, batches, 1)
    assert all(0 < schedule.factor(batch) <= 1 for batch in range(epochs * batches))


def test_layer_decay_by_hand():
    # Of three convolutions the last is the head's: 0.5^2, 0.5 and 1.
    network = random_network()
    assert [scale for _, scale in layer_scales(network, 0.5)] == [0.25, 0.5, 1.0]
    options = OptimizerOptions(layer_decay=0.5, warmup_epochs=0, lr0=0.1, lrf=1.0, weight_decay=0.1)
    optimizer = build_optimizer(network, options, 64)
    Schedule(options, 2, 3, 1).set_rates(optimizer, 0)
    rate_of = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for index, rate in enumerate((0.025, 0.05, 0.1)):
        rates = [rate_of[id(parameter)] for parameter in network.layers[index].parameters()]
        assert rates == pytest.approx([rate] * len(rates))
    assert len(rate_of) == len(list(network.parameters()))
    decays = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    assert decays == {id(layer.conv.weight) for layer in network.layers[:3]}


def test_layer_decay_warms_the_biases_up_from_above():
    options = OptimizerOptions(layer_decay=0.5, warmup_epochs=1, lr0=0.01, warmup_bias_lr=0.1, lrf=1.0)
    optimizer = build_optimizer(random_network(), options, 64)
    Schedule(options, 10, 200, 1).set_rates(optimizer, 99)
    # Half way: 0.055 for biases and 0.005 for all others, times 0.25, 0.5 and 1.
    expected = [rate * scale for scale in (0.25, 0.5, 1) for rate in (0.055, 0.005, 0.005)]
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(expected)


@pytest.mark.parametrize("values", [{"layer_decay": 0.0}, {"one_cycle_rise": 1.0}, {"one_cycle_momentum": 1.0}])
def test_impossible_cycles_and_decays_are_refused(values):
    with pytest.raises(ValueError, match=next(iter(values)).replace("_", "-")):
        OptimizerOptions(**values)
