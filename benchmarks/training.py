"""Images per second of a training: its step alone, its loader alone, and both together, against the plain way.

Four networks at 320 and 416, batch 16, on images of the demo set's kind. The step is that of train.py: channels-last,
in the type that ``--amp`` chooses; the plain one is float32 in the usual layout. The loader paints a mosaic with one
matrix per image and decodes an image once for its block; the plain one decodes all four images of each, lays them on
a canvas and moves that, without boxes. CPU time counts all processes: it tells more on a machine with other load.

Run: ``python -m benchmarks.training [--cfg yolov5n.cfg --img-size 320] [--workers 2]``
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.big_data import draw_set
from benchmarks.harness import children, random_targets
from benchmarks.training_step import Contestant
from data.augment import AugmentOptions, random_colours, random_motion
from data.image_files import decode_image
from data.labels.annotations import Annotations
from data.labels.read import read_dataset
from data.letterbox import PADDING
from data.loader import LoaderSettings, training_batches
from data.painting import recolour
from data.splits import open_data
from data.workers import start_worker
from engine.ema import AveragedModel
from engine.precision import choose_precision
from engine.train_loop import TrainState, add_gradients, optimizer_step
from models.learner import MapsLearner
from models.network import Network
from utils.config import option, parse_options
from utils.devices import choose_device, describe_device, synchronised_time, use_threads
from utils.errors import run_command
from utils.files import write_json_atomically
from utils.structures import Batch

NETWORKS = ("yolov3-nano.cfg", "yolov3-tiny.cfg", "yolov5n.cfg", "yolov5s.cfg")
SIZES = (320, 416)
NUM_IMAGES = 512
WARM_UP = 2  # batches that are not timed
ENOUGH = 0.9  # of the slower one alone: what both together are to reach
OBJECTS = 7  # per image, for the plain step


@dataclass(frozen=True)
class TrainingBenchmarkOptions:
    """What to time."""

    cfg: str = option("", f"one network; default: {', '.join(NETWORKS)}")
    img_size: int = option(0, f"one size; default: {SIZES[0]} and {SIZES[1]}")
    batch_size: int = option(16, "images per step")
    workers: int = option(2, "processes that load")
    batches: int = option(8, "timed batches of each kind")
    device: str = option("", "cpu or a CUDA device")


@dataclass(frozen=True)
class Rate:
    """How fast something went."""

    images_per_s: float
    cpu_ms: float  # per image, of all processes


class PlainMosaics(Dataset):
    """Pictures [3 S S] uint8, made one by one in the order of time: decode four, resize, lay out, move, recolour."""

    def __init__(self, annotations: Annotations, size: int) -> None:
        self.paths = annotations.image_paths
        self.size = size
        self.options = AugmentOptions()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        rng = np.random.default_rng(index)
        size = self.size
        canvas = np.full((2 * size, 2 * size, 3), PADDING, np.uint8)
        center_x, center_y = rng.integers(size // 2, size * 3 // 2, 2).tolist()
        for quarter, partner in enumerate((index, *rng.integers(0, len(self), 3).tolist())):
            image = decode_image(self.paths[partner])
            scale = size / max(image.shape[:2])
            image = cv2.resize(image, (round(image.shape[1] * scale), round(image.shape[0] * scale)))
            height, width = image.shape[:2]
            left = center_x if quarter % 2 else center_x - width
            top = center_y if quarter // 2 else center_y - height
            right, bottom = min(left + width, 2 * size), min(top + height, 2 * size)
            seen = canvas[max(top, 0) : bottom, max(left, 0) : right]
            seen[:] = image[max(-top, 0) : max(-top, 0) + seen.shape[0], max(-left, 0) : max(-left, 0) + seen.shape[1]]
        motion = random_motion(self.options, canvas.shape[:2], (size, size), rng)
        picture = cv2.warpAffine(canvas, motion[:2], (size, size), borderValue=(PADDING,) * 3)
        recolour(picture, random_colours(self.options, rng))
        return torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))


class Ours:
    """The step of train.py."""

    def __init__(self, cfg: str, size: int, device: torch.device) -> None:
        built = Contestant.build(cfg, torch.channels_last, device.type == "cuda", device)
        self.learner = MapsLearner(built.network, built.loss_function)
        self.precision = choose_precision("", True, self.learner, (size, size), device)
        self.learner.amp_dtype = self.precision.dtype
        scaler = torch.amp.GradScaler(device.type, enabled=self.precision.needs_scale)
        self.state: TrainState[Network] = TrainState(
            built.network, AveragedModel(built.network), built.optimizer, scaler
        )
        self.device = device

    def __call__(self, batch: Batch) -> None:
        """Learn from a batch."""
        add_gradients(self.state, self.learner, batch.to(self.device))
        optimizer_step(self.state, 10.0)


class Plain:
    """A step in float32 and the usual layout, on random objects."""

    def __init__(self, cfg: str, count: int, device: torch.device) -> None:
        self.contestant = Contestant.build(cfg, torch.contiguous_format, False, device)
        classes = self.contestant.network.num_classes
        self.targets = random_targets(count, count * OBJECTS, classes, device)
        self.device = device

    def __call__(self, images: Tensor) -> None:
        """Learn from pictures [B 3 S S] uint8."""
        self.contestant.step(images.to(self.device).float() / 255, self.targets)


def cpu_seconds() -> float:
    """Return the CPU time so far of this process and of those that load for it; Linux only."""
    ticks = 0
    for process in children():
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def rate(
    batches: Iterable[Any], act: Callable[[Any], object], options: TrainingBenchmarkOptions, device: torch.device
) -> Rate:
    """Take batches and do something with each."""
    arriving = iter(batches)
    for _ in range(WARM_UP):
        act(next(arriving))
    start, cpu_start = synchronised_time(device), cpu_seconds()
    for _ in range(options.batches):
        act(next(arriving))
    images = options.batches * options.batch_size
    seconds, cpu = synchronised_time(device) - start, cpu_seconds() - cpu_start
    return Rate(images / seconds, cpu / images * 1e3)


def endless(batches: Iterable[Any]) -> Iterator[Any]:
    """Yield batches for ever, from the first one again after the last."""
    while True:
        yield from batches


def rates_of(
    batches: Iterable[Any], step: Callable[[Any], object], options: TrainingBenchmarkOptions, device: torch.device
) -> dict[str, Rate]:
    """Return the rates of the step, of the loader and of both together."""
    first = next(iter(batches))
    return {
        "step": rate(endless([first]), step, options, device),
        "loader": rate(endless(batches), lambda _batch: None, options, device),
        "both": rate(endless(batches), step, options, device),
    }


def compare(cfg: str, size: int, annotations: Annotations, options: TrainingBenchmarkOptions) -> dict[str, Any]:
    """Time one network at one size in both ways, and print it."""
    device = choose_device(options.device)
    settings = LoaderSettings((size, size), options.batch_size, workers=options.workers)
    ours = Ours(cfg, size, device)
    rates = {"ours": rates_of(training_batches(annotations, settings, AugmentOptions()), ours, options, device)}
    plain = DataLoader(
        PlainMosaics(annotations, size), options.batch_size, num_workers=options.workers, worker_init_fn=start_worker
    )
    rates["plain"] = rates_of(plain, Plain(cfg, options.batch_size, device), options, device)
    for name, way in rates.items():
        cells = "".join(f"{one.images_per_s:9.1f}{one.cpu_ms:8.1f}" for one in way.values())
        share = way["both"].images_per_s / min(way["step"].images_per_s, way["loader"].images_per_s)
        note = "" if share >= ENOUGH else f" (less than {ENOUGH:.0%})"
        print(f"{cfg:18}{size:4} {name:6}{cells}{share:9.0%}{note}", flush=True)
    ratios = {part: rates["ours"][part].images_per_s / rates["plain"][part].images_per_s for part in rates["ours"]}
    shown = ", ".join(f"{part} {ratio:.2f}" for part, ratio in ratios.items())
    print(f"{'':23}ours / plain: {shown} ({ours.precision})", flush=True)
    found = {name: {part: asdict(one) for part, one in way.items()} for name, way in rates.items()}
    return {"cfg": cfg, "size": size, "precision": str(ours.precision), **found, "ratios": ratios}


def main() -> None:
    """Time all cases and print one table; write it to runs/benchmarks/training.json."""
    (options,) = parse_options(__doc__.splitlines()[0], TrainingBenchmarkOptions)
    use_threads()
    print(f"batch {options.batch_size}, {options.workers} workers, {describe_device(choose_device(options.device))}")
    print("images per second and CPU ms per image; together: both, in parts of the slower one alone")
    print(f"{'':29}{'step':>9}{'':8}{'loader':>9}{'':8}{'both':>9}{'':8}{'together':>9}")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        annotations = read_dataset(open_data(str(draw_set(Path(folder) / "drawn", NUM_IMAGES))), "train")
        for cfg in [options.cfg] if options.cfg else NETWORKS:
            for size in [options.img_size] if options.img_size else SIZES:
                rows.append(compare(cfg, size, annotations, options))
    write_json_atomically(Path("runs/benchmarks/training.json"), rows)


if __name__ == "__main__":
    run_command(main)
