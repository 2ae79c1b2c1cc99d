"""Seeds, and the state of the random generators that a resumed run needs.

Data loading draws nothing from these global generators: it derives every choice from (seed, epoch, index).
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's generators, and make cuDNN choose deterministic algorithms."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def random_state() -> dict[str, Any]:
    """Return the state of torch's generators, as tensors that load with ``weights_only=True``.

    Only torch's are kept: nothing that runs inside the training loop uses Python's or NumPy's global generator.
    """
    state: dict[str, Any] = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore_random_state(state: dict[str, Any]) -> None:
    """Continue from a state of :func:`random_state`; a CUDA state needs as many GPUs as it was saved with."""
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state.get("cuda", ())) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
