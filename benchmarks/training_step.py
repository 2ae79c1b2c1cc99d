"""Seconds of a training step, channels-last as train.py runs it against the plain layout, in one process, alternating.

Between them it is taken with a fused optimizer step, as train.py takes it on a GPU only.

Batch 8 with 7 objects per image, SGD: v3-tiny at 416, v3-spp at 320, nano at 320. On two cores of a Cascade Lake Xeon,
ultralytics/yolov3 at 97b87b1 needed 1.48 s for v3-tiny and 8.23 s for v3-spp; only the ratio within one run carries
over to another machine.

Run: ``python -m benchmarks.training_step [--cfg yolov3-tiny.cfg --img-size 416] [--repeats 5]``
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.harness import random_targets
from engine.optimizer import OptimizerOptions, build_optimizer
from models.assignment.options import AssignmentOptions
from models.head_biases import initialise_head_biases
from models.loss import DetectionLoss, LossOptions, build_loss
from models.network import Network, build_network
from utils.config import find_file, option, parse_options
from utils.devices import amp_dtype, choose_device, describe_device, synchronised_time, use_threads
from utils.errors import run_command
from utils.files import write_json_atomically
from utils.structures import Targets

CASES = (("yolov3-tiny.cfg", 416), ("yolov3-spp.cfg", 320), ("yolov3-nano.cfg", 320))
CONTESTANTS = {  # name -> memory layout, and whether the optimizer's steps are fused
    "channels-last": (torch.channels_last, False),
    "fused": (torch.channels_last, True),
    "plain": (torch.contiguous_format, False),
}
PARTS = ("forward", "loss", "backward", "optimizer")


@dataclass(frozen=True)
class TrainingStepOptions:
    """What to time."""

    cfg: str = option("", "one network; default: v3-tiny, v3-spp and nano")
    img_size: int = option(320, "side of its input in pixels")
    batch_size: int = option(8, "images per step")
    objects: int = option(7, "objects per image")
    repeats: int = option(5, "timed steps of each contestant; the median counts")
    device: str = option("", "cpu or a CUDA device")


@dataclass
class Contestant:
    """One network in one memory layout, with all that a training step needs."""

    network: Network
    layout: torch.memory_format
    loss_function: DetectionLoss
    optimizer: torch.optim.Optimizer
    seconds: dict[str, list[float]] = field(default_factory=lambda: {part: [] for part in PARTS})

    @classmethod
    def build(cls, cfg: str, layout: torch.memory_format, fused: bool, device: torch.device) -> Contestant:
        """Build the network with fixed random weights."""
        torch.manual_seed(0)
        network = build_network(find_file(cfg, "cfg"))
        initialise_head_biases(network)
        network = network.to(device).to(memory_format=layout).train()
        loss_function = build_loss(LossOptions(), AssignmentOptions(), network.heads)
        optimizer = build_optimizer(network, OptimizerOptions(lr0=1e-4), 64, fused)
        return cls(network, layout, loss_function, optimizer)

    def step(self, images: Tensor, targets: Targets) -> None:
        """Take one training step and note how long each part took."""
        marks = [synchronised_time(images.device)]
        dtype = amp_dtype(images.device)
        with torch.autocast(images.device.type, dtype=dtype, enabled=dtype is not None):
            raw_maps = self.network(images.contiguous(memory_format=self.layout))
        marks.append(synchronised_time(images.device))
        loss = self.loss_function(raw_maps, targets).total
        marks.append(synchronised_time(images.device))
        loss.backward()
        marks.append(synchronised_time(images.device))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        marks.append(synchronised_time(images.device))
        for part, start, end in zip(PARTS, marks, marks[1:], strict=False):
            self.seconds[part].append(end - start)

    def medians(self) -> dict[str, float]:
        """Return the median seconds of each part and of the whole step, the warm-up step left out."""
        steps = list(zip(*self.seconds.values(), strict=True))[1:]
        parts = {part: statistics.median(times[1:]) for part, times in self.seconds.items()}
        return {"step": statistics.median(map(sum, steps)), **parts}


def main() -> None:
    """Time all cases and print one table; write it to runs/benchmarks/training_step.json."""
    (options,) = parse_options(__doc__.splitlines()[0], TrainingStepOptions)
    device = choose_device(options.device)
    use_threads()
    print(f"batch {options.batch_size}, {options.objects} objects per image, {describe_device(device)}")
    print(
        f"{'network':18}{'size':>5} {'layout':14}{'step s':>8}{'img/s':>8}" + "".join(f"{part:>11}" for part in PARTS)
    )
    rows = []
    for cfg, size in [(options.cfg, options.img_size)] if options.cfg else CASES:
        contestants = {name: Contestant.build(cfg, *how, device) for name, how in CONTESTANTS.items()}
        classes = contestants["plain"].network.num_classes
        images = torch.rand(options.batch_size, 3, size, size, device=device)
        targets = random_targets(options.batch_size, options.batch_size * options.objects, classes, device)
        for _ in range(options.repeats + 1):
            for contestant in contestants.values():
                contestant.step(images, targets)
        medians = {name: contestant.medians() for name, contestant in contestants.items()}
        for name, times in medians.items():
            parts = "".join(f"{times[part]:11.3f}" for part in PARTS)
            print(f"{cfg:18}{size:5} {name:14}{times['step']:8.3f}{options.batch_size / times['step']:8.1f}{parts}")
            rows.append({"cfg": cfg, "size": size, "layout": name, **times})
        print(f"{'':24}plain / channels-last: {medians['plain']['step'] / medians['channels-last']['step']:.2f}")
    write_json_atomically(Path("runs/benchmarks/training_step.json"), rows)


if __name__ == "__main__":
    run_command(main)
