"""Seconds of COCO's evaluation: hotcoco against pycocotools on made-up results, which must agree to the last bit.

Like COCO val2017 with ``--images 5000``: 7.3 objects per image, 1.2 % of them crowds, 100 detections per image; there
pycocotools needs minutes. Run: ``python -m benchmarks.coco_evaluation [--images 500]``
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from dataclasses import dataclass

import numpy as np

from benchmarks.coco_size_analysis import NUM_CLASSES, made_up_coco
from evaluation.coco import BACKENDS, evaluate_coco
from utils.config import option, parse_options
from utils.errors import UserError, run_command

OBJECTS, DETECTIONS = 7.3, 100  # per image


@dataclass(frozen=True)
class CocoEvaluationOptions:
    """What to time."""

    images: int = option(500, "images; 5000 is the size of COCO val2017")


def made_up_results(ground_truth: dict) -> list[dict]:
    """Return the detections of every image that has objects; most lie near an object and have its class."""
    rng = np.random.default_rng(0)
    results = []
    for image_id, group in itertools.groupby(ground_truth["annotations"], key=lambda one: one["image_id"]):
        objects = list(group)
        boxes, labels = (np.array([one[key] for one in objects]) for key in ("bbox", "category_id"))
        near = rng.integers(0, len(objects), DETECTIONS)
        found = (boxes[near] * np.exp(rng.normal(0, 0.12, (DETECTIONS, 4)))).round(3)
        right = rng.random(DETECTIONS) < 0.6
        classes = np.where(right, labels[near], rng.integers(1, NUM_CLASSES + 1, DETECTIONS))
        scores = (rng.random(DETECTIONS) ** 4).round(5)
        for box, label, score in zip(found.tolist(), classes.tolist(), scores.tolist(), strict=True):
            results.append({"image_id": image_id, "category_id": label, "bbox": box, "score": score})
    return results


def main() -> None:
    """Print the times and their ratio."""
    (options,) = parse_options(__doc__.splitlines()[0], CocoEvaluationOptions)
    ground_truth = made_up_coco(options.images, round(OBJECTS * options.images))
    results = made_up_results(ground_truth)
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
