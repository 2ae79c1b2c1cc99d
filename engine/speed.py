"""How long a detector takes per image, batch by batch, for ``test.py --task speed``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from data.labels.annotations import Annotations
from data.loader import LoaderSettings
from engine.evaluate import warmed_up
from engine.exports import Job, export, metadata_of
from engine.resolve import Resolved
from models.checkpoints.load import LoadedNetwork, load_network
from models.detector import Detector, Speed
from models.exported.network import ExportedNetwork
from models.exported.onnx_file import OPSET
from models.network import Network
from utils import distributed
from utils.config import option
from utils.errors import UserError
from utils.files import write_json_atomically, write_text_atomically
from utils.structures import Batch
from utils.tables import csv_table

PERCENTILES = (50, 90, 99)
RUNTIMES = ("onnx", "torchscript", "openvino", "onnx-int8", "openvino-int8")  # formats of export.py that can be run


@dataclass(frozen=True)
class SpeedOptions:
    """How the time is measured."""

    threads: int = option(0, "threads of the computation, of exported networks, too; default: one per core")
    batch_sizes: tuple[int, ...] = option((), "--task speed: at each of these, into speed.csv; default: --batch-size")
    runtimes: tuple[str, ...] = option(
        (),
        "--task speed: beside the network, exported for these, on a CPU and without --rect; into speed.csv",
        RUNTIMES,
    )

    def __post_init__(self) -> None:
        if not 0 <= self.threads <= 1024:
            raise ValueError("--threads must lie between 1 and 1024; 0 means one per core")
        if any(size < 1 for size in self.batch_sizes):
            raise ValueError("--batch-sizes must be at least 1")

    def check_task(self, task: str, device: str) -> None:
        """Refuse several batch sizes and runtimes where times are not what is asked for, or not on one CPU.

        Raises:
            UserError: names the option.
        """
        if self.batch_sizes and task != "speed":
            raise UserError(f"--batch-sizes is for --task speed; --task {task} takes one --batch-size")
        if self.runtimes and task != "speed":
            raise UserError(f"--runtimes is for --task speed; --task {task} takes what export.py wrote as --weights")
        if self.runtimes and device not in ("", "cpu"):
            raise UserError(f"--runtimes compares on a CPU; leave out --device {device}")
        if self.runtimes and distributed.world_size() > 1:
            raise UserError("--runtimes: without torchrun; --threads says how many threads they have")

    @property
    def writes_table(self) -> bool:
        """Whether there is more to compare than a line says."""
        return bool(self.batch_sizes or self.runtimes)


@dataclass(frozen=True)
class SpeedRow:
    """Milliseconds per image in one runtime at one batch size: means over the images, percentiles over the batches."""

    runtime: str  # "torch", or the format of export.py that was run
    batch_size: int
    images: int
    inference_ms: float
    nms_ms: float
    total_ms: float
    p50_ms: float | None  # None without images
    p90_ms: float | None
    p99_ms: float | None


def run_speed(
    detector: Detector,
    dataset: Annotations,
    settings: LoaderSettings,
    batch_sizes: Sequence[int],
    runtime: str = "torch",
) -> list[SpeedRow]:
    """Time all images at every batch size, and print lines for each; the rows are those of the main process.

    Args:
        detector: what is timed.
        dataset: what it looks at.
        settings: how batches are made, of any size.
        batch_sizes: images per batch.
        runtime: that the detector runs in.
    """
    rows = []
    for size in batch_sizes:
        with warmed_up(detector, dataset, replace(settings, batch_size=size)) as batches:
            milliseconds = time_batches(detector, batches)
        if distributed.is_main():
            speed = detector.speed()
            print(("" if runtime == "torch" else f"{runtime}: ") + speed_line(speed, settings.image_hw[::-1], size))
            if milliseconds:
                print(percentiles_line(milliseconds))
            means = (speed.inference_ms, speed.nms_ms, speed.total_ms)
            rows.append(SpeedRow(runtime, size, speed.images, *means, *percentiles(milliseconds)))
    if distributed.is_main() and (advice := faster_road(detector)):
        print(advice)
    return rows


def run_exported(
    resolved: Resolved,
    new_detector: Callable[[LoadedNetwork], Detector],
    dataset: Annotations,
    settings: LoaderSettings,
    batch_sizes: Sequence[int],
    runtimes: Sequence[str],
) -> list[SpeedRow]:
    """Time a network on a CPU as other runtimes compute it, exported for each of them and each batch size.

    Args:
        resolved: the network.
        new_detector: makes a detector of what was exported.
        dataset: as for :func:`run_speed`.
        settings: likewise; the exported files have one size.
        batch_sizes: likewise.
        runtimes: formats of export.py.

    Raises:
        UserError: the network cannot be exported, or a package is missing.
    """
    rows = []
    for size in batch_sizes if runtimes else ():
        job = Job(resolved, metadata_of(resolved, size), OPSET)  # whose calibration images serve all of them
        for runtime in runtimes:
            with TemporaryDirectory() as folder:
                exported = export(job, runtime, Path(folder))
                detector = new_detector(load_network(exported.path))
                rows += run_speed(detector, dataset, settings, (size,), runtime)
    return rows


def faster_road(detector: Detector) -> str:
    """Return the line that says which runtime is usually faster on this device and is there; "" where none is."""
    network = detector.network
    is_exportable = isinstance(network, Network) and not isinstance(network, ExportedNetwork)
    if detector.device.type != "cpu" or not is_exportable or not find_spec("openvino"):
        return ""
    return "On CPUs OpenVINO is usually faster: export.py --format openvino, then --weights with what it wrote"


def write_speed(folder: Path, rows: Sequence[SpeedRow], settings: dict[str, Any]) -> None:
    """Write, in the main process, speed.csv and speed.json of the rows.

    Args:
        folder: of the run.
        rows: one per batch size.
        settings: what speed.json says besides.
    """
    if distributed.is_main():
        of_rows = [asdict(row) for row in rows]
        heading = [item.name for item in fields(SpeedRow)]
        write_text_atomically(folder / "speed.csv", csv_table([heading, *(list(row.values()) for row in of_rows)]))
        write_json_atomically(folder / "speed.json", {"rows": of_rows, **settings})
        print(f"Written to {folder}: speed.csv, speed.json")


def time_batches(detector: Detector, batches: Iterable[Batch]) -> list[float]:
    """Run the detector over all batches for its speed alone; return each batch's milliseconds per image."""
    milliseconds = []
    for batch in batches:
        before = detector.seconds_inference + detector.seconds_nms
        detector(batch.images, batch.metas)
        seconds = detector.seconds_inference + detector.seconds_nms - before
        milliseconds.append(seconds / len(batch.images) * 1e3)
    return milliseconds


def speed_line(speed: Speed, input_wh: tuple[int, int], batch_size: int) -> str:
    """Return the time per image in words, without loading and evaluation."""
    times = f"{speed.inference_ms:.1f}/{speed.nms_ms:.1f}/{speed.total_ms:.1f}"
    size = f"{input_wh[0]}x{input_wh[1]}"
    return f"Speed: {times} ms inference/NMS/total per {size} image at batch-size {batch_size}"


def percentiles(milliseconds: Sequence[float]) -> list[float | None]:
    """Return the :data:`PERCENTILES` of the batches, None without any."""
    return np.percentile(milliseconds, PERCENTILES).tolist() if milliseconds else [None] * len(PERCENTILES)


def percentiles_line(milliseconds: Sequence[float]) -> str:
    """Return the percentiles over the batches in words; there is a batch at least."""
    shown = ", ".join(f"p{one} {value:.1f}" for one, value in zip(PERCENTILES, percentiles(milliseconds), strict=True))
    return f"Percentiles over {len(milliseconds)} batches: {shown} ms per image"
