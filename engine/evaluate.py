"""From a detector and batches to COCO results, as testing and training collect them, and to metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager

import torch
from tqdm import tqdm

from data.image_checks import bad_images, too_many
from data.labels.annotations import Annotations
from data.loader import Batches, LoaderSettings, evaluation_batches
from engine.run_folder import BAR_FORMAT
from engine.validation_loss import ValidationLoss
from evaluation.coco import Metrics, evaluate_coco
from evaluation.results import coco_results
from models.detector import Detector, Dropped
from utils import distributed
from utils.errors import UserError
from utils.structures import Batch, Detections, ImageMeta
from utils.words import how_many

OnBatch = Callable[[Batch, Sequence[Detections]], None]


def evaluate(
    detector: Detector,
    batches: Iterable[Batch],
    ground_truth: dict,
    evaluator: str = "auto",
    loss: ValidationLoss | None = None,
) -> Metrics:
    """Run the detector over all batches and evaluate the boxes that it finds.

    Under ``torchrun`` every process detects in its share of the images and gets the metrics of all of them.

    Args:
        detector: with a low confidence (0.001), so that the precision-recall curve is whole.
        batches: iterable with a length; what padding repeats is counted once.
        ground_truth: in COCO's format; its category ``i`` is the network's class ``i``.
        evaluator: a backend of :mod:`evaluation.coco`.
        loss: is told every batch and what the network says of it.

    Raises:
        UserError: the evaluator is not installed.
    """
    detector.boxes_only = True
    results = collect_results(detector, batches, ground_truth, loss=loss)
    ground_truth, results = without_unread(ground_truth, results, batches)
    metrics = evaluate_coco(ground_truth, results, evaluator) if distributed.is_main() else None
    return distributed.broadcast(metrics)


def without_unread(ground_truth: dict, results: list[dict], batches: Iterable[Batch]) -> tuple[dict, list[dict]]:
    """Return ground truth and results without the images that could not be read; every process must call it."""
    mine = batches.unread_image_ids() if isinstance(batches, Batches) else set()
    unread = set().union(*(distributed.gather(mine) or ()))
    if isinstance(batches, Batches) and distributed.world_size() > 1:
        _refuse_too_many(batches, len(unread))
    if not unread:
        return ground_truth, results
    kept = {
        "images": [image for image in ground_truth["images"] if image["id"] not in unread],
        "annotations": [one for one in ground_truth["annotations"] if one["image_id"] not in unread],
    }
    return ground_truth | kept, [result for result in results if result["image_id"] not in unread]


def _refuse_too_many(batches: Batches, unread: int) -> None:
    """Refuse, as a single process does on its way, images that could not be read by all processes together."""
    annotations, allowed = batches.dataset.annotations, batches.settings.max_bad
    bad, total = len(bad_images(annotations)) + unread, len(annotations) + len(bad_images(annotations))
    if distributed.broadcast(too_many(bad, total, allowed)):
        raise UserError(f"{bad} of {total} images cannot be used, --max-bad {allowed:g} allows no more")


def dropped_by_limit(detector: Detector) -> Dropped:
    """Return what the limit of detections per image has dropped in all processes; every process must call it."""
    return sum(distributed.gather(detector.dropped) or (), Dropped())


def dropped_line(dropped: Dropped, max_detections: int, num_images: int, noun: str = "image") -> str:
    """Return the line that says what the limit has dropped; "" where it dropped nothing."""
    if not dropped.images:
        return ""
    least = "at least " if dropped.is_least else ""
    return (
        f"--max-det {max_detections} dropped {least}{how_many(dropped.detections, 'weaker detection')} "
        f"in {dropped.images:,} of {how_many(num_images, noun)}"
    )


@contextmanager
def warmed_up(detector: Detector, dataset: Annotations, settings: LoaderSettings) -> Iterator[Batches]:
    """Have the batches within this block, after one image: what is chosen the first time is not measured."""
    batches = evaluation_batches(dataset, settings)
    height, width = batches.plans()[0].net_hw if batches.plans() else settings.image_hw
    detector.look(torch.zeros(1, 3, height, width, dtype=torch.uint8), [ImageMeta(0, "", (width, height))])
    detector.reset_speed()
    with closing(batches):
        yield batches


def collect_results(
    detector: Detector,
    batches: Iterable[Batch],
    ground_truth: dict,
    single_class: bool = False,
    on_batch: OnBatch | None = None,
    loss: ValidationLoss | None = None,
) -> list[dict]:
    """Return COCO results for all batches, in the same order for any batch size and number of processes.

    Args:
        detector: finds the objects.
        batches: iterable with a length.
        ground_truth: gives the order of the images and the category ids.
        single_class: results carry the only category of the ground truth, whatever the network's class.
        on_batch: called with every batch and its detections, in the main process, to draw them for instance.
        loss: is told every batch and what the network says of it.

    Returns:
        Results ordered by image, the strongest of an image first; empty in all processes but the main one.
    """
    category_ids = [category["id"] for category in ground_truth["categories"]]
    if single_class:  # every class of the network -> the only category
        category_ids *= detector.network.num_classes
    by_image: dict[int, list[dict]] = {}
    bar = tqdm(batches, desc="test", disable=not distributed.is_main(), leave=False, bar_format=BAR_FORMAT)
    for batch in bar:
        if loss is None:
            found = detector(batch.images, batch.metas)
        else:
            raw = detector.raw_outputs(batch.images)
            loss.add(raw, batch.to(detector.device))
            found = detector.detect(raw, batch.metas)
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
