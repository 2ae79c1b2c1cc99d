"""What several benchmarks share: timing that waits for the GPU, peak memory, random objects and raw maps.

Shape letters: B images, A anchors per cell, H W grid rows and columns, C classes, T objects.
"""

from __future__ import annotations

import ctypes
import gc
import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.heads import Head
from models.network import build_network
from utils.config import find_file
from utils.devices import synchronised_time
from utils.structures import Targets

MOST_SECONDS = 5  # after which a call is not repeated any more


@dataclass(frozen=True)
class Timing:
    """How long a call took."""

    median_ms: float
    best_ms: float  # the shortest: the rest is other load of the machine
    result: Any = None  # of the last call


def time_ms(function: Callable[[], Any], device: torch.device, repeats: int) -> Timing:
    """Time a call after a warm-up; slow calls are repeated for about ``MOST_SECONDS`` only."""
    function()
    times: list[float] = []
    end = time.perf_counter() + MOST_SECONDS
    while len(times) < repeats and (not times or time.perf_counter() < end):
        start = synchronised_time(device)
        result = function()
        times.append((synchronised_time(device) - start) * 1e3)
    return Timing(statistics.median(times), min(times), result)


def seconds_alternating(
    functions: Mapping[str, Callable[[], Any]], device: torch.device, rounds: int
) -> dict[str, list[float]]:
    """Call several functions in turns, so that other load of the machine slows all of them alike.

    Returns:
        The seconds of each function in each round. A first round, which warms up, is left out, and every second round
        goes backwards, so that no function always comes after the same one.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(rounds + 1):
        for name in list(functions)[:: 1 if number % 2 else -1]:
            start = synchronised_time(device)
            functions[name]()
            seconds[name].append(synchronised_time(device) - start)
    return {name: values[1:] for name, values in seconds.items()}


def peak_mib(function: Callable[[], Any], device: torch.device) -> float:
    """Return by how much the peak of the memory in use rises while a function runs, in MiB; on a CPU, Linux only."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        allocated = torch.cuda.memory_allocated(device)
        function()
        return (torch.cuda.max_memory_allocated(device) - allocated) / 2**20
    ctypes.CDLL(None).malloc_trim(0)  # give freed memory back, or the next call would reuse it unseen
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = resident_mib()
    function()
    return max(0.0, _status_mib("VmHWM") - before)


def resident_mib(process: int | None = None) -> float:
    """Return the memory of a process, this one by default, that is in use now, in MiB; Linux only."""
    return _status_mib("VmRSS", process)


def children() -> list[int]:
    """Return the numbers of the processes that this one has started, such as those that load; Linux only."""
    return [int(text) for text in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


def _status_mib(key: str, process: int | None = None) -> float:
    text = Path(f"/proc/{process or 'self'}/status").read_text()
    line = next(line for line in text.splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024


def yolov3_heads(num_classes: int) -> tuple[Head, ...]:
    """Return the heads of yolov3.cfg, coarse to fine."""
    return build_network(find_file("yolov3.cfg", "cfg"), num_classes=num_classes).heads


def random_targets(images: int, count: int, num_classes: int, device: torch.device) -> Targets:
    """Return objects spread evenly over the images; small sides, from 1 to 62 % of the image's, are the most frequent.

    A centre may be anywhere in the image, so that some boxes reach over its border.
    """
    generator = torch.Generator().manual_seed(1)
    side = 6 / 640 * (400 / 6) ** torch.rand(count, 2, generator=generator)
    boxes = torch.cat((torch.rand(count, 2, generator=generator), side), dim=1)
    labels = torch.randint(num_classes, (count,), generator=generator)
    return Targets(torch.arange(count) % images, labels, boxes).to(device)


def random_maps(images: int, heads: tuple[Head, ...], size: int, device: torch.device) -> list[Tensor]:
    """Return a raw map [B A H W 5+C] per head, near zero: every slot predicts about its anchor.

    Args:
        images: B.
        heads: of the network.
        size: side of the network's input in pixels.
        device: on which the maps are, in the memory order in which a network gives them.
    """
    generator = torch.Generator().manual_seed(0)
    raw_maps = []
    for head in heads:
        cells = size // head.stride
        raw = torch.randn(images, cells, cells, head.num_anchors, 5 + head.num_classes, generator=generator).mul_(0.3)
        raw_maps.append(raw.to(device).permute(0, 3, 1, 2, 4))
    return raw_maps
