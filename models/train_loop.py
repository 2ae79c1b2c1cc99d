"""One epoch of training, and everything that a resumed run needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from utils import distributed
from utils.ema import AveragedModel
from utils.errors import UserError
from utils.optimizer import Schedule
from utils.records import Batch
from utils.seeding import random_state, restore_random_state


@dataclass
class TrainState:
    """Everything a resumed run needs; what is not here must be a function of the options."""

    model: nn.Module
    average: AveragedModel  # what is tested, saved as best and used for detection
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    epoch: int = 0  # epochs finished
    best_fitness: float = -1.0
    history: list[dict[str, float]] = field(default_factory=list)  # one row per epoch, as in results.csv

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain values only, so that the file loads with ``weights_only=True``."""
        return {
            "model": self.model.state_dict(),
            "ema": self.average.model.state_dict(),
            "ema_updates": self.average.updates,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "epoch": self.epoch,
            "best_fitness": self.best_fitness,
            "history": self.history,
            "random": random_state(),
        }

    def load_state_dict(self, content: dict[str, Any]) -> None:
        """Continue exactly where :meth:`state_dict` was taken."""
        self.model.load_state_dict(content["model"])
        self.average.model.load_state_dict(content["ema"])
        self.average.updates = content["ema_updates"]
        self.optimizer.load_state_dict(content["optimizer"])
        self.scaler.load_state_dict(content["scaler"])
        self.epoch = content["epoch"]
        self.best_fitness = content["best_fitness"]
        self.history = content["history"]
        restore_random_state(content["random"])


def train_one_epoch(
    state: TrainState,
    network: nn.Module,
    batches: Any,
    loss_function: Callable,
    schedule: Schedule,
    amp_dtype: torch.dtype | None,
    report: Callable[[dict[str, float], Batch], None],
) -> tuple[dict[str, float], Any]:
    """Go once through the batches.

    Args:
        state: model, average, optimizer and scaler, all changed in place.
        network: ``state.model``, wrapped for several processes where there are several.
        batches: an iterable with a length over :class:`Batch`.
        loss_function: ``(raws, targets, crowd) -> LossResult``.
        schedule: rates and accumulation of every step.
        amp_dtype: the type of mixed precision, None for float32 throughout.
        report: called after every batch with the running mean of the loss parts and the batch, for the progress bar.

    Returns:
        The mean of each loss part per image, and the sum of the counts of all matches.

    Raises:
        UserError: the loss is not finite; the message names the images of the batch.
    """
    set_training_mode(state.model)
    device = next(state.model.parameters()).device
    totals: dict[str, Tensor] = {}
    counts = None
    images_seen = waiting = 0
    for number, batch in enumerate(batches):
        position = state.epoch * len(batches) + number
        schedule.set_rates(state.optimizer, position)

        batch = batch.to(device)
        images = batch.images.contiguous(memory_format=torch.channels_last).float() / 255
        with torch.autocast(device.type, dtype=amp_dtype, enabled=amp_dtype is not None):
            raws = network(images)
        result = loss_function(raws, batch.targets, batch.crowd)
        loss = sum(result.parts.values())
        if not torch.isfinite(loss):
            _refuse_batch(batch, result.parts, state.epoch)

        # DistributedDataParallel averages over processes; the loss is a sum over images, so undo that.
        state.scaler.scale(loss * distributed.world_size()).backward()
        waiting += 1
        if waiting >= schedule.accumulation(position) or number == len(batches) - 1:
            optimizer_step(state, schedule.options.clip_norm)
            waiting = 0

        images_seen += len(images)
        for name, value in result.parts.items():
            totals[name] = totals.get(name, 0) + value.detach()
        counts = result.counts if counts is None else counts + result.counts
        report({name: float(total) / images_seen for name, total in totals.items()}, batch)
    return _mean_over_processes(totals, images_seen, device), counts


def set_training_mode(model: nn.Module) -> None:
    """Put the model into training mode, but for frozen batch norms, whose statistics must not move either."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and not module.weight.requires_grad:
            module.eval()


def optimizer_step(state: TrainState, clip_norm: float) -> None:
    """Clip the gradients, take one optimizer step and move the average."""
    state.scaler.unscale_(state.optimizer)
    if clip_norm:
        torch.nn.utils.clip_grad_norm_(state.model.parameters(), clip_norm)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    state.average.update(state.model)


def wrap_for_processes(model: nn.Module, device: torch.device) -> nn.Module:
    """Return the model wrapped for ``torchrun``, or as it is in a single process."""
    if distributed.world_size() == 1:
        return model
    ids = [device.index] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(model, device_ids=ids)


def _mean_over_processes(totals: dict[str, Tensor], images: int, device: torch.device) -> dict[str, float]:
    values = torch.stack(
        [*(total.double() for total in totals.values()), torch.tensor(float(images), device=device).double()]
    )
    *sums, count = distributed.sum_over_processes(values).tolist()
    return {name: value / count for name, value in zip(totals, sums, strict=True)}


def _refuse_batch(batch: Batch, parts: dict[str, Tensor], epoch: int) -> None:
    shown = ", ".join(f"{name} {float(value):g}" for name, value in parts.items())
    paths = ", ".join(frame.path for frame in batch.frames)
    raise UserError(
        f"the loss is not finite ({shown}) in epoch {epoch + 1}, batch of {paths}; "
        "last.pt holds the last good epoch; look at these labels or lower --lr0"
    )
