"""``--batch-size auto``: the largest batch whose training step fits into most of a GPU's memory, found by trying."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from dataclasses import replace

import torch

from engine.optimizer import AUTO
from engine.train_options import TrainGroups
from models.learner import Learner
from utils import distributed
from utils.errors import UserError
from utils.structures import Targets

USUAL = 16  # where nothing can be tried
SHARE = 0.8  # of the memory that is free: batches differ, and cuDNN chooses other ways for some
MOST = 1024  # images of one process
OBJECTS = 8  # per image that is tried
# Copies of the parameters that the training will have and the trial has not: the average, and the state of SGD or Adam.
COPIES = {"SGD": 2, "Adam": 3, "AdamW": 3, AUTO: 3}


def with_batch_size(options: TrainGroups, learner: Learner, input_wh: tuple[int, int]) -> TrainGroups:
    """Return the options with a number of images per batch, where ``--batch-size auto`` leaves it open.

    Args:
        options: of the run.
        learner: a network on its device, with its loss; a copy is tried.
        input_wh: nominal size of the input, pixels.

    Raises:
        UserError: not even one image fits.
    """
    train = options.train
    if not train.finds_batch_size:
        return options
    device = next(learner.parameters()).device
    each, words = USUAL, "a CPU's memory says little about the best one"
    if device.type == "cuda":
        factor, stride = train.multi_scale_range[1] if train.multi_scale else 1.0, learner.network.max_stride
        width, height = (max(int(side * factor / stride), 1) * stride for side in input_wh)
        with distributed.alone():
            found = _try(learner, (width, height), COPIES[options.optimizer.optimizer])
        each, words = distributed.broadcast(found)
        gc.collect()  # the copy that was tried
        torch.cuda.empty_cache()
    count = distributed.world_size()
    size = each * count if device.type == "cuda" else max(1, each // count) * count  # the same for every process
    if distributed.is_main():
        print(f"--batch-size auto: {size}; {words}")
    return replace(options, train=replace(train, batch_size=size))


def largest_batch(bytes_of: Callable[[int], int | None], limit: int) -> tuple[int, int]:
    """Return the largest batch within the limit and its bytes: a power of two, or one and a half times one; 0 if none.

    Args:
        bytes_of: the memory that a step with so many images takes; None: more than there is.
        limit: the most that it may take.
    """
    best = (0, 0)
    size = 1
    while size <= MOST:
        needed = bytes_of(size)
        if needed is None or needed > limit:
            break
        best = (size, needed)
        size *= 2
    between = best[0] * 3 // 2
    if best[0] >= 2 and size <= MOST:
        needed = bytes_of(between)
        if needed is not None and needed <= limit:
            best = (between, needed)
    return best


def _try(learner: Learner, input_wh: tuple[int, int], copies: int) -> tuple[int, str]:
    """Return how many images fit on the GPU of this process, and what they take in words."""
    device = next(learner.parameters()).device
    trial = copy.deepcopy(learner).train()
    free, total = torch.cuda.mem_get_info(device)
    later = copies * sum(parameter.nbytes for parameter in learner.parameters())
    limit = int(free * SHARE) - later

    def bytes_of(images: int) -> int | None:
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved(device)
        torch.cuda.reset_peak_memory_stats(device)
        try:
            for _ in range(2):  # cuDNN looks for its ways in the first
                _step(trial, images, input_wh)
        except torch.cuda.OutOfMemoryError:
            return None
        finally:
            trial.zero_grad(set_to_none=True)
        return torch.cuda.max_memory_reserved(device) - before

    size, needed = largest_batch(bytes_of, limit)
    if not size:
        raise UserError(
            f"--batch-size auto: not one image of {input_wh[0]}x{input_wh[1]} fits into {SHARE:.0%} of the "
            f"{free / 2**30:.1f} GiB that are free; lower --img-size"
        )
    return size, f"a step takes {(needed + later) / 2**30:.1f} GiB, {free / 2**30:.1f} of {total / 2**30:.1f} are free"


def _step(learner: Learner, images: int, input_wh: tuple[int, int]) -> None:
    """Compute the gradients of a batch of noise with some objects."""
    device = next(learner.parameters()).device
    pixels = torch.rand(images, 3, input_wh[1], input_wh[0], device=device)
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    count = images * OBJECTS
    generator = torch.Generator().manual_seed(0)
    targets = Targets(
        torch.arange(count) % images,
        torch.randint(learner.network.num_classes, (count,), generator=generator),
        torch.rand(count, 4, generator=generator) * 0.5 + 0.1,
    )
    learner(pixels, targets.to(device), Targets.empty().to(device)).total.backward()
