"""What matching costs, per strategy: milliseconds, positives, peak memory, share of a training step.

YOLOv3's three heads at 640, random predictions near their anchors, 16 images x 7 objects and 64 x 20; the peak memory
at 64 x 100, where it must stay under 1 GiB; and one batch with 1 to 10,000 targets. A training step is the forward
and backward pass (yolov3.cfg, timed on ``--step-images`` images and scaled to the batch), this loss included.

Run: ``python -m benchmarks.assignment [--strategies standard fast] [--device 0] [--no-step] [--no-sweep]``
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import io
import re
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from models.assignment.assigner import build_assigner
from models.assignment.options import AssignmentOptions
from models.assignment.strategies import STRATEGIES
from models.heads import Head
from models.loss import LossOptions, build_loss
from models.network import build_network
from utils.config import REPOSITORY, find_file, option, parse_options
from utils.devices import choose_device, describe_device, use_threads
from utils.errors import run_command
from utils.files import write_text_atomically
from utils.structures import Targets

DOCUMENT = REPOSITORY / "docs" / "assignment.md"
SIZE, CLASSES = 640, 80
CASES = ((16, 7), (64, 20))
SWEEP = (1, 10, 100, 1000, 10_000)
MEMORY_CASE, MEMORY_LIMIT = (64, 100), 1024  # MiB
PRIOR_LIMIT = 2.0  # ms at 16 x 7, for strategies that look only at priors; the peers need 2 to 4
FAST_SHARE = 1 / 3  # fast against split on the same map
PRIOR_ONLY = ("standard", "standard --match-anchors best", "ratio", "darknet without ignoring", "atss")
VARIANTS = {
    "standard": {},
    "standard --match-anchors best": {"match": "standard", "match_anchors": "best"},
    "ratio": {},
    "darknet": {},
    "darknet without ignoring": {"match": "darknet", "ignore_thresh": 1.0, "ignore_crowd": False},
    "atss": {},
    "pure": {},
    "split": {},
    "split on the map": {"match": "split", "candidates": "map"},
    "fast": {},
    "fast with every option": {
        "match": "fast", "remove_duplicate": True, "reduce_anchor": True, "linear_reweight": 0.5,
    },
    "simota": {},
    "tal": {},
}  # fmt: skip


@dataclass(frozen=True)
class BenchmarkOptions:
    """What to time."""

    strategies: tuple[str, ...] = option((), "strategies to time; default: all", tuple(STRATEGIES))
    device: str = option("", "cpu or a CUDA device")
    repeats: int = option(30, "runs of each measurement, for at most 5 s; the shortest counts: the rest is other load")
    step: bool = option(True, "time a training step of yolov3.cfg, for the shares")
    step_images: int = option(1, "images of that step")
    sweep: bool = option(True, "time 1 to 10,000 targets")
    memory: bool = option(True, "measure the memory at 64 x 100")
    write: bool = option(False, "put what is printed into docs/assignment.md")


def main() -> None:
    """Print the tables and say whether each limit holds; exit with status 1 where one does not."""
    (options,) = parse_options("What matching costs, per strategy.", BenchmarkOptions)
    printed = io.StringIO()
    with contextlib.redirect_stdout(_Both(sys.stdout, printed)):
        good = measure(options)
    if options.write:
        document = re.sub(
            r"(<!-- cost -->\n).*?(\n<!-- end of cost -->)",
            lambda marks: f"{marks[1]}{printed.getvalue().strip()}{marks[2]}",
            DOCUMENT.read_text(encoding="utf-8"),
            flags=re.DOTALL,
        )
        write_text_atomically(DOCUMENT, document)
    if not good:
        sys.exit(1)


class _Both(io.TextIOBase):
    """A stream that writes to two."""

    def __init__(self, *streams: io.TextIOBase) -> None:
        self.streams = streams

    def write(self, text: str) -> int:
        for stream in self.streams:
            stream.write(text)
        return len(text)

    def flush(self) -> None:
        for stream in self.streams:
            stream.flush()


def measure(options: BenchmarkOptions) -> bool:
    """Print every table that is asked for; return whether all limits hold."""
    device = choose_device(options.device)
    use_threads()
    heads = yolov3_heads()
    wanted = {name: values | {"match": values.get("match", name)} for name, values in VARIANTS.items()}
    wanted = {name: values for name, values in wanted.items()
              if not options.strategies or values["match"] in options.strategies}  # fmt: skip
    print(f"{describe_device(device)}; {SIZE} x {SIZE}, heads of yolov3.cfg, {CLASSES} classes\n")

    seconds_per_image = step_seconds(options.step_images, device) if options.step else None
    times = {}
    for case in CASES:
        times[case] = print_case(case, wanted, heads, device, options, seconds_per_image)
    print_loss(heads, device, options.repeats)
    if options.sweep:
        print_sweep(wanted, heads, device, options.repeats)
    memory = print_memory(wanted, heads, device) if options.memory else {}
    return print_verdicts(times[CASES[0]], memory)


def yolov3_heads() -> tuple[Head, ...]:
    """Return the heads of yolov3.cfg with 80 classes."""
    return build_network(find_file("yolov3.cfg", "cfg"), num_classes=CLASSES).heads


def random_batch(images: int, objects: int, heads: tuple[Head, ...], device: torch.device) -> tuple[list, Targets]:
    """Return raw maps near zero, in the memory order of the network, and objects of all sizes."""
    generator = torch.Generator().manual_seed(0)
    raws = []
    for head in heads:
        cells = SIZE // head.stride
        raw = torch.randn(images, cells, cells, head.num_anchors, 5 + CLASSES, generator=generator).mul_(0.3)
        raws.append(raw.to(device).permute(0, 3, 1, 2, 4))
    return raws, random_targets(images, images * objects, device)


def random_targets(images: int, count: int, device: torch.device) -> Targets:
    """Return objects spread evenly over the images, from 6 to 400 pixels a side."""
    generator = torch.Generator().manual_seed(1)
    side = 6 / SIZE * (400 / 6) ** torch.rand(count, 2, generator=generator)
    boxes = torch.cat((torch.rand(count, 2, generator=generator), side), dim=1)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    return Targets(torch.arange(count) % images, labels, boxes).to(device)


def clock(device: torch.device) -> float:
    """Return the time in seconds after all work on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def time_ms(function, device: torch.device, repeats: int) -> tuple[float, float]:
    """Return the median and the shortest time of a call in milliseconds; slow calls are repeated for about 5 s only."""
    function()
    times, end = [], time.perf_counter() + 5
    while len(times) < repeats and (not times or time.perf_counter() < end):
        start = clock(device)
        function()
        times.append(clock(device) - start)
    return statistics.median(times) * 1e3, min(times) * 1e3


def peak_mib(function, device: torch.device) -> float:
    """Return by how much the peak of the memory in use rises while a function runs, in MiB."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    ctypes.CDLL(None).malloc_trim(0)  # give freed memory back, or the next call would reuse it unseen
    Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the peak so far
    before = _status_mib("VmRSS")
    function()
    return max(0.0, _status_mib("VmHWM") - before)


def _status_mib(key: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024


def step_seconds(images: int, device: torch.device) -> float:
    """Return the seconds of a training step of yolov3.cfg at 640, per image."""
    network = build_network(find_file("yolov3.cfg", "cfg"), num_classes=CLASSES)
    network = network.to(device, memory_format=torch.channels_last).train()
    loss_function = build_loss(LossOptions(), AssignmentOptions(), network.heads)
    pixels = torch.rand(images, 3, SIZE, SIZE, device=device).contiguous(memory_format=torch.channels_last)
    targets = random_targets(images, images * 7, device)

    def step() -> Tensor:
        network.zero_grad(set_to_none=True)
        loss = sum(loss_function(network(pixels), targets).parts.values())
        loss.backward()
        return loss

    seconds = time_ms(step, device, 3)[1] / 1e3 / images
    print(f"training step of yolov3.cfg: {seconds:.3f} s per image\n")
    return seconds


def print_case(
    case: tuple[int, int], wanted: dict, heads: tuple[Head, ...], device: torch.device, options: BenchmarkOptions,
    seconds_per_image: float | None,
) -> dict[str, tuple[float, float]]:  # fmt: skip
    """Print the table of one batch size; return each strategy's median and shortest time in milliseconds."""
    images, objects = case
    raws, targets = random_batch(images, objects, heads, device)
    print(f"| {images} x {objects} | ms, median | ms, best | base | extra | per object | peak MiB | share of a step |")
    print("|---|---|---|---|---|---|---|---|")
    times = {}
    for name, values in wanted.items():
        assigner = build_assigner(AssignmentOptions(**values), heads)
        assignment = assigner(targets, raws)
        base, extra = (sum(map(len, half)) for half in (assignment.base, assignment.extra))
        median, best = times[name] = time_ms(lambda: assigner(targets, raws), device, options.repeats)  # noqa: B023
        peak = peak_mib(lambda: assigner(targets, raws), device)  # noqa: B023
        share = f"{best / 1e3 / (seconds_per_image * images):.3%}" if seconds_per_image else "-"
        cells = (name, f"{median:.2f}", f"{best:.2f}", base, extra, f"{(base + extra) / len(targets):.2f}")
        print(f"| {' | '.join(map(str, cells))} | {peak:.0f} | {share} |", flush=True)
    print()
    return times


def print_loss(heads: tuple[Head, ...], device: torch.device, repeats: int) -> None:
    """Print what the loss costs at 16 x 7, matching included, forward and with the backward pass to the raw maps."""
    raws, targets = random_batch(*CASES[0], heads, device)
    leaves = [raw.requires_grad_() for raw in raws]
    loss_function = build_loss(LossOptions(), AssignmentOptions(), heads)

    def forward() -> Tensor:
        return sum(loss_function(leaves, targets).parts.values())

    def both() -> None:
        torch.autograd.grad(forward(), leaves)

    times = [f"{time_ms(function, device, repeats)[1]:.1f}" for function in (forward, both)]
    print(f"loss of standard at {CASES[0][0]} x {CASES[0][1]}: {times[0]} ms forward, {times[1]} ms with backward")
    print("(the peers: 16 and 155 ms)\n")


def print_sweep(wanted: dict, heads: tuple[Head, ...], device: torch.device, repeats: int) -> None:
    """Print the shortest times of a batch of 16 images with 1 to 10,000 targets."""
    raws, _ = random_batch(16, 1, heads, device)
    print("| best ms, targets in 16 images | " + " | ".join(f"{count:,}" for count in SWEEP) + " |")
    print("|---" * (len(SWEEP) + 1) + "|")
    for name, values in wanted.items():
        assigner = build_assigner(AssignmentOptions(**values), heads)
        times = []
        for count in SWEEP:
            targets = random_targets(16, count, device)
            times.append(time_ms(lambda: assigner(targets, raws), device, repeats)[1])  # noqa: B023
        print(f"| {name} | " + " | ".join(f"{value:.2f}" for value in times) + " |", flush=True)
    print()


def print_memory(wanted: dict, heads: tuple[Head, ...], device: torch.device) -> dict[str, float]:
    """Print by how much matching raises the peak memory at 64 x 100; return it in MiB."""
    raws, targets = random_batch(*MEMORY_CASE, heads, device)
    print(f"| {MEMORY_CASE[0]} x {MEMORY_CASE[1]} | ms | peak MiB |\n|---|---|---|")
    peaks = {}
    for name, values in wanted.items():
        assigner = build_assigner(AssignmentOptions(**values), heads)
        start = clock(device)
        peaks[name] = peak_mib(lambda: assigner(targets, raws), device)  # noqa: B023
        print(f"| {name} | {(clock(device) - start) * 1e3:.0f} | {peaks[name]:.0f} |", flush=True)
    print()
    return peaks


def print_verdicts(times: dict[str, tuple[float, float]], memory: dict[str, float]) -> bool:
    """Print whether the limits hold, the shortest times deciding; return whether all do."""
    verdicts = []
    for name in PRIOR_ONLY:
        if name in times:
            median, best = times[name]
            text = f"{name} at 16 x 7: {best:.2f} ms at best, {median:.2f} in the median, limit {PRIOR_LIMIT}"
            verdicts.append((text, best <= PRIOR_LIMIT))
    if "fast" in times and "split on the map" in times:
        median, best = (fast / split for fast, split in zip(times["fast"], times["split on the map"], strict=True))
        text = f"fast takes {best:.3f} of the time of split on the map at best, {median:.3f} in the median, limit 0.333"
        verdicts.append((text, best <= FAST_SHARE))
    if memory:
        worst = max(memory, key=memory.get)
        text = f"64 x 100: at most {memory[worst]:.0f} MiB ({worst}), limit {MEMORY_LIMIT}"
        verdicts.append((text, memory[worst] <= MEMORY_LIMIT))
    for text, good in verdicts:
        print(f"{'holds' if good else 'FAILS'}: {text}")
    return all(good for _, good in verdicts)


if __name__ == "__main__":
    run_command(main)
