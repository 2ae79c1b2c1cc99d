"""Weights, data, input size and classes, in this order and in one place: what the command line leaves open.

A checkpoint of train.py knows its cfg, its data set and its image size; other weights know their cfg at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from data.image_checks import ImageCheckOptions
from data.labels.annotations import Annotations
from data.splits import open_data, open_split
from engine.network_input import AUTO, Resize, choose_resize, input_size
from engine.run_folder import find_newest_checkpoint
from models.checkpoints.load import LoadedNetwork, load_network
from models.checkpoints.report import LoadReport
from models.darknet.scaled_decode import decode_warning
from models.detection_network import DetectionNetwork
from models.exported.network import ExportedNetwork
from models.families.catalogue import print_if_asked
from models.network import Network, decode_scaled, require_cfg
from utils import distributed
from utils.class_names import are_numbers, first_moved, places_in, read_names
from utils.config import build_options, find_file
from utils.errors import UserError
from utils.words import how_many

NAME_THE_DATA = "name the data set of these weights with --data"
COCO_CLASSES = 80
NAMES_LISTED = 5  # class names in a message


@dataclass(frozen=True)
class Wanted:
    """What the command line says; empty where the weights decide."""

    weights: str = ""  # empty: those of the newest run
    cfg: str = ""
    data: str = ""
    img_size: tuple[int, ...] = ()  # width and height of the network input in pixels, or the side of a square
    single_cls: bool = False
    val_fraction: float = 0.0
    resize: str = AUTO
    strict: bool = False  # refuse a cfg with anything that Darknet would pass over
    decode: str = "cfg"  # one of DECODES


@dataclass(frozen=True)
class TrainedOn:
    """The options of a training that say what its network looks at."""

    data: str = ""
    img_size: tuple[int, ...] = ()
    test_size: tuple[int, ...] = ()  # of testing, where that differs
    single_cls: bool = False
    val_fraction: float = 0.0
    decode: str = "cfg"


@dataclass(frozen=True)
class Resolved:
    """A network with its weights, and what it looks at."""

    weights: str
    loaded: LoadedNetwork
    data: str  # empty where none is named and none is needed
    input_wh: tuple[int, int]  # of the network, pixels; fits its strides
    resize: Resize  # how images get into the input
    single_cls: bool  # all objects count as one class
    val_fraction: float = 0.0  # share of the training images that is held out for validation


def wanted_by(options: Any) -> Wanted:
    """Return what a script's options say of the network and the data: those that are called as fields of Wanted."""
    names = (item.name for item in fields(Wanted))
    return Wanted(**{name: getattr(options, name) for name in names if hasattr(options, name)})


def resolve(wanted: Wanted, *, needs_data: bool = True) -> Resolved:
    """Load the network and fill in what was left open.

    Args:
        wanted: as given by the user.
        needs_data: refuse weights that do not say on which data they were trained, unless the user names a data set.

    Raises:
        UserError: there are no trained weights, the file holds none, no data set is known, or the size does not fit
            the network's strides.
    """
    print_if_asked(wanted.cfg)
    weights = wanted.weights or str(find_newest_checkpoint())
    loaded = load_network(weights, wanted.cfg)
    tell_oddities(loaded.network, wanted.strict)
    if isinstance(loaded.network, ExportedNetwork) and (nms := loaded.network.metadata.nms):
        _note(f"{weights}: has an NMS of its own ({nms}), behind which thresholds can only drop more")
    trained = options_of_training(loaded, weights)
    if wanted.decode == "scaled":
        loaded = replace(loaded, network=as_decoded(loaded.network))
    elif trained.decode == "scaled":  # which a cfg that is named beside the weights need not say
        loaded = replace(loaded, network=decode_scaled(require_cfg(loaded.network, weights)))
    elif not loaded.options:
        warn_of_decode(loaded.network)
    data = wanted.data or trained.data
    if needs_data and not data:
        raise UserError(f"{weights}: does not say on which data it was trained; name the data set with --data")
    input_wh = input_size(wanted.img_size or trained.test_size or trained.img_size, loaded.network)
    resize = choose_resize(wanted.resize, loaded.network, loaded.report)
    held_out = trained.val_fraction if data == trained.data else 0.0  # of the images of this very data set
    single_cls = wanted.single_cls or trained.single_cls
    return Resolved(weights, loaded, data, input_wh, resize, single_cls, wanted.val_fraction or held_out)


def options_of_training(loaded: LoadedNetwork, weights: str) -> TrainedOn:
    """Return what the training that wrote the weights looked at; foreign weights do not say.

    Raises:
        UserError: an option has another type than train.py writes.
    """
    known = {item.name for item in fields(TrainedOn)}
    values = {name: value for name, value in loaded.options.items() if name in known}
    return build_options(values, [TrainedOn], weights)[0]


def tell_oddities(network: DetectionNetwork, strict: bool) -> None:
    """Print what is probably a mistake in the cfg, a line each.

    Raises:
        UserError: there is something, and ``strict`` forbids it.
    """
    for line in network.oddities:
        if strict:
            raise UserError(f"{line} (--strict)")
        if distributed.is_main():
            print(line)


def as_decoded(network: DetectionNetwork) -> Network:
    """Return the network with ``--decode scaled``; say so where its cfg asks for that itself.

    Raises:
        UserError: as :func:`models.network.decode_scaled`.
    """
    if isinstance(network, ExportedNetwork):
        raise UserError("--decode scaled: that is decided where a network is exported: export.py --decode scaled")
    scaled = decode_scaled(require_cfg(network, "--decode scaled"))
    if scaled.cfg_text == network.cfg_text:
        _note(f"--decode scaled changes nothing: {network.cfg_path} says new_coords=1 itself")
    return scaled


def warn_of_decode(network: DetectionNetwork) -> None:
    """Print a line where foreign weights may have been trained with another decode than their cfg says."""
    if isinstance(network, Network) and (line := decode_warning(network.config)):
        _note(line)


def open_data_of(
    found: Resolved, split: str, checks: ImageCheckOptions, wants: frozenset[str] = frozenset()
) -> tuple[Resolved, Annotations]:
    """Read the data of a network, and return both, the network with the classes of the data.

    Args:
        found: the network.
        split: "train", "valid" or "test".
        checks: of the images.
        wants: MASKS, KEY_POINTS, both or nothing besides boxes.

    Raises:
        UserError: as :func:`data.splits.open_split` and :func:`fit_classes`; there are no images.
    """
    annotations = open_split(
        found.data, split, found.single_cls, val_fraction=found.val_fraction, checks=checks, wants=wants
    )
    if not len(annotations):
        raise UserError(f"{found.data}: the {split} split has no images")
    return fit_classes(found, annotations, remedy=f"{NAME_THE_DATA}, or other weights with --weights"), annotations


def fit_classes(found: Resolved, annotations: Annotations, remedy: str = NAME_THE_DATA) -> Resolved:
    """Return the network with the classes of the data, found by their names where the weights know names.

    Classes that only the network has are left out. Where the weights or the data have no names, the numbers count; and
    where all objects count as one class, so do all detections, whatever classes the network knows.

    Args:
        found: the network.
        annotations: of the data that were opened for it.
        remedy: ends the message.

    Raises:
        UserError: the data have a class that the network does not have.
    """
    if found.single_cls:
        return found
    network, names = found.loaded.network, annotations.names
    known = found.loaded.names
    if not known and network.num_classes == COCO_CLASSES:
        of_coco = _coco_names()
        if len(names) < COCO_CLASSES and None not in places_in(names, of_coco):
            known = of_coco
        elif first_moved(names, of_coco) is not None:
            _note(f"{found.weights}: knows no names; its classes are taken in the order of {found.data}, not in COCO's")
    if known and not are_numbers(known) and not are_numbers(names):
        return _with_classes_of(found, known, names, found.data, remedy)
    if network.num_classes != len(names):
        raise UserError(
            f"{found.weights}: detects {how_many(network.num_classes, 'class')}, {found.data} has {len(names)}; "
            f"{remedy}"
        )
    return found


def name_classes(found: Resolved, names_file: str = "", data: str = "") -> Resolved:
    """Return the network with the names of its classes, without reading annotations.

    They are, in this order, those of the names file, of the data set, of the weights, COCO's where there are 80
    classes, or numbers. Names that the weights know in another order decide the order of the classes, too.

    Args:
        found: the network.
        names_file: a file of names as the user gave it, one per line, or empty.
        data: a data set as the user gave it, or empty; the data set of the training is not asked, for the weights
            know its names.

    Raises:
        UserError: as :func:`with_names`; the file or the data set cannot be read.
    """
    if names_file:
        return with_names(found, read_names(find_file(names_file, "names file")), names_file)
    if data and (names := open_data(data).names):  # a folder has none
        return with_names(found, names, data)
    names = found.loaded.names
    if not names and found.loaded.network.num_classes == COCO_CLASSES:
        names = _coco_names()
    return with_names(found, names, found.weights)


def with_names(found: Resolved, names: tuple[str, ...], origin: str) -> Resolved:
    """Return the network with these names of its classes, numbers where there are none.

    Args:
        found: the network.
        names: of the classes. Where the weights know them in another order, they decide the order of the classes.
        origin: of the names, for messages.

    Raises:
        UserError: there is another number of names than the network has classes, and they are not all names of its
            classes; or names at other places and unknown ones.
    """
    count, known = found.loaded.network.num_classes, found.loaded.names
    names = names or tuple(f"class {number}" for number in range(count))
    if len(names) == count and (are_numbers(known) or first_moved(names, known) is None):
        return replace(found, loaded=replace(found.loaded, names=names))  # the same classes, perhaps in other words
    if len(names) != count and None in places_in(names, known):
        raise UserError(
            f"{origin}: has {how_many(len(names), 'class name')}, but {found.weights} detects "
            f"{how_many(count, 'class')}"
        )
    return _with_classes_of(found, known, names, origin, "leave it out: the weights know the names of their classes")


def start_with_classes(network: DetectionNetwork, report: LoadReport, names: Sequence[str]) -> DetectionNetwork:
    """Return a network that was filled from weights with its classes in the order of the names to be trained.

    A class that the weights do not know starts from what they know of a class that is not to be trained.

    Args:
        network: filled.
        report: of the filling.
        names: of the data to train on.
    """
    if len(report.names) != len(names) or are_numbers(report.names) or are_numbers(names):
        return network  # of another number of classes nothing was taken over
    places = places_in(names, report.names)
    rest = iter([index for index in range(len(names)) if index not in places])
    if first_moved(names, report.names) is None:
        return network
    _note(f"{report.source}: numbers its classes unlike the data; mapped by name")
    return network.with_classes([next(rest) if place is None else place for place in places])


def _with_classes_of(
    found: Resolved, known: Sequence[str], wanted: tuple[str, ...], origin: str, remedy: str
) -> Resolved:
    """Return the network with the wanted classes in their order; say so where the weights have others or another order.

    Args:
        found: the network.
        known: the names of its classes.
        wanted: names of the data.
        origin: of these names, for messages.
        remedy: ends the message.

    Raises:
        UserError: the network lacks some of them.
    """
    places = places_in(wanted, known)
    lacking = [name for name, place in zip(wanted, places, strict=True) if place is None]
    if lacking:
        raise UserError(
            f"{found.weights}: detects {how_many(len(known), 'class')}, {origin} has {len(wanted)}, of which "
            f"{_listed(lacking)} {'are' if len(lacking) > 1 else 'is'} not among these ({_listed(known)}); {remedy}"
        )
    classes = [place for place in places if place is not None]
    if classes == list(range(len(known))):
        return found
    rest = len(known) - len(wanted)
    what = f"{rest} of its {len(known)} classes are not in {origin}" if rest else f"numbers its classes unlike {origin}"
    without = "; these are left out" if rest else ""
    _note(f"{found.weights}: {what}; mapped by name{without}")
    network = found.loaded.network.with_classes(classes)
    return replace(found, loaded=replace(found.loaded, network=network, names=wanted))


def _coco_names() -> tuple[str, ...]:
    return read_names(find_file("coco.names", "names file"))


def _listed(names: Sequence[str]) -> str:
    """Return the first names, quoted."""
    more = f" and {len(names) - NAMES_LISTED} more" if len(names) > NAMES_LISTED else ""
    return ", ".join(f"'{name}'" for name in names[:NAMES_LISTED]) + more


def _note(line: str) -> None:
    """Print a line, once under torchrun."""
    if distributed.is_main():
        print(line)
