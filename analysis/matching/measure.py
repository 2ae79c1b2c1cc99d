"""The pass over the images: every strategy and every kind of IoU, measured from one forward pass of each image.

``docs/analysis.md`` defines the statistics; ``quality``, ``scores`` and ``suppression`` measure the objects of a batch,
``losses`` its images, ``statistics`` sums up what was measured.

Shape letters: M objects, N images, Z strategies, Q kinds of IoU, L heads, K anchors of all heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from zlib import crc32

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from analysis.matching.blocks import ColumnBlock, Columns, alike, concatenate, in_order_of, read_blocks
from analysis.matching.losses import image_losses
from analysis.matching.pairs import Predictions, match, slots_per_image
from analysis.matching.quality import measure
from analysis.matching.scores import score_columns
from analysis.matching.suppression import SuppressionRule, suppression_columns
from data.dataset import BatchPlan, DetectionDataset
from data.labels.annotations import Annotations
from data.loader import Batches, LoaderSettings, evaluation_plans
from models.assignment.assigner import build_assigner
from models.assignment.candidates import CANDIDATES
from models.assignment.options import AssignmentOptions
from models.detector import Detector
from models.heads import Head
from models.loss import DetectionLoss
from utils import distributed
from utils.config import command_from_here
from utils.errors import UserError
from utils.structures import Batch

BATCHES_PER_BLOCK = 32


@dataclass(frozen=True)
class MeasurementPlan:
    """All that decides what is measured; plain values and parts, made once."""

    detector: Detector
    strategies: Mapping[str, AssignmentOptions]
    kinds: tuple[str, ...]  # of IoU
    candidates: str  # which slots are C(o), a key of CANDIDATES
    score_candidates: str  # likewise: slots whose scores are compared
    min_q: float  # of these, the slots whose prediction has at least this IoU
    suppression: SuppressionRule
    loss: DetectionLoss | None  # None: losses are not measured
    resize: str = "letterbox"  # how images get into the network input, a key of data.letterbox.RESIZES

    def __post_init__(self) -> None:
        assert {self.candidates, self.score_candidates} <= set(CANDIDATES)


@dataclass(frozen=True)
class Measurements:
    """Everything that was measured over a data set, and what the dimensions of its columns count."""

    objects: Columns  # [M ...] each, in the order of the annotations' rows; "row" is that row, "image" one of images
    images: Columns  # [N ...] each, in the order of the annotations' images
    batches: Columns  # "milliseconds" [number of batches, Z]
    strategies: tuple[str, ...]  # what Z counts
    kinds: tuple[str, ...]  # of IoU: what Q counts
    heads: tuple[Head, ...]  # what L counts; their anchors, one head after the other, are what K counts


def measure_images(
    annotations: Annotations, plan: MeasurementPlan, settings: LoaderSettings, folder: Path | None = None
) -> Measurements | None:
    """Measure every object of a data set; under ``torchrun`` each process takes its share of the batches.

    Args:
        annotations: of images that are on the disk.
        plan: what to measure.
        settings: size and number of images per batch, as for one process: the batches are divided here.
        folder: keeps the blocks of the run; batches that a block holds are not measured again. None: no blocks.

    Returns:
        The measurements of all processes in the main one, None in the others; the same for any number of processes.

    Raises:
        UserError: too many images cannot be read, or a file in ``folder`` is no block of these images.
        KeyboardInterrupt: the run was interrupted; the message says how to go on.
    """
    kept, done = read_blocks(folder) if folder else ({}, set())
    plans = evaluation_plans(annotations.image_wh, settings)
    if kept and folder:
        refuse_other_images(kept, [plans[number] for number in done if 0 <= number < len(plans)], annotations, folder)
    gathered = distributed.gather(_measure_share(annotations, plan, settings, plans, done, folder))
    if gathered is None:
        return None
    columns = joined(kept, [part for one in gathered for part in one], folder)
    return Measurements(
        objects=in_order_of(columns, "object", "row"),
        images=in_order_of(columns, "image", "index"),
        batches=in_order_of(columns, "batch", "first"),
        strategies=tuple(plan.strategies),
        kinds=plan.kinds,
        heads=plan.detector.heads,
    )


def _measure_share(
    annotations: Annotations,
    plan: MeasurementPlan,
    settings: LoaderSettings,
    plans: Sequence[BatchPlan],
    done: set[int],
    folder: Path | None,
) -> list[Columns]:
    """Return the columns of this process's share of the batches that are not done; raises as :func:`measure_images`."""
    todo = [item for item in enumerate(plans) if item[0] not in done]
    mine = todo[distributed.rank() :: distributed.world_size()]
    dataset = DetectionDataset(annotations, settings.resize, leave_out=settings.max_bad > 0)
    batches = Batches(dataset, lambda _: [one for _, one in mine], settings)
    rows_of_image = rows_without_crowd(annotations)
    assigners = {name: build_assigner(one, plan.detector.heads) for name, one in plan.strategies.items()}
    block, parts = ColumnBlock(), []
    bar = tqdm(total=len(annotations), unit=" images", desc="matching", disable=None if distributed.is_main() else True)
    bar.update(len(annotations) - sum(len(one.indices) for _, one in todo))
    try:
        for (number, one), batch in zip(mine, batches.with_empty(), strict=True):
            if batch.metas:
                columns = measure_batch(batch, one, rows_of_image, plan, assigners)
                parts.append(columns)
                block.add(number, columns)
            if folder and len(block.batches) == BATCHES_PER_BLOCK:
                block.write(folder)
            bar.update(len(one.indices) * distributed.world_size())
    except KeyboardInterrupt:
        how = f"; {command_from_here(f'python analyze.py --resume {folder.parent}')} goes on" if folder else ""
        raise KeyboardInterrupt(f"interrupted{how}") from None
    finally:  # what was measured is kept, whatever happened to the next batch
        bar.close()
        if folder:
            block.write(folder)
    return parts


def joined(kept: Columns, parts: Sequence[Columns], folder: Path | None) -> Columns:
    """Return the columns of the blocks and of what was measured now.

    Raises:
        UserError: they have other columns.
    """
    if kept and not all(alike(part, kept) for part in parts):
        raise UserError(f"{folder}: its blocks have other columns than are measured now; delete it and run again")
    return concatenate([kept, *parts] if kept else parts)


def measure_batch(
    batch: Batch,
    plan_of_batch: BatchPlan,
    rows_of_image: Sequence[np.ndarray],
    plan: MeasurementPlan,
    assigners: Mapping,
) -> Columns:
    """Measure one batch.

    Args:
        batch: as loaded.
        plan_of_batch: which images it holds.
        rows_of_image: of all images, from :func:`rows_without_crowd`.
        plan: what to measure.
        assigners: by strategy.

    Returns:
        Columns whose names begin with ``object/``, ``image/`` or ``batch/``.
    """
    with torch.inference_mode():
        raw_maps = plan.detector.raw_outputs(batch.images)
        batch = to_device(batch, plan.detector.device)
        objects, images, seconds = measure_raw_maps(batch, raw_maps, plan, assigners)
    indices = [index for index in plan_of_batch.indices if index not in batch.unread]
    rows = np.concatenate([rows_of_image[index] for index in indices])
    assert len(rows) == len(batch.targets)
    columns = {f"object/{name}": compact(value) for name, value in objects.items()}
    columns |= {f"image/{name}": value.cpu().numpy() for name, value in images.items()}
    index = np.array(indices)  # of the annotations' images
    columns |= {"object/row": rows, "object/image": index[batch.targets.image.cpu().numpy()], "image/index": index}
    columns["image/path_hash"] = path_hashes([meta.path for meta in batch.metas])
    return columns | {"batch/milliseconds": np.array([seconds]) * 1e3, "batch/first": index[:1]}


def path_hashes(paths: Sequence[str]) -> np.ndarray:
    """Return a number for each path, by which a resumed run knows the images again."""
    return np.array([crc32(path.encode(errors="surrogateescape")) for path in paths], dtype=np.int64)


def refuse_other_images(kept: Columns, plans: Sequence[BatchPlan], annotations: Annotations, folder: Path) -> None:
    """Refuse the blocks of a run on other data, or whose images had other numbers: some were left out then or are now.

    Args:
        kept: columns of the blocks.
        plans: of the batches that the blocks say to hold; the blocks lack the images that could not be read.
        annotations: of the images that can be used now.
        folder: of the blocks.

    Raises:
        UserError: names the folder.
    """
    none = np.zeros(0, dtype=np.int64)
    index, hashes, rows = (kept.get(name, none) for name in ("image/index", "image/path_hash", "object/row"))
    planned = {image for plan in plans for image in plan.indices}
    good = len(index) == len(hashes) == len(set(index.tolist())) and planned.issuperset(index.tolist())
    if good:
        of_images = np.concatenate([none, *(rows_without_crowd(annotations)[one] for one in index)])
        good = np.array_equal(np.sort(rows), np.sort(of_images))
        good = good and np.array_equal(hashes, path_hashes([annotations.image_paths[one] for one in index]))
    if not good:
        raise UserError(f"{folder}: measured on other images or labels than can be used now; delete it and run again")


def compact(values: Tensor) -> np.ndarray:
    """Return a column as it is kept: int64 becomes int32, because a large data set has a million objects."""
    return values.to(torch.int32 if values.dtype == torch.int64 else values.dtype).cpu().numpy()


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Return the batch with its objects on a device; its images stay, for the detector moves them itself."""
    return replace(batch, targets=batch.targets.to(device), crowd=batch.crowd.to(device))


def measure_raw_maps(
    batch: Batch, raw_maps: list[Tensor], plan: MeasurementPlan, assigners: Mapping
) -> tuple[dict[str, Tensor], dict[str, Tensor], list[float]]:
    """Return the columns of the objects and of the images of a batch, and the seconds of each strategy."""
    predictions = Predictions.of(batch.targets, raw_maps, plan.detector.heads)
    pairs, seconds = match(predictions, raw_maps, batch, assigners)
    objects = measure(predictions, pairs, plan.kinds, plan.candidates)
    objects |= score_columns(predictions, raw_maps, plan.kinds, plan.score_candidates, plan.min_q)
    lost, merged = suppression_columns(predictions, raw_maps, plan.suppression)
    images = slots_per_image(predictions, pairs)
    images["merged_pairs"] = torch.bincount(batch.targets.image[merged[:, 0]], minlength=len(batch.images))
    if plan.loss is not None:
        images["loss"] = image_losses(plan.loss, raw_maps, batch.targets, batch.crowd)
    return objects | lost, images, seconds


def rows_without_crowd(annotations: Annotations) -> list[np.ndarray]:
    """Return, for each image, its rows of the annotations without crowd: the loader's targets, in their order."""
    kept = np.flatnonzero(~annotations.crowd)
    bounds = np.searchsorted(annotations.box_image[kept], np.arange(1, len(annotations)))
    return np.split(kept, bounds)
