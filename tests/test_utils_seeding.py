"""Seeds of epochs and processes."""

import torch

from utils.seeding import seed_epoch


def draws(*numbers: int) -> list[float]:
    seed_epoch(*numbers)
    return torch.rand(4).tolist()


def test_an_epoch_draws_the_same_whatever_came_before_and_each_process_its_own():
    first = draws(3, 0, 0)
    assert draws(3, 1, 0) != first != draws(3, 0, 1) and draws(4, 0, 0) != first
    assert draws(3, 0, 0) == first
    draws(2**63 - 1, 10_000, 255)  # the largest seed that train.py takes
