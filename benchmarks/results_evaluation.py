"""Seconds and memory of ``test.py --results --report --at-conf 0.25`` on made-up results, part by part.

Ours against hotcoco's bootstrap, which gives the intervals of a difference: both on the first images, for they must be
few. Run: ``python -m benchmarks.results_evaluation [--images 5000] [--resamples 1000]``
"""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass

import numpy as np

from analysis.error_pictures import ImageSource
from analysis.evaluation_images import hardest_images
from analysis.points_lost import find_points_lost
from benchmarks.coco_evaluation import OBJECTS, made_up_results
from benchmarks.coco_size_analysis import made_up_coco
from evaluation.bootstrap import ResampledNumbers, resample
from evaluation.comparison import coco_numbers, error_breakdown
from evaluation.confusion import confusion_matrix
from evaluation.curves import curves_of
from evaluation.results import clean_ground_truth
from evaluation.working_point import working_point
from utils.config import option, parse_options
from utils.errors import run_command


@dataclass(frozen=True)
class EvaluationBenchmarkOptions:
    """What to time."""

    images: int = option(5000, "images; 100 detections each")
    resamples: int = option(1000, "resamples of the images")
    few_images: int = option(128, "images of the comparison with hotcoco")


def main() -> None:
    """Print the seconds of each part, and the ratio to hotcoco's bootstrap."""
    (options,) = parse_options(__doc__.splitlines()[0], EvaluationBenchmarkOptions)
    truth = clean_ground_truth(made_up_coco(options.images, round(OBJECTS * options.images)))
    results = made_up_results(truth)
    print(f"{options.images} images, {len(truth['annotations'])} objects, {len(results)} detections")
    begin = time.perf_counter()
    for name, part in (
        ("the twelve numbers", lambda: coco_numbers(truth, results)),
        ("the error breakdown", lambda: error_breakdown(truth, results)),
        ("counts at a working point", lambda: working_point(truth, results, 0.25, 0.5)),
        ("the confusion matrix", lambda: confusion_matrix(truth, results, 0.25, 0.45)),
        ("the curves", lambda: curves_of(truth, results)),
        ("where the points went", lambda: points_lost_and_images(truth, results)),
        (f"{options.resamples} resamples", lambda: resample([ResampledNumbers(truth, results)], options.resamples, 0)),
    ):
        start = time.perf_counter()
        part()
        print(f"{name}: {time.perf_counter() - start:.1f} s", flush=True)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"all of it: {time.perf_counter() - begin:.1f} s, {memory:.2f} GiB at most")
    against_hotcoco(truth, results, options)


def points_lost_and_images(truth: dict, results: list[dict]) -> None:
    """Find what the report shows, its images without their pixels."""
    found, detectors = find_points_lost(truth, {"made up": results}, None, ())
    hardest_images(truth, detectors, found.ap50_lost, ImageSource({}), 24)


def against_hotcoco(truth: dict, results: list[dict], options: EvaluationBenchmarkOptions) -> None:
    """Time both bootstraps of the difference of two detectors on a few images, and show both intervals of AP."""
    from hotcoco import COCO, COCOeval, compare

    kept = {image["id"] for image in truth["images"][: options.few_images]}
    few = {**truth, "images": [image for image in truth["images"] if image["id"] in kept]}
    few["annotations"] = [row for row in truth["annotations"] if row["image_id"] in kept]
    first = [row for row in results if row["image_id"] in kept]
    second = first[::2]

    start = time.perf_counter()
    drawn = resample([ResampledNumbers(few, first), ResampledNumbers(few, second)], options.resamples, 0)
    seconds = time.perf_counter() - start
    low, high = np.quantile(drawn[:, 1, 0] - drawn[:, 0, 0], (0.025, 0.975))
    print(f"ours, two detectors, {len(kept)} images: {seconds:.1f} s, AP differs by {low:.4f} to {high:.4f}")

    start = time.perf_counter()
    index = COCO(few)
    one, other = (COCOeval(index, index.load_res([dict(row) for row in rows]), "bbox") for rows in (first, second))
    for evaluation in (one, other):
        evaluation.evaluate()
    found = compare(one, other, n_bootstrap=options.resamples, seed=0)["ci"]["AP"]
    theirs = time.perf_counter() - start
    print(f"hotcoco: {theirs:.1f} s, {found['lower']:.4f} to {found['upper']:.4f}; ratio {theirs / seconds:.2f}")


if __name__ == "__main__":
    run_command(main)
