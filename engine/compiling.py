"""``--compile``: the forward and backward pass compiled by torch, and whether that pays on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from data.loader import LoaderSettings
from models.learner import Learner, MapsLearner
from utils import distributed
from utils.devices import synchronised_time
from utils.errors import UserError

ROUNDS = 3  # passes that are timed in each way; the fastest counts
LEAST_GAIN = 1.05  # below it, what is gained is no more than what timings differ by


def require_compilable(learner: Learner) -> None:
    """Refuse a network whose training step has no one pass that could be compiled.

    Raises:
        UserError: says why.
    """
    if not isinstance(learner, MapsLearner):
        why = f"a training step does not call {learner.network.cfg_path} as one, so that nothing would be compiled"
        raise UserError(f"--compile: leave it out; {why}")


def compile_network(learner: Learner, settings: LoaderSettings, batches: int) -> None:
    """Compile the network of a learner, and say what that costs and gains.

    Args:
        learner: whose network computes by the compiled form from now on; its weights and statistics stay as they are.
        settings: of the loader: images of a batch, nominal size of the input. Other sizes are compiled when they come.
        batches: that the run has yet to learn from.

    Raises:
        UserError: torch cannot compile here.
    """
    network, precision = learner.network, learner.amp_dtype
    before = {name: value.clone() for name, value in network.state_dict().items()}
    result: nn.Module = torch.compile(network)  # type: ignore[assignment]
    images = torch.rand(settings.batch_size, 3, *settings.image_hw, device=next(network.parameters()).device)
    images = images.contiguous(memory_format=torch.channels_last)
    was_training = network.training
    network.train()
    try:
        compiling = _seconds_of_pass(result, images, precision)
    except torch._dynamo.exc.TorchDynamoException as error:
        reason = " ".join(str(error).split("\n\n")[0].split())
        raise UserError(f"--compile: torch cannot compile here ({reason:.200}); leave it out") from error
    _seconds_of_pass(network, images, precision)
    plain, fast = (min(_seconds_of_pass(one, images, precision) for _ in range(ROUNDS)) for one in (network, result))
    network.zero_grad(set_to_none=True)
    network.load_state_dict(before)
    network.train(was_training)
    if distributed.is_main():
        print(f"--compile: {verdict(plain, fast, compiling, batches)}")
    learner.network = result


def verdict(plain: float, fast: float, compiling: float, batches: int) -> str:
    """Return in words whether compiling pays.

    Args:
        plain: seconds of a forward and backward pass as it is.
        fast: the same of the compiled network.
        compiling: seconds until it was compiled.
        batches: that the run has yet to learn from.
    """
    words = f"it took {compiling:.0f} s, a pass takes {fast * 1e3:.0f} instead of {plain * 1e3:.0f} ms"
    if plain < fast * LEAST_GAIN:
        return f"does not pay on this machine: {words}; leave it out"
    needed = int(compiling / (plain - fast)) + 1
    if needed > batches:
        return f"does not pay in this run of {batches:,} batches: {words}, which pays after {needed:,}"
    return f"pays after {needed:,} of {batches:,} batches: {words}"


def _seconds_of_pass(network: nn.Module, images: torch.Tensor, precision: torch.dtype | None) -> float:
    """Return how long a forward and a backward pass take."""
    start = synchronised_time(images.device)
    with torch.autocast(images.device.type, dtype=precision, enabled=precision is not None):
        raw_maps = network(images)
    torch.stack([raw.float().square().mean() for raw in _tensors(raw_maps)]).sum().backward()
    return synchronised_time(images.device) - start


def _tensors(raw_maps: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors of what a network returns: maps, or lists of them."""
    if isinstance(raw_maps, torch.Tensor):
        yield raw_maps
    else:
        for part in raw_maps:
            yield from _tensors(part)
