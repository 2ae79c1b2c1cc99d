"""The detector of Python programs: a network that takes images as they come, whatever their kind and size.

``from models import load`` is how a program gets one; ``docs/python.md`` shows what it does.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from data.image_files import IMAGE_SUFFIXES
from data.letterbox import RESIZES, place_images, smallest_input
from data.pictures import Images, open_pictures
from data.video import Picture
from engine.image_result import ImageResult
from engine.network_input import AUTO
from engine.resolve import Resolved, Wanted, name_classes, resolve, with_names
from models.darknet.scaled_decode import DECODES
from models.detector import Detector
from models.nms_variants import SIGMA, NmsOptions
from utils.class_names import class_numbers, is_class_name
from utils.devices import choose_device
from utils.errors import UserError
from utils.structures import Detections
from utils.words import how_many

CONFIDENCE, IOU, MAX_DETECTIONS = 0.3, 0.45, 300  # as detect.py
DATA_SUFFIXES = (".data", ".yaml", ".yml")  # of the data sets that can stand for a file of names


def load(
    weights: str | os.PathLike[str] = "",
    *,
    cfg: str | os.PathLike[str] = "",
    names: str | os.PathLike[str] | Sequence[str] = "",
    img_size: int | tuple[int, int] | None = None,
    resize: str = AUTO,
    decode: str = "cfg",
    device: str | int | torch.device = "",
    half: bool = False,
) -> Predictor:
    """Load a network for detection.

    Args:
        weights: a checkpoint of train.py, Darknet ``.weights`` or an official yolov5 ``.pt``; looked up as given, then
            in ``weights/``. Empty: the newest run's ``best.pt``.
        cfg: the network; empty: the one that belongs to the weights.
        names: of the classes: a list of them, a file with one per line, or a ``.data`` or ``.yaml`` file that has them.
            Empty: those that the weights know, COCO's where they know none and there are 80, else "class 0", ….
        img_size: width and height of the network input in pixels, or the side of a square; None: that of the training,
            else the cfg's.
        resize: "letterbox" keeps the shape of an image, "stretch" does as Darknet; "auto": as the weights were trained,
            else as the cfg says.
        decode: "cfg", or "scaled" for weights of PyTorch_YOLOv4, ScaledYOLOv4 and yolor.
        device: "cpu", or a CUDA device such as "0"; empty: CUDA if there is one.
        half: compute in float16 on a GPU, in bfloat16 on a CPU that has it.

    Raises:
        UserError: one line that says what is wrong and what to do. Options have the names of the command line:
            ``--img-size`` is ``img_size`` here.
    """
    if resize not in (AUTO, *RESIZES) or decode not in DECODES:
        raise UserError(f"resize is one of {', '.join((AUTO, *RESIZES))}, decode one of {', '.join(DECODES)}")
    size = (
        ()
        if img_size is None
        else (int(img_size),)
        if isinstance(img_size, int | np.integer)
        else tuple(map(int, img_size))
    )
    if len(size) > 2:
        raise UserError("img_size is width and height in pixels, or one number for a square")
    wanted = Wanted(os.fspath(weights), os.fspath(cfg), img_size=size, resize=resize, decode=decode)
    resolved = _named(resolve(wanted, needs_data=False), names)
    where = choose_device(str(device))
    detector = Detector(resolved.loaded.network.to(where), CONFIDENCE, IOU, MAX_DETECTIONS, half=half)
    if detector.half_ignored:
        print(detector.half_ignored)
    return Predictor(detector, resolved)


def _named(found: Resolved, names: str | os.PathLike[str] | Sequence[str]) -> Resolved:
    if not isinstance(names, (str, os.PathLike)):
        if not all(map(is_class_name, names)):
            raise UserError("names is a list of class names, or a file that has them")
        return with_names(found, tuple(names), "names")
    path = os.fspath(names)
    return name_classes(found, data=path) if Path(path).suffix in DATA_SUFFIXES else name_classes(found, path)


class Predictor:
    """Finds objects in images; several threads may use one at the same time.

    Attributes:
        detector: the network with its thresholds.
        resolved: where it comes from, its classes and its input.
    """

    def __init__(self, detector: Detector, resolved: Resolved) -> None:
        """Put a network and the way of images into it together; nothing is copied."""
        self.detector = detector
        self.resolved = resolved

    def __repr__(self) -> str:
        found = self.resolved
        return (
            f"<detector {found.weights} ({self.detector.network.cfg_path}): {how_many(len(self.names), 'class')}, "
            f"{found.resize.to(found.input_wh)}, {str(self.detector.dtype).removeprefix('torch.')} on {self.device}>"
        )

    def with_nms(self, kind: str, sigma: float = SIGMA, agnostic: bool = False) -> Predictor:
        """Return a detector of the same network, not a copy of it, in which boxes suppress one another in another way.

        Args:
            kind: as ``--nms`` of detect.py: "cfg", "greedy", "diou", "soft-linear", "soft-gaussian" or "merge".
            sigma: of "soft-gaussian", which multiplies a score by exp(-IoU^2 / sigma).
            agnostic: let boxes of different classes suppress one another.

        Raises:
            UserError: there is no such kind, or it takes no such sigma.
        """
        try:
            nms = NmsOptions(kind, sigma, agnostic)
        except ValueError as error:
            raise UserError(str(error)) from None
        return Predictor(self.detector.looking_for(nms=nms), self.resolved)

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each class; a label is an index of it."""
        return self.resolved.loaded.names

    @property
    def input_wh(self) -> tuple[int, int]:
        """Width and height of the network input in pixels; a letterboxed image may take less of it."""
        return self.resolved.input_wh

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        return self.detector.device

    def __call__(
        self,
        images: Images,
        *,
        batch_size: int = 8,
        color: str = "bgr",
        confidence: float | None = None,
        iou: float | None = None,
        max_detections: int | None = None,
        classes: str | int | Sequence[str | int] | None = None,
        agnostic: bool | None = None,
    ) -> Iterator[ImageResult]:
        """Yield the result of each image, in order; images are read when the loop asks for results, batch by batch.

        Args:
            images: one image or any number of them: paths of images or videos, folders, globs, arrays [h w 3] uint8,
                PIL images, tensors [3 h w] uint8 RGB, frames of :func:`data.sources.open_source`.
            batch_size: images that the network sees at once.
            color: "bgr" or "rgb": what the arrays are; all else says it itself.
            confidence: minimum objectness x class probability of a detection; None: 0.3.
            iou: NMS drops a box that overlaps a stronger one of its class by a higher IoU; None: 0.45.
            max_detections: per image; None: 300.
            classes: only these, by name or number; None: all.
            agnostic: let boxes of different classes suppress one another.

        Raises:
            UserError: at once for an option; for an image when it is its turn, after the results of those before it.
        """
        if batch_size < 1 or (max_detections is not None and max_detections < 1):
            raise UserError("batch_size and max_detections must be at least 1")
        if not all(value is None or 0 <= value <= 1 for value in (confidence, iou)):
            raise UserError("confidence and iou must lie between 0 and 1")
        wanted = (classes,) if isinstance(classes, (str, int)) else classes
        numbers = None if wanted is None else class_numbers(wanted, self.names)
        detector = self.detector.looking_for(confidence, iou, max_detections, agnostic, numbers)
        return Predictor(detector, self.resolved)._results(open_pictures(images, color), batch_size)

    def _results(self, pictures: Iterator[Picture], batch_size: int) -> Iterator[ImageResult]:
        problem: Exception | None = None
        while problem is None:
            batch: list[Picture] = []
            try:
                for picture in islice(pictures, batch_size):
                    batch.append(picture)  # one by one: those before a problem are kept
            except Exception as error:  # of a file, or of the generator that gives the images
                problem = error
            found = self.predict_batch([picture.image_bgr for picture in batch])
            for picture, detections in zip(batch, found, strict=True):
                yield ImageResult(detections, picture.image_bgr, self.names, picture.path, _frame(picture))
            if len(batch) < batch_size and problem is None:
                return
        raise problem

    def predict_batch(self, images_bgr: Sequence[np.ndarray]) -> list[Detections]:
        """Return what is found in each image [h w 3] uint8, in its pixels, on the CPU.

        Images whose smallest network inputs are of one size go through the network together, so that what is found in
        an image does not depend on the others.
        """
        network, resize = self.detector.network, self.resolved.resize.kind
        groups: dict[tuple[int, int], list[int]] = {}  # height and width of the input -> images
        for index, image in enumerate(images_bgr):
            net_hw = self.input_wh[::-1]
            if resize == "letterbox" and not network.fixed_size:
                net_hw = smallest_input(np.array([image.shape[1::-1]]), net_hw, network.max_stride)
            groups.setdefault(net_hw, []).append(index)
        found: dict[int, Detections] = {}
        for net_hw, indices in groups.items():
            images = [images_bgr[index] for index in indices]
            metas = [RESIZES[resize](0, "", (image.shape[1], image.shape[0]), net_hw) for image in images]
            batch = place_images(images, metas, net_hw, resize).flip(1)  # B 3 H W, as RGB
            results = self.detector(batch.contiguous(memory_format=torch.channels_last), metas)
            found |= zip(indices, (result.cpu() for result in results), strict=True)
        return [found[index] for index in range(len(images_bgr))]

    def warm_up(self, batch_size: int = 1) -> None:
        """Run the network once on nothing, so that the first image does not wait for what is done only once."""
        width, height = self.input_wh
        images = torch.zeros(batch_size, 3, height, width, dtype=torch.uint8)
        meta = RESIZES[self.resolved.resize.kind](0, "", self.input_wh, (height, width))
        self.detector.detect(self.detector.raw_outputs(images), [meta] * batch_size)


def _frame(picture: Picture) -> int | None:
    """Return the number of a frame, None of an image."""
    is_image = not picture.path or Path(picture.path).suffix.lower() in IMAGE_SUFFIXES
    return None if is_image else picture.frame
