"""The optimizer, its three parameter groups, and the learning rate and momentum of every step."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import nn

from engine.iteration_rates import POLICIES, IterationOptions, rate_factor
from models.detection_network import DetectionNetwork
from utils.config import option

AUTO = "auto"
SHORT_RUN = 10_000  # batches; a run of fewer has AdamW with --optimizer auto
CHOSEN_BY_AUTO = ("lr0", "momentum", "accumulate")  # besides the optimizer
ONE_CYCLE = "one-cycle"
AUTO_BATCH = -1  # images per batch: as many as fit (--batch-size auto)
NOMINAL_BATCH = 64  # images per optimizer step that the learning rate and the weight decay are meant for


@dataclass(frozen=True)
class OptimizerOptions(IterationOptions):
    """Optimizer and learning-rate schedule."""

    optimizer: str = option(
        "SGD",
        "SGD has Nesterov momentum; Adam and AdamW need a smaller --lr0, such as 0.001; auto: AdamW for a short run, a "
        "step after every batch",
        ("SGD", "Adam", "AdamW", AUTO),
    )
    lr0: float = option(0.01, "learning rate after the warm-up")
    lrf: float = option(0.01, "last learning rate as a share of --lr0")
    schedule: str = option(
        "cosine",
        "how the learning rate goes: falls over the epochs (cosine, linear), rises and falls over the batches "
        "(one-cycle), or by Darknet's policies over the iterations",
        choices=("cosine", "linear", ONE_CYCLE, *POLICIES),
    )
    one_cycle_start: float = option(0.04, "first learning rate of --schedule one-cycle as a share of --lr0")
    one_cycle_rise: float = option(0.3, "share of the batches in which it rises from there to --lr0")
    one_cycle_momentum: float = option(0.85, "its momentum where the rate is highest; --momentum at both ends")
    layer_decay: float = option(1.0, "learning rate of each layer as a share of the next layer's; the heads have --lr0")
    momentum: float = option(0.937, "SGD momentum, or Adam's beta1")
    nesterov: bool = option(True, "Nesterov's form of SGD momentum; Darknet has the plain one")
    beta2: float = option(0.999, "Adam's second decay rate")
    adam_eps: float = option(1e-8, "what Adam adds to the root of its second moment")
    weight_decay: float = option(5e-4, "for the weights of convolutions, per nominal batch of 64 images")
    warmup_epochs: float = option(3.0, "length of the warm-up, but at least 100 batches and at most half of the run")
    warmup_momentum: float = option(0.8, "momentum at the start of the warm-up")
    warmup_bias_lr: float = option(0.1, "learning rate of the biases at the start of the warm-up")
    clip_norm: float = option(10.0, "largest gradient norm; larger gradients are scaled down to it, 0 for never")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lr0 <= 0 or not 0 <= self.lrf <= 1:
            raise ValueError(f"--lr0 must be positive and --lrf in 0..1, not {self.lr0} and {self.lrf}")
        if not 0 <= self.momentum < 1 or not 0 <= self.warmup_momentum < 1:
            raise ValueError(
                f"--momentum and --warmup-momentum must be in 0..1, not {self.momentum}, {self.warmup_momentum}"
            )
        if min(self.weight_decay, self.warmup_epochs, self.clip_norm) < 0:
            raise ValueError("--weight-decay, --warmup-epochs and --clip-norm must not be negative")
        if not 0 <= self.beta2 < 1 or self.adam_eps <= 0:
            raise ValueError(f"--beta2 must be in 0..1 and --adam-eps positive, not {self.beta2}, {self.adam_eps}")
        if self.burn_in and self.schedule not in POLICIES:
            raise ValueError(f"--burn-in is for --schedule {', '.join(POLICIES)}; {self.schedule} has --warmup-epochs")
        if not 0 < self.one_cycle_start <= 1 or not 0 < self.one_cycle_rise < 1 or not 0 <= self.one_cycle_momentum < 1:
            raise ValueError("--one-cycle-start, --one-cycle-rise and --one-cycle-momentum must be between 0 and 1")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"--layer-decay must be above 0 and at most 1, not {self.layer_decay}")
        if self.schedule == "steps" and not self.lr_steps:
            raise ValueError("--schedule steps needs --lr-steps and --lr-scales")
        if self.schedule in ("poly", "sgdr") and not (self.max_batches or (self.schedule == "sgdr" and self.lr_cycle)):
            raise ValueError(f"--schedule {self.schedule} needs --max-batches")


def resolve_auto(options: OptimizerOptions, batches: int, num_classes: int) -> OptimizerOptions:
    """Return the options with an optimizer instead of ``auto``: AdamW for a short run, else SGD with what they say.

    The learning rate and momentum of AdamW are those of ultralytics' ``optimizer=auto`` (8.x), which has them for runs
    of up to 10,000 steps of 64 images. Here a step follows every batch. How much that gains is in docs/training.md.

    Args:
        options: as given.
        batches: of the whole run.
        num_classes: of the data set.
    """
    if options.optimizer != AUTO:
        return options
    if batches >= SHORT_RUN:
        return replace(options, optimizer="SGD")
    return replace(options, optimizer="AdamW", lr0=round(0.01 / (4 + num_classes), 6), momentum=0.9)


def build_optimizer(
    model: nn.Module, options: OptimizerOptions, images_per_step: int, fused: bool | None = None
) -> torch.optim.Optimizer:
    """Return the optimizer with three groups, in this order: biases, normalisation weights, all other weights.

    Only the last group decays, by an amount scaled with ``images_per_step / 64``, as in ultralytics/yolov5 v7.0
    (train.py). Frozen parameters are in no group. With ``--layer-decay`` each part of the network has three groups.

    Args:
        model: on its device.
        options: kind, rates and decay.
        images_per_step: of the training.
        fused: one kernel for all parameters instead of one for each operation; None: on a GPU. On a CPU it would save a
            hundredth of a step, and its rounding is another. A resumed run goes on with what it began with.
    """
    decay = options.weight_decay * images_per_step / NOMINAL_BATCH
    groups = _three_groups(model, decay)
    if options.layer_decay < 1:
        scales = layer_scales(cast(DetectionNetwork, model), options.layer_decay)
        groups = [group | {"lr_scale": scale} for part, scale in scales for group in _three_groups(part, decay)]
    if fused is None:
        fused = next(model.parameters()).is_cuda
    fused = fused or None  # None leaves the choice among the other ways to torch
    if options.optimizer != "SGD":
        kind = {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}[options.optimizer]
        betas = (options.momentum, options.beta2)
        return kind(groups, lr=options.lr0, betas=betas, eps=options.adam_eps, fused=fused)
    nesterov = options.nesterov and options.momentum > 0
    optimizer = torch.optim.SGD(groups, lr=options.lr0, momentum=options.momentum, nesterov=nesterov, fused=fused)
    if fused and max(options.momentum, options.warmup_momentum):
        # torch would begin with memory as it finds it, and keep that where float16 leaves out the first step.
        for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def _three_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return biases, normalisation weights and all other weights of a model, or of a part of one."""
    biases, norms, weights = [], [], []
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            if name == "bias":
                biases.append(parameter)
            elif isinstance(module, nn.BatchNorm2d) or parameter.ndim <= 1:
                norms.append(parameter)
            else:
                weights.append(parameter)
    return [
        {"params": biases, "weight_decay": 0.0},
        {"params": norms, "weight_decay": 0.0},
        {"params": weights, "weight_decay": weight_decay},
    ]


def layer_scales(network: DetectionNetwork, decay: float) -> list[tuple[nn.Module, float]]:
    """Return each part of a network that has parameters, from the input on, with the factor on its learning rate.

    The parts that predict have 1 wherever they stand, of the others the k-th from the end ``decay ** k``, as in timm
    and BEiT (arXiv 2106.08254).
    """
    predicting = set(network.parts_that_predict())
    scales, scale = [], 1.0
    for index, part in reversed(list(enumerate(network.parts()))):
        if index in predicting:
            scales.append((part, 1.0))
        elif any(True for _ in part.parameters()):
            scale *= decay
            scales.append((part, scale))
    return scales[::-1]


@dataclass(frozen=True)
class Schedule:
    """Learning rate, momentum and accumulation as functions of the batch alone, so that a resumed run needs no state.

    The warm-up follows ultralytics/yolov5 v7.0 (train.py), but takes at most half of the run: all three go in a
    straight line from a first value to that of the training. The learning rate of the training falls once per epoch,
    or by the iteration: a batch of ``accumulate`` batches, the last of an epoch perhaps of fewer.
    """

    options: OptimizerOptions
    epochs: int
    batches_per_epoch: int
    accumulate: int  # batches per optimizer step after the warm-up

    @property
    def warmup_batches(self) -> int:
        """Length of the warm-up, in batches."""
        if self.options.warmup_epochs == 0 or self.options.schedule == ONE_CYCLE:  # which has a rise of its own
            return 0
        wanted = max(round(self.options.warmup_epochs * self.batches_per_epoch), 100)
        return min(wanted, self.epochs * self.batches_per_epoch // 2)

    def decay(self, epoch: int) -> float:
        """Return the factor on ``lr0`` in an epoch counted from 0: 1 in the first, ``lrf`` in the last."""
        progress = epoch / max(1, self.epochs - 1)  # 0..1; a run of one epoch stays at 1
        if self.options.schedule == "cosine":
            progress = (1 - math.cos(math.pi * progress)) / 2
        return 1 + (self.options.lrf - 1) * progress

    def iteration(self, batch: int) -> int:
        """Return the optimizer step, from 1, that ``batch`` belongs to, counted over the whole run."""
        epoch, number = divmod(batch, self.batches_per_epoch)
        return epoch * math.ceil(self.batches_per_epoch / self.accumulate) + number // self.accumulate + 1

    def factor(self, batch: int) -> float:
        """Return the factor on ``lr0``, warm-up aside, at ``batch``, counted over the whole run."""
        options = self.options
        if options.schedule == ONE_CYCLE:
            return self.one_cycle(batch, options.one_cycle_start, 1.0, options.lrf)
        if options.schedule in POLICIES:
            return rate_factor(options.schedule, options, options.lrf, self.iteration(batch))
        return self.decay(batch // self.batches_per_epoch)

    def one_cycle(self, batch: int, first: float, middle: float, last: float) -> float:
        """Return a value that goes by two half cosines from ``first`` to ``middle`` and from there to ``last``.

        As in torch.optim.lr_scheduler.OneCycleLR (arXiv 1708.07120), with a batch for its step.
        """
        end = max(1, self.epochs * self.batches_per_epoch - 1)  # the last batch
        top = max(self.options.one_cycle_rise * (end + 1) - 1, 0.0)
        if batch <= top:
            start, goal, progress = first, middle, batch / top if top else 1.0
        else:
            start, goal, progress = middle, last, min(1.0, (batch - top) / (end - top))
        return goal + (start - goal) * (1 + math.cos(math.pi * progress)) / 2

    def momentum(self, batch: int, warmup_factor: float) -> float:
        """Return the momentum, or Adam's beta1, at ``batch``."""
        options = self.options
        if options.schedule == ONE_CYCLE:
            return self.one_cycle(batch, options.momentum, options.one_cycle_momentum, options.momentum)
        return options.warmup_momentum + (options.momentum - options.warmup_momentum) * warmup_factor

    def accumulation(self, batch: int) -> int:
        """Return how many batches make one optimizer step at ``batch``, counted over the whole run."""
        if batch >= self.warmup_batches:
            return self.accumulate
        return max(1, round(1 + (self.accumulate - 1) * batch / self.warmup_batches))

    def set_rates(self, optimizer: torch.optim.Optimizer, batch: int) -> None:
        """Write learning rate and momentum for ``batch``, counted over the whole run, into the parameter groups."""
        target_lr = self.options.lr0 * self.factor(batch)
        # Batch 0 has a factor above 0, so that the first step moves the weights, too.
        warmup_factor = min(1.0, (batch + 1) / self.warmup_batches) if self.warmup_batches else 1.0
        momentum = self.momentum(batch, warmup_factor)
        for index, group in enumerate(optimizer.param_groups):
            # The rate of the biases, the first of three groups, comes from above; all others come from 0.
            start_lr = self.options.warmup_bias_lr if index % 3 == 0 and self.options.optimizer == "SGD" else 0.0
            group["lr"] = (start_lr + (target_lr - start_lr) * warmup_factor) * group.get("lr_scale", 1.0)
            if "momentum" in group:
                group["momentum"] = momentum
            elif self.options.schedule == ONE_CYCLE:
                group["betas"] = (momentum, self.options.beta2)
