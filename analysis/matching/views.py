"""Single images in detail: truth, detections, the slots that every strategy matches, and their predictions.

For the pictures of hard examples and of lost objects, and for the browser of the report: a few images, one at a time.
Boxes are corners in the pixels of the original image. Shape letter: T objects of the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from analysis.matching.measure import MeasurementPlan, to_device
from analysis.matching.pairs import Predictions, slot_numbers
from data.dataset import BatchPlan, DetectionDataset
from data.labels.annotations import Annotations
from models.assignment.assigner import build_assigner
from utils.draw import class_color, class_name, draw_box, draw_detections, line_width
from utils.structures import Batch, Detections

GAP = 8  # pixels between the panels of a picture
PANEL_PIXELS = 640  # longest side of a panel
CAPTION_PIXELS = 26
LOST_COLOR, OTHER_COLOR = (40, 40, 255), (170, 170, 170)  # red and grey, as B G R


@dataclass(frozen=True)
class MatchedSlot:
    """A slot that at least one strategy matches to an object."""

    target: int  # index of the object among those of the image
    head: int
    anchor: int
    row: int
    col: int
    cell_xyxy: tuple[float, ...]  # the slot's cell
    box_xyxy: tuple[float, ...]  # what it predicts
    q: float  # IoU of the prediction with the object, of the first kind that was measured
    objectness: float | None  # 0..1, None where the heads have none
    base: tuple[bool, ...]  # of every strategy
    extra: tuple[bool, ...]


@dataclass(frozen=True, eq=False)
class ImageView:
    """One image, and everything about it that is drawn."""

    index: int  # of the image in the annotations
    image_id: int
    path: str
    pixels: np.ndarray  # [H W 3] uint8, BGR
    boxes_xyxy: np.ndarray  # [T 4]
    labels: tuple[int, ...]  # T
    annotation_ids: tuple[int, ...]  # T
    detections: Detections
    slots: tuple[MatchedSlot, ...]
    remarks: dict[str, Any] = field(default_factory=dict)  # "loss": its parts; "lost": index of an object -> reason


def view_images(
    annotations: Annotations, plan: MeasurementPlan, net_hw: tuple[int, int], indices: Sequence[int]
) -> list[ImageView]:
    """Return the views of some images, each after a forward pass of its own.

    Args:
        annotations: of the data set.
        plan: network and strategies.
        net_hw: size of the network input, pixels.
        indices: of the images in the annotations.

    Raises:
        UserError: an image cannot be read.
    """
    dataset = DetectionDataset(annotations, plan.resize)
    views = []
    for index in indices:
        batch = dataset.plain_batch(BatchPlan((int(index),), net_hw))
        rows = np.arange(len(annotations.box_image))[annotations.rows_of(int(index))]
        rows = rows[~annotations.crowd[rows]]
        with torch.inference_mode():
            raw_maps = plan.detector.raw_outputs(batch.images)
            batch = to_device(batch, plan.detector.device)
            detections = plan.detector.detect(raw_maps, batch.metas)[0].cpu()
            slots = matched_slots(batch, raw_maps, plan)
        views.append(
            ImageView(
                int(index),
                int(annotations.image_ids[index]),
                annotations.image_paths[index],
                dataset.decode(int(index)),
                annotations.boxes_xyxy[rows],
                tuple(annotations.labels[rows].tolist()),
                tuple(annotations.annotation_ids[rows].tolist()),
                detections,
                slots,
            )
        )
    return views


def matched_slots(batch: Batch, raw_maps: list[Tensor], plan: MeasurementPlan) -> tuple[MatchedSlot, ...]:
    """Return the slots of a batch of one image that any strategy matches, ordered by object, then by slot."""
    # (object, slot) -> for base and extra matches, which strategies make one.
    heads = plan.detector.heads
    predictions = Predictions.of(batch.targets, raw_maps, heads)
    grid = predictions.grid
    found: dict[tuple[int, int], list[list[bool]]] = {}
    for number, options in enumerate(plan.strategies.values()):
        assignment = build_assigner(options, heads).match(batch.targets, grid, raw_maps, batch.crowd)
        for part, matches in enumerate((assignment.base, assignment.extra)):
            slots = slot_numbers(matches, grid)
            for pair in zip(matches.target.tolist(), slots.tolist(), strict=True):
                flags = found.setdefault(pair, [[False] * len(plan.strategies) for _ in range(2)])
                flags[part][number] = True
    if not found:
        return ()
    # What is known of each pair: predicted box, fit, objectness, and its cell, in original pixels.
    pairs = sorted(found)
    target, slot = torch.tensor(pairs, device=predictions.boxes_xyxy.device).T.contiguous()
    meta = batch.metas[0]
    boxes = meta.to_original(predictions.boxes_xyxy[0, slot], clip=False).tolist()
    q = predictions.ious(target, slot, plan.kinds[:1])[:, 0].tolist()
    objectness = predictions.objectness[0, slot].sigmoid().tolist() if heads[0].has_objectness else [None] * len(slot)
    place = grid.locate(slot)
    columns = (grid.head[place.anchor], grid.anchor[place.anchor], place.row, place.col)
    places = torch.stack(columns, dim=1).tolist()
    cells_xyxy = meta.to_original(grid.cells_xyxy(place), clip=False).tolist()
    return tuple(
        MatchedSlot(
            target=pair[0],
            head=head,
            anchor=anchor,
            row=row,
            col=col,
            cell_xyxy=tuple(cell),
            box_xyxy=tuple(box),
            q=fit,
            objectness=sure,
            base=tuple(found[pair][0]),
            extra=tuple(found[pair][1]),
        )
        for pair, (head, anchor, row, col), cell, box, fit, sure in zip(
            pairs, places, cells_xyxy, boxes, q, objectness, strict=True
        )
    )


def picture(view: ImageView, names: Sequence[str], strategies: Sequence[str]) -> np.ndarray:
    """Return an image three times side by side, [h w 3] BGR: truth, detections, and what the first strategy matches."""
    truth, found, matched = (view.pixels.copy() for _ in range(3))
    _draw_truth(truth, view, names)
    draw_detections(found, view.detections, names)
    thickness = line_width(*matched.shape[:2])
    for box, label in zip(view.boxes_xyxy, view.labels, strict=True):
        draw_box(matched, box, "", class_color(label))
    for slot in view.slots:
        if slot.base[0] or slot.extra[0]:
            center = [round((slot.cell_xyxy[i] + slot.cell_xyxy[i + 2]) / 2) for i in (0, 1)]
            cv2.drawMarker(matched, center, (255, 255, 255), cv2.MARKER_CROSS, 6 * thickness, thickness)
            draw_box(matched, slot.box_xyxy, f"{slot.q:.2f}", (255, 255, 255) if slot.base[0] else (0, 200, 255))
    loss = view.remarks.get("loss")
    right = "" if loss is None else ", ".join(f"{name} {value:.3g}" for name, value in loss.items())
    captions = (f"{view.image_id}: truth", "detections", f"{strategies[0]}: predictions of the matched slots  {right}")
    return side_by_side((truth, found, matched), captions)


def lost_picture(view: ImageView, names: Sequence[str]) -> np.ndarray:
    """Return an image twice side by side, [h w 3] BGR: objects and detections.

    The objects that NMS lost are red, with the reason; the others are grey.
    """
    truth, found = (view.pixels.copy() for _ in range(2))
    draw_detections(found, view.detections, names)
    lost = view.remarks.get("lost", {})
    for number, box in enumerate(view.boxes_xyxy):
        if number not in lost:
            draw_box(truth, box, "", OTHER_COLOR)
    for number, why in lost.items():
        draw_box(truth, view.boxes_xyxy[number], f"{class_name(view.labels[number], names)} {why}", LOST_COLOR)
    return side_by_side((truth, found), (f"{view.image_id}: lost objects in red, others grey", "detections"))


def _draw_truth(image: np.ndarray, view: ImageView, names: Sequence[str]) -> None:
    for box, label in zip(view.boxes_xyxy, view.labels, strict=True):
        draw_box(image, box, class_name(label, names), class_color(label))


def side_by_side(panels: Sequence[np.ndarray], captions: Sequence[str]) -> np.ndarray:
    """Return panels of one size, scaled to PANEL_PIXELS, on a white sheet, each under its caption."""
    height, width = panels[0].shape[:2]
    scale = PANEL_PIXELS / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    sheet = np.full((size[1] + CAPTION_PIXELS, (size[0] + GAP) * len(panels) - GAP, 3), 255, dtype=np.uint8)
    for number, (panel, caption) in enumerate(zip(panels, captions, strict=True)):
        left = number * (size[0] + GAP)
        mode = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        sheet[CAPTION_PIXELS:, left : left + size[0]] = cv2.resize(panel, size, interpolation=mode)
        text = np.full((CAPTION_PIXELS, size[0], 3), 255, dtype=np.uint8)
        cv2.putText(text, caption, (4, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
        sheet[:CAPTION_PIXELS, left : left + size[0]] = text
    return sheet
