"""Seeds: every random draw is a function of (seed, epoch, number), whatever was drawn before.

Data loading draws nothing from the global generators seeded here: it derives every choice from (seed, epoch, index).
"""

from __future__ import annotations

import random

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's generators, and make cuDNN choose deterministic algorithms."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def seed_epoch(seed: int, epoch: int, process: int) -> None:
    """Seed torch's generators for one epoch in one process: from them layers such as dropout draw in training.

    So a resumed run draws what the uninterrupted run would have drawn, a run that is tested less often draws the same,
    and no two processes draw the same masks.
    """
    torch.manual_seed(int(np.random.SeedSequence((seed, epoch, process)).generate_state(1, np.uint64)[0]))


def generator_state(device: torch.device) -> torch.Tensor:
    """Return the state of the generator from which layers draw on a device, uint8 on the CPU."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def set_generator_state(device: torch.device, state: torch.Tensor) -> None:
    """Put the generator of a device into the state it had there; one of another kind of device stays as it is."""
    if state.shape != generator_state(device).shape:
        return
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)
