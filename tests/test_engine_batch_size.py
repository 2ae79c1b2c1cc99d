"""--batch-size auto: the search over a memory that is known, and what a CPU and a GPU make of it."""

from dataclasses import replace

import pytest
import torch

from engine import batch_size
from engine.batch_size import largest_batch, with_batch_size
from engine.train_options import GROUPS, TrainGroups
from models.assignment.options import AssignmentOptions
from models.loss import LossOptions
from models.network import build_network_from_text
from tests.tiny_project import CFG
from utils.config import build_options, parse_flags
from utils.errors import UserError


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (109, (0, 0)),  # 100 bytes, and 10 for each image
        (110, (1, 110)),
        (259, (12, 220)),  # 8 take 180, 16 take 260, 12 take 220
        (260, (16, 260)),
        (10**9, (1024, 10340)),
    ],
)
def test_the_largest_power_of_two_or_one_and_a_half_times_one(limit, expected):
    tried = []

    def bytes_of(images):
        tried.append(images)
        needed = 100 + 10 * images
        return None if needed > 2 * limit else needed

    assert largest_batch(bytes_of, limit) == expected
    assert len(tried) == len(set(tried)) <= 12


def options_of(*flags):
    return TrainGroups(*build_options(parse_flags("", *GROUPS, argv=flags), GROUPS))


def found(options, device):
    network = build_network_from_text(CFG, "tiny.cfg", 3).to(device)
    learner = network.learner(LossOptions(), AssignmentOptions(), (96, 64))
    return with_batch_size(options, learner, (96, 64)).train.batch_size


@pytest.mark.parametrize("flags", [("--batch-size", "auto"), ("--batch", "-1")])
def test_a_cpu_takes_the_usual_batch_and_says_so(flags, capsys):
    options = options_of(*flags)
    assert found(options, torch.device("cpu")) == 16
    assert capsys.readouterr().out == "--batch-size auto: 16; a CPU's memory says little about the best one\n"
    given = replace(options, train=replace(options.train, batch_size=3))
    assert found(given, torch.device("cpu")) == 3 and capsys.readouterr().out == ""


@pytest.mark.parametrize(("processes", "expected"), [(2, 16), (3, 15), (20, 20)])
def test_on_a_cpu_all_processes_have_as_many_images(monkeypatch, capsys, processes, expected):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    assert found(options_of("--batch-size", "auto"), torch.device("cpu")) == expected
    assert capsys.readouterr().out.startswith(f"--batch-size auto: {expected}; ")


def test_a_gpu_tries(device, monkeypatch, capsys):
    if device.type != "cuda":
        pytest.skip("a CPU tries nothing")
    monkeypatch.setattr(batch_size, "MOST", 8)
    assert found(options_of("--batch-size", "auto"), device) == 8
    assert "a step takes" in capsys.readouterr().out
    monkeypatch.setattr(batch_size, "SHARE", 0.0)
    with pytest.raises(UserError, match="not one image of 96x64"):
        found(options_of("--batch-size", "auto"), device)


def test_words_that_mean_nothing_are_refused():
    with pytest.raises(UserError, match="invalid int value: 'most'"):
        options_of("--batch-size", "most")
    with pytest.raises(UserError, match="must be at least 1"):
        options_of("--batch-size", "-2")


def test_the_step_that_is_tried_is_one_of_the_training():
    network = build_network_from_text(CFG, "tiny.cfg", 3)
    batch_size._step(network.learner(LossOptions(), AssignmentOptions(), (96, 64)), 3, (96, 64))
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())
