"""What matching costs, per strategy: milliseconds, positives, peak memory, share of a training step.

YOLOv3's three heads at 640, random predictions near their anchors, 16 images x 7 objects and 64 x 20; the peak memory
at 64 x 100, where it must stay under 1 GiB; and one batch with 1 to 10,000 targets. A training step is the forward
and backward pass (yolov3.cfg, timed on ``--step-images`` images and scaled to the batch), this loss included.

Run: ``python -m benchmarks.assignment [--strategies standard fast] [--device 0] [--no-step] [--no-sweep]``
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TextIO

import torch
from torch import Tensor

from benchmarks.harness import Timing, peak_mib, random_maps, random_targets, time_ms, yolov3_heads
from docs.document import write_part
from models.assignment.assigner import Assigner, build_assigner
from models.assignment.grid import grid_of_maps
from models.assignment.options import AssignmentOptions
from models.assignment.strategies import STRATEGIES, reads_predictions, strategies_for
from models.heads import Head
from models.loss import LossOptions, build_loss
from models.network import build_network
from utils.config import find_file, option, parse_options
from utils.devices import choose_device, describe_device, synchronised_time, use_threads
from utils.errors import run_command
from utils.structures import Assignment, Targets

SIZE, CLASSES = 640, 80
CASES = ((16, 7), (64, 20))
SWEEP = (1, 10, 100, 1000, 10_000)
MEMORY_CASE, MEMORY_LIMIT = (64, 100), 1024  # MiB
# ms at 16 x 7, of PRIOR_ONLY; ultralytics/yolov3 at 97b87b1 and yolov5 at 5081342 took 1.9 to 4.0 ms on two cores.
PRIOR_LIMIT = 2.0
IN_PLACE = ("maxiou",)  # compare every anchor in its place, which costs as much as to compare predictions
FAST_SHARE = 1 / 3  # of the time of split on the same map, for fast
MORE_VARIANTS: dict[str, dict[str, dict[str, Any]]] = {  # options that change what a strategy has to do
    "standard": {"standard --match-anchors best": {"match_anchors": "best"}},
    "darknet": {"darknet without ignoring": {"ignore_thresh": 1.0, "ignore_crowd": False}},
    "split": {"split on the map": {"candidates": "map"}},
    "fast": {
        "fast with every option": {"remove_duplicate": True, "reduce_anchor": True, "linear_reweight": 0.5},
    },
}
VARIANTS: dict[str, dict[str, Any]] = {
    label: {"match": name, **options}
    for name in strategies_for()
    for label, options in {name: {}, **MORE_VARIANTS.get(name, {})}.items()
}


def decides_by_priors(options: Mapping[str, Any]) -> bool:
    """Whether a variant looks at no prediction, neither to match nor to ignore slots."""
    return not reads_predictions(options["match"]) and (
        "ignore_thresh" in options or not STRATEGIES[options["match"]].ignores_by_default
    )


PRIOR_ONLY = tuple(
    label for label, options in VARIANTS.items() if decides_by_priors(options) and options["match"] not in IN_PLACE
)


@dataclass(frozen=True)
class AssignmentBenchmarkOptions:
    """What to time."""

    strategies: tuple[str, ...] = option((), "strategies to time; default: all", tuple(strategies_for()))
    device: str = option("", "cpu or a CUDA device")
    repeats: int = option(30, "runs of each measurement, for at most 5 s; the shortest counts: the rest is other load")
    step: bool = option(True, "time a training step of yolov3.cfg, for the shares")
    step_images: int = option(1, "images of that step")
    sweep: bool = option(True, "time 1 to 10,000 targets")
    memory: bool = option(True, "measure the memory at 64 x 100")
    write: bool = option(False, "put what is printed into docs/assignment.md")


def main() -> None:
    """Print the tables and say whether each limit holds; exit with status 1 where one does not."""
    (options,) = parse_options("What matching costs, per strategy.", AssignmentBenchmarkOptions)
    printed = _Copy(sys.stdout)
    with contextlib.redirect_stdout(printed):
        good = measure(options)
    if options.write:
        write_part("cost", printed.getvalue().strip())
    if not good:
        sys.exit(1)


class _Copy(io.StringIO):
    """Keeps what is written and passes it on at once."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self.stream = stream

    def write(self, text: str) -> int:
        self.stream.write(text)
        return super().write(text)

    def flush(self) -> None:
        self.stream.flush()


def measure(options: AssignmentBenchmarkOptions) -> bool:
    """Print every table that is asked for; return whether all limits hold."""
    device = choose_device(options.device)
    use_threads()
    heads = yolov3_heads(CLASSES)
    assigners = {}
    for name, values in VARIANTS.items():
        variant = AssignmentOptions(**values)
        if not options.strategies or variant.match in options.strategies:
            assigners[name] = build_assigner(variant, heads)
    print(f"{describe_device(device)}; {SIZE} x {SIZE}, heads of yolov3.cfg, {CLASSES} classes\n")

    seconds_per_image = step_seconds(options.step_images, device) if options.step else None
    times = {}
    for case in CASES:
        times[case] = print_case(case, assigners, heads, device, options.repeats, seconds_per_image)
    print_loss(heads, device, options.repeats)
    if options.sweep:
        print_sweep(assigners, heads, device, options.repeats)
    memory = print_memory(assigners, heads, device) if options.memory else {}
    return print_verdicts(times[CASES[0]], memory)


def random_batch(
    images: int, objects: int, heads: tuple[Head, ...], device: torch.device
) -> tuple[list[Tensor], Targets]:
    """Return raw maps [B A H W 5+C] and the targets of so many objects per image."""
    return random_maps(images, heads, SIZE, device), random_targets(images, images * objects, CLASSES, device)


def step_seconds(images: int, device: torch.device) -> float:
    """Return the seconds of a training step of yolov3.cfg at 640, per image."""
    network = build_network(find_file("yolov3.cfg", "cfg"), num_classes=CLASSES)
    network = network.to(device).to(memory_format=torch.channels_last).train()
    loss_function = build_loss(LossOptions(), AssignmentOptions(), network.heads)
    pixels = torch.rand(images, 3, SIZE, SIZE, device=device).contiguous(memory_format=torch.channels_last)
    targets = random_targets(images, images * 7, CLASSES, device)

    def step() -> Tensor:
        network.zero_grad(set_to_none=True)
        loss = loss_function(network(pixels), targets).total
        loss.backward()
        return loss

    seconds = time_ms(step, device, 3).best_ms / 1e3 / images
    print(f"training step of yolov3.cfg: {seconds:.3f} s per image\n")
    return seconds


def matching(assigner: Assigner, targets: Targets, raw_maps: list[Tensor]) -> Callable[[], Assignment]:
    """Return the call that matches a batch."""
    return partial(assigner.match, targets, grid_of_maps(assigner.heads, raw_maps), raw_maps)


def print_case(
    case: tuple[int, int], assigners: dict[str, Assigner], heads: tuple[Head, ...], device: torch.device, repeats: int,
    seconds_per_image: float | None,
) -> dict[str, Timing]:  # fmt: skip
    """Print the table of one batch size; return how long each strategy takes."""
    images, objects = case
    raw_maps, targets = random_batch(images, objects, heads, device)
    print(f"| {images} x {objects} | ms, median | ms, best | base | extra | per object | peak MiB | share of a step |")
    print("|---|---|---|---|---|---|---|---|")
    times = {}
    for name, assigner in assigners.items():
        call = matching(assigner, targets, raw_maps)
        times[name] = timing = time_ms(call, device, repeats)
        base, extra = len(timing.result.base), len(timing.result.extra)
        peak = peak_mib(call, device)
        share = f"{timing.best_ms / 1e3 / (seconds_per_image * images):.3%}" if seconds_per_image else "-"
        per_object = (base + extra) / len(targets)
        cells = (name, f"{timing.median_ms:.2f}", f"{timing.best_ms:.2f}", base, extra, f"{per_object:.2f}")
        print(f"| {' | '.join(map(str, cells))} | {peak:.0f} | {share} |", flush=True)
    print()
    return times


def print_loss(heads: tuple[Head, ...], device: torch.device, repeats: int) -> None:
    """Print what the loss costs at 16 x 7, matching included, forward and with the backward pass to the raw maps."""
    images, objects = CASES[0]
    raw_maps, targets = random_batch(images, objects, heads, device)
    leaves = [raw.requires_grad_() for raw in raw_maps]
    loss_function = build_loss(LossOptions(), AssignmentOptions(), heads)

    def forward() -> Tensor:
        return loss_function(leaves, targets).total

    def both() -> None:
        torch.autograd.grad(forward(), leaves)

    times = [f"{time_ms(function, device, repeats).best_ms:.1f}" for function in (forward, both)]
    print(f"loss of standard at {images} x {objects}: {times[0]} ms forward, {times[1]} ms with backward")
    print("(ultralytics/yolov3 at 97b87b1, yolov3-spp on two cores: 16 and 155 ms)\n")


def print_sweep(assigners: dict[str, Assigner], heads: tuple[Head, ...], device: torch.device, repeats: int) -> None:
    """Print the shortest times of a batch of 16 images with 1 to 10,000 targets."""
    raw_maps = random_maps(16, heads, SIZE, device)
    batches = [random_targets(16, count, CLASSES, device) for count in SWEEP]
    print("| best ms, targets in 16 images | " + " | ".join(f"{count:,}" for count in SWEEP) + " |")
    print("|---" * (len(SWEEP) + 1) + "|")
    for name, assigner in assigners.items():
        times = [time_ms(matching(assigner, targets, raw_maps), device, repeats).best_ms for targets in batches]
        print(f"| {name} | " + " | ".join(f"{value:.2f}" for value in times) + " |", flush=True)
    print()


def print_memory(assigners: dict[str, Assigner], heads: tuple[Head, ...], device: torch.device) -> dict[str, float]:
    """Print by how much matching raises the peak memory at 64 x 100; return it in MiB."""
    images, objects = MEMORY_CASE
    raw_maps, targets = random_batch(images, objects, heads, device)
    print(f"| {images} x {objects} | ms | peak MiB |\n|---|---|---|")
    peaks = {}
    for name, assigner in assigners.items():
        start = synchronised_time(device)
        peaks[name] = peak_mib(matching(assigner, targets, raw_maps), device)
        print(f"| {name} | {(synchronised_time(device) - start) * 1e3:.0f} | {peaks[name]:.0f} |", flush=True)
    print()
    return peaks


def print_verdicts(times: dict[str, Timing], memory: dict[str, float]) -> bool:
    """Print whether the limits hold, the shortest times deciding; return whether all do."""
    verdicts = []
    for name in PRIOR_ONLY:
        if name in times:
            found = f"{times[name].best_ms:.2f} ms at best, {times[name].median_ms:.2f} in the median"
            verdicts.append((f"{name} at 16 x 7: {found}, limit {PRIOR_LIMIT}", times[name].best_ms <= PRIOR_LIMIT))
    if "fast" in times and "split on the map" in times:
        fast, split = times["fast"], times["split on the map"]
        median, best = fast.median_ms / split.median_ms, fast.best_ms / split.best_ms
        text = f"fast takes {best:.3f} of the time of split on the map at best, {median:.3f} in the median, limit 0.333"
        verdicts.append((text, best <= FAST_SHARE))
    if memory:
        worst = max(memory, key=lambda name: memory[name])
        text = f"64 x 100: at most {memory[worst]:.0f} MiB ({worst}), limit {MEMORY_LIMIT}"
        verdicts.append((text, memory[worst] <= MEMORY_LIMIT))
    for text, good in verdicts:
        print(f"{'holds' if good else 'FAILS'}: {text}")
    return all(good for _, good in verdicts)


if __name__ == "__main__":
    run_command(main)
