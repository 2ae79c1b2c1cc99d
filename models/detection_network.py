"""What the scripts know of a network that finds objects, whatever its kind: all that they ask of it is here.

A network is either described by a Darknet cfg (:class:`models.network.Network`) or one of a table
(:mod:`models.families`). Training, evaluation and the files of results name none of them.

Shape letters: B images, H W pixels of the network input, N boxes.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from models.assignment.options import AssignmentOptions
from models.backbone_source import BackboneSource
from models.darknet.schema import LARGEST_SIDE
from models.heads import Head
from models.learner import Learner
from models.loss import LossOptions
from utils.errors import UserError
from utils.structures import Detections


class DetectionNetwork(nn.Module, ABC):
    """Finds objects in images, and can learn to."""

    input_wh: tuple[int, int]  # pixels; the size that it is meant for
    max_stride: int  # sides of an input are multiples of it, unless the size is fixed
    fixed_size: bool  # it works at ``input_wh`` only
    heads: tuple[Head, ...] = ()  # where it predicts in grids of cells, so that slots can be assigned and counted
    backbone_source: BackboneSource | None = None  # whose weights its backbone can start from
    knows_half = True  # whether it computes in 16 bits
    finds: frozenset[str] = frozenset()  # besides boxes: MASKS, KEY_POINTS of utils.structures
    num_key_points = 0  # of an object
    suppresses = True  # whether boxes that overlap are left to non-maximum suppression

    @property
    @abstractmethod
    def cfg_path(self) -> str:
        """Its name in messages: a file or the name in the table."""

    @property
    @abstractmethod
    def cfg_text(self) -> str:
        """A description that rebuilds the network, together with the number of classes; kept in checkpoints."""

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """Classes that it tells apart."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What of its description has no effect here, or another one than elsewhere, a line each."""
        return ()

    @property
    def oddities(self) -> tuple[str, ...]:
        """What in its description is probably a mistake, a line each."""
        return ()

    @property
    def nms_beta(self) -> float | None:
        """Of the penalty for distance in suppression, see :mod:`models.nms`; None: plain IoU."""
        return None

    @abstractmethod
    def forward(self, images: Tensor) -> Any:
        """Look at images [B 3 H W], 0..1, RGB; what is returned is for :meth:`candidates` or for the loss."""

    @abstractmethod
    def candidates(self, raw: Any, confidence: float) -> list[Detections]:
        """Return of each image all boxes in network pixels whose score is above ``confidence``, in no order.

        Args:
            raw: what the network, in evaluation mode, said of a batch.
            confidence: 0..1.
        """

    def complete(self, raw: Any, found: Sequence[Detections]) -> list[Detections]:
        """Return what was found with what the network finds besides boxes; called where it finds more.

        Args:
            raw: what the network, in evaluation mode, said of a batch.
            found: of each image, in network pixels; what suppression has left.
        """
        return list(found)

    @abstractmethod
    def learner(self, loss: LossOptions, assignment: AssignmentOptions, input_wh: tuple[int, int]) -> Learner:
        """Return the network with its loss.

        Args:
            loss: how matches become a loss.
            assignment: which predictor learns from which object.
            input_wh: nominal size of the training images, pixels.

        Raises:
            UserError: an option cannot be had with this network.
        """

    @abstractmethod
    def parts(self) -> Sequence[nn.Module]:
        """Return what ``--freeze`` counts, from the input on; together they have all parameters."""

    def parts_without_effect(self) -> Sequence[int]:
        """Return the parts whose output nothing reads: no loss reaches them."""
        return ()

    @abstractmethod
    def parts_that_predict(self) -> Sequence[int]:
        """Return the parts whose output is what the network says, which ``--layer-decay`` slows down least."""

    @abstractmethod
    def part_of(self, name: str) -> int:
        """Return the number of the part that a key of the state dict belongs to."""

    @abstractmethod
    def describe(self, name: str) -> str:
        """Return in words what a key of the state dict names: ``12 ([convolutional], line 90, conv.weight)``."""

    @abstractmethod
    def depends_on_classes(self, name: str) -> bool:
        """Whether the shape of a tensor of the state dict may depend on the number of classes."""

    @property
    def own_resize(self) -> tuple[str, str]:
        """How images get into the input where nobody says so, a key of ``data.letterbox.RESIZES``, and why."""
        return "letterbox", "the default"

    def require_heads(self) -> None:
        """Refuse a network that cannot detect objects in images.

        Raises:
            UserError: says why.
        """

    def require_trainable(self) -> None:
        """Refuse a network that detects and cannot be trained.

        Raises:
            UserError: says why.
        """

    def initialise(self) -> None:
        """Give the network the values that a training from scratch starts from, where they are not those it has."""

    @abstractmethod
    def with_classes(self, classes: Sequence[int]) -> DetectionNetwork:
        """Return a network whose class ``i`` is class ``classes[i]`` of this one; those not named are gone.

        Raises:
            UserError: they cannot be selected here.
        """

    def showing_maps(self) -> DetectionNetwork:
        """Return the network for what it says slot by slot, one raw map [B A H W 5+C] per head; its tensors are shared.

        Raises:
            UserError: it does not predict in grids of cells.
        """
        if not self.heads:
            raise UserError(f"{self.cfg_path}: does not predict in grids of cells, so that no slots can be counted")
        return self

    def looking_above(self, confidence: float) -> DetectionNetwork:
        """Return the network for boxes with a score above ``confidence``; its tensors are shared."""
        return self

    def fuse(self) -> DetectionNetwork:
        """Return a copy for inference, as fast as can be."""
        return copy.deepcopy(self).eval()


def check_image_size(network: DetectionNetwork, size: int | tuple[int, int]) -> None:
    """Refuse an input size that does not fit the network.

    Args:
        network: the network.
        size: the side of a square input, or (width, height), in pixels.

    Raises:
        UserError: names the stride and the nearest sizes that fit, or the largest size.
    """
    stride = network.max_stride
    sides = (size, size) if isinstance(size, int) else size
    if network.fixed_size:
        if sides != network.input_wh:
            width, height = network.input_wh
            raise UserError(f"image size {sides[0]} x {sides[1]}: {network.cfg_path} works at {width} x {height} only")
        return
    for side in sides:
        if side > LARGEST_SIDE:
            raise UserError(f"image size {side:,} is above {LARGEST_SIDE:,} pixels, the largest that is computed")
        if side < 1 or side % stride:
            below, above = side // stride * stride, (side // stride + 1) * stride
            fitting = f"{below} or {above}" if below > 0 else f"{stride}"
            largest = f"{stride}, the largest stride of {network.cfg_path}"
            raise UserError(f"image size {side} is not a multiple of {largest}; use {fitting}")
