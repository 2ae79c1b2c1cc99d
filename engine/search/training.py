"""One training of a search: ``train.py`` as a process of its own, watched epoch by epoch.

A process, because what ends a training must not end the search: a crash in a driver, the system that needs memory. It
is also exactly what a user would have started, with a folder, a record and a checkpoint of its own.
"""

from __future__ import annotations

import csv
import ctypes
import io
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.run_folder import weighted_ap
from utils.config import REPOSITORY, flag
from utils.files import read_text

OUTPUT = "output.txt"  # what a training prints
MAX_BYTES = 100_000_000  # of results.csv
POLL_SECONDS = 0.5
SECONDS_TO_SAVE = 60.0  # that a training has to end in, when it is asked to
DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux' prctl(2)
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


@dataclass(frozen=True)
class Training:
    """How a training has ended."""

    status: int  # of the process
    fitness: dict[int, float]  # by epoch, from 1; of the epochs that were tested
    was_stopped: bool  # because its epochs so far did not promise enough
    message: str  # the last line that it printed


def arguments_of(values: Mapping[str, Any]) -> list[str]:
    """Return options as the arguments that would give them on the command line."""
    arguments: list[str] = []
    for name, value in values.items():
        if isinstance(value, bool):
            arguments.append(flag(name) if value else flag(f"no_{name}"))
        elif isinstance(value, (tuple, list)):
            arguments += [flag(name), *map(str, value)]
        else:
            arguments.append(f"{flag(name)}={value}")
    return arguments


def run_training(arguments: list[str], folder: Path, after_epoch: Callable[[int, float], bool]) -> Training:
    """Train, and wait for the end.

    Args:
        arguments: of ``train.py``.
        folder: of the run; what is printed goes there, too.
        after_epoch: is told each tested epoch and its fitness; True stops the training.
    """
    fitness: dict[int, float] = {}
    was_stopped = False
    with (folder / OUTPUT).open("a", encoding="utf-8") as output:
        process = subprocess.Popen(
            [sys.executable, str(REPOSITORY / "train.py"), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C comes to the search alone, which passes it on
            preexec_fn=None if _libc is None else _die_with_parent,
        )
    try:
        is_running = True
        while is_running and not was_stopped:
            is_running = process.poll() is None
            for epoch, value in read_fitness(folder).items():
                if epoch not in fitness and not was_stopped:
                    fitness[epoch] = value
                    was_stopped = after_epoch(epoch, value) and is_running
            if is_running and not was_stopped:
                time.sleep(POLL_SECONDS)
    finally:
        stop(process)
    return Training(process.returncode, fitness, was_stopped, last_line(folder / OUTPUT))


def _die_with_parent() -> None:
    """Let the kernel end this process when the search is killed, which then could not do it."""
    assert _libc is not None
    _libc.prctl(DIES_WITH_PARENT, signal.SIGKILL)


def stop(process: subprocess.Popen) -> None:
    """End a training that still runs; it saves and says so, unless it takes too long."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(SECONDS_TO_SAVE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def read_fitness(folder: Path) -> dict[int, float]:
    """Return the fitness of each tested epoch of a run, nothing before the first."""
    path = folder / "results.csv"
    if not path.is_file():
        return {}
    fitness = {}
    for row in csv.DictReader(io.StringIO(read_text(path, MAX_BYTES))):
        scores = row.get("metrics/mAP_0.5"), row.get("metrics/mAP_0.5:0.95")
        if scores[0] and scores[1]:  # an epoch that was not tested has none
            fitness[int(row["epoch"])] = weighted_ap(float(scores[0]), float(scores[1]))
    return fitness


def last_line(path: Path) -> str:
    """Return the last line of what a training has printed, without the progress bar that it may stand behind."""
    lines = [line.strip() for line in re.split("[\r\n]", path.read_text(encoding="utf-8", errors="replace"))]
    line = next((line for line in reversed(lines) if line), "")
    return line.partition("error: ")[2] or line


def take_over(source: Path, folder: Path) -> bool:
    """Copy what a training has done that was cut off, to go on with it; whether there is a checkpoint.

    A copy, for its process may still run: on another machine, or where a process outlives its parent.
    """
    if not (source / "last.pt").is_file():
        return False
    # Without what says that a run has finished, it only does what is left.
    shutil.copytree(source, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*", "results.png"))
    return True
