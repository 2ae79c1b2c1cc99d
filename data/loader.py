"""Loaders: which images make which batch, at which size, in which process.

Every random draw is a function of its seed: the order of an epoch of ``(seed, epoch)``, a picture of ``(seed, epoch,
index)``, the size of a batch of ``(seed, epoch, batch number)``; so the batches are the same with any number of
workers, and after a resume. Mosaic partners come from the block of :data:`BLOCK` images around a picture in that order:
the order is random already, and each process decodes an image about once instead of four times.

Shape letters: N images of the data set.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from queue import SimpleQueue
from typing import TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from data.augment import AugmentOptions
from data.dataset import BatchPlan, DetectionDataset
from data.image_cache import fill_cache
from data.image_checks import bad_images, too_many
from data.labels.annotations import Annotations
from data.letterbox import RESIZES, smallest_input
from data.plan_sampler import Choice, PlanSampler
from data.sampling import EpochSampler, times_before
from data.shared_memory import MOST_WORKERS, Failure, LendingDataset, Loaded, taken
from data.workers import is_lost_worker, own_handler, report_thread, start_worker, watched_workers
from utils import interrupts
from utils.errors import LostProcessError, UserError
from utils.files import printable
from utils.structures import Batch

BLOCK = 64  # images that share their mosaics
FORKS = sys.platform == "linux"  # a forked process shares the memory of its parent
PAINTERS = ("workers", "device")  # where the pixels of training pictures are computed
MULTI_SCALE = (0.67, 1.5)  # the range of sizes relative to the nominal one, as in ultralytics/yolov3 v8
# The fourth number of a generator's seed keeps it apart from those of the pictures, whose seeds have three, or five
# where an image is shown again (REPEATS in data/dataset.py).
SHUFFLE, SIZES = 1, 2
LOSSES = (RuntimeError, EOFError, ConnectionError, FileNotFoundError)  # what torch raises where a worker has died
_Arriving = Iterator[Loaded | None]
_Loaded = TypeVar("_Loaded")


@dataclass(frozen=True)
class LoaderSettings:
    """How batches are made, as plain values; each script fills them from its own flags."""

    image_hw: tuple[int, int]  # of the network input, pixels; with rect and multi_scale the nominal size
    batch_size: int = 16  # per process
    stride: int = 32  # the largest of the network: sizes are multiples of it
    rect: bool = False  # images of similar shape in each batch, which is as small as holds them
    resize: str = "letterbox"  # or "stretch"
    multi_scale: bool = False  # a size per batch (training)
    multi_scale_range: tuple[float, float] = MULTI_SCALE  # of these sizes, relative to image_hw
    workers: int = 0  # processes that load; 0: this one does
    seed: int = 0  # of the run
    rank: int = 0  # number of this training process
    world_size: int = 1  # how many there are
    pin_memory: bool = False  # for CUDA
    cache: str = ""  # decode all images once, into memory (ram) or a file (disk) (training)
    paint_later: bool = False  # training pictures are painted on the device to which a batch is moved
    with_shapes: bool = False  # batches for testing have masks and key points, too
    max_bad: float = 0.0  # share of the images that may be left out because they cannot be read; 0: none

    def __post_init__(self) -> None:
        if any(side < 1 or side % self.stride for side in self.image_hw):
            raise ValueError(f"{self.image_hw} are no multiples of the stride {self.stride}")
        if self.batch_size < 1:
            raise ValueError(f"batch size {self.batch_size} must be at least 1")
        if self.resize not in RESIZES:
            raise ValueError(f"unknown resize '{self.resize}'; known: {', '.join(RESIZES)}")
        if self.workers > MOST_WORKERS:
            raise UserError(f"--workers {self.workers:,}: so many processes need all of the machine; give a few")


class Batches:
    """Iterates over the batches of the epoch that ``set_epoch`` chose; worker processes live on between epochs."""

    def __init__(
        self, dataset: DetectionDataset, plans: Callable[[int], list[BatchPlan]], settings: LoaderSettings
    ) -> None:
        self.dataset = dataset
        self.unread: dict[int, str] = {}  # index of an image that could not be read so far -> the reason
        self._plans = PlanSampler(plans, settings.workers, max(1, settings.workers) if dataset.looks_around() else 1)
        self._begun: tuple[list[BatchPlan], _Arriving] | None = None  # what begin() has the workers load
        self.settings = settings
        if settings.pin_memory:
            threading.excepthook = report_thread
        self._loader = self._new_loader()

    def _new_loader(self) -> DataLoader:
        # Forked processes share the cached images; any other way of starting them would copy all of them.
        shares_images = self.settings.cache == "ram" and self.settings.workers > 0 and FORKS
        self._plans.returned = SimpleQueue()  # the numbers of leases begin anew with new workers
        return DataLoader(
            LendingDataset(self.dataset),
            batch_size=None,
            sampler=self._plans,
            num_workers=self.settings.workers,
            persistent_workers=self.settings.workers > 0,
            pin_memory=self.settings.pin_memory,
            collate_fn=_as_it_is,
            worker_init_fn=start_worker,
            multiprocessing_context="fork" if shares_images else None,
            generator=torch.Generator(),  # of its own, or every iteration would draw from the global one
        )

    def set_epoch(self, epoch: int, first: int = 0, closes_mosaic: bool = False) -> None:
        """Choose what the next iteration gives.

        Args:
            epoch: whose batches, from 0.
            first: the batch that it begins with.
            closes_mosaic: whether pictures are made without mosaic and mixup.
        """
        self._plans.choose(Choice(epoch, first, closes_mosaic))

    def begin(self) -> None:
        """Have the worker processes, if there are any, load the first batches of what was chosen while others are used.

        The next iteration goes on with them; if it is over other batches, they are dropped. One that has not come to
        its end is over: torch has one iteration at a time.
        """
        if self.settings.workers:
            try:
                self._begun = (self._wanted(), self._load())
            except LOSSES as error:
                if not is_lost_worker(error):
                    raise  # else the next iteration meets it again, and says so

    def plans(self) -> list[BatchPlan]:
        """Return what the batches of the chosen epoch are, also those that the next iteration leaves out."""
        return self._plans.current()

    def images_before(self) -> int:
        """Return how many images of all processes the batches have that the next iteration leaves out."""
        return sum(len(plan.indices) for plan in self.plans()[: self._plans.choice.first]) * self.settings.world_size

    def unread_image_ids(self) -> set[int]:
        """Return the ids of the images that this process could not read so far."""
        return {int(self.dataset.annotations.image_ids[index]) for index in self.unread}

    def __len__(self) -> int:
        """Return how many batches the chosen epoch has, also where the next iteration does not begin with the first."""
        return len(self._plans)

    def __iter__(self) -> Iterator[Batch]:
        return (batch for batch in self.with_empty() if batch.metas)

    def with_empty(self) -> Iterator[Batch]:
        """Yield a batch for each plan, also where none of its images could be read.

        Raises:
            UserError: an image could not be read, and no more may be left out; a loading process died.
        """
        failure = yield from self._until_failure()
        if failure is not None:
            self.close()
            raise failure

    def close(self) -> None:
        """End the processes that load, whoever holds this still; another iteration begins with new ones.

        Left to the traceback of an exception, or to Python's end, torch waits five seconds for each of them.
        """
        loader, self._loader, self._begun = self._loader, self._new_loader(), None
        if loader._iterator is not None:  # the processes that live on between epochs
            loader._iterator._shutdown_workers()  # type: ignore[attr-defined]

    def _until_failure(self) -> Generator[Batch, None, UserError | None]:
        """Yield the batches up to the first failure, and return that; None where there is none."""
        order = iter(self._plans.order())
        early: dict[int, Batch | Failure] = {}  # number of a batch -> the batch, whose turn is yet to come
        batches: _Arriving | None = None
        for number in range(self._plans.choice.first, len(self)):
            try:
                if batches is None:
                    batches = self._load()
                while number not in early:
                    place = next(order)
                    with watched_workers():
                        arrived = next(batches)
                    if place is not None and arrived is not None:
                        early[place] = taken(arrived, self._plans.returned)
            except LOSSES as error:
                if not is_lost_worker(error):
                    raise
                time.sleep(0.2)  # whoever ended it may be about to interrupt this process, which says more
                what = str(error).partition("\n")[0].rstrip(". ")
                return LostProcessError(f"a loading process died ({what}); with less memory try fewer --workers, or 0")
            batch = early.pop(number)
            if isinstance(batch, Failure):
                return UserError(batch.message)
            failure = self._leave_out(batch.unread)
            if failure is not None:
                return failure
            yield batch
        return None

    def _wanted(self) -> list[BatchPlan]:
        """Return the plans of the batches that the next iteration gives."""
        return self.plans()[self._plans.choice.first :]

    def _load(self) -> _Arriving:
        """Return what arrives of the chosen epoch, in the order of :meth:`PlanSampler.order`."""
        begun, self._begun = self._begun, None
        if begun is not None and begun[0] == self._wanted():
            return begun[1]
        with interrupts.held_back(), own_handler(signal.SIG_DFL):
            return iter(self._loader)

    def _leave_out(self, unread: dict[int, str]) -> UserError | None:
        """Count and name the images that could not be read; a failure where they are too many."""
        annotations = self.dataset.annotations
        before = len(bad_images(annotations))
        total = len(annotations) + before
        for index, reason in unread.items():
            if index in self.unread:
                continue
            self.unread[index] = reason
            bad = before + len(self.unread)
            if too_many(bad, total, self.settings.max_bad):
                allowed = f"--max-bad {self.settings.max_bad:g} allows no more"
                return UserError(f"{reason}; {bad} of {total} images cannot be used, {allowed}")
            tqdm.write(f"WARNING: {printable(reason)}; left out ({bad} of {total} images so far)")
        return None


def training_batches(
    annotations: Annotations, settings: LoaderSettings, augment: AugmentOptions, sampler: EpochSampler | None = None
) -> Batches:
    """Return augmented, shuffled batches; ``rect`` keeps similar shapes together and turns the mosaic off.

    Args:
        annotations: the images to learn from.
        settings: of this process.
        augment: how pictures are changed.
        sampler: which images an epoch shows; None: each once.

    Raises:
        UserError: there are no images or no objects; with ``cache``, an image cannot be read or there is no room.
    """
    _require_images(annotations)
    if annotations.crowd.all():
        raise UserError(f"the {len(annotations)} training images have no objects at all; look at their labels")
    _require_mirror(annotations, augment)
    if settings.rect:
        augment = replace(augment, mosaic=0.0)
    largest = max(settings.image_hw)
    if settings.multi_scale:
        largest = int(largest * settings.multi_scale_range[1])
    dataset = DetectionDataset(
        annotations,
        settings.resize,
        augment,
        settings.seed,
        largest,
        leave_out=settings.max_bad > 0,
        paint_later=settings.paint_later,
    )
    fill_cache(dataset, settings.cache)
    return Batches(dataset, lambda epoch: training_plans(annotations.image_wh, settings, epoch, sampler), settings)


def evaluation_batches(annotations: Annotations, settings: LoaderSettings) -> Batches:
    """Return the images as they are, each once; with several processes each gets its share of the batches.

    Raises:
        UserError: there are no images.
    """
    _require_images(annotations)
    leave_out, with_shapes = settings.max_bad > 0, settings.with_shapes
    dataset = DetectionDataset(annotations, settings.resize, leave_out=leave_out, with_shapes=with_shapes)
    return Batches(dataset, lambda epoch: evaluation_plans(annotations.image_wh, settings), settings)


def training_plans(
    image_wh: np.ndarray, settings: LoaderSettings, epoch: int, sampler: EpochSampler | None = None
) -> list[BatchPlan]:
    """Return this process's batches of an epoch; all processes get the same number of them and of images.

    Args:
        image_wh: [N 2] sizes of all images in original pixels.
        settings: of this process.
        epoch: from 0.
        sampler: which images the epoch shows; None: each once.
    """
    rng = np.random.default_rng((settings.seed, epoch, 0, SHUFFLE))
    order = sampler.draw(rng) if sampler else rng.permutation(len(image_wh))
    step = settings.batch_size * settings.world_size  # images of one batch in all processes
    if settings.rect:  # by aspect ratio; images of one ratio stay in random order
        order = order[np.argsort(_aspect(image_wh)[order], kind="stable")]
    repeats = times_before(order)
    if settings.world_size > 1:  # every process needs the same share: the first pictures serve twice
        needed = -(-len(order) // settings.world_size) * settings.world_size
        order, repeats = np.resize(order, needed), np.resize(repeats, needed)
    starts = list(range(0, len(order), step))
    if settings.rect:  # sorted images, but batches in random order
        starts = [starts[i] for i in rng.permutation(len(starts))]
    block = max(BLOCK, step)
    plans = []
    for number, start in enumerate(starts):
        whole = order[start : start + step]
        mine = slice(start + settings.rank, start + step, settings.world_size)
        first = start // block * block  # of the block in which the batch begins
        pool = order[first : first + block]
        # The size follows from the batch of all processes, so that they train at one size.
        net_hw = settings.image_hw
        if settings.multi_scale:
            net_hw = random_size(settings, epoch, number)
        if settings.rect and settings.resize == "letterbox":
            net_hw = smallest_input(image_wh[whole], net_hw, settings.stride)
        indices, shown_before = tuple(order[mine].tolist()), tuple(repeats[mine].tolist())
        plans.append(BatchPlan(indices, net_hw, epoch, tuple(pool.tolist()), repeats=shown_before))
    return plans


def random_size(settings: LoaderSettings, epoch: int, number: int) -> tuple[int, int]:
    """Draw the (height, width) of a batch: the nominal size times a factor in the range, in whole strides.

    Args:
        settings: with the nominal size, the range and the stride.
        epoch: from 0.
        number: of the batch in the epoch, from 0.
    """
    height, width = settings.image_hw
    stride = settings.stride
    low, high = (max(int(width * factor / stride), 1) for factor in settings.multi_scale_range)
    rng = np.random.default_rng((settings.seed, epoch, number, SIZES))
    new_width = int(rng.integers(low, high + 1)) * stride
    new_height = max(round(height * new_width / width / stride), 1) * stride
    return new_height, new_width


def evaluation_plans(image_wh: np.ndarray, settings: LoaderSettings) -> list[BatchPlan]:
    """Return this process's batches; ``rect`` sorts by aspect ratio and makes each batch no larger than needed.

    Args:
        image_wh: [N 2] sizes of all images in original pixels.
        settings: of this process.
    """
    order = np.arange(len(image_wh))
    rect = settings.rect and settings.resize == "letterbox"
    if rect:
        order = np.argsort(_aspect(image_wh), kind="stable")
    plans = []
    for start in range(0, len(order), settings.batch_size):
        part = order[start : start + settings.batch_size]
        net_hw = smallest_input(image_wh[part], settings.image_hw, settings.stride) if rect else settings.image_hw
        plans.append(BatchPlan(tuple(part.tolist()), net_hw))
    return plans[settings.rank :: settings.world_size]  # of all batches; their sizes do not depend on world_size


def _aspect(image_wh: np.ndarray) -> np.ndarray:
    """Return height / width of each image, [N]."""
    return image_wh[:, 1] / image_wh[:, 0]


def _require_mirror(annotations: Annotations, augment: AugmentOptions) -> None:
    """Refuse flips of key points of which nothing says where they are in a mirror."""
    points = annotations.key_points
    if points is not None and not len(points.mirrored) and (augment.fliplr or augment.flipud):
        raise UserError(
            "--fliplr: the data do not say which key points are left and right; give flip_idx in the data.yaml, or "
            "names (left_…, right_…) in the COCO JSON, or leave flips out: --fliplr 0 --flipud 0"
        )


def _require_images(annotations: Annotations) -> None:
    if not len(annotations):
        raise UserError("the data set has no images")
    if not all(annotations.image_paths):
        raise UserError("the annotations were read without their images, which are needed here")


def _as_it_is(loaded: _Loaded) -> _Loaded:
    return loaded
