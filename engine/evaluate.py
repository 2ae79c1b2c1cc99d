"""From a detector and batches to COCO results, as testing and training collect them, and to metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from tqdm import tqdm

from data.loader import Batches
from engine.run_folder import BAR_FORMAT
from evaluation.coco import Metrics, evaluate_coco
from evaluation.results import coco_results
from models.detector import Detector
from utils import distributed
from utils.structures import Batch, Detections

OnBatch = Callable[[Batch, Sequence[Detections]], None]


def evaluate(detector: Detector, batches: Iterable[Batch], ground_truth: dict, evaluator: str = "auto") -> Metrics:
    """Run the detector over all batches and evaluate what it finds.

    Under ``torchrun`` every process detects in its share of the images and gets the metrics of all of them.

    Args:
        detector: with a low confidence (0.001), so that the precision-recall curve is whole.
        batches: iterable with a length; what padding repeats is counted once.
        ground_truth: in COCO's format; its category ``i`` is the network's class ``i``.
        evaluator: a backend of :mod:`evaluation.coco`.

    Raises:
        UserError: the evaluator is not installed.
    """
    results = collect_results(detector, batches, ground_truth)
    ground_truth, results = without_unread(ground_truth, results, batches)
    metrics = evaluate_coco(ground_truth, results, evaluator) if distributed.is_main() else None
    return distributed.broadcast(metrics)


def without_unread(ground_truth: dict, results: list[dict], batches: Iterable[Batch]) -> tuple[dict, list[dict]]:
    """Return ground truth and results without the images that could not be read; every process must call it."""
    mine = batches.unread_image_ids() if isinstance(batches, Batches) else set()
    unread = set().union(*(distributed.gather(mine) or ()))
    if not unread:
        return ground_truth, results
    kept = {
        "images": [image for image in ground_truth["images"] if image["id"] not in unread],
        "annotations": [one for one in ground_truth["annotations"] if one["image_id"] not in unread],
    }
    return ground_truth | kept, [result for result in results if result["image_id"] not in unread]


def collect_results(
    detector: Detector,
    batches: Iterable[Batch],
    ground_truth: dict,
    single_class: bool = False,
    on_batch: OnBatch | None = None,
) -> list[dict]:
    """Return COCO results for all batches, in the same order for any batch size and number of processes.

    Args:
        detector: finds the objects.
        batches: iterable with a length.
        ground_truth: gives the order of the images and the category ids.
        single_class: results carry the only category of the ground truth, whatever the network's class.
        on_batch: called with every batch and its detections, in the main process, to draw them for instance.

    Returns:
        Results ordered by image, the strongest of an image first; empty in all processes but the main one.
    """
    category_ids = [category["id"] for category in ground_truth["categories"]]
    if single_class:  # every class of the network -> the only category
        category_ids *= detector.heads[0].num_classes
    by_image: dict[int, list[dict]] = {}
    bar = tqdm(batches, desc="test", disable=not distributed.is_main(), leave=False, bar_format=BAR_FORMAT)
    for batch in bar:
        found = detector(batch.images, batch.metas)
        if on_batch is not None and distributed.is_main():
            on_batch(batch, found)
        for meta, detections in zip(batch.metas, found, strict=True):
            by_image[meta.image_id] = coco_results(detections, meta, category_ids)
    by_image = _merged(distributed.gather(by_image))
    return [result for image in ground_truth["images"] for result in by_image.get(image["id"], ())]


def _merged(parts: Sequence[dict[int, list[dict]]] | None) -> dict[int, list[dict]]:
    """Return the results of all processes, empty where there are none; an image that padding repeats counts once."""
    merged: dict[int, list[dict]] = {}
    for part in parts or ():
        merged = part | merged  # where two processes have an image, the first one's results stay
    return merged
