"""Weights, data, input size and classes, in this order and in one place: what the command line leaves open.

A checkpoint of train.py knows its cfg, its data set and its image size; other weights know their cfg at most.
"""

from __future__ import annotations

from dataclasses import dataclass

from data.labels.annotations import Annotations
from data.splits import open_data
from engine.run_folder import find_newest_checkpoint
from models.checkpoints.load import LoadedNetwork, load_network
from models.network import Network, check_image_size
from utils import distributed
from utils.class_names import read_names
from utils.config import find_file
from utils.errors import UserError

NAME_THE_DATA = "name the data set of these weights with --data"


@dataclass(frozen=True)
class Wanted:
    """What the command line says; empty where the weights decide."""

    weights: str = ""  # empty: those of the newest run
    cfg: str = ""
    data: str = ""
    img_size: tuple[int, ...] = ()  # side of the network input in pixels, or width and height
    single_cls: bool = False
    val_fraction: float = 0.0
    strict: bool = False  # refuse a cfg with anything that Darknet would pass over


@dataclass(frozen=True)
class Resolved:
    """A network with its weights, and what it looks at."""

    weights: str
    loaded: LoadedNetwork
    data: str  # empty where none is named and none is needed
    input_wh: tuple[int, int]  # of the network, pixels; fits its strides
    single_cls: bool  # all objects count as one class
    val_fraction: float = 0.0  # share of the training images that is held out for validation


def resolve(wanted: Wanted, *, needs_data: bool = True, square: bool = True) -> Resolved:
    """Load the network and fill in what was left open.

    Args:
        wanted: as given by the user.
        needs_data: refuse weights that do not say on which data they were trained, unless the user names a data set.
        square: where neither user nor training says a size, the network input is a square with the longer side of the
            cfg; False: weights that are not from train.py keep width and height of the cfg. After a training the
            input is always a square, because train.py's are.

    Raises:
        UserError: there are no trained weights, the file holds none, no data set is known, or the size does not fit
            the network's strides.
    """
    weights = wanted.weights or str(find_newest_checkpoint())
    loaded = load_network(weights, wanted.cfg)
    tell_oddities(loaded.network, wanted.strict)
    data = wanted.data or loaded.options.get("data", "")
    if needs_data and not data:
        raise UserError(f"{weights}: does not say on which data it was trained; name the data set with --data")
    input_wh = _input_wh(wanted.img_size, loaded, square or bool(loaded.options))
    check_image_size(loaded.network, input_wh)
    single_cls = wanted.single_cls or bool(loaded.options.get("single_cls"))
    trained = loaded.options if data == loaded.options.get("data") else {}  # it held out images of this data set
    val_fraction = wanted.val_fraction or trained.get("val_fraction", 0.0)
    return Resolved(weights, loaded, data, input_wh, single_cls, val_fraction)


def _input_wh(given: tuple[int, ...], loaded: LoadedNetwork, square: bool) -> tuple[int, int]:
    """Return width and height as given, else the testing size of the training, else those of the cfg."""
    trained = tuple(loaded.options.get("img_size") or ())  # of training, and of testing where that differs
    size = given or trained[-1:]
    if size:
        return size[0], size[-1]
    width, height = loaded.network.input_wh
    square = square and not loaded.network.fixed_size
    return (max(width, height),) * 2 if square else (width, height)


def tell_oddities(network: Network, strict: bool) -> None:
    """Print what is probably a mistake in the cfg, a line each.

    Raises:
        UserError: there is something, and ``strict`` forbids it.
    """
    for line in network.config.oddities:
        if strict:
            raise UserError(f"{line} (--strict)")
        if distributed.is_main():
            print(line)


def check_classes(found: Resolved, annotations: Annotations, remedy: str = NAME_THE_DATA) -> None:
    """Refuse a network that was made for another number of classes than the data has.

    Where all objects count as one class, so do all detections, whatever classes the network knows.

    Args:
        found: the network.
        annotations: of the data that were opened for it.
        remedy: ends the message.

    Raises:
        UserError: the numbers differ.
    """
    detected = found.loaded.network.num_classes
    if not found.single_cls and detected != len(annotations.names):
        raise UserError(
            f"{found.weights}: detects {detected} classes, {found.data} has {len(annotations.names)}; {remedy}"
        )


def class_names(found: Resolved, names_file: str = "", data: str = "") -> tuple[str, ...]:
    """Return the names of the network's classes without reading annotations.

    They are, in this order, those of the names file, of the data set, of the weights, COCO's where there are 80
    classes, or numbers.

    Args:
        found: the network.
        names_file: a file of names as the user gave it, one per line, or empty.
        data: a data set as the user gave it, or empty; the data set of the training is not asked, for the weights
            know its names.

    Raises:
        UserError: the file or the data set has another number of names than the network has classes.
    """
    count = found.loaded.network.num_classes
    names, origin = found.loaded.names, found.weights
    if names_file:
        names, origin = read_names(find_file(names_file, "names file")), names_file
    elif data and (of_data := open_data(data).names):  # a folder has none
        names, origin = of_data, data
    elif not names and count == 80:
        names, origin = read_names(find_file("coco.names", "names file")), "coco.names"
    names = names or tuple(f"class {number}" for number in range(count))
    if len(names) != count:
        raise UserError(f"{origin}: has {len(names)} class names, but {found.weights} detects {count} classes")
    return names
