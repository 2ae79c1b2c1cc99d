"""In which floating-point type a training computes its forward pass: what ``--amp`` means on this machine."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass

import torch

from models.learner import Learner
from utils import distributed
from utils.devices import amp_dtype, half_type
from utils.structures import Targets

TYPES = {"float32": None, "float16": torch.float16, "bfloat16": torch.bfloat16}  # None: no mixed precision
PRECISIONS = ("", *TYPES)  # "": choose
# Below so many operations per image, 16 bits do not pay on a CPU, and the time of a step is too short to say so.
LEAST_OPERATIONS = 1e9
LEAST_GAIN = 1.1
IMAGES, ROUNDS = 2, 2  # that are tried


@dataclass(frozen=True)
class Precision:
    """A key of TYPES, and why it was chosen; "" where there was no choice."""

    name: str
    reason: str = ""

    def __str__(self) -> str:
        return self.name + (f": {self.reason}" if self.reason else "")

    @property
    def dtype(self) -> torch.dtype | None:
        """The type of mixed precision, None for float32 throughout."""
        return TYPES[self.name]

    @property
    def needs_scale(self) -> bool:
        """Whether gradients would vanish without a scaled loss: float16 has too small an exponent."""
        return self.name == "float16"


def choose_precision(
    named: str, mixed: bool, learner: Learner, input_wh: tuple[int, int], device: torch.device
) -> Precision:
    """Choose the type of the forward pass, the same in every process.

    A GPU has what is fast there (:func:`utils.devices.amp_dtype`). Most CPUs emulate bfloat16, several times slower
    than float32; on one that has instructions for it (AVX512-BF16, AMX), it is tried, on a copy.

    Args:
        named: the user's choice, or that of the run that is resumed; "": none.
        mixed: whether mixed precision is wanted at all.
        learner: a network on its device, with its loss.
        input_wh: of the network, pixels.
        device: of the training.
    """
    if not mixed:
        return Precision("float32")
    if named and not (named == "float16" and device.type == "cpu"):  # a run of a GPU that goes on without one
        return Precision(named)
    if device.type != "cpu":
        fast = amp_dtype(device)
        return Precision(next(name for name, dtype in TYPES.items() if dtype == fast))
    found = None
    if distributed.is_main():
        with distributed.alone(), torch.random.fork_rng(devices=[]):  # some losses draw from their candidates
            found = _try_bfloat16(learner, input_wh)
    return distributed.broadcast(found)


def _try_bfloat16(learner: Learner, input_wh: tuple[int, int]) -> Precision:
    """Take some steps with and without bfloat16, where the CPU has instructions for it."""
    if half_type(torch.device("cpu")) == torch.float32:
        return Precision("float32", "this CPU has no instructions for bfloat16")
    from torch.utils.flop_counter import FlopCounterMode  # imports triton, which only a trial needs

    trial = copy.deepcopy(learner).train()
    images = torch.rand(IMAGES, 3, *input_wh[::-1], generator=torch.Generator().manual_seed(0))
    images = images.contiguous(memory_format=torch.channels_last)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        trial(images, Targets.empty(), Targets.empty())
    if counter.get_total_flops() < LEAST_OPERATIONS * IMAGES:
        return Precision("float32")
    best: dict[str, float] = {}
    for turn in range(1 + ROUNDS):
        for name in ("float32", "bfloat16"):
            seconds = _seconds_of_step(trial, images, TYPES[name])
            if turn:  # the first warms up
                best[name] = min(seconds, best.get(name, seconds))
    gain = best["float32"] / best["bfloat16"]
    if gain < LEAST_GAIN:
        return Precision("float32", f"bfloat16 is {gain:.2f} times as fast on this CPU")
    return Precision("bfloat16", f"{gain:.2f} times as fast as float32 on this CPU; --no-amp computes in float32")


def _seconds_of_step(learner: Learner, images: torch.Tensor, dtype: torch.dtype | None) -> float:
    """Return how long a forward and a backward pass take, of images without objects."""
    start = time.perf_counter()
    learner.amp_dtype = dtype
    learner(images, Targets.empty(), Targets.empty()).total.backward()
    learner.zero_grad(set_to_none=True)
    return time.perf_counter() - start
