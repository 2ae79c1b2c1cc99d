"""Annotations and pixels -> batches; a batch is a function of its plan, whichever process makes it.

Shape letters: B images in a batch, H W pixels of the network input, h w those of an image, K objects of an image, T
objects of a batch.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from data.augment import AugmentOptions, Sample, SourceImage, training_picture
from data.decoded_file import DecodedFile
from data.device_painting import unpainted
from data.image_files import read_image
from data.labels.annotations import Annotations
from data.letterbox import PIXEL_TYPES, RESIZES, place_image
from data.object_shapes import ObjectShapes
from data.shared_memory import Failure, lent_tensor
from utils.errors import UserError
from utils.structures import Batch, ImageMeta, Targets

# At most so many decoded images stay in the memory of each process, for the mosaics of a block (see data/loader.py).
RECENT_IMAGES, RECENT_BYTES = 96, 256 << 20
# The fourth number of the seed of a picture that shows its image again, see SHUFFLE and SIZES in data/loader.py.
REPEATS = 3


@dataclass(frozen=True)
class BatchPlan:
    """All that decides a batch, besides the data set itself."""

    indices: tuple[int, ...]  # B images
    net_hw: tuple[int, int]  # size of the network input, pixels
    epoch: int = 0
    pool: tuple[int, ...] = ()  # images from which mosaic and mixup take partners
    closes_mosaic: bool = False  # no partners are taken
    repeats: tuple[int, ...] = ()  # B, how often the epoch has shown each image before; empty: never


class DetectionDataset(Dataset):
    """Makes the batch of a plan.

    Args:
        annotations: the split.
        resize: key of :data:`data.letterbox.RESIZES`.
        augment: None for testing: nothing is random, each image is shown as it is.
        seed: of the run; a picture is drawn with ``default_rng((seed, epoch, index))``, and by two more numbers where
            the epoch shows the image again.
        largest_side: decode an image at 1/2, 1/4 or 1/8 of its size where its longer side still has as many pixels;
            None: never.
        leave_out: images that cannot be read are left out of their batch, which names them. In training the next image
            of the batch's pool takes the place, so that a batch is still a function of its plan and of the files.
        paint_later: training pictures are painted on the device to which a batch is moved, by data.device_painting.
        with_shapes: batches for testing have the masks and key points of the annotations, too; those for training
            always have them.
    """

    def __init__(
        self,
        annotations: Annotations,
        resize: str = "letterbox",
        augment: AugmentOptions | None = None,
        seed: int = 0,
        largest_side: int | None = None,
        leave_out: bool = False,
        paint_later: bool = False,
        with_shapes: bool = False,
    ) -> None:
        self.annotations = annotations
        self.resize = resize
        self.augment = augment
        self.seed = seed
        self.largest_side = largest_side
        self.leave_out = leave_out
        self.paint_later = paint_later
        self.with_shapes = with_shapes or augment is not None
        # Where data.image_cache puts decoded images.
        self.cached: list[np.ndarray | None] | None = None  # all images; None: unreadable
        self.decoded: DecodedFile | None = None
        self._recent: OrderedDict[int, np.ndarray] = OrderedDict()
        self._recent_bytes = 0

    def __len__(self) -> int:
        return len(self.annotations)

    def looks_around(self) -> bool:
        """Whether a batch needs other images of its pool than its own, and has to decode them."""
        return self.augment is not None and self.augment.mosaic + self.augment.mixup > 0 and self.cached is None

    def __getitem__(self, plan: BatchPlan) -> Batch | Failure:
        try:
            return self.plain_batch(plan) if self.augment is None else self.training_batch(plan, self.augment)
        except UserError as error:
            return Failure(str(error))

    def training_batch(self, plan: BatchPlan, augment: AugmentOptions) -> Batch:
        """Make an augmented batch; with ``paint_later``, one that is painted on the device to which it is moved."""
        if plan.closes_mosaic:
            augment = replace(augment, mosaic=0.0, mixup=0.0)
        pool = np.array(plan.pool or plan.indices)
        drawings, samples, metas = [], [], []
        unread: dict[int, str] = {}
        shown: dict[int, int] = {}  # an image -> itself, or the image that takes its place

        def source(index: int) -> SourceImage:
            if index not in shown:
                shown[index] = self.readable(index, pool, unread)
            return self.source(shown[index])

        for index, repeat in zip(plan.indices, plan.repeats or (0,) * len(plan.indices), strict=True):
            again = (REPEATS, repeat) if repeat else ()
            rng = np.random.default_rng((self.seed, plan.epoch, index, *again))
            drawing, sample = training_picture(index, pool, source, plan.net_hw, augment, rng, self.resize)
            drawings.append(drawing)
            samples.append(sample)
            # No letterbox describes an augmented picture: its meta names the image and has the picture's own size.
            metas.append(ImageMeta(*self._identity(shown[index]), (plan.net_hw[1], plan.net_hw[0])))
        if self.paint_later:
            batch = _batch(torch.empty(len(drawings), 0, 0, 3).byte(), samples, metas, unread, plan.net_hw)
            return unpainted(batch, drawings, plan.net_hw)
        images = lent_tensor((len(drawings), *plan.net_hw, 3), torch.uint8)
        for drawing, out in zip(drawings, images.numpy(), strict=True):
            drawing.paint(out)
        return _batch(images, samples, metas, unread, plan.net_hw)

    def plain_batch(self, plan: BatchPlan) -> Batch:
        """Make a batch of letterboxed (or stretched) images as they are."""
        images = lent_tensor((len(plan.indices), *plan.net_hw, 3), PIXEL_TYPES[self.resize])
        pixels = images.numpy()
        samples: list[Sample] = []
        metas = []
        unread: dict[int, str] = {}
        for index in plan.indices:
            try:
                source = self.source(index)
            except UserError as error:
                if not self.leave_out:
                    raise
                unread[index] = str(error)
                continue
            out = pixels[len(samples)]
            meta = RESIZES[self.resize](*self._identity(index), source.original_wh, plan.net_hw)
            place_image(source.pixels, meta, out, self.resize)
            cv2.cvtColor(out, cv2.COLOR_BGR2RGB, dst=out)
            boxes = np.clip(source.boxes_xyxy, 0, source.original_wh * 2)  # labels may reach over the edge
            boxes = boxes * (meta.scale_xy * 2) + (meta.offset_xy * 2)
            shapes = None if source.shapes is None else _in_input(source.shapes, meta)
            samples.append(Sample(boxes, source.labels, source.crowd, shapes))
            metas.append(meta)
        return _batch(images[: len(samples)], samples, metas, unread, plan.net_hw)

    def readable(self, index: int, pool: np.ndarray, unread: dict[int, str]) -> int:
        """Return the image itself or, where it cannot be read, the next one of the pool that can.

        Args:
            index: of the image.
            pool: indices of the images that may take its place, in a circle.
            unread: gets the reason for each image that cannot be read.

        Raises:
            UserError: no image of the pool can be read, or none is to be left out.
        """
        following = np.roll(pool, -1 - int(np.argmax(pool == index))).tolist()
        for candidate in (index, *following):
            try:
                self.pixels(candidate)
                return candidate
            except UserError as error:
                if not self.leave_out:
                    raise
                unread[candidate] = str(error)
        raise UserError(f"{unread[index]} (and no image near it can be read)")

    def source(self, index: int) -> SourceImage:
        """Return one annotated image."""
        annotations = self.annotations
        rows = annotations.rows_of(index)
        width, height = annotations.image_wh[index].tolist()
        return SourceImage(
            self.pixels(index),
            (width, height),
            annotations.boxes_xyxy[rows],
            annotations.labels[rows],
            annotations.crowd[rows],
            ObjectShapes.of(annotations, rows) if self.with_shapes else None,
        )

    def pixels(self, index: int) -> np.ndarray:
        """Return an image as uint8 BGR [h w 3], from memory where it was read a short while ago."""
        if self.cached is not None:
            image = self.cached[index]
            return self.decode(index) if image is None else image
        if index in self._recent:
            self._recent.move_to_end(index)
            return self._recent[index]
        image = self.decoded.read(index) if self.decoded is not None else None
        if image is None:
            image = self.decode(index)
        if self.augment is not None:  # testing meets each image once
            self._recent[index] = image
            self._recent_bytes += image.nbytes
            while len(self._recent) > 1 and (self._recent_bytes > RECENT_BYTES or len(self._recent) > RECENT_IMAGES):
                self._recent_bytes -= self._recent.popitem(last=False)[1].nbytes
        return image

    def decode(self, index: int) -> np.ndarray:
        """Read an image from its file.

        Raises:
            UserError: it cannot be read, or its size is not that of the annotations.
        """
        annotations = self.annotations
        width, height = annotations.image_wh[index].tolist()
        orientation = 1 if annotations.orientation is None else int(annotations.orientation[index])
        return read_image(annotations.image_paths[index], (width, height), orientation, self.reduction(index))

    def decode_or_none(self, index: int) -> np.ndarray | None:
        """Read an image from its file; None where it cannot be read and may be left out."""
        try:
            return self.decode(index)
        except UserError:
            if not self.leave_out:
                raise
            return None

    def reduction(self, index: int) -> int:
        """Return 1, 2, 4 or 8: by how much the image's sides are divided while it is decoded."""
        reduce = 1
        if self.largest_side is not None:
            long_side = int(self.annotations.image_wh[index].max())
            while reduce < 8 and long_side >= 2 * reduce * self.largest_side:
                reduce *= 2
        return reduce

    def _identity(self, index: int) -> tuple[int, str]:
        return int(self.annotations.image_ids[index]), self.annotations.image_paths[index]


def _in_input(shapes: ObjectShapes, meta: ImageMeta) -> ObjectShapes:
    """Return the objects of an image, cut off at its border, where they lie in the network input."""
    count = len(shapes)
    matrix = np.diag((*meta.scale_xy, 1.0))
    matrix[:2, 2] = meta.offset_xy
    return shapes.clipped(np.tile(meta.original_wh, (count, 1))).moved(np.tile(matrix, (count, 1, 1)))


def _batch(
    images: Tensor,
    samples: Sequence[Sample],
    metas: Sequence[ImageMeta],
    unread: dict[int, str],
    net_hw: tuple[int, int],
) -> Batch:
    """Return the batch of B pictures [B H W 3] (then channels_last [B 3 H W]), objects and crowd regions apart."""
    objects = _targets(samples, net_hw, lambda sample: ~sample.crowd)
    boxes_alone = [sample._replace(shapes=None) for sample in samples]  # no shapes of what is never learned from
    crowd = _targets(boxes_alone, net_hw, lambda sample: sample.crowd)
    return Batch(images.permute(0, 3, 1, 2), objects, crowd, tuple(metas), unread)


def _targets(samples: Sequence[Sample], net_hw: tuple[int, int], which: Callable[[Sample], np.ndarray]) -> Targets:
    """Collect the rows that ``which`` selects in each sample, as centre boxes relative to the network input."""
    if not samples:
        return Targets.empty()
    masks = [which(sample) for sample in samples]
    xyxy = np.concatenate([sample.boxes_xyxy[mask] for sample, mask in zip(samples, masks, strict=True)])
    labels = np.concatenate([sample.labels[mask] for sample, mask in zip(samples, masks, strict=True)])
    image = np.repeat(np.arange(len(samples), dtype=np.int64), [int(mask.sum()) for mask in masks])
    size = xyxy[:, 2:] - xyxy[:, :2]
    cxcywh = np.concatenate((xyxy[:, :2] + size / 2, size), axis=1) / np.tile((net_hw[1], net_hw[0]), 2)  # T 4
    shapes = [one.shapes.select(mask) for one, mask in zip(samples, masks, strict=True) if one.shapes is not None]
    return Targets(
        torch.from_numpy(image),
        torch.from_numpy(labels.astype(np.int64)),
        torch.from_numpy(cxcywh.astype(np.float32)),
        **(ObjectShapes.joined(shapes).targets(net_hw) if shapes else {}),
    )
