"""Milliseconds from one image's slots to its detections: ours against other NMS, in one process, with equal results.

The usual way (sigmoid of everything, at most 30,000 candidates, then NMS) is timed with cv2.dnn.NMSBoxesBatched, which
is compiled, and with a plain numpy loop. The slots are those of YOLOv3 at 416 and YOLOv5 at 640 pixels; "trained" has
few confident ones around objects, "untrained" has tens of thousands everywhere. A second line per case has the other
kinds of suppression that ``--nms`` offers, from the candidates on, in alternation.
Run: ``python -m benchmarks.nms [--confidence 0.001] [--repeats 9]``
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median

import cv2
import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import seconds_alternating, time_ms
from models.nms import LOGIT_SLACK, logit, non_max_suppression, select_candidates
from models.nms_variants import NMS_KINDS, NmsRule
from utils.config import option, parse_options
from utils.devices import choose_device, describe_device, use_threads
from utils.errors import run_command
from utils.structures import Detections

CLASSES, MAX_DETECTIONS, MOST_CANDIDATES = 80, 300, 30_000
CASES = {  # slots, objects, mean objectness logit away from objects
    "trained, 10,647 slots": (10_647, 12, -12.0),
    "trained, 25,200 slots": (25_200, 25, -12.0),
    "untrained, 10,647 slots": (10_647, 12, -4.5),
    "untrained, 25,200 slots": (25_200, 25, -4.5),
}


@dataclass(frozen=True)
class NmsTimingOptions:
    """What to time."""

    confidence: float = option(0.001, "minimum score; above 0.1 a box has one class only")
    iou: float = option(0.6, "NMS threshold")
    repeats: int = option(9, "timed runs of each; the median counts")
    device: str = option("", "cpu or a CUDA device; the others always run on the CPU")


def slots(num_slots: int, num_objects: int, background: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return boxes [S 4] in pixels, objectness logits [S] and class logits [S 80], as a network might give them."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.rand(num_slots, 2, generator=generator) * 600
    sizes = torch.exp(torch.randn(num_slots, 2, generator=generator) * 0.7 + 3.7)
    objectness = torch.randn(num_slots, generator=generator) * 1.5 + background
    classes = torch.randn(num_slots, CLASSES, generator=generator) * 1.5 - 4
    for number in range(num_objects):  # 60 slots each see the same object
        near = slice(number * 60, number * 60 + 60)
        centers[near] = centers[number * 60] + torch.randn(60, 2, generator=generator) * 4
        sizes[near] = sizes[number * 60] * torch.exp(torch.randn(60, 2, generator=generator) * 0.1)
        objectness[near] = torch.randn(60, generator=generator) * 3
        classes[near, number % CLASSES] += 7
    return torch.cat((centers - sizes / 2, centers + sizes / 2), dim=1), objectness, classes


def ours(boxes: Tensor, objectness: Tensor, classes: Tensor, options: NmsTimingOptions) -> np.ndarray:
    """Return the detections [N 6] of models/nms.py."""
    found = candidates_of(boxes, objectness, classes, options)
    kept = non_max_suppression(found.boxes_xyxy, found.scores, found.labels, options.iou, MAX_DETECTIONS)
    found = found.select(kept)
    return torch.cat((found.boxes_xyxy, found.scores[:, None], found.labels[:, None].float()), dim=1).cpu().numpy()


def candidates_of(boxes: Tensor, objectness: Tensor, classes: Tensor, options: NmsTimingOptions) -> Detections:
    """Return the candidates of the slots; like the detector, look at the objectness first."""
    passing = (objectness > logit(options.confidence) - LOGIT_SLACK).nonzero().flatten()
    multi_label = options.confidence <= 0.1
    slot, label, score = select_candidates(objectness[passing], classes[passing], options.confidence, multi_label)
    return Detections(boxes[passing[slot]], score, label)


def times_of_kinds(candidates: Detections, device: torch.device, options: NmsTimingOptions) -> str:
    """Return the milliseconds of each kind of suppression, and how many detections it leaves."""
    rule = NmsRule(options.iou, MAX_DETECTIONS, confidence=options.confidence)
    kinds = {name: partial(suppress, candidates, rule) for name, suppress in NMS_KINDS.items() if name != "cfg"}
    seconds = seconds_alternating(kinds, device, options.repeats)
    return "; ".join(
        f"{name} {median(seconds[name]) * 1e3:.1f} ms ({len(suppress())})" for name, suppress in kinds.items()
    )


def usual(
    suppress: Callable, boxes: Tensor, objectness: Tensor, classes: Tensor, options: NmsTimingOptions
) -> np.ndarray:
    """Return the detections [N 6] of the usual way with an NMS ``suppress(boxes, scores, labels, iou)``."""
    product = objectness.sigmoid()[:, None] * classes.sigmoid()
    if options.confidence <= 0.1:
        slot, label = (product > options.confidence).nonzero(as_tuple=True)
        score = product[slot, label]
    else:
        score, label = product.max(dim=1)
        slot = (score > options.confidence).nonzero().flatten()
        score, label = score[slot], label[slot]
    order = score.argsort(descending=True, stable=True)[:MOST_CANDIDATES]
    candidates, score, label = boxes[slot[order]], score[order], label[order]
    kept = torch.as_tensor(suppress(candidates, score, label, options.iou))[:MAX_DETECTIONS]
    return torch.cat((candidates[kept], score[kept, None], label[kept, None].float()), dim=1).numpy()


def opencv(boxes: Tensor, scores: Tensor, labels: Tensor, iou: float) -> np.ndarray:
    """Suppress with OpenCV's compiled NMS."""
    rows = torch.cat((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), dim=1).tolist()
    found = cv2.dnn.NMSBoxesBatched(rows, scores.tolist(), labels.tolist(), 0.0, iou)
    kept = np.asarray(found, dtype=np.int64).flatten()
    return kept[np.argsort(-scores.numpy()[kept], kind="stable")]


def plain_loop(boxes: Tensor, scores: Tensor, labels: Tensor, iou: float) -> np.ndarray:
    """Suppress with the usual numpy loop: one box against all the weaker ones at a time; classes kept apart."""
    xyxy, of_class = boxes.numpy(), labels.numpy()
    area = (xyxy[:, 2] - xyxy[:, 0]) * (xyxy[:, 3] - xyxy[:, 1])
    order, kept = np.arange(len(xyxy)), []
    while len(order):
        first, rest = order[0], order[1:]
        kept.append(first)
        size = np.minimum(xyxy[first, 2:], xyxy[rest, 2:]) - np.maximum(xyxy[first, :2], xyxy[rest, :2])
        intersection = np.maximum(size, 0).prod(axis=1)
        overlap = intersection / (area[first] + area[rest] - intersection)
        order = rest[(overlap <= np.float32(iou)) | (of_class[rest] != of_class[first])]
    return np.array(kept, dtype=np.int64)


RIVALS: dict[str, Callable] = {"OpenCV": opencv, "numpy loop": plain_loop}


def main() -> None:
    """Print a line per case."""
    (options,) = parse_options(__doc__.splitlines()[0], NmsTimingOptions)
    device = choose_device(options.device)
    use_threads()
    print(
        f"{describe_device(device)}; confidence {options.confidence:g}, IoU {options.iou:g}, at most {MAX_DETECTIONS}"
    )
    for name, case in CASES.items():
        tensors = slots(*case)
        boxes, objectness, classes = (tensor.to(device) for tensor in tensors)
        own = time_ms(partial(ours, boxes, objectness, classes, options), device, options.repeats)
        line = f"{name}: ours {own.median_ms:.1f} ms, {len(own.result)} detections"
        for rival, suppress in RIVALS.items():
            run = partial(usual, suppress, *tensors, options)
            theirs = time_ms(run, torch.device("cpu"), max(1, options.repeats // 4))
            is_same = own.result.shape == theirs.result.shape and np.allclose(
                own.result, theirs.result, rtol=1e-4, atol=1e-3
            )
            ratio = theirs.median_ms / own.median_ms
            line += f"; {rival} {theirs.median_ms:.0f} ms ({ratio:.1f} x{'' if is_same else ', other results'})"
        print(line, flush=True)
        candidates = candidates_of(boxes, objectness, classes, options)
        print(f"  {len(candidates):,} candidates: {times_of_kinds(candidates, device, options)}", flush=True)


if __name__ == "__main__":
    run_command(main)
