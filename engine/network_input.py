"""What a network is shown: the size of its input, and how an image gets into it. Every script asks here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from data.letterbox import RESIZES
from models.checkpoints.report import LoadReport
from models.detection_network import DetectionNetwork, check_image_size
from utils.config import option
from utils.errors import UserError

AUTO = "auto"  # --resize: as the network was trained or, where that is unknown, as its cfg says


def resize_option() -> Any:
    """Declare the field ``resize`` of a script's options."""
    text = (
        "keep the shape of an image, or stretch it as Darknet; auto: as the weights were trained, else as the cfg says"
    )
    return option(AUTO, text, (AUTO, *RESIZES))


def size_option(default: str) -> Any:
    """Declare the field ``img_size`` of a script's options; ``default`` says in words what an empty one means."""
    return option((), f"width and height of the network input in pixels, one number for a square; default: {default}")


@dataclass(frozen=True)
class Resize:
    """How an image gets into the network input, and why so."""

    kind: str  # key of data.letterbox.RESIZES
    why: str

    def to(self, input_wh: tuple[int, int], test_wh: tuple[int, int] | None = None) -> str:
        """Return in words what happens to an image: ``stretch to 416x256 (--resize)``, and where testing differs."""
        words = f"{self.kind} to {input_wh[0]}x{input_wh[1]} ({self.why})"
        return f"{words}, tested at {test_wh[0]}x{test_wh[1]}" if test_wh not in (None, input_wh) else words


def choose_resize(asked: str, network: DetectionNetwork, weights: LoadReport | None = None) -> Resize:
    """Return how images get into the input of a network.

    Args:
        asked: ``--resize``.
        network: decides where nobody else does.
        weights: where they come from; None without any.

    Raises:
        UserError: the file of weights says nothing that can be meant.
    """
    if asked != AUTO:
        return Resize(asked, "--resize")
    if weights and weights.resize:
        if weights.resize not in RESIZES:
            raise UserError(f"{weights.source}: damaged, its 'resize' is '{weights.resize:.60}'; use another copy")
        return Resize(weights.resize, "as these weights were trained")
    return Resize(*network.own_resize)


def input_size(size: tuple[int, ...], network: DetectionNetwork) -> tuple[int, int]:
    """Return width and height of the network input in pixels.

    Args:
        size: as on the command line: width and height, the side of a square, or nothing for the cfg's.
        network: whose strides must divide both.

    Raises:
        UserError: they do not.
    """
    input_wh = (size[0], size[-1]) if size else network.input_wh
    check_image_size(network, input_wh)
    return input_wh


def refuse_size(size: tuple[int, ...], name: str) -> None:
    """Raise a ValueError, for an options dataclass, where a size is more than two numbers."""
    if len(size) > 2:
        raise ValueError(f"{name} takes width and height in pixels, or one number for a square")
