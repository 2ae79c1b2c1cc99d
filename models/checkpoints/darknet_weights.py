"""Darknet's ``.weights`` files: into a network and back out, byte for byte.

A file is a header - three int32 for the version, then the number of images seen so far, as uint64 from version 0.2 on
and as uint32 before, which some programs confuse - and after it nothing but little-endian float32, layer by layer in
cfg order: of a convolution the biases, with batch norm its scales, means and variances, then the kernels [out,
in/groups, rows, cols]; of a batch norm alone the same without kernels; of a connected layer biases, matrix [out, in],
and with batch norm scales, means and variances; of a local layer biases and weights; of a recurrent layer its parts in
turn; of a weighted shortcut and of an implicit vector the weights; nothing of a convolution that shares another's.
(``save_weights_upto`` in Darknet's src/parser.c.)
"""

from __future__ import annotations

import contextlib
import os
import stat
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor, nn

from models.checkpoints.report import LoadReport
from models.checkpoints.tensor_checks import has_bad_variance
from models.connected import Connected, Local
from models.layers import Convolution, running_statistics
from models.network import Network, build_network_from_text
from models.recurrent import GatedRecurrent, LongShortTerm, Recurrent
from utils.errors import UserError
from utils.files import atomic_path
from utils.words import how_many

VERSION = (0, 2, 5)  # what AlexeyAB's Darknet writes
LAST_MAJOR, LAST_MINOR = 9, 99  # Darknet reads a number above 1000 as "matrices are transposed"; such files are refused
FLOAT = np.dtype("<f4")


@dataclass(frozen=True)
class LayerTensors:
    """The tensors of one layer, in file order."""

    index: int
    name: str  # for messages
    tensors: tuple[Tensor, ...]
    variances: tuple[Tensor, ...] = ()  # those of them that are a batch norm's
    eps: float = 0.0  # what that batch norm adds to them

    @property
    def count(self) -> int:
        return sum(tensor.numel() for tensor in self.tensors)


@dataclass(frozen=True)
class Held:
    """What a file holds, by its length."""

    layers: list[LayerTensors]
    num_classes: int  # of the network that they are from
    seen_bytes: int = 0  # of the number of images in its header


def load_darknet_weights(network: Network, path: str | Path, upto: int | None = None) -> LoadReport:
    """Fill a network from a ``.weights`` file; on an error the network is unchanged.

    A file that ends where a layer ends fills the layers it has (a backbone such as ``darknet53.conv.74``). A file for
    another number of classes than the network's fills it except for the layers that predict classes.

    Args:
        network: changed in place.
        path: the file.
        upto: fill only the layers before this one, and read no further.

    Raises:
        UserError: no ``.weights`` file of this cfg: wrong version, ends inside a layer, too long, not finite; names the
            layer at which it happened.
        OSError: the file cannot be opened.
    """
    wanted = _layers_of(network)
    with open(path, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise UserError(f"{path}: not a file")
        version = _read_version(file, path)
        left = os.fstat(file.fileno()).st_size - file.tell()
        start = file.read(12)
        file.seek(-len(start), os.SEEK_CUR)
        held = _held(network, wanted, version, start, left, path, upto)
        seen = int.from_bytes(file.read(held.seen_bytes), "little")
        numbers = np.fromfile(file, FLOAT, sum(layer.count for layer in held.layers))
    _check_numbers(numbers, held.layers, path)
    skipped = _fill(wanted, held.layers, numbers)
    return LoadReport(
        str(path),
        len(held.layers) - len(skipped),
        len(wanted),
        seen,
        version,
        skipped,
        classes=(held.num_classes, network.num_classes) if skipped else None,
        note=_header_note(version, held.seen_bytes),
    )


def save_darknet_weights(
    network: Network,
    path: str | Path,
    seen: int = 0,
    version: tuple[int, int, int] = VERSION,
    upto: int | None = None,
) -> None:
    """Write a network as a ``.weights`` file, whole or not at all.

    Args:
        network: not fused, its numbers finite.
        path: the file.
        seen: images trained on, for the header.
        version: below 0.2 the header is the old one.
        upto: write only the layers before this one, as Darknet's ``partial`` does.

    Raises:
        UserError: a fused network, or numbers that are not finite; names the layer.
    """
    layers = [layer for layer in _layers_of(network) if upto is None or layer.index < upto]
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write(struct.pack("<3i", *version) + seen.to_bytes(_seen_bytes(version), "little"))
        for layer in layers:
            for tensor in layer.tensors:
                numbers = tensor.detach().float().cpu().contiguous().numpy().astype(FLOAT, copy=False)
                if not np.isfinite(numbers).all():
                    raise UserError(f"{path}: not written, {layer.name} holds numbers that are not finite")
                file.write(numbers.tobytes())


def is_darknet_weights(path: str | Path) -> bool:
    """Say whether the file starts like a ``.weights`` file, whatever its name."""
    with open(path, "rb") as file:
        start = file.read(12)
    return len(start) == 12 and _version_known(struct.unpack("<3i", start))


def _version_known(version: tuple[int, int, int]) -> bool:
    major, minor, revision = version
    return 0 <= major <= LAST_MAJOR and 0 <= minor <= LAST_MINOR and 0 <= revision <= 1000


def _seen_bytes(version: tuple[int, int, int]) -> int:
    return 8 if version[0] * 10 + version[1] >= 2 else 4


def _may_count_in(seen_bytes: int, start: bytes) -> bool:
    """Say whether a count of 4 or 8 bytes and then a layer's biases may start like this.

    The upper half of a count is 0, as are all biases before a training; after it one alone is not.
    """
    upper, following = start[4:8], start[8:12]
    return not any(upper) if seen_bytes == 8 else any(upper) or not any(following)


def _header_note(version: tuple[int, int, int], seen_bytes: int) -> str:
    usual = _seen_bytes(version)
    major, minor, _ = version
    other = f"its header counts images in {seen_bytes} bytes, where version {major}.{minor} has {usual}"
    return "" if seen_bytes == usual else other


def _read_version(file: BinaryIO, path: str | Path) -> tuple[int, int, int]:
    start = file.read(12)
    if len(start) < 12:
        raise UserError(f"{path}: {len(start)} bytes are no Darknet weights; the header alone has 16 or 20")
    version = struct.unpack("<3i", start)
    if not _version_known(version):
        raise UserError(
            f"{path}: its header says version {version[0]}.{version[1]}.{version[2]}; Darknet weights say 0.1 or 0.2, "
            "so this is another kind of file"
        )
    return version


def _layers_of(network: Network) -> list[LayerTensors]:
    """Return the layers with weights, in cfg order.

    Raises:
        UserError: a batch norm has been folded into its convolution; names the layer.
    """
    found = []
    for section, module in zip(network.config.sections, network.layers, strict=True):
        if section.kind == "convolutional" and section["share_index"] is not None:
            continue
        name = f"layer {section.index} ([{section.kind}], {section.source}:{section.line})"
        if isinstance(module, Convolution) and module.bn is None and (section["batch_normalize"] or section["cbn"]):
            raise UserError(
                f"{name} has its batch norm fused into the convolution; a .weights file needs the network as it "
                "was before fusing"
            )
        tensors = _tensors_of(module)
        if tensors:
            norms = [norm for norm in module.modules() if isinstance(norm, nn.BatchNorm2d)]
            variances = tuple(running_statistics(norm)[1] for norm in norms)
            found.append(LayerTensors(section.index, name, tensors, variances, norms[0].eps if norms else 0.0))
    return found


def _tensors_of(module: nn.Module) -> tuple[Tensor, ...]:
    """Return a layer's tensors in the order of the file."""
    if isinstance(module, Convolution):
        first = (module.conv.bias,) if module.bn is None else _batch_norm(module.bn)
        return (*first, module.conv.weight)
    if isinstance(module, Connected):
        norm = () if module.bn is None else _batch_norm(module.bn)
        return (norm[0] if norm else module.linear.bias, module.linear.weight, *norm[1:])
    if isinstance(module, nn.BatchNorm2d):
        return _batch_norm(module)
    if isinstance(module, Local):
        return module.bias, module.weight
    if isinstance(module, Recurrent | GatedRecurrent | LongShortTerm):
        return tuple(tensor for part in module.parts for tensor in _tensors_of(part))
    tensors = tuple(module.parameters())  # a weighted shortcut, an implicit vector: one parameter, or nothing
    assert len(tensors) <= 1, f"{type(module).__name__} has no place in a .weights file"
    return tensors


def _batch_norm(norm: nn.BatchNorm2d) -> tuple[Tensor, ...]:
    """Return biases, scales, means and variances: the order of the file."""
    return norm.bias, norm.weight, *running_statistics(norm)


def _held(
    network: Network,
    wanted: list[LayerTensors],
    version: tuple[int, int, int],
    start: bytes,
    size: int,
    path: str | Path,
    upto: int | None,
) -> Held:
    """Return what a file holds whose version is followed by ``size`` bytes, ``start`` being the first of them.

    The images seen are read as the version says, and in the other size where only then the file ends behind a layer.

    Raises:
        UserError: as :func:`_layout`; or there is less than a header or less than a number.
    """
    usual = _seen_bytes(version)
    if size < usual:
        raise UserError(f"{path}: ends inside its header")
    if size % FLOAT.itemsize:
        raise UserError(
            f"{path}: ends inside a number ({size - usual:,} bytes after the header); an incomplete download?"
        )
    try:
        held = _layout(network, wanted, (size - usual) // FLOAT.itemsize, path, upto)
        return replace(held, seen_bytes=usual)
    except UserError as error:
        other = 12 - usual
        if not _may_count_in(other, start):
            raise
        with contextlib.suppress(UserError):
            held = _layout(network, wanted, (size - other) // FLOAT.itemsize, path, upto)
            return replace(held, seen_bytes=other)
        raise error from None


def _layout(network: Network, wanted: list[LayerTensors], count: int, path: str | Path, upto: int | None) -> Held:
    """Return what a file of ``count`` numbers holds.

    Raises:
        UserError: it ends inside a layer, holds none, or goes on after the last.
    """
    layers, num_classes = wanted, network.num_classes
    if count != _total(wanted):
        original = _with_classes_of(network, count)
        layers, num_classes = _layers_of(original), original.num_classes
    held: list[LayerTensors] = []
    end = 0
    for layer in layers:
        if upto is not None and layer.index >= upto:
            return Held(held, num_classes)
        if count == end:
            break
        end += layer.count
        if count < end:
            begin = end - layer.count
            raise UserError(
                f"{path}: ends inside {layer.name}, {count - begin:,} of its {layer.count:,} numbers are there; "
                f"an incomplete file, or one of another cfg: {_both_totals(network, wanted, count)}"
            )
        held.append(layer)
    if not held:
        raise UserError(f"{path}: holds a header and no weights")
    if count > end:
        raise UserError(
            f"{path}: {count - end:,} numbers are left after the last layer, {layers[-1].name}; these are the weights "
            f"of another cfg: {_both_totals(network, wanted, count)}"
        )
    return Held(held, num_classes)


def _total(layers: list[LayerTensors]) -> int:
    return sum(layer.count for layer in layers)


def _both_totals(network: Network, wanted: list[LayerTensors], count: int) -> str:
    with_classes = f" with {how_many(network.num_classes, 'class')}" if network.num_classes else ""
    other = ", and no other number of classes fits" if network.num_classes else ""
    return f"the file has {count:,} numbers, {network.cfg_path}{with_classes} has {_total(wanted):,}{other}"


def _with_classes_of(network: Network, count: int) -> Network:
    """Return the network, without numbers, for as many classes as a file of ``count`` numbers was made for.

    Where no number of classes fits, as with a backbone, the classes are those that the cfg itself names.
    """

    def build(num_classes: int | None) -> Network:
        return build_network_from_text(network.cfg_text, network.cfg_path, num_classes)

    with torch.device("meta"):  # shapes only
        with contextlib.suppress(UserError):  # the classes of a tree cannot be others
            base = _total(_layers_of(build(1)))
            each = _total(_layers_of(build(2))) - base  # the total is linear in the number of classes
            if each and count >= base and (count - base) % each == 0:
                return build(1 + (count - base) // each)
        return build(None)


def _check_numbers(numbers: np.ndarray, layers: list[LayerTensors], path: str | Path) -> None:
    """Refuse numbers that are not finite and negative variances, which are signs of a damaged file or another cfg."""
    start = 0
    for layer in layers:
        if not np.isfinite(numbers[start : start + layer.count]).all():
            raise UserError(
                f"{path}: {layer.name} gets numbers that are not finite; damaged, or the weights of another cfg"
            )
        for tensor in layer.tensors:
            chunk = torch.from_numpy(numbers[start : start + tensor.numel()])
            is_variance = any(tensor is variance for variance in layer.variances)
            if is_variance and has_bad_variance(chunk, layer.eps):
                raise UserError(f"{path}: {layer.name} gets a negative variance; these are the weights of another cfg")
            start += tensor.numel()


@torch.no_grad()
def _fill(wanted: list[LayerTensors], in_file: list[LayerTensors], numbers: np.ndarray) -> tuple[int, ...]:
    """Copy the numbers into the tensors; return the layers whose shapes differ, which stay as they are."""
    skipped = []
    start = 0
    for target, source in zip(wanted, in_file, strict=False):  # a backbone's file has fewer layers
        fits = all(a.shape == b.shape for a, b in zip(target.tensors, source.tensors, strict=True))
        if not fits:
            skipped.append(target.index)
            start += source.count
            continue
        for tensor in target.tensors:
            chunk = numbers[start : start + tensor.numel()]
            tensor.copy_(torch.from_numpy(chunk.astype(np.float32, copy=False)).view(tensor.shape))
            start += tensor.numel()
    return tuple(skipped)
