"""How long the analyses take at the size of COCO train2017, and how much memory.

Makes up a COCO JSON with 860,000 boxes in 118,000 images, whose objects per image are distributed as in train2017
(about 5.9 million pairs), and runs the scripts on it, each in a process of its own.
Run: ``python -m benchmarks.coco_size_analysis [--images 118287 --boxes 860001]``
"""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.config import REPOSITORY, option, parse_options
from utils.errors import run_command

NUM_CLASSES = 80
RUNS = {
    "analyze.py --dataset-stats": ("analyze.py", "--dataset-stats"),
    "analyze.py --anchor-stats": ("analyze.py", "--anchor-stats", "--cfg", "yolov3.cfg"),
    "kmeans_anchors.py": ("kmeans_anchors.py", "--cfg", "yolov3.cfg"),
}
LIMITS = {"seconds": 60.0, "GiB": 2.0}  # of each script


@dataclass(frozen=True)
class CocoSizeOptions:
    """How large the made-up data set is."""

    images: int = option(118_287, "images of the made-up data set")
    boxes: int = option(860_001, "boxes of the made-up data set")


def made_up_coco(num_images: int, num_boxes: int, seed: int = 0) -> dict:
    """Return a COCO ground truth with a given number of boxes; no image exists.

    Objects per image are one plus a negative binomial number, with the mean and variance that train2017's numbers of
    images, objects and pairs imply (7.3 and 55); 0.9 % of the images have none. Sizes are log-normal, at least two
    pixels.
    """
    rng = np.random.default_rng(seed)
    annotated = round(num_images * 117_266 / 118_287)
    mean, variance = num_boxes / annotated - 1, 54.6
    counts = 1 + rng.negative_binomial(mean * mean / (variance - mean), mean / variance, annotated)
    surplus = int(counts.sum()) - num_boxes
    while surplus:  # one object more or less in some images until the number is right
        movable = np.flatnonzero(counts > 1) if surplus > 0 else np.arange(annotated)
        some = rng.choice(movable, min(abs(surplus), len(movable)), replace=False)
        counts[some] -= np.sign(surplus)
        surplus = int(counts.sum()) - num_boxes
    image = np.repeat(np.arange(annotated), counts)
    image_wh = np.where(rng.random((num_images, 1)) < 0.75, (640, 480), (480, 640))
    room = image_wh[image]
    side = np.exp(rng.normal(np.log(0.12), 1.05, num_boxes)) * np.sqrt(room.prod(axis=1))
    root = np.exp(rng.normal(0, 0.3, num_boxes))
    wh = np.clip(np.stack((side * root, side / root), axis=1), 2, room)
    boxes = np.concatenate((rng.random((num_boxes, 2)) * (room - wh), wh), axis=1).round(2)
    labels, crowd = rng.integers(1, NUM_CLASSES + 1, num_boxes), rng.random(num_boxes) < 0.012
    columns = zip(range(1, num_boxes + 1), image.tolist(), labels.tolist(), boxes.tolist(), crowd.tolist(), strict=True)
    annotations = [
        {"id": i, "image_id": img, "category_id": label, "bbox": box, "area": box[2] * box[3], "iscrowd": int(region)}
        for i, img, label, box, region in columns
    ]
    images = [
        {"id": i, "width": w, "height": h, "file_name": f"{i:012d}.jpg"} for i, (w, h) in enumerate(image_wh.tolist())
    ]
    categories = [{"id": i, "name": f"class {i}"} for i in range(1, NUM_CLASSES + 1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def write_made_up_coco(path: Path, num_images: int, num_boxes: int) -> None:
    """Write the made-up ground truth as JSON."""
    path.write_text(json.dumps(made_up_coco(num_images, num_boxes)))


def measure(arguments: tuple[str, ...], folder: Path) -> tuple[float, float, float, int]:
    """Run a script in ``folder``; return seconds, CPU seconds, peak memory in GiB and the exit status."""
    command = [sys.executable, str(REPOSITORY / arguments[0]), *arguments[1:]]
    start = time.perf_counter()
    with open(folder / "output.txt", "ab") as output:
        process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=output)
        _, status, usage = os.wait4(process.pid, 0)
    seconds, cpu_seconds = time.perf_counter() - start, usage.ru_utime + usage.ru_stime
    return seconds, cpu_seconds, usage.ru_maxrss / 2**20, os.waitstatus_to_exitcode(status)


def main() -> None:
    """Make the data, run every script, print a table and fail where a limit is exceeded."""
    (options,) = parse_options(__doc__.splitlines()[0], CocoSizeOptions)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        json_path = folder / "instances_made_up.json"
        # In a process of its own: the kernel counts a parent's memory towards the peak of the processes it starts.
        maker = multiprocessing.get_context("spawn").Process(
            target=write_made_up_coco, args=(json_path, options.images, options.boxes)
        )
        maker.start()
        maker.join()
        megabytes = json_path.stat().st_size / 1e6
        load = os.getloadavg()[0]
        print(f"{options.boxes:,} boxes in {options.images:,} images, {megabytes:.0f} MB")
        print(f"{os.cpu_count()} CPU cores, of which others keep {load:.1f} busy\n")
        print("| command | seconds | CPU seconds | peak GiB |\n|---|---:|---:|---:|")
        failed = False
        for title, arguments in RUNS.items():
            seconds, cpu_seconds, gibibytes, status = measure((*arguments, "--data", str(json_path)), folder)
            print(f"| {title} | {seconds:.1f} | {cpu_seconds:.1f} | {gibibytes:.2f} |", flush=True)
            if status:
                print((folder / "output.txt").read_text()[-2000:], file=sys.stderr)
            failed |= bool(status) or seconds > LIMITS["seconds"] or gibibytes > LIMITS["GiB"]
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    run_command(main)
