"""Learning rates by the iteration against Darknet's rule, written down as plain steps, and what is refused."""

import math

import pytest

from engine.iteration_rates import IterationOptions, rate_factor
from engine.optimizer import OptimizerOptions, Schedule
from engine.resumed_run import other_length


def plain_rate(net: dict, iteration: int) -> float:
    """Darknet's rate at an iteration, from the keys of its [net]."""
    rate = net["learning_rate"]
    if iteration < net["burn_in"]:
        return rate * (iteration / net["burn_in"]) ** net["power"]
    if net["policy"] == "steps":
        passed = 0
        while passed < len(net["steps"]) and net["steps"][passed] <= iteration:
            rate *= net["scales"][passed]
            passed += 1
    elif net["policy"] == "poly":
        rate *= (1 - iteration / net["max_batches"]) ** net["power"]
    elif net["policy"] == "sgdr":
        begin, length = 0, net["cycle"]
        while iteration > begin + length:
            begin, length = begin + length, length * net["growth"]
        lowest = net["learning_rate_min"]
        rate = lowest + (rate - lowest) / 2 * (1 + math.cos((iteration - begin) / length * math.pi))
    return rate


CASES = [
    {"policy": "constant"},
    {"policy": "steps", "steps": (30, 60, 80), "scales": (0.1, 0.5, 10.0)},
    {"policy": "steps", "steps": (-1, 50, 40), "scales": (0.1, 10.0, 0.1)},  # of yolov2-voc.cfg; not in order
    {"policy": "steps", "steps": (4, 20), "scales": (0.1, 0.1)},  # within the burn-in
    {"policy": "poly"},
    {"policy": "poly", "power": 1.0},
    {"policy": "sgdr", "cycle": 100},
    {"policy": "sgdr", "cycle": 13, "growth": 2},
    {"policy": "sgdr", "cycle": 13, "growth": 1},
]
NET = {"learning_rate": 0.004, "learning_rate_min": 1e-5, "power": 4.0, "max_batches": 100, "cycle": 0, "growth": 2}


def options_of(net: dict) -> OptimizerOptions:
    return OptimizerOptions(
        lr0=net["learning_rate"], lrf=net["learning_rate_min"] / net["learning_rate"], schedule=net["policy"],
        max_batches=net["max_batches"], burn_in=net["burn_in"], lr_power=net["power"], lr_steps=net.get("steps", ()),
        lr_scales=net.get("scales", ()), lr_cycle=net["cycle"], lr_cycle_growth=net["growth"],
        warmup_epochs=0, warmup_bias_lr=0,
    )  # fmt: skip


@pytest.mark.parametrize("burn_in", [0, 1, 10])
@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(map(str, case.values())))
def test_the_rate_of_every_iteration_is_darknets(case, burn_in):
    net = NET | case | {"burn_in": burn_in}
    options = options_of(net)
    for iteration in range(1, 101):
        found = options.lr0 * rate_factor(options.schedule, options, options.lrf, iteration)
        assert found == pytest.approx(plain_rate(net, iteration), rel=1e-12, abs=1e-18), iteration


def test_by_hand():
    options = IterationOptions(burn_in=10, lr_steps=(20, 30), lr_scales=(0.1, 0.1), max_batches=40)
    factors = [rate_factor("steps", options, 0, iteration) for iteration in (1, 5, 10, 19, 20, 29, 30)]
    assert factors == pytest.approx([1e-4, 1 / 16, 1, 1, 0.1, 0.1, 0.01])
    assert rate_factor("poly", options, 0, 20) == 1 / 16
    assert rate_factor("poly", options, 0, 41) == 0  # a run whose last epoch is longer than its iterations
    assert rate_factor("sgdr", options, 0.2, 20) == pytest.approx(0.6)  # half of the way from 1 to 0.2


def test_iterations_are_optimizer_steps():
    """7 batches an epoch, 3 of them a step: 3 steps an epoch, the last of one batch."""
    schedule = Schedule(options_of(NET | CASES[0] | {"burn_in": 0}), epochs=2, batches_per_epoch=7, accumulate=3)
    assert [schedule.iteration(batch) for batch in range(14)] == [1, 1, 1, 2, 2, 2, 3, 4, 4, 4, 5, 5, 5, 6]


def test_a_longer_run_goes_on_by_the_iteration():
    options = options_of(NET | CASES[1] | {"burn_in": 0})
    assert other_length(options, 2, 4, 8) == "8 epochs instead of 4: --schedule steps goes on by the iteration"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"burn_in": 10}, "--burn-in is for --schedule constant, steps, poly, sgdr"),
        ({"schedule": "steps"}, "needs --lr-steps"),
        ({"schedule": "poly"}, "--schedule poly needs --max-batches"),
        ({"schedule": "sgdr"}, "--schedule sgdr needs --max-batches"),
        ({"schedule": "steps", "lr_steps": (1, 2), "lr_scales": (0.1,)}, "equally many, not 2 and 1"),
        ({"lr_cycle_growth": 0}, "at least 1"),
        ({"max_batches": -1}, "must not be negative"),
        ({"beta2": 1.0}, "--beta2"),
        ({"adam_eps": 0.0}, "--adam-eps"),
    ],
)
def test_impossible_values_are_refused(values, words):
    with pytest.raises(ValueError, match=words):
        OptimizerOptions(**values)
