"""Images per second of the loader: 200 JPEG files of 640x480, size 640, batch 16; mosaic and plain, 0 and 2 workers.

No process can keep all 200 images decoded, so that the rate is that of a large data set. On two cores of a Cascade Lake
Xeon, three other loaders reached, without and with two workers:

- ultralytics/yolov5 at 5081342: mosaic 43 and 85, plain 74 and 132;
- ultralytics/yolov3 at 97b87b1: mosaic 44 and 87, plain 84 and 138;
- ultralytics 8.4.190: mosaic 65 and 119, plain 85 and 157.

Run: ``python -m benchmarks.loader``
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

from data.augment import AugmentOptions
from data.labels.read import read_dataset
from data.loader import LoaderSettings, training_batches
from data.splits import open_data
from utils.config import parse_options
from utils.errors import run_command

NUM_IMAGES, IMAGE_WH, SIZE, BATCH, EPOCHS = 200, (640, 480), 640, 16, 4


def make_images(folder: Path) -> None:
    """Write JPEG files of photographic smoothness, each with seven boxes."""
    for name in ("images", "labels"):
        (folder / name).mkdir()
    for index in range(NUM_IMAGES):
        rng = np.random.default_rng(index)
        image = sum(
            strength
            * cv2.resize(rng.random((cells, cells, 3), dtype=np.float32), IMAGE_WH, interpolation=cv2.INTER_CUBIC)
            for cells, strength in ((4, 120), (24, 80), (160, 55))
        )
        cv2.imwrite(str(folder / "images" / f"{index:04d}.jpg"), np.clip(image, 0, 255).astype(np.uint8))
        boxes = np.concatenate((rng.uniform(0.3, 0.7, (7, 2)), rng.uniform(0.05, 0.5, (7, 2))), axis=1)
        text = "".join("0 " + " ".join(f"{value:.6f}" for value in box) + "\n" for box in boxes)
        (folder / "labels" / f"{index:04d}.txt").write_text(text)


def images_per_second(annotations, workers: int, augment: AugmentOptions) -> tuple[float, float]:
    """Return the median over the epochs after the first: per second, and per second of this process's CPU time."""
    settings = LoaderSettings((SIZE, SIZE), BATCH, workers=workers)
    batches = training_batches(annotations, settings, augment)
    rates, cpu_rates = [], []
    for epoch in range(EPOCHS):
        batches.set_epoch(epoch)
        start, cpu_start = time.perf_counter(), time.process_time()
        count = sum(len(batch.images) for batch in batches)
        rates.append(count / (time.perf_counter() - start))
        cpu_rates.append(count / (time.process_time() - cpu_start))
    return statistics.median(rates[1:]), statistics.median(cpu_rates[1:])


def main() -> None:
    """Print the table."""
    parse_options(__doc__.splitlines()[0])
    with tempfile.TemporaryDirectory() as folder:
        make_images(Path(folder))
        annotations = read_dataset(open_data(str(Path(folder) / "images")), "train")
        print(
            f"{len(annotations)} images of {IMAGE_WH[0]}x{IMAGE_WH[1]}, size {SIZE}, batch {BATCH}; images per second"
        )
        print("workers   mosaic    plain")
        for workers in (0, 2):
            rates = [images_per_second(annotations, workers, AugmentOptions(mosaic=mosaic)) for mosaic in (1.0, 0.0)]
            print(f"{workers:7d} {rates[0][0]:8.0f} {rates[1][0]:8.0f}", flush=True)
            if workers == 0:  # what a busy machine cannot hide
                print(f"per CPU second {rates[0][1]:.0f} {rates[1][1]:.0f}", flush=True)


if __name__ == "__main__":
    run_command(main)
