"""The boxes of a network, or of a file of results, measured: scores before and after suppression, and what that lost.

Of a network nothing is kept but the columns of the objects and the final detections: every batch is measured at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from tqdm import tqdm

from analysis.matching.suppression import SuppressionRule
from analysis.score_mismatch.boxes import FoundBoxes, ObjectBoxes
from analysis.score_mismatch.image_loss import ImageLoss
from analysis.score_mismatch.scores import ComparedScores, compare_scores
from analysis.score_mismatch.suppression import (
    Suppressed,
    measure_suppression,
    nms_rules,
    suppress_images,
)
from data.labels.annotations import Annotations
from data.loader import Batches
from engine.run_folder import BAR_FORMAT
from evaluation.results import coco_results
from models.detector import Detector
from models.nms_variants import NmsRule, suppress
from utils.structures import Batch

CANDIDATES, DETECTIONS = "candidates", "detections"  # before and after suppression


@dataclass(frozen=True)
class MeasuredDetector:
    """What was measured of one detector; columns as in their classes, for the objects of ``rows``."""

    rows: np.ndarray  # [T] int64, of the annotations
    scores: dict[str, ComparedScores]  # by CANDIDATES and DETECTIONS; of a file, DETECTIONS alone
    suppression: dict[str, Suppressed]  # by kind of suppression, the chosen one first; empty where nothing is dropped
    results: list[dict]  # the detections in COCO's format
    note: str = ""  # on suppression, what cannot be told
    losses: dict[int, dict[str, float]] = field(default_factory=dict)  # image id -> the parts of its training loss
    unread: frozenset[int] = frozenset()  # ids of images that could not be read, whose objects are not measured


@dataclass(frozen=True)
class DetectionMeasurement:
    """All that decides what is measured."""

    annotations: Annotations
    truth: dict  # the same in COCO's format
    min_iou: float  # of the boxes whose scores are compared
    rule: SuppressionRule  # above which confidence, and which object a box belongs to
    nms: NmsRule  # for the boxes above this confidence

    @cached_property
    def index_of_image(self) -> dict[int, int]:
        """Image id -> index of the image in the annotations."""
        return {image_id: index for index, image_id in enumerate(self.annotations.image_ids.tolist())}

    @property
    def num_classes(self) -> int:
        """Classes of the data."""
        return len(self.annotations.names)

    def compare(self, objects: ObjectBoxes, found: FoundBoxes) -> ComparedScores:
        """Compare the scores of the boxes of some images."""
        return compare_scores(objects, found, self.min_iou, self.num_classes)

    def suppress(self, objects: ObjectBoxes, found: FoundBoxes, clip: bool) -> dict[str, Suppressed]:
        """Measure every kind of suppression on boxes that have not been suppressed.

        Args:
            objects: of the images.
            found: in their images, of any score; not cut off at the borders.
            clip: cut boxes off at the borders of their images, after the suppression.
        """
        before = found.select(found.scores > self.rule.confidence)
        measured = {}
        for kind, rule in nms_rules(self.nms).items():
            pair = (before, suppress_images(before, rule))
            if clip:
                pair = (pair[0].clipped(self.annotations.image_wh), pair[1].clipped(self.annotations.image_wh))
            measured[kind] = measure_suppression(objects, *pair, self.rule, rule.agnostic, self.num_classes)
        return measured


def measure_results(plan: DetectionMeasurement, results: list[dict]) -> MeasuredDetector:
    """Measure the results of a file; suppression only where it would drop some of their boxes."""
    objects, found = ObjectBoxes.of(plan.annotations), FoundBoxes.of_results(results, plan.truth)
    kinds = plan.suppress(objects, found, clip=False)
    why = why_nothing_is_dropped(plan, kinds["greedy"])
    dropped = kinds["greedy"].boxes_before - kinds["greedy"].boxes_after
    note = why or (
        f"suppression is that of the file's boxes, of which NMS at {plan.nms.iou_threshold:g} drops {dropped:,} of "
        f"{kinds['greedy'].boxes_before:,}; what was dropped before cannot be known"
    )
    return MeasuredDetector(
        objects.row, {DETECTIONS: plan.compare(objects, found)}, {} if why else kinds, results, note
    )


def why_nothing_is_dropped(plan: DetectionMeasurement, greedy: Suppressed, suppresses: bool = True) -> str:
    """Return in words why greedy suppression drops no box; "" where it drops some."""
    if not suppresses:
        return "no statistics of suppression, for it needs none: it gives every object one box"
    if not greedy.boxes_before:
        return (
            "no statistics of suppression, for none of its boxes has a score above --conf-thres "
            f"{plan.rule.confidence:g}"
        )
    if greedy.boxes_after < greedy.boxes_before:
        return ""
    return (
        f"no statistics of suppression, for NMS at {plan.nms.iou_threshold:g} drops none of its boxes; what was "
        "dropped before cannot be known"
    )


def measure_network(
    plan: DetectionMeasurement,
    detector: Detector,
    batches: Batches,
    loss: ImageLoss | None = None,
    single_class: bool = False,
) -> MeasuredDetector:
    """Measure a network on all images.

    Args:
        plan: what is measured.
        detector: with a low confidence (0.001), as for AP.
        batches: of the images.
        loss: None where losses are not wanted.
        single_class: all detections count as of class 0.

    Raises:
        UserError: too many images cannot be read.
    """
    parts: list[_MeasuredBatch] = []
    with tqdm(total=len(plan.annotations), unit=" images", desc="looking", disable=None, bar_format=BAR_FORMAT) as bar:
        for batch in batches:
            parts.append(_measure_batch(plan, detector, batch, loss, single_class))
            bar.update(len(batch.metas))
    scores = {
        stage: ComparedScores.joined([part.scores[stage] for part in parts]) for stage in (CANDIDATES, DETECTIONS)
    }
    kinds = {kind: Suppressed.joined([part.suppression[kind] for part in parts]) for kind in nms_rules(plan.nms)}
    why = why_nothing_is_dropped(plan, kinds["greedy"], detector.network.suppresses)
    by_image = {image_id: rows for part in parts for image_id, rows in part.results.items()}
    return MeasuredDetector(
        rows=np.concatenate([part.rows for part in parts]),
        scores=scores,
        suppression={} if why else kinds,
        results=[row for image in plan.truth["images"] for row in by_image.get(image["id"], ())],
        note=why,
        losses={image_id: one for part in parts for image_id, one in part.losses.items()},
        unread=frozenset(batches.unread_image_ids()),
    )


@dataclass(frozen=True)
class _MeasuredBatch:
    """What was measured of the images of a batch."""

    rows: np.ndarray
    scores: dict[str, ComparedScores]
    suppression: dict[str, Suppressed]
    results: dict[int, list[dict]]  # by image id
    losses: dict[int, dict[str, float]]


@torch.inference_mode()
def _measure_batch(
    plan: DetectionMeasurement, detector: Detector, batch: Batch, loss: ImageLoss | None, single_class: bool
) -> _MeasuredBatch:
    """Look at a batch and measure what is found."""
    raw = detector.raw_outputs(batch.images)
    candidates = detector.candidates(raw, batch.metas)
    kept = [suppress(of_image, detector.nms_rule) for of_image in candidates]
    kept = [replace(one, boxes_xyxy=meta.clipped(one.boxes_xyxy)) for one, meta in zip(kept, batch.metas, strict=True)]
    images = [plan.index_of_image[meta.image_id] for meta in batch.metas]
    objects = ObjectBoxes.of(plan.annotations, images)
    before, after = (FoundBoxes.of_images(found, images, single_class) for found in (candidates, kept))
    scores = {
        CANDIDATES: plan.compare(objects, before.clipped(plan.annotations.image_wh)),
        DETECTIONS: plan.compare(objects, after),
    }
    category_ids = [category["id"] for category in plan.truth["categories"]]
    if single_class:
        category_ids *= detector.network.num_classes
    results = {
        meta.image_id: coco_results(found, meta, category_ids) for meta, found in zip(batch.metas, kept, strict=True)
    }
    losses = {}
    if loss is not None:
        parts = loss.parts(detector, batch)
        losses = {meta.image_id: one for meta, one in zip(batch.metas, parts, strict=True)}
    return _MeasuredBatch(objects.row, scores, plan.suppress(objects, before, clip=True), results, losses)
