"""Speed of the loader: JPEG files of 640x480, size 640, batch 16; mosaic and plain, 0 to 2 workers; its memory.

An epoch has 1,000 images: 200 files, each under five names. No process can keep 200 images decoded, and the beginning
and the end of an epoch, with a worker that waits for its turn, are small parts of it, so that the rate is that of a
large data set. On two cores of a Cascade Lake Xeon, three other loaders reached, without and with two workers:

- ultralytics/yolov5 at 5081342: mosaic 43 and 85, plain 74 and 132;
- ultralytics/yolov3 at 97b87b1: mosaic 44 and 87, plain 84 and 138;
- ultralytics 8.4.190: mosaic 65 and 119, plain 85 and 157.

CPU time counts what all processes need together, also on a machine with other load. ``--jpeg`` times JPEG decoders,
those that are installed, and compares their pixels with OpenCV's.

Run: ``python -m benchmarks.loader [--jpeg]``
"""

from __future__ import annotations

import gc
import importlib
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from benchmarks.harness import children, resident_mib
from data.augment import AugmentOptions
from data.labels.read import read_dataset
from data.loader import LoaderSettings, training_batches
from data.splits import open_data
from utils.config import option, parse_options
from utils.devices import use_threads
from utils.errors import run_command

Decode = Callable[[bytes], np.ndarray]
NUM_IMAGES, COPIES, IMAGE_WH, SIZE, BATCH, EPOCHS = 200, 5, (640, 480), 640, 16, 4
ROUNDS = 5  # of decoding all files


def make_images(folder: Path, copies: int = 1) -> None:
    """Write NUM_IMAGES JPEG files of photographic smoothness, each with seven boxes and under ``copies`` names."""
    for name in ("images", "labels"):
        (folder / name).mkdir()
    for index in range(NUM_IMAGES):
        rng = np.random.default_rng(index)
        image = sum(
            strength
            * cv2.resize(rng.random((cells, cells, 3), dtype=np.float32), IMAGE_WH, interpolation=cv2.INTER_CUBIC)
            for cells, strength in ((4, 120), (24, 80), (160, 55))
        )
        image_file, label_file = folder / "images" / f"{index:04d}.jpg", folder / "labels" / f"{index:04d}.txt"
        cv2.imwrite(str(image_file), np.clip(image, 0, 255).astype(np.uint8))
        boxes = np.concatenate((rng.uniform(0.3, 0.7, (7, 2)), rng.uniform(0.05, 0.5, (7, 2))), axis=1)
        text = "".join("0 " + " ".join(f"{value:.6f}" for value in box) + "\n" for box in boxes)
        label_file.write_text(text)
        for file in (image_file, label_file):
            for copy in range(1, copies):
                os.link(file, file.with_stem(f"{file.stem}_{copy}"))


@dataclass(frozen=True)
class LoaderBenchmarkOptions:
    """What to time."""

    jpeg: bool = option(False, "decoders of JPEG files instead of the loader")
    workers: tuple[int, ...] = option((0, 1, 2), "numbers of processes that load")
    epochs: int = option(EPOCHS, "passes over the images; the first one does not count")


@dataclass(frozen=True)
class LoaderSpeed:
    """How fast a loader was."""

    per_second: float  # images, the median over the epochs after the first
    cpu_ms: float  # of all processes, per image, with their start
    growth_mib: float  # of the resident memory of all processes, from the second epoch to the last


def cpu_seconds() -> float:
    """Return the CPU time of this process and of those that it started and that have ended."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def speed(annotations, workers: int, augment: AugmentOptions, epochs: int) -> LoaderSpeed:
    """Load all epochs."""
    before = cpu_seconds()
    batches = training_batches(annotations, LoaderSettings((SIZE, SIZE), BATCH, workers=workers), augment)
    rates, memory = [], []
    for epoch in range(epochs):
        batches.set_epoch(epoch)
        start = time.perf_counter()
        count = sum(len(batch.images) for batch in batches)
        rates.append(count / (time.perf_counter() - start))
        memory.append(resident_mib() + sum(map(resident_mib, children())))
    del batches
    gc.collect()  # so that the workers end, and their time counts
    cpu_ms = (cpu_seconds() - before) / (epochs * len(annotations)) * 1e3
    return LoaderSpeed(statistics.median(rates[1:]), cpu_ms, memory[-1] - memory[1])


def time_loaders(folder: Path, options: LoaderBenchmarkOptions) -> None:
    """Print a row for each number of workers, with mosaics and without."""
    annotations = read_dataset(open_data(str(folder / "images")), "train")
    print(
        f"{len(annotations)} images of {IMAGE_WH[0]}x{IMAGE_WH[1]}, size {SIZE}, batch {BATCH}, {options.epochs} epochs"
    )
    print(f"{'':8}{'images per second':>22}{'CPU ms per image':>22}{'memory, MiB more':>22}")
    print("workers " + f"{'mosaic':>12}{'plain':>10}" * 3)
    for workers in options.workers:
        mosaic, plain = (
            speed(annotations, workers, AugmentOptions(mosaic=share), options.epochs) for share in (1.0, 0.0)
        )
        print(
            f"{workers:7d} {mosaic.per_second:12.0f}{plain.per_second:10.0f}{mosaic.cpu_ms:12.2f}{plain.cpu_ms:10.2f}"
            f"{mosaic.growth_mib:12.0f}{plain.growth_mib:10.0f}",
            flush=True,
        )


def opencv(data: bytes) -> np.ndarray:
    """Decode as the loader does."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    assert image is not None  # it was written here
    return image


def torchvision_decoder() -> Decode:
    """Return torchvision's decoder; its RGB planes become BGR pixels, as a loader needs them."""
    io = importlib.import_module("torchvision.io")

    def decode(data: bytes) -> np.ndarray:
        planes = io.decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), io.ImageReadMode.RGB)
        return np.ascontiguousarray(planes.flip(0).permute(1, 2, 0).numpy())

    return decode


def simplejpeg_decoder() -> Decode:
    """Return that of simplejpeg, which brings libjpeg-turbo along."""
    module = importlib.import_module("simplejpeg")
    return lambda data: module.decode_jpeg(data, colorspace="BGR")


def turbojpeg_decoder() -> Decode:
    """Return that of PyTurboJPEG, which calls the libjpeg-turbo of the system."""
    return importlib.import_module("turbojpeg").TurboJPEG().decode


DECODERS: dict[str, Callable[[], Decode]] = {
    "OpenCV": lambda: opencv,
    "torchvision.io": torchvision_decoder,
    "simplejpeg": simplejpeg_decoder,
    "PyTurboJPEG": turbojpeg_decoder,
}


def time_decoders(folder: Path) -> None:
    """Print the CPU time of each decoder, in turns, and how far its pixels are from OpenCV's."""
    files = [path.read_bytes() for path in sorted((folder / "images").iterdir())]
    decoders = {}
    for name, make in DECODERS.items():
        try:
            decoders[name] = make()
        except (ImportError, RuntimeError, OSError) as error:
            print(f"{name}: left out, {error!s:.80}")
    seconds: dict[str, list[float]] = {name: [] for name in decoders}
    worst = dict.fromkeys(decoders, 0)
    for _ in range(ROUNDS):
        for name, decode in decoders.items():
            before = time.process_time()
            for data in files:
                decode(data)
            seconds[name].append(time.process_time() - before)
    for name, decode in decoders.items():
        for data in files:
            difference = np.abs(decode(data).astype(int) - opencv(data).astype(int))
            worst[name] = max(worst[name], int(difference.max()))
    print(f"{len(files)} JPEG files of {IMAGE_WH[0]}x{IMAGE_WH[1]}; CPU ms per image, the best of {ROUNDS} rounds")
    base = min(seconds["OpenCV"])
    for name, each in seconds.items():
        print(f"{name:16}{min(each) / len(files) * 1e3:8.2f} ms  {base / min(each):5.2f} times as fast, "
              f"pixels at most {worst[name]} grey levels from OpenCV's")  # fmt: skip


def main() -> None:
    """Print a table."""
    (options,) = parse_options(__doc__.splitlines()[0], LoaderBenchmarkOptions)
    use_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        make_images(Path(folder), 1 if options.jpeg else COPIES)
        if options.jpeg:
            time_decoders(Path(folder))
        else:
            time_loaders(Path(folder), options)


if __name__ == "__main__":
    run_command(main)
