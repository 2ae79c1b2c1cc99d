"""An exported file against the network that it was made of: how far the outputs lie apart, and how fast it is.

Shape letters: B images, N slots of all heads, C classes, K detections, H W pixels of the network input.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from models.exported.metadata import ExportMetadata
from models.exported.onnx_nms import GraphNms
from models.nms import non_max_suppression
from utils.boxes import box_iou
from utils.structures import Detections

Run = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # images [B 3 H W] -> boxes [B N 4], scores [B N C]

LIMIT = 1e-4  # of the difference of a float32 file
LEAST_AGREEMENT = 0.8  # of a file of lower precision
CONFIDENCE, IOU, SAME_IOU = 0.25, 0.6, 0.5  # of the detections that are compared, and when two are the same
MOST = 100  # of them per image
TIMED_RUNS = 10


@dataclass(frozen=True)
class ExportDifference:
    """How far a file lies from its network, on all compared images."""

    boxes: float | None = None  # largest, relative to the box's largest coordinate where that is above a pixel
    scores: float | None = None  # largest
    agreement: float | None = None  # share of the detections of either that the other has, too; None without any
    detections: int = 0  # of the network, compared so

    def problem(self, precision: str) -> str:
        """Return in words why the file cannot be used, nothing where it can."""
        largest = np.max((self.boxes or 0.0, self.scores or 0.0))  # NaN where either is
        if not (largest <= LIMIT if precision == "float32" else np.isfinite(largest)):
            return f"differs from the network: boxes by {self.boxes:.1e}, scores by {self.scores:.1e}"
        if self.agreement is not None and not self.agreement >= LEAST_AGREEMENT:
            return f"only {self.agreement:.0%} of the detections agree with the network's"
        return ""

    def __str__(self) -> str:
        parts = []
        if self.boxes is not None and self.scores is not None:
            parts.append(f"largest difference {self.boxes:.1e} (boxes, relative), {self.scores:.1e} (scores)")
        if self.agreement is not None:
            parts.append(f"{self.agreement:.1%} of {self.detections} detections agree")
        return ", ".join(parts) or "the network finds nothing in the images that are compared"


def compare(
    reference: Run, file: Run, images: Sequence[np.ndarray], detections: bool = False, nms: GraphNms | None = None
) -> ExportDifference:
    """Run the network and a file on batches of images [B 3 H W] float32, 0..1.

    Args:
        reference: the network.
        file: the file.
        images: the batches.
        detections: compare what is left after an NMS, the strongest of each image, besides boxes and scores slot by
            slot.
        nms: of the file, whose slots are detections: these alone are compared, with those that it keeps of the network.
    """
    boxes = scores = 0.0
    same = total = count = 0
    rule = _comparable(nms, reference, images) if nms else GraphNms(CONFIDENCE, IOU, MOST)
    for batch in images:
        wanted, found = reference(batch), file(batch)
        if not nms:
            boxes = float(np.maximum(boxes, _relative(wanted[0], found[0])))  # unlike max, it keeps a NaN
            scores = float(np.maximum(scores, np.abs(found[1] - wanted[1]).max()))
        if not detections and not nms:
            continue
        for expected, got in zip(_detections(*wanted, rule), _detections(*found, rule), strict=True):
            same += _matched(expected, got) + _matched(got, expected)
            total += len(expected) + len(got)
            count += len(expected)
    agreement = same / total if total else None
    return ExportDifference(None, None, agreement, count) if nms else ExportDifference(boxes, scores, agreement, count)


def _comparable(nms: GraphNms, reference: Run, images: Sequence[np.ndarray]) -> GraphNms:
    """Return a file's NMS with a higher confidence, as long as that leaves something to compare.

    A trained network is sure of little in noise: where its best score is low, the half of that is the confidence.
    """
    best = max(float(reference(batch)[1].max(initial=0.0)) for batch in images)
    return replace(nms, confidence=max(nms.confidence, min(CONFIDENCE, best / 2)))


def _relative(wanted: np.ndarray, found: np.ndarray) -> float:
    """Return the largest difference of boxes [... 4] relative to each box's largest coordinate, at least a pixel.

    A size that both compute as infinite is the same; one that is infinite in one of them only differs infinitely.
    """
    with np.errstate(invalid="ignore"):
        difference = np.where(wanted == found, 0.0, np.abs(found.astype(np.float64) - wanted)).max(axis=-1)
        relative = difference / np.abs(wanted).max(axis=-1).clip(min=1)
    return float(np.where(np.isinf(difference), np.inf, relative).max())


def _detections(boxes: np.ndarray, scores: np.ndarray, rule: GraphNms) -> list[Detections]:
    """Return the strongest detections of each image of a batch that an NMS keeps, boxes in network pixels."""
    found = []
    for image_boxes, image_scores in zip(torch.from_numpy(boxes), torch.from_numpy(scores), strict=True):
        slot, label = (image_scores > rule.confidence).nonzero(as_tuple=True)
        candidates = Detections(image_boxes[slot], image_scores[slot, label], label)
        parts = [slot[:0]]
        for one in label.unique():
            places = (label == one).nonzero().flatten()
            of_class = candidates.select(places)
            kept = non_max_suppression(
                of_class.boxes_xyxy, of_class.scores, of_class.labels, rule.iou, rule.max_per_class
            )
            parts.append(places[kept])
        every = candidates.select(torch.cat(parts))
        found.append(every.select(every.scores.argsort(descending=True, stable=True)[:MOST]))
    return found


def _matched(first: Detections, second: Detections) -> int:
    """Return how many detections of the first there are in the second, too."""
    if not len(first) or not len(second):
        return 0
    overlaps: Tensor = box_iou(first.boxes_xyxy, second.boxes_xyxy) > SAME_IOU
    return int((overlaps & (first.labels[:, None] == second.labels)).any(dim=1).sum())


def sample_images(metadata: ExportMetadata, real: Sequence[np.ndarray] = ()) -> list[np.ndarray]:
    """Return batches to compare on: noise in several sizes and numbers where they are free, and the real images."""
    generator = np.random.default_rng(0)
    width, height = metadata.input_wh
    step = metadata.max_stride if metadata.dynamic else 0
    sizes = [(height, width), (height + step, width), (height, width + 2 * step)][: 3 if metadata.dynamic else 1]
    counts = [metadata.batch_size or number for number in (1, 2, 3)][: 1 if metadata.batch_size else 3]
    shapes = [(counts[number % len(counts)], 3, *sizes[number % len(sizes)]) for number in range(3)]
    return [generator.random(shape, dtype=np.float32) for shape in dict.fromkeys(shapes)] + list(real)


def seconds_per_image(runs: Sequence[Run], image: np.ndarray) -> list[float]:
    """Return the median seconds of each on the same batch [B 3 H W], per image; they take turns."""
    seconds: list[list[float]] = [[] for _ in runs]
    for number in range(TIMED_RUNS + 1):  # the first warms up
        for run, times in zip(runs, seconds, strict=True):
            start = time.perf_counter()
            run(image)
            times += [time.perf_counter() - start] if number else []
    return [statistics.median(times) / len(image) for times in seconds]
