"""Files of a network for other runtimes: one table of formats; each is run and compared before it gets its name."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.image_checks import ImageCheckOptions
from data.loader import LoaderSettings, evaluation_batches
from data.splits import open_split
from engine.export_check import ExportDifference, compare, sample_images, seconds_per_image
from engine.resolve import Resolved
from models.checkpoints.darknet_weights import VERSION, save_darknet_weights
from models.checkpoints.load import find_weights, load_network
from models.checkpoints.safetensors_file import write_safetensors
from models.convert_weights import cfg_for_darknet
from models.exported.graph import DetectionGraph
from models.exported.metadata import ExportMetadata
from models.exported.network import ExportedNetwork
from models.exported.onnx_file import write_onnx
from models.exported.onnx_nms import GraphNms
from models.exported.openvino_folder import read_model, write_openvino
from models.exported.quantise import quantise_onnx, quantise_openvino
from models.exported.torchscript_file import write_torchscript
from models.network import Network, require_cfg
from utils.errors import UserError
from utils.files import remove_unfinished, temporary_path, write_text_atomically
from utils.words import how_many


@dataclass(frozen=True)
class Job:
    """A network, and how it is to be written."""

    resolved: Resolved
    metadata: ExportMetadata
    opset: int
    nms: GraphNms | None = None
    half: bool = False
    calibration_images: int = 128

    @property
    def network(self) -> Network:
        """What is exported.

        Raises:
            UserError: no cfg describes it.
        """
        return require_cfg(self.resolved.loaded.network, "export.py")

    @cached_property
    def graph(self) -> DetectionGraph:
        """The graph in float32."""
        return DetectionGraph(self.network)

    def written_graph(self) -> DetectionGraph:
        """Return the graph whose convolutions have the wanted precision."""
        graph = DetectionGraph(self.network)
        return graph.half() if self.half else graph

    @cached_property
    def calibration(self) -> list[np.ndarray]:
        """The first training images of the data set as network inputs, each [B 3 H W] float32, 0..1.

        Raises:
            UserError: no data set is known, or it cannot be read.
        """
        return calibration_images(self.resolved, self.metadata, self.calibration_images)


@dataclass(frozen=True)
class Format:
    """One kind of file."""

    ending: str  # of its name, after that of the weights
    write: Callable[[Job, ExportMetadata, Path], list[str]]  # returns lines for the user
    precision: str = ""  # empty: as --half says


@dataclass(frozen=True)
class Exported:
    """A file that was written and found right."""

    format: str
    path: Path
    size_bytes: int
    precision: str
    difference: ExportDifference
    milliseconds: float  # per image, batch and size of the comparison's first
    network_milliseconds: float  # of the fused network, in turns with the file
    lines: list[str]

    def __str__(self) -> str:
        speed = f"{self.milliseconds:.1f} ms per image, the network {self.network_milliseconds:.1f} ms"
        return f"{self.path}: {self.size_bytes / 1e6:.1f} MB, {self.precision}, {self.difference}; {speed}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for export.json."""
        return asdict(self) | {"path": str(self.path)}


def export(job: Job, name: str, folder: Path) -> Exported:
    """Write one format into a folder, run it and compare it with the network; only then it gets its name.

    Args:
        job: the network.
        name: key of ``FORMATS``.
        folder: of the results.

    Raises:
        UserError: a package is missing, the format cannot hold the network, or the file differs from it.
    """
    kind = FORMATS[name]
    precision = kind.precision or ("float16" if job.half else "float32")
    metadata = replace(job.metadata, precision=precision)
    with unfinished_folder(folder) as temporary:
        target = temporary / f"{Path(job.resolved.weights).stem}{kind.ending}"
        lines = kind.write(job, metadata, target)
        exported = load_network(target).network
        real = job.calibration[:8] if precision == "int8" else []
        images = sample_images(metadata, real)
        reference, run = runner(job.graph), runner(exported)
        nms = job.nms if isinstance(exported, ExportedNetwork) and exported.metadata.nms else None
        difference = compare(reference, run, images, precision != "float32", nms)
        if problem := difference.problem(precision):
            raise UserError(f"{name}: {folder / target.name}: not written, it {problem}")
        seconds, of_network = seconds_per_image((run, reference), images[0])
        size = sum(path.stat().st_size for path in temporary.rglob("*") if path.is_file())
        move_all(temporary, folder)
    return Exported(name, folder / target.name, size, precision, difference, seconds * 1e3, of_network * 1e3, lines)


def metadata_of(resolved: Resolved, batch_size: int = 1, dynamic: bool = False) -> ExportMetadata:
    """Return what the files of a network say of it.

    Args:
        resolved: the network.
        batch_size: images at once.
        dynamic: any number of images, of any size that the strides divide.

    Raises:
        UserError: the network is exported already, or cannot be exported, or not with any size.
    """
    loaded, network = resolved.loaded, resolved.loaded.network
    if isinstance(network, ExportedNetwork):
        raise UserError(f"{resolved.weights}: is exported already; name the weights that were exported")
    require_cfg(network, "export.py")
    if dynamic and network.fixed_size:
        raise UserError(f"--dynamic: {network.cfg_path} works at one size only; leave it out")
    return ExportMetadata(
        names=loaded.names,
        input_wh=resolved.input_wh,
        strides=tuple(head.stride for head in network.heads),
        max_stride=1 if network.fixed_size else network.max_stride,
        cfg_name=Path(network.cfg_path).name,
        cfg_text=network.cfg_text,
        weights_sha256=hashlib.sha256(find_weights(resolved.weights).read_bytes()).hexdigest(),
        batch_size=0 if dynamic else batch_size,
        dynamic=dynamic,
        resize=resolved.resize.kind,
        nms_beta=network.nms_beta or 0.0,
        data=resolved.data,
        single_cls=resolved.single_cls,
        val_fraction=resolved.val_fraction,
    )


def runner(network: torch.nn.Module) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Return what runs images [B 3 H W] float32, 0..1, and returns boxes [B N 4] and scores [B N C]."""
    if isinstance(network, ExportedNetwork):
        return network.boxes_and_scores
    graph = network if isinstance(network, DetectionGraph) else DetectionGraph(network)  # type: ignore[arg-type]

    @torch.inference_mode()
    def run(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        boxes, scores = graph(torch.from_numpy(images).to(memory_format=torch.channels_last))
        return boxes.numpy(), scores.numpy()

    return run


def calibration_images(resolved: Resolved, metadata: ExportMetadata, count: int) -> list[np.ndarray]:
    """Return training images of the data set as network inputs, each [B 3 H W] float32, 0..1.

    Raises:
        UserError: no data set is known, it cannot be read, or it has too few images for one batch.
    """
    if not resolved.data:
        raise UserError("int8 needs images to calibrate with: name the data set with --data")
    width, height = metadata.input_wh
    batch = metadata.batch_size or 1
    dataset = open_split(resolved.data, "train", val_fraction=resolved.val_fraction, checks=ImageCheckOptions())
    settings = LoaderSettings(
        (height, width), batch, 1 if resolved.loaded.network.fixed_size else metadata.max_stride, resize=metadata.resize
    )
    found: list[np.ndarray] = []
    for images in evaluation_batches(dataset, settings):
        if len(images.images) == batch and len(found) * batch < count:
            found.append((images.images.float() / 255).contiguous().numpy())
        if len(found) * batch >= count:
            break
    if not found:
        raise UserError(
            f"{resolved.data}: has {how_many(len(dataset), 'training image')}, too few to calibrate int8 with "
            f"--batch-size {batch}; lower that, or name another data set with --data"
        )
    return found


@contextmanager
def unfinished_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder inside of another one, which is removed at the end; those of killed processes, too."""
    remove_unfinished(folder.iterdir())
    temporary = temporary_path(folder / "export")
    temporary.mkdir()
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def move_all(source: Path, target: Path) -> None:
    """Give files and folders their place; what has their name there is replaced."""
    for path in sorted(source.iterdir()):
        place = target / path.name
        if place.is_dir():
            shutil.rmtree(place)
        os.replace(path, place)


def _onnx(job: Job, metadata: ExportMetadata, path: Path) -> list[str]:
    write_onnx(job.written_graph(), replace(metadata, nms=str(job.nms or "")), path, job.opset, job.nms)
    return []


def _torchscript(job: Job, metadata: ExportMetadata, path: Path) -> list[str]:
    write_torchscript(job.written_graph(), metadata, path)
    return []


@contextmanager
def _float_onnx(job: Job, metadata: ExportMetadata, nms: GraphNms | None = None) -> Iterator[Path]:
    """Yield a float32 ONNX file, from which others are made."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "float.onnx"
        write_onnx(job.graph, metadata, path, job.opset, nms)
        yield path


def _openvino(job: Job, metadata: ExportMetadata, path: Path) -> list[str]:
    with _float_onnx(job, metadata, job.nms) as source:
        write_openvino(read_model(source), replace(metadata, nms=str(job.nms or "")), _xml(job, path))
    return []


def _onnx_int8(job: Job, metadata: ExportMetadata, path: Path) -> list[str]:
    with _float_onnx(job, metadata) as source:
        return quantise_onnx(source, path, job.calibration, metadata)


def _openvino_int8(job: Job, metadata: ExportMetadata, path: Path) -> list[str]:
    with _float_onnx(job, metadata) as source:
        model, lines = quantise_openvino(source, job.calibration, metadata)
        write_openvino(model, metadata, _xml(job, path))
    return lines


def _xml(job: Job, folder: Path) -> Path:
    folder.mkdir()
    return folder / f"{Path(job.resolved.weights).stem}.xml"


def _darknet(job: Job, metadata: ExportMetadata, path: Path) -> list[str]:
    loaded = job.resolved.loaded
    save_darknet_weights(job.network, path, loaded.report.seen, loaded.report.version or VERSION)
    write_text_atomically(path.with_suffix(".cfg"), cfg_for_darknet(job.network, job.resolved.resize.kind))
    write_text_atomically(path.with_suffix(".names"), "\n".join(metadata.names) + "\n")
    return [f"with {path.with_suffix('.cfg').name} and {path.with_suffix('.names').name} beside it"]


def _safetensors(job: Job, metadata: ExportMetadata, path: Path) -> list[str]:
    network = job.network
    content = {
        "cfg_name": metadata.cfg_name,
        "cfg_text": cfg_for_darknet(network),
        "names": list(metadata.names),
        "options": dict(job.resolved.loaded.options) or {"resize": metadata.resize},
        "model": network.state_dict(),
    }
    write_safetensors(path, content, {"weights_sha256": metadata.weights_sha256})
    return []


FORMATS = {
    "onnx": Format(".onnx", _onnx),
    "torchscript": Format(".torchscript", _torchscript),
    "openvino": Format("_openvino", _openvino),
    "onnx-int8": Format("_int8.onnx", _onnx_int8, "int8"),
    "openvino-int8": Format("_int8_openvino", _openvino_int8, "int8"),
    "darknet": Format(".weights", _darknet, "float32"),
    "safetensors": Format(".safetensors", _safetensors, "float32"),
}
