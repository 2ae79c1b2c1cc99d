"""Seconds of COCO's evaluation: hotcoco against pycocotools on made-up results, which must agree to the last bit.

Like COCO val2017 with ``--images 5000``: 7.3 objects per image, 1.2 % of them crowds, 100 detections per image; there
pycocotools needs minutes. Run: ``python -m benchmarks.coco_evaluation [--images 500]``
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass

import numpy as np

from evaluation.coco import BACKENDS, evaluate_coco
from utils.config import option, parse_options
from utils.errors import UserError, run_command

CLASSES, OBJECTS, DETECTIONS, CROWD_SHARE = 80, 7.3, 100, 0.012


@dataclass(frozen=True)
class BenchmarkOptions:
    """What to time."""

    images: int = option(500, "images; 5000 is the size of COCO val2017")


def made_up(num_images: int) -> tuple[dict, list[dict]]:
    """Return a ground truth and results of which most lie near an object of the same class."""
    rng = np.random.default_rng(0)
    images = [{"id": number + 1, "width": 640, "height": 480} for number in range(num_images)]
    categories = [{"id": number + 1, "name": f"class {number}"} for number in range(CLASSES)]
    annotations, results = [], []
    for image in images:
        count = 1 + rng.poisson(OBJECTS - 1)
        size = np.exp(rng.normal(4, 1, (count, 2))).clip(4, 400)
        boxes = np.concatenate((rng.random((count, 2)) * 240, size), axis=1).round(2)
        labels = rng.integers(1, CLASSES + 1, count)
        for box, label in zip(boxes.tolist(), labels.tolist(), strict=True):
            crowd = int(rng.random() < CROWD_SHARE)
            row = {"id": len(annotations) + 1, "image_id": image["id"], "category_id": label, "iscrowd": crowd}
            annotations.append(row | {"bbox": box, "area": box[2] * box[3]})
        near = rng.integers(0, count, DETECTIONS)
        found = (boxes[near] * np.exp(rng.normal(0, 0.12, (DETECTIONS, 4)))).round(3)
        right = rng.random(DETECTIONS) < 0.6
        classes = np.where(right, labels[near], rng.integers(1, CLASSES + 1, DETECTIONS))
        scores = (rng.random(DETECTIONS) ** 4).round(5)
        for box, label, score in zip(found.tolist(), classes.tolist(), scores.tolist(), strict=True):
            results.append({"image_id": image["id"], "category_id": label, "bbox": box, "score": score})
    return {"images": images, "categories": categories, "annotations": annotations}, results


def main() -> None:
    """Print the times and their ratio."""
    (options,) = parse_options(__doc__.splitlines()[0], BenchmarkOptions)
    ground_truth, results = made_up(options.images)
    print(f"{options.images} images, {len(ground_truth['annotations'])} objects, {len(results)} detections")
    seconds, metrics = {}, {}
    for name in BACKENDS:
        start = time.perf_counter()
        metrics[name] = evaluate_coco(ground_truth, results, name)
        seconds[name] = time.perf_counter() - start
        print(f"{name}: {seconds[name]:.2f} s from dicts to all metrics, AP {metrics[name].ap!r}", flush=True)
    fast, referee = BACKENDS
    if dataclasses.replace(metrics[fast], evaluator=referee) != metrics[referee]:
        raise UserError(f"{fast} and {referee} disagree")
    print(f"all numbers equal to the last bit; {fast} is {seconds[referee] / seconds[fast]:.0f} times faster")


if __name__ == "__main__":
    run_command(main)
