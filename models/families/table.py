"""The networks that no cfg describes: their names, how each is built, and what it finds. One line per network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from models.assignment.options import AssignmentOptions
from models.detection_network import DetectionNetwork
from models.families import effdet_networks, torchvision_instances, torchvision_networks
from models.families.centernet import build_centernet
from models.families.named import FIRST_LINE
from models.families.published import PublishedDetector
from models.network import build_network, build_network_from_text
from utils.config import find_file
from utils.errors import UserError
from utils.structures import KEY_POINTS


@dataclass(frozen=True)
class Family:
    """A network of this table."""

    build: Callable[..., DetectionNetwork]  # from the number of classes; where it finds key points, of ``key_points``
    package: str  # that it comes from
    parameters: int | None = None  # with 80 classes; None: they are counted
    finds: frozenset[str] = frozenset()  # besides boxes: MASKS, KEY_POINTS
    match: str = ""  # strategy of --match that it trains by where none is named; "": it has no choice
    recipe: str = "detectors.yaml"  # of cfg/hyp
    published: PublishedDetector | None = None  # what reads the files of weights that the package publishes


def _published(detectors: Mapping[str, PublishedDetector], package: str) -> dict[str, Family]:
    return {
        name: Family(
            partial(kind.build, name),
            package,
            kind.parameters,
            kind.finds,
            match=kind.match,
            published=kind,
        )
        for name, kind in detectors.items()
    }


FAMILIES: dict[str, Family] = {
    **_published(torchvision_networks.DETECTORS, "torchvision"),
    **_published(torchvision_instances.DETECTORS, "torchvision"),
    "centernet_resnet18": Family(partial(build_centernet, 18), "torchvision", 14_306_004, recipe="centernet.yaml"),
    "centernet_resnet50": Family(partial(build_centernet, 50), "torchvision", 30_434_516, recipe="centernet.yaml"),
    **_published(effdet_networks.DETECTORS, f"effdet ({effdet_networks.REQUIREMENTS})"),
}


def is_family(cfg: str) -> bool:
    """Whether ``--cfg`` names a network of the table; a file of that name in this folder is a cfg all the same."""
    return cfg in FAMILIES and not Path(cfg).is_file()


def match_of(cfg: str, trained: Mapping[str, Any] = MappingProxyType({})) -> str:
    """Return the strategy by which a network learns where ``--match`` names none; "" where it has no choice of them.

    Args:
        cfg: a name of the table, or a file.
        trained: options of the run that trained it, whose strategy it keeps; empty for foreign weights and a new run.
    """
    own = FAMILIES[cfg].match if is_family(cfg) else AssignmentOptions.match
    return own and str(trained.get("match", own))


def found_besides_boxes(cfg: str) -> frozenset[str]:
    """Return what the network that ``--cfg`` names finds besides boxes: MASKS, KEY_POINTS or nothing."""
    return FAMILIES[cfg].finds if is_family(cfg) else frozenset()


def open_network(cfg: str, num_classes: int, key_points: int = 0) -> DetectionNetwork:
    """Build the network that ``--cfg`` names, with random weights.

    Args:
        cfg: a name of the table, or a file to be looked up.
        num_classes: that it is to tell apart.
        key_points: of an object, for a network that finds them; 0: COCO's 17.

    Raises:
        UserError: there is neither; the cfg cannot be used; a package is missing.
    """
    if is_family(cfg):
        return _built(cfg, num_classes, key_points)
    return build_network(find_file(cfg, "cfg"), num_classes)


def published_by(cfg: str, what: str) -> PublishedDetector:
    """Return what reads a file of tensors alone, for the network that ``--cfg`` names.

    Raises:
        UserError: no network is named whose package publishes such files.
    """
    if not is_family(cfg):
        raise UserError(f"{what}: holds tensors and not their network; name it with --cfg (--cfg help lists all)")
    published = FAMILIES[cfg].published
    if published is None:
        raise UserError(
            f"{what}: holds tensors alone, of which none are known for {cfg}; give a checkpoint of train.py, "
            "or a backbone to its --weights-backbone"
        )
    return published


def is_family_text(text: str) -> bool:
    """Whether a text that a checkpoint holds stands for a network of the table instead of being a cfg."""
    return text.startswith(FIRST_LINE)


def open_network_from_text(text: str, name: str, num_classes: int) -> DetectionNetwork:
    """Build the network of a text that a checkpoint holds, with random weights.

    Args:
        text: of a cfg, or ``cfg_text`` of a network of the table.
        name: of the cfg, for messages.
        num_classes: that it is to tell apart.

    Raises:
        UserError: as :func:`open_network`; the text names no network of this table.
    """
    if not is_family_text(text):
        return build_network_from_text(text, name, num_classes)
    named, key_points = _values(text).get("name", ""), key_points_of_text(text)
    if named not in FAMILIES or key_points is None:
        raise UserError(f"{name}: this version knows no network '{named:.60}'; update it, or train again")
    return _built(named, num_classes, key_points)


def key_points_of_text(text: str) -> int | None:
    """Return how many key points of an object the network of such a text finds, 0 for none; None: it is no number."""
    count = _values(text).get("key_points", "0") if is_family_text(text) else "0"
    return int(count[:4]) if count.isdecimal() else None


def _values(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def _built(name: str, num_classes: int, key_points: int) -> DetectionNetwork:
    family = FAMILIES[name]
    own = {"key_points": key_points} if key_points and KEY_POINTS in family.finds else {}
    return family.build(num_classes, **own)
