"""One epoch of training, and everything that a resumed run needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields, replace
from typing import Any, Generic

import torch
from torch import nn

from data.loader import Batches
from engine.ema import AveragedModel, Model
from engine.optimizer import Schedule
from engine.profiling import UNTIMED, StepClock
from engine.progress import Progress, share_of_process
from models.detection_network import DetectionNetwork
from models.synced_norm import synchronise_norms
from utils import distributed
from utils.errors import UserError
from utils.structures import Batch

# A step whose float16 gradients overflow is left out and the scale of the loss halved; below this scale the run ends.
SMALLEST_LOSS_SCALE = 1.0


@dataclass
class TrainState(Generic[Model]):
    """Everything a resumed run needs; what is not here must be a function of the options."""

    model: Model
    average: AveragedModel[Model]  # what is tested, saved as best and used for detection
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    epoch: int = 0  # epochs finished
    best_fitness: float = -1.0
    best_epoch: int = 0  # that had it, from 1
    history: list[dict[str, float]] = field(default_factory=list)  # one row per epoch, as in results.csv
    class_ap: list[float] = field(default_factory=list)  # of the last test, -1 where not defined; --image-weights
    progress: Progress = field(default_factory=Progress)  # of this process, in the epoch that has begun
    # What every process needs to go on from this very moment; None while a step is made, or after it was finished.
    resume_point: list[Progress] | None = None

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def take_resume_point(self) -> None:
        """Let the state be saved as it is now, after an optimizer step; all processes together."""
        if distributed.world_size() == 1:
            self.resume_point = [self.progress]
        else:
            self.resume_point = distributed.gather(self.progress.taken(self.device))

    def end_epoch(self) -> None:
        """Count an epoch that is finished; the next one has no progress yet."""
        self.resume_point = None
        self.progress = Progress()
        self.epoch += 1

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
            "best_epoch": self.best_epoch,
            "history": self.history,
            "class_ap": self.class_ap,
            "progress": [part.taken(self.device).state_dict() for part in self.resume_point or ()],
        }

    def load_state_dict(self, content: dict[str, Any]) -> None:
        """Continue exactly where :meth:`state_dict` was taken."""
        self.model.load_state_dict(content["model"])
        self.average.model.load_state_dict(content["ema"])
        self.average.updates = content["ema_updates"]
        self.optimizer.load_state_dict(content["optimizer"])
        if content["scaler"]:  # empty where the run had no float16, as on a CPU
            self.scaler.load_state_dict(content["scaler"])
        self.epoch = content["epoch"]
        self.best_fitness = content["best_fitness"]
        self.best_epoch = content.get("best_epoch", self.epoch)  # older checkpoints do not know it
        self.history = content["history"]
        self.class_ap = list(content.get("class_ap", ()))
        parts = [Progress.from_state_dict(part) for part in content.get("progress", ())]  # older ones: between epochs
        self.progress = share_of_process(parts, distributed.rank(), distributed.world_size())


def train_one_epoch(
    state: TrainState,
    learner: nn.Module,
    batches: Batches | Sequence[Batch],
    schedule: Schedule,
    report: Callable[[dict[str, float], Batch], None],
    after_step: Callable[[bool], None] = lambda is_last: None,
    clock: StepClock = UNTIMED,
) -> tuple[dict[str, float], Any]:
    """Go once through the batches, or through those that a resumed run has not learned from.

    Args:
        state: model, average, optimizer, scaler and progress, all changed in place.
        learner: a :class:`models.learner.Learner` of ``state.model``, wrapped for processes where there are several.
        batches: of one epoch; their number is that of all, also where the first are left out.
        schedule: rates and accumulation of every step.
        report: called after every batch with the running mean of the loss parts and the batch, for the progress bar.
        after_step: called after every optimizer step with whether it was the last of the epoch, to save the state.
        clock: is told which part of a step is computed.

    Returns:
        The mean of each loss part per image, and the sum of the counts of all matches.

    Raises:
        UserError: the loss is not finite; the message names the images of the batch.
    """
    set_training_mode(state.model)
    device = state.device
    progress = state.progress = state.progress.resumed(device)
    waiting = 0  # batches whose gradients are summed for the next step
    for number, batch in enumerate(clock.waiting(batches), start=progress.batches):
        state.resume_point = None
        position = state.epoch * len(batches) + number  # batches since the run began
        schedule.set_rates(state.optimizer, position)

        # Sum the gradients of several batches, then step; the last batch of an epoch steps in any case.
        with clock.part("to device"):
            batch = batch.to(device)
        waiting += 1
        is_last = number == len(batches) - 1
        is_step = waiting >= schedule.accumulation(position) or is_last
        with exchange_gradients(learner, is_step):
            parts, batch_counts = add_gradients(state, learner, batch, clock)
        if is_step:
            with clock.part("optimizer"):
                is_sound = optimizer_step(state, schedule.options.clip_norm)
            if not is_sound:
                _refuse_batch(batch, f"the gradient is not finite (the loss is: {parts})", state)

        # The loss parts are sums over images, the running mean is per image.
        progress.add(len(batch.images), parts, batch_counts)
        progress.batches = number + 1
        report(progress.means(), batch)
        clock.end_step()
        if is_step:
            waiting = 0
            after_step(is_last)
    return _mean_over_processes(progress.totals, progress.images, device), _sum_over_processes(progress.counts)


def add_gradients(
    state: TrainState, learner: nn.Module, batch: Batch, clock: StepClock = UNTIMED
) -> tuple[dict[str, float], Any]:
    """Add a batch's gradients to those that wait for the next step; return its loss parts and match counts.

    Raises:
        UserError: the loss is not finite.
    """
    images = batch.images.contiguous(memory_format=torch.channels_last).float() / 255  # B 3 H W, 0..1
    result = learner(images, batch.targets, batch.crowd)
    values = torch.stack([part.detach().double() for part in result.parts.values()]).tolist()  # one wait for a GPU
    parts = dict(zip(result.parts, values, strict=True))
    if not all(map(math.isfinite, values)):
        _refuse_batch(batch, f"the loss is not finite ({parts})", state)
    # DistributedDataParallel averages over processes; the loss is a sum over images, so undo that.
    with clock.part("backward"):
        state.scaler.scale(result.total * distributed.world_size()).backward()
    return parts, result.counts


def is_over(epoch: int, best_epoch: int, epochs: int, patience: int) -> bool:
    """Whether a run ends after ``epoch``: its last one, or ``patience`` (0: any number) epochs after its best one."""
    return epoch >= epochs or 0 < patience <= epoch - best_epoch


def freeze_layers(network: DetectionNetwork, numbers: Sequence[int]) -> list[int]:
    """Freeze parts of a network, a cfg's layers, and those that no head reads; return their numbers without the latter.

    The latter get no gradients, for which DistributedDataParallel would wait.

    Args:
        network: its parts.
        numbers: one is a count, the first so many parts; several are the parts themselves, from 0.

    Raises:
        UserError: there is no such layer, or no parameter is left to train.
    """
    parts = network.parts()
    count = len(parts)
    frozen = list(range(min(numbers[0], count))) if len(numbers) == 1 else sorted(set(numbers))
    if frozen and frozen[-1] >= count:
        raise UserError(f"--freeze {frozen[-1]}: {network.cfg_path} has the layers 0 to {count - 1}")
    for index in (*frozen, *network.parts_without_effect()):
        parts[index].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise UserError(
            f"--freeze {' '.join(map(str, numbers))} leaves nothing to learn: {network.cfg_path} has {count} layers"
        )
    return frozen


def set_training_mode(model: nn.Module) -> None:
    """Put the model into training mode, except frozen batch norms, whose statistics must not move either."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and not module.weight.requires_grad:
            module.eval()


def optimizer_step(state: TrainState, clip_norm: float) -> bool:
    """Clip the gradients, take one optimizer step and move the average.

    Returns:
        False, with the weights unchanged, if the gradients are not finite. While a gradient scaler looks for its scale,
        such steps are normal: they are left out, and only a scale below SMALLEST_LOSS_SCALE is a failure.
    """
    state.scaler.unscale_(state.optimizer)
    # The gradients are unscaled now; without a limit this only measures their norm.
    norm = torch.nn.utils.clip_grad_norm_(state.model.parameters(), clip_norm or math.inf)
    is_finite = bool(torch.isfinite(norm))
    if is_finite or state.scaler.is_enabled():
        state.scaler.step(state.optimizer)  # which leaves out a step that is not finite
        state.scaler.update()
        state.optimizer.zero_grad(set_to_none=True)
    if is_finite:
        state.average.update(state.model)
    return is_finite or (state.scaler.is_enabled() and state.scaler.get_scale() >= SMALLEST_LOSS_SCALE)


def wrap_for_processes(model: nn.Module, device: torch.device, sync_norms: bool = False) -> nn.Module:
    """Return the model wrapped for ``torchrun``, or as it is in a single process.

    Args:
        model: on the device.
        device: of this process.
        sync_norms: batch norms take the statistics of the images of all processes.
    """
    if distributed.world_size() == 1:
        return model
    if sync_norms:
        synchronise_norms(model)
    ids = [device.index] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(model, device_ids=ids)


def exchange_gradients(learner: nn.Module, is_step: bool) -> AbstractContextManager[None]:
    """Within this block a backward pass averages the gradients over all processes, but only if a step follows."""
    if isinstance(learner, nn.parallel.DistributedDataParallel) and not is_step:
        return learner.no_sync()
    return nullcontext()


def _mean_over_processes(totals: dict[str, float], images: int, device: torch.device) -> dict[str, float]:
    """Return each total divided by the number of images, both summed over all processes in one exchange."""
    values = torch.tensor([*totals.values(), images], dtype=torch.float64, device=device)
    *sums, count = distributed.sum_over_processes(values).tolist()
    return {name: value / count for name, value in zip(totals, sums, strict=True)}


def _sum_over_processes(counts: Any) -> Any:
    """Return the sums of a dataclass of tensors over all processes, None where there is none."""
    if counts is None or distributed.world_size() == 1:
        return counts
    return replace(
        counts, **{item.name: distributed.sum_over_processes(getattr(counts, item.name)) for item in fields(counts)}
    )


def _refuse_batch(batch: Batch, what: str, state: TrainState) -> None:
    """Raise a UserError that names the images of a batch and what to try."""
    paths = ", ".join(meta.path for meta in batch.metas)
    amp = ", try --no-amp" if state.scaler.is_enabled() else ""
    raise UserError(
        f"{what} in epoch {state.epoch + 1}, batch of {paths}; look at these labels{amp} or lower --lr0; "
        "the last checkpoint is from before it"
    )
