"""What an analysis of ``analyze.py`` is, and what it is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from analysis.output.result import Result
from data.description import SPLITS
from data.labels.annotations import Annotations
from data.labels.read import read_dataset
from data.splits import open_data, split_shown
from engine.network_input import choose_resize, input_size, refuse_size, resize_option, size_option
from engine.run_folder import new_run_folder
from models.families.table import open_network
from models.heads import Head
from utils.config import flag, option
from utils.errors import UserError

ANALYSES = Path("runs/analyze")
Group = TypeVar("Group")


@dataclass(frozen=True)
class AnalyzeOptions:
    """What the analyses are about."""

    data: str = option("", "a .data file, COCO JSON, image list or folder; default: the newest run's, else shapes.data")
    split: str = option("train", "which split of the data set", SPLITS)
    val_fraction: float = option(0.0, "share of the training images that is held out as the split valid")
    cfg: str = option("", "network whose anchors are counted; default: the newest run's, else yolov3-nano.cfg")
    img_size: tuple[int, ...] = size_option("that of the weights or the cfg")
    resize: str = resize_option()
    name: str = option("", "results go to runs/analyze/<name>; default: the name of the analysis")

    def __post_init__(self) -> None:
        refuse_size(self.img_size, "--img-size")


@dataclass
class Folders:
    """Makes the folders of one call of ``analyze.py``: one for each analysis or, with a report, one for all.

    Without a report they are called as the analysis, or as ``name``, which gets the analysis appended where there are
    several. With a report there is one folder, ``name`` or "report", for the page; a single analysis writes into it,
    and several have a folder each inside.
    """

    name: str = ""  # given by the user
    has_report: bool = False
    several: bool = False
    made: Path | None = None  # the folder of the report

    def of(self, mode: str) -> Path:
        """Make the folder of an analysis."""
        plain_mode = flag(mode).removeprefix("--")
        if not self.has_report:
            name = f"{self.name}-{plain_mode}" if self.name and self.several else self.name or plain_mode
            return new_run_folder(ANALYSES, name)
        folder = self.of_report()
        if self.several:
            folder = folder / plain_mode
            folder.mkdir()
        return folder

    def of_report(self) -> Path:
        """Return the folder of the report; make it the first time."""
        if self.made is None:
            self.made = new_run_folder(ANALYSES, self.name or "report")
        return self.made


@dataclass(frozen=True)
class Request:
    """What one call of ``analyze.py`` asks for; every analysis gets the same request."""

    about: AnalyzeOptions  # with the defaults of the newest run filled in
    asked: AnalyzeOptions  # as the user gave them
    chosen: Mapping[str, Any]  # name of a mode -> the value of its flag; empty where the user named no analysis
    groups: Mapping[type, Any]  # options by the class of their group
    folders: Folders = field(default_factory=Folders)
    report_images: int = 0  # single images that a report asks for

    def options(self, group: type[Group]) -> Group:
        """Return the options of a group; KeyError where no analysis lists it in ``groups``."""
        return self.groups[group]

    def annotations(self) -> Annotations:
        """Read the annotations of the chosen split; no image is needed where they say the sizes of the images."""
        return read_dataset(open_data(self.about.data, self.about.val_fraction), self.about.split, need_images=False)

    def heads(self, num_classes: int) -> tuple[tuple[Head, ...], tuple[int, int], str]:
        """Return the heads of a network, the size of its input and how images get into it; allocate no weights.

        Raises:
            UserError: no such network, it has no anchors, or the size does not fit its strides.
        """
        with torch.device("meta"):
            network = open_network(self.about.cfg, num_classes)
        network.require_heads()
        network.require_trainable()
        if not network.heads or not network.heads[0].has_anchors:
            raise UserError(
                f"--cfg {self.about.cfg}: has no anchors in grids of cells; name a network that has, or a cfg"
            )
        input_wh = input_size(self.about.img_size, network)
        return network.heads, input_wh, choose_resize(self.about.resize, network).kind

    def described(self, result: Result, **more: Any) -> Result:
        """Return the result whose ``data`` say which data set and split it is about, and ``more``."""
        about = self.about
        shown = split_shown(about.data, about.split, about.val_fraction)
        return replace(result, data={"data": about.data, "split": shown, **more, **result.data})


@dataclass(frozen=True)
class Mode:
    """One entry of :data:`analysis.modes.MODES`: a flag of ``analyze.py`` and what it runs."""

    name: str  # of the flag, with underscores
    text: str  # for --help
    run: Callable[[Request], Result | None]  # None under torchrun, in the processes that have no result
    groups: tuple[type, ...] = ()  # options that it reads
    reads: frozenset[str] = (
        frozenset()
    )  # further options that it reads: fields of AnalyzeOptions, report_images, resamples
    takes_values: bool = False  # the flag is followed by one or more words
    distributed: bool = False  # runs in every process of ``torchrun``; else the main one does it alone
    chosen_by: type | None = None  # of ``groups``, the one that has the mode's flag; None: ``analyze.py`` makes it
    split: str = "train"  # that it is about where the user names none
    instead_of: frozenset[str] = frozenset()  # analyses that do not run beside it: their flags say what it is about


def side_or_sides(input_wh: tuple[int, int]) -> int | list[int]:
    """Return the size of the network input as results have it: the side of a square, else width and height."""
    width, height = input_wh
    return width if width == height else [width, height]
