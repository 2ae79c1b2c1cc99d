"""``--profile``: where the time of a training step goes, by part and by operator; whether the loader is the limit."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function
from tqdm import tqdm

from utils import distributed
from utils.devices import synchronised_time
from utils.files import atomic_path
from utils.structures import Batch
from utils.tables import text_table

WARM_UP, STEPS = 3, 10  # batches before the measurement, and in it
LOADER = "loader"
PARTS = (LOADER, "to device", "forward", "loss", "backward", "optimizer")  # what is left of a step: "other"
TRACE = "trace.json"
OPERATORS = 10  # that are listed
WAITING = 0.1  # share of the time above which the loader is the limit


class StepClock:
    """What the training loop tells about its parts; this one does not listen."""

    def waiting(self, batches: Iterable[Batch]) -> Iterable[Batch]:
        """Return the batches; the time until each arrives is that of the loader."""
        return batches

    def part(self, name: str) -> AbstractContextManager[None]:
        """Within this block, a part of a step is computed; ``name`` is one of PARTS."""
        return nullcontext()

    def end_step(self) -> None:
        """Note that all work for a batch is done."""

    def finish(self) -> None:
        """Note that the run is over."""


UNTIMED = StepClock()


class StepProfiler(StepClock):
    """Measures ten steps, writes their trace into the folder of the run, prints where the time went, and is silent.

    While it measures, each part waits for the device, or its work would count in a later part.

    Args:
        folder: of the run.
        device: of the training.
        workers: processes that load.
    """

    def __init__(self, folder: Path, device: torch.device, workers: int) -> None:
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else torch's profiler speaks of counters and drivers
        self.path = folder / TRACE
        self.device = device
        self.workers = workers
        self.seconds: dict[str, list[float]] = {name: [] for name in PARTS}
        self.steps: list[float] = []  # seconds of each measured step
        self._number = 0  # of steps so far
        self._profile: profile | None = None
        self._started = 0.0

    def waiting(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches and measure how long each takes to arrive."""
        following = iter(batches)
        while True:
            with self.part(LOADER):
                batch = next(following, None)
            if batch is None:
                return
            yield batch

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Measure what is done within this block."""
        if self._profile is None:
            yield
            return
        start = synchronised_time(self.device)
        with record_function(f"{name} of a step"):
            yield
            end = synchronised_time(self.device)
        self.seconds[name].append(end - start)

    def end_step(self) -> None:
        """Begin to measure after the warm-up; report after the last step that is measured."""
        self._number += 1
        now = synchronised_time(self.device)
        if self._profile is not None:
            self.steps.append(now - self._started)
        if self._number == WARM_UP:
            on_gpu = [ProfilerActivity.CUDA] if self.device.type == "cuda" else []
            self._profile = profile(activities=[ProfilerActivity.CPU, *on_gpu])
            self._profile.start()
        elif self._number == WARM_UP + STEPS:
            self._report()
        self._started = time.perf_counter()

    def finish(self) -> None:
        """Report what there is where a run had too few steps."""
        if self.steps and self._profile is not None:
            self._report()
        elif self._number <= WARM_UP:
            print(f"--profile: the run has only {self._number} batches, but the first {WARM_UP} warm up")

    def _report(self) -> None:
        """Write the trace and print the summary."""
        profiled, self._profile = self._profile, None
        assert profiled is not None
        profiled.stop()
        with atomic_path(self.path) as temporary:
            profiled.export_chrome_trace(str(temporary))
        shares = {name: sum(seconds) / sum(self.steps) for name, seconds in self.seconds.items()}
        shares["other"] = max(0.0, 1 - sum(shares.values()))
        mean_ms = sum(self.steps) / len(self.steps) * 1e3
        parts = ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
        lines = (
            f"--profile: {len(self.steps)} steps of {mean_ms:.1f} ms: {parts}",
            text_table(operator_rows(profiled.key_averages(), self.device.type == "cuda")),
            verdict(shares[LOADER], self.workers),
            f"trace: {self.path} (for chrome://tracing or https://ui.perfetto.dev)",
        )
        tqdm.write("\n".join(lines))


def step_clock(is_wanted: bool, folder: Path, device: torch.device, workers: int) -> StepClock:
    """Return what measures the steps of a run, in its main process and where it is wanted; see StepProfiler."""
    return StepProfiler(folder, device, workers) if is_wanted and distributed.is_main() else UNTIMED


def operator_rows(events: Iterable[Any], on_gpu: bool) -> list[list[str]]:
    """Return a heading and a row for each operator that takes much time of its own, on a GPU its time there.

    Args:
        events: of torch's profiler, summed by operator.
        on_gpu: whether the network computes on a GPU.
    """

    def own_us(event: Any) -> float:
        return event.self_device_time_total if on_gpu else event.self_cpu_time_total

    operators = [event for event in events if not event.key.endswith(" of a step")]
    total = sum(map(own_us, operators)) or 1.0
    rows = [["operator", "calls", "ms", "share"]]
    for event in sorted(operators, key=own_us, reverse=True)[:OPERATORS]:
        time_us = own_us(event)
        rows.append([event.key[:60], str(event.count), f"{time_us / 1e3:.1f}", f"{time_us / total:.1%}"])
    return rows


def verdict(loader_share: float, workers: int) -> str:
    """Return in words whether the loader or the step is the limit.

    Args:
        loader_share: of the time, during which the training waits for its batches.
        workers: processes that load; 0: the training loads itself.
    """
    if not workers:
        return f"this process loads its batches itself, {loader_share:.0%} of the time; --workers 2 loads meanwhile"
    if loader_share > WAITING:
        return (
            f"the loader is the limit: the step waits for it {loader_share:.0%} of the time; "
            "more --workers, --cache ram or disk, or --augment-on device on a GPU may help"
        )
    return f"the step is the limit: it waits for the loader {loader_share:.0%} of the time"
