"""Time until the first batch, CPU time and memory with many images: 10,000 drawn ones, and 118,000 as COCO has.

The first are of the demo set's kind, the others one image file under many names, with 860,000 made-up boxes.
Each start is a process of its own, the first without any cache and the second with what the first has left.

Run: ``python -m benchmarks.big_data [--images 118000] [--cache disk] [--epoch]``
"""

from __future__ import annotations

import gc
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from benchmarks.harness import children, resident_mib
from data.augment import AugmentOptions
from data.image_cache import CACHES
from data.loader import LoaderSettings, training_batches
from data.shapes import draw_image
from data.splits import open_training_splits
from utils.config import option, parse_options
from utils.errors import run_command

DRAWN, LINKED, BOXES = 10_000, 118_000, 860_000
SIZE, BATCH, WORKERS = 320, 16, 2
NAMES_OF_A_FILE = 10_000  # ext4 allows 65,000
BATCHES_BEFORE_MEMORY = 40  # that the workers have made when their memory is read


@dataclass(frozen=True)
class BigDataOptions:
    """What to measure."""

    images: int = option(0, f"only a set of so many links to one image; default: {DRAWN:,} drawn and {LINKED:,} links")
    epoch: bool = option(False, "load a whole epoch of the drawn images, too, and read the memory on the way")
    cache: str = option("", "as train.py --cache", CACHES)
    start: str = option("", "measure one start on this folder of images in this process, and print it as JSON")


def draw_set(folder: Path, count: int) -> Path:
    """Draw images of the demo set's kind with their labels."""
    images, labels = _folders(folder)
    for index in tqdm(range(count), desc="drawing", leave=False):
        image, rows = draw_image(np.random.default_rng((7, index)))
        cv2.imwrite(str(images / f"{index:06d}.jpg"), image)
        _write_labels(labels / f"{index:06d}.txt", rows)
    return images


def link_set(folder: Path, count: int) -> Path:
    """Give one image many names, each with some boxes of its own, as many in the mean as COCO has."""
    images, labels = _folders(folder)
    rng = np.random.default_rng(7)
    first = images / "000000.jpg"
    pixels = cv2.resize(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8), (640, 480), interpolation=cv2.INTER_CUBIC)
    cv2.imwrite(str(first), pixels)
    boxes_each = rng.poisson(BOXES / LINKED, count)
    for index in tqdm(range(count), desc="linking", leave=False):
        path = images / f"{index:06d}.jpg"
        if index and index % NAMES_OF_A_FILE == 0:
            first = Path(shutil.copy(first, path))
        elif index:
            os.link(first, path)
        boxes = rng.uniform((0.3, 0.3, 0.01, 0.01), (0.7, 0.7, 0.6, 0.6), (boxes_each[index], 4))
        _write_labels(labels / f"{index:06d}.txt", [(int(rng.integers(80)), *box) for box in boxes.tolist()])
    return images


def _folders(folder: Path) -> tuple[Path, Path]:
    images, labels = folder / "images", folder / "labels"
    images.mkdir(parents=True)
    labels.mkdir()
    return images, labels


def _write_labels(path: Path, rows: list[tuple[int, float, float, float, float]]) -> None:
    path.write_text("".join(f"{label} {' '.join(f'{value:.6f}' for value in box)}\n" for label, *box in rows))


def measure_start(folder: str, cache: str, whole_epoch: bool) -> dict[str, Any]:
    """Read the set and load until the first batch arrives, then some more for the memory of the workers."""
    started = time.perf_counter()
    born = started - seconds_lived()
    train, _ = open_training_splits(folder)
    read = time.perf_counter()
    settings = LoaderSettings((SIZE, SIZE), BATCH, workers=WORKERS, cache=cache)
    batches = training_batches(train, settings, AugmentOptions())
    arriving = iter(batches)
    next(arriving)
    arrived = time.perf_counter()
    result: dict[str, Any] = {
        "images": len(train),
        "boxes": len(train.labels),
        "import_s": started - born,
        "read_s": read - started,
        "first_batch_s": arrived - read,
        "start_s": arrived - born,
    }
    own, resident = [], []
    for number, batch in enumerate(arriving):
        if number == BATCHES_BEFORE_MEMORY and not whole_epoch:
            break
        if number % BATCHES_BEFORE_MEMORY == 0 and number:
            memory = [worker_mib(process) for process in children()]
            own.append(max(one[0] for one in memory))
            resident.append(max(one[1] for one in memory))
        del batch
    memory = [worker_mib(process) for process in children()]
    result["worker_own_mib"] = [*own, max(one[0] for one in memory)]
    result["worker_resident_mib"] = [*resident, max(one[1] for one in memory)]
    result["main_resident_mib"] = resident_mib()
    del arriving, batches
    gc.collect()  # so that the workers end, and their CPU time counts
    result["cpu_s"] = sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return result


def seconds_lived() -> float:
    """Return the age of this process in seconds; Linux only."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    return uptime - ticks / os.sysconf("SC_CLK_TCK")


def worker_mib(process: int) -> tuple[float, float]:
    """Return the memory of a process in MiB: what no other process shares, and all that it has touched; Linux only."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]
    kib = {name.rstrip(":"): int(value) for name, value, *_ in map(str.split, lines)}
    return (kib["Private_Clean"] + kib["Private_Dirty"]) / 1024, kib["Rss"] / 1024


def report(name: str, folder: Path, options: BigDataOptions, whole_epoch: bool) -> None:
    """Start twice on a set and print a row for each start."""
    command = [sys.executable, "-m", "benchmarks.big_data", "--start", str(folder)]
    command += ["--cache", options.cache] if options.cache else []
    for start in ("first", "later"):
        is_whole = whole_epoch and start == "later"
        output = subprocess.run(
            [*command, *["--epoch"] * is_whole], stdout=subprocess.PIPE, check=True, text=True
        ).stdout
        row = json.loads(output.splitlines()[-1])
        print(
            f"{name:8} {row['images']:8,} {row['boxes']:9,} {start:6}{row['start_s']:9.1f}{row['import_s']:8.1f}"
            f"{row['read_s']:7.1f}{row['first_batch_s']:7.1f}{row['cpu_s']:7.1f}"
            f"{row['worker_own_mib'][-1]:9.0f}{row['worker_resident_mib'][-1]:9.0f}{row['main_resident_mib']:7.0f}",
            flush=True,
        )
        if is_whole:
            seen = row["worker_own_mib"]
            print(
                f"  own memory of a worker over the epoch: {seen[0]:.0f} to {max(seen):.0f} MiB, read {len(seen)} times"
            )


def main() -> None:
    """Make the sets in a temporary folder and print a table."""
    (options,) = parse_options(__doc__.splitlines()[0], BigDataOptions)
    if options.start:
        print(json.dumps(measure_start(options.start, options.cache, options.epoch)))
        return
    print(
        f"size {SIZE}, batch {BATCH}, {WORKERS} workers; seconds until the first batch, of it imports, labels, loader; "
        "CPU seconds; MiB of a worker: its own and resident, of the main process"
    )
    print("set        images     boxes start   start s  import   read  batch  CPU s      own resident   main")
    with tempfile.TemporaryDirectory() as folder:
        if not options.images:
            report("drawn", draw_set(Path(folder) / "drawn", DRAWN), options, options.epoch)
        report("linked", link_set(Path(folder) / "linked", options.images or LINKED), options, False)


if __name__ == "__main__":
    run_command(main)
