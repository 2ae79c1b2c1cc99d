"""``--cache``: the images of a training decoded once, into memory or into one file, where there is room for them."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from data.dataset import DetectionDataset
from data.decoded_file import DecodedFile
from utils import distributed
from utils.errors import UserError
from utils.words import how_many

CACHES = ("", "ram", "disk")  # values of --cache; "": images are decoded whenever they are needed
FULL = 0.9  # of what is free, the share that may be taken
# The files in which Linux says what a container may use and uses: of control groups, version 2 and 1.
LIMITS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
    ),
)
_Item = TypeVar("_Item")


def fill_cache(dataset: DetectionDataset, kind: str) -> None:
    """Decode all images of a data set into what ``--cache`` names, and say how much that is.

    Raises:
        UserError: there is too little room for them, or one cannot be read.
    """
    if kind == "ram":
        _into_memory(dataset)
    elif kind == "disk":
        _onto_disk(dataset)


def _into_memory(dataset: DetectionDataset) -> None:
    """Decode all images into memory, where forked workers share them."""
    started = time.monotonic()
    # Three bytes a pixel, in every training process of this machine.
    needed = int(_decoded_wh(dataset).prod(axis=1).sum() * 3) * distributed.local_world_size()
    free = free_memory()
    if distributed.broadcast(needed > free * FULL):  # the main process looks, before any other one takes memory
        raise UserError(
            f"--cache ram needs {_gb(needed)} of memory, {_gb(free)} are free; --cache disk needs little of it"
        )
    with ThreadPoolExecutor(_threads()) as threads:
        decoded = threads.map(dataset.decode_or_none, range(len(dataset)))
        dataset.cached = list(_with_bar(decoded, len(dataset)))
    _say(
        f"--cache ram: {how_many(len(dataset), 'image')}, {_gb(needed)} of the {_gb(free)} of memory that were free, "
        f"decoded in {time.monotonic() - started:.1f} s"
    )


def _onto_disk(dataset: DetectionDataset) -> None:
    """Decode all images into a file beside their folder, or take the one that an earlier run has left there.

    On each machine one process writes and the others wait for it.

    Raises:
        UserError: the disk has too little space, or the file cannot be written.
    """
    annotations = dataset.annotations
    turned = np.ones(len(dataset), int) if annotations.orientation is None else annotations.orientation
    ways = [(dataset.reduction(index), int(turned[index])) for index in range(len(dataset))]
    decoded = DecodedFile(annotations.image_paths, _decoded_wh(dataset), ways)
    if distributed.local_rank() == 0:
        if decoded.recall():
            _say(f"--cache disk: {decoded.path} of an earlier run, {_gb(decoded.num_bytes)}")
        else:
            _write(decoded, dataset)
    # Nobody goes on before all have arrived.
    distributed.gather(None)
    distributed.broadcast(None)
    if distributed.local_rank() != 0:
        decoded.recall()
    dataset.decoded = decoded


def _write(decoded: DecodedFile, dataset: DetectionDataset) -> None:
    started = time.monotonic()
    folder = decoded.path.parent
    needed, free = decoded.num_bytes, shutil.disk_usage(folder).free
    if needed > free * FULL:
        raise UserError(
            f"--cache disk needs {_gb(needed)} in {folder}, {_gb(free)} are free there; make room, or leave it out"
        )
    try:
        for _ in _with_bar(decoded.write(dataset.decode_or_none, _threads()), len(dataset)):
            pass
        others = decoded.others()
    except OSError as error:
        raise UserError(f"--cache disk: {decoded.path}: {error.strerror}; make room, or leave --cache out") from error
    _say(
        f"--cache disk: {decoded.path}, {how_many(len(dataset), 'image')}, {_gb(needed)} of the {_gb(free)} that were "
        f"free, written in {time.monotonic() - started:.1f} s; the next run takes it as it is"
    )
    if others:
        size = sum(path.stat().st_size for path in others)
        _say(f"  other lists or sizes are kept beside it, {_gb(size)}: {', '.join(path.name for path in others)}")


def _decoded_wh(dataset: DetectionDataset) -> np.ndarray:
    """Return the sizes [N 2] in which the images of a data set are decoded, pixels."""
    reduce = np.array([dataset.reduction(index) for index in range(len(dataset))], np.int64)
    return -(-dataset.annotations.image_wh.astype(np.int64) // reduce[:, None])


def free_memory() -> int:
    """Return the bytes that this process can have without swapping: of the machine, or of its container."""
    try:
        with open("/proc/meminfo") as file:
            free = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return 1 << 62  # not Linux: nothing is refused beforehand
    for limit, used, detail in LIMITS:
        try:
            lines = dict(line.split() for line in Path(detail).read_text().splitlines())
            # Files that were read count as used, and give way.
            in_use = int(Path(used).read_text()) - int(lines.get("inactive_file", 0))
            free = min(free, int(Path(limit).read_text()) - in_use)  # "max", no number: no limit
        except (OSError, ValueError):
            continue
    return free


def _threads() -> int:
    return min(os.cpu_count() or 1, 8)


def _with_bar(items: Iterable[_Item], count: int) -> Iterator[_Item]:
    is_silent = not distributed.is_main()
    yield from tqdm(items, total=count, desc="decoding", unit=" images", leave=False, disable=is_silent)


def _gb(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count < 1e10 else f"{count / 1e9:.0f} GB"


def _say(line: str) -> None:
    if distributed.is_main():
        print(line)
