"""Networks from files of weights, which are told apart by their content.

Read are the checkpoints of this toolkit, also as safetensors, Darknet ``.weights``, official ultralytics/yolov5
``.pt``, state dicts of torchvision's and effdet's detectors and the exported files of ``export.py``.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from models.checkpoints.darknet_weights import is_darknet_weights, load_darknet_weights
from models.checkpoints.format import FORMAT, check_network_content, read_checkpoint
from models.checkpoints.report import LoadReport
from models.checkpoints.safetensors_file import is_safetensors, read_safetensors
from models.checkpoints.state_dict_file import read_state_dict
from models.checkpoints.tensor_checks import why_unfit, why_unusable
from models.checkpoints.yolov5 import load_yolov5_checkpoint, read_yolov5_checkpoint
from models.detection_network import DetectionNetwork
from models.exported.open_file import exported_kind, open_exported
from models.families.table import key_points_of_text, open_network, open_network_from_text, published_by
from models.network import Network, build_network, require_cfg
from utils.config import REPOSITORY, find_file
from utils.errors import UserError
from utils.foreign_names import address_of
from utils.renamed import record_of_run
from utils.words import how_many


@dataclass(frozen=True)
class LoadedNetwork:
    """A network with its weights, and what its file says about it."""

    network: DetectionNetwork
    report: LoadReport
    names: tuple[str, ...] = ()  # of the classes; empty where the file does not say
    options: dict[str, Any] = field(default_factory=dict)  # of the run that trained it; empty for foreign weights


def load_network(weights: str | Path, cfg: str | Path = "", num_classes: int | None = None) -> LoadedNetwork:
    """Build the network that belongs to a file of weights and fill it completely.

    Args:
        weights: a checkpoint of ``train.py`` (its averaged weights are used), Darknet ``.weights``, an official
            yolov5 ``.pt`` or what ``export.py`` wrote; looked up as given, then in ``weights/``.
        cfg: the network. Our checkpoints hold their own; for foreign weights, when empty, the cfg of the same name
            beside the file or in ``cfg/``.
        num_classes: adapt the heads; None for what the checkpoint or the cfg says.

    Raises:
        UserError: no such file, cut off, not a file of weights, no cfg for it, or the weights of another cfg; then the
            message names the first layer that does not fit.
    """
    path = find_weights(weights)
    loaded = OPENERS[_kind(path)](path, str(cfg), num_classes)
    loaded.network.require_heads()
    if not loaded.report.complete:
        raise UserError(
            f"{path}: fills {loaded.report.filled} of the {loaded.report.total} layers of {loaded.network.cfg_path}; "
            f"{_why_incomplete(loaded.report)}: train it first (train.py --weights)"
        )
    return loaded


def _why_incomplete(report: LoadReport) -> str:
    if report.classes is None:
        return "a backbone"
    return f"made for {how_many(report.classes[0], 'class')}, and this network has {report.classes[1]}"


def load_weights(network: DetectionNetwork, weights: str | Path) -> LoadReport:
    """Fill a network as far as the file's classes allow, as a start for training.

    If the file was made for another number of classes, the layers that predict classes keep their initial values;
    the report says which. The batch norms must not be fused yet.

    Raises:
        UserError: as :func:`load_network`.
    """
    path = find_weights(weights)
    kind = _kind(path)
    if kind == "ours":
        return _loaded_state(network, _read_ours(path), path)
    if kind == "tensors":
        source = _open_tensors(path, network.cfg_path, None)
        counts = (source.network.num_classes, source.network.num_key_points)
        return replace(_filled(network, source.network.state_dict(), path, counts), names=source.names)
    return LOADERS[kind](require_cfg(network, str(path)), path)


def cfg_of_weights(weights: str | Path) -> str:
    """Return the cfg that belongs to a file of weights, as a name or path to look up.

    Raises:
        UserError: as :func:`load_network`.
    """
    path = find_weights(weights)
    kind = _kind(path)
    if kind == "exported":
        raise UserError(f"{path}: {_NOT_TRAINED}")
    if kind == "ours":
        return str(_read_ours(path)["cfg_name"])
    if kind == "tensors":
        published_by("", str(path))
    return str(_cfg_for(path)) if kind == "darknet" else read_yolov5_checkpoint(path).cfg_name


def decode_of_weights(weights: str | Path) -> str:
    """Return the ``--decode`` that a checkpoint of ``train.py`` was trained with, or nothing for other weights.

    Raises:
        UserError: as :func:`load_network`.
    """
    path = find_weights(weights)
    if _kind(path) != "ours":
        return ""
    return str(_read_ours(path)["options"].get("decode", ""))


def find_weights(name: str | Path) -> Path:
    """Return the path of weights, a file or OpenVINO's folder: as given, else in ``weights/`` here or of this project.

    Raises:
        UserError: there is no such file.
    """
    for root in (Path(), Path("weights"), REPOSITORY / "weights"):
        if (root / name).is_file() or ((root / name).is_dir() and exported_kind(root / name)):
            return root / name
    where = address_of(name) or "; train.py writes runs/train/<name>/best.pt"
    raise UserError(f"weights '{name}' do not exist here or in weights/{where}")


def _kind(path: Path) -> str:
    """Return which loader reads a file, a key of ``OPENERS``, by its first bytes and what an archive holds."""
    if exported_kind(path):
        return "exported"
    with open(path, "rb") as file:
        start = file.read(9)
    if is_safetensors(start):
        return "ours"
    if start.startswith(b"PK") and _is_ours(path):
        return "ours"
    if start.startswith((b"PK", b"\x80")):  # the latter is a bare pickle, as torch wrote before 1.6
        return (
            "tensors" if read_state_dict(path, "meta") else "yolov5"
        )  # whose reader runs nothing and names what it refuses
    if is_darknet_weights(path):
        return "darknet"
    raise UserError(f"{path}: neither a checkpoint (.pt) nor Darknet weights; a cut-off or wrong download?")


def _is_ours(path: Path) -> bool:
    """Say whether an archive's pickle names the format of our checkpoints near its start; nothing is unpickled."""
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if entry.filename.endswith("data.pkl") and entry.compress_type == zipfile.ZIP_STORED:
                    with archive.open(entry) as file:
                        return FORMAT.encode() in file.read(1 << 16)  # it is the first thing inside
    except (zipfile.BadZipFile, EOFError, OSError, RuntimeError, ValueError, NotImplementedError) as error:
        raise UserError(f"{path}: cut off or damaged; use another copy or train again") from error
    return False


def _read_ours(path: Path) -> dict[str, Any]:
    """Return the dict of a checkpoint, or of one as safetensors, from which its network can be rebuilt."""
    with open(path, "rb") as file:
        start = file.read(9)
    if is_safetensors(start):
        return read_safetensors(path)
    checkpoint = read_checkpoint(path)
    check_network_content(checkpoint, path)
    return checkpoint


def _open_ours(path: Path, cfg: str, num_classes: int | None) -> LoadedNetwork:
    checkpoint = _read_ours(path)
    names = tuple(checkpoint["names"])
    num_classes = num_classes or len(names)
    if cfg:
        network = open_network(cfg, num_classes, key_points_of_text(checkpoint["cfg_text"]) or 0)
    else:
        network = open_network_from_text(checkpoint["cfg_text"], checkpoint["cfg_name"], num_classes)
    report = _loaded_state(network, checkpoint, path)
    return LoadedNetwork(network, report, names, record_of_run(checkpoint["options"], max(network.input_wh)))


def _open_darknet(path: Path, cfg: str, num_classes: int | None) -> LoadedNetwork:
    network = build_network(find_file(cfg, "cfg") if cfg else _cfg_for(path), num_classes)
    return LoadedNetwork(network, load_darknet_weights(network, path))


def _open_yolov5(path: Path, cfg: str, num_classes: int | None) -> LoadedNetwork:
    checkpoint = read_yolov5_checkpoint(path)
    network = build_network(find_file(cfg or checkpoint.cfg_name, "cfg"), num_classes or len(checkpoint.names))
    return LoadedNetwork(network, load_yolov5_checkpoint(network, checkpoint), checkpoint.names)


def _open_tensors(path: Path, cfg: str, num_classes: int | None) -> LoadedNetwork:
    kind, state = published_by(cfg, str(path)), read_state_dict(path)
    assert state is not None
    network = kind.filled(cfg, state, path)
    for name, tensor in network.state_dict().items():
        if problem := why_unusable(tensor, tensor):
            raise UserError(f"{path}: damaged, {network.describe(name)} {problem}; use another copy")
    count = len(network.parts())
    return LoadedNetwork(network, LoadReport(str(path), count, count), kind.names(cfg, network.num_classes))


def _cfg_for(path: Path) -> Path:
    """Return the cfg of the same name as Darknet weights."""
    shipped = REPOSITORY / "cfg" / f"{path.stem}.cfg"
    for candidate in (path.with_suffix(".cfg"), shipped):
        if candidate.is_file():
            return candidate
    raise UserError(f"{path}: which network is this? name it with --cfg; no {shipped.name} beside it or in cfg/")


def _state_of(checkpoint: Mapping[str, Any]) -> Mapping[str, Tensor]:
    return checkpoint["ema"] if "ema" in checkpoint else checkpoint["model"]


def _open_exported(path: Path, cfg: str, num_classes: int | None) -> LoadedNetwork:
    if cfg:
        raise UserError(f"{path}: is exported and holds its network; leave out --cfg")
    network = open_exported(path)
    if num_classes not in (None, network.num_classes):
        raise UserError(f"{path}: is exported with {how_many(network.num_classes, 'class')}, not {num_classes}")
    report = LoadReport(str(path), 0, 0, resize=network.metadata.resize)
    return LoadedNetwork(network, report, network.metadata.names, network.metadata.options)


def _load_exported(network: Network, path: Path) -> LoadReport:
    raise UserError(f"{path}: {_NOT_TRAINED}")


def _loaded_state(network: DetectionNetwork, checkpoint: Mapping[str, Any], path: Path) -> LoadReport:
    """Fill the network from a checkpoint of ours as :func:`load_state` does, its heads where it has their classes."""
    names = tuple(checkpoint["names"])
    counts = (len(names), key_points_of_text(checkpoint["cfg_text"]) or 0)
    report = _filled(network, _state_of(checkpoint), path, counts)
    return replace(report, names=names, resize=str(record_of_run(checkpoint["options"]).get("resize", "")))


def _filled(
    network: DetectionNetwork, state: Mapping[str, Tensor], path: Path, counts_of_file: tuple[int, int]
) -> LoadReport:
    """Fill the network as :func:`load_state` does, all but its last layers where the file has other numbers.

    ``counts_of_file`` are the classes of the file and the key points of an object, 0 where it has none.
    """
    pairs = list(zip(counts_of_file, (network.num_classes, network.num_key_points), strict=True))
    classes, key_points = (pair if pair[0] != pair[1] and all(pair) else None for pair in pairs)
    report = load_state(network, state, path, skip_heads=bool(classes or key_points))
    return replace(report, classes=classes, key_points=key_points) if report.skipped else report


def load_state(
    network: DetectionNetwork, state: Mapping[str, Tensor], path: Path, skip_heads: bool = False
) -> LoadReport:
    """Copy a state dict into a network; on an error the network is unchanged.

    With ``skip_heads`` tensors from the first head's convolution on may have another shape: those layers stay as they
    are.

    Raises:
        UserError: a tensor is missing, has no place in the network, has another shape or unusable numbers; names it.
    """
    wanted = network.state_dict()
    filled = dict(wanted)
    skipped = set()
    for name, tensor in wanted.items():
        found = state.get(name)
        if found is not None and found.shape == tensor.shape:
            problem = why_unfit(network, name, found, tensor)
            if problem:
                raise UserError(
                    f"{path}: damaged, layer {network.describe(name)} {problem}; use another copy or train again"
                )
            filled[name] = found
        elif skip_heads and found is not None and network.depends_on_classes(name):
            skipped.add(network.part_of(name))
        else:
            has = "nothing" if found is None else _shape(found)
            raise UserError(
                f"{path}: the weights of another cfg; layer {network.describe(name)} of {network.cfg_path} needs "
                f"{_shape(tensor)}, the file has {has}"
            )
    surplus = [name for name in state if name not in wanted]
    if surplus:
        raise UserError(f"{path}: the weights of another cfg; {network.cfg_path} has no place for {surplus[0]}")
    network.load_state_dict(filled)
    layers = {network.part_of(name) for name in wanted}
    return LoadReport(str(path), len(layers - skipped), len(layers), skipped=tuple(sorted(skipped)))


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "one number"


_NOT_TRAINED = "is exported and cannot be trained; name the weights that were exported"
OPENERS = {
    "exported": _open_exported, "ours": _open_ours, "tensors": _open_tensors, "darknet": _open_darknet,
    "yolov5": _open_yolov5,
}  # fmt: skip
LOADERS = {"exported": _load_exported, "darknet": load_darknet_weights, "yolov5": load_yolov5_checkpoint}
