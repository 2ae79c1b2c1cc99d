"""Milliseconds per image of every way to run a network: preprocessing, forward pass and NMS, in turns, in one process.

Torch plain, fused, fused and channels-last as the detector runs it, with --half where that is faster; on a CPU also
the exported files, where their packages are installed. Weights are random, so the numbers are about time only.
Run: ``python -m benchmarks.inference [--batch-size 1]``
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import seconds_alternating
from data.letterbox import letterbox_meta, place_images
from models.detector import Detector
from models.exported.graph import DetectionGraph
from models.exported.metadata import ExportMetadata
from models.exported.onnx_file import open_onnx, write_onnx
from models.exported.openvino_folder import open_openvino, read_model, write_openvino
from models.exported.quantise import quantise_onnx, quantise_openvino
from models.network import Network, build_network
from utils.config import find_file, option, parse_options
from utils.devices import choose_device, describe_device, half_type, use_threads
from utils.errors import UserError, run_command

CASES = (("yolov3-tiny.cfg", 416), ("yolov5n.cfg", 640), ("yolov5s.cfg", 640), ("yolov3-spp.cfg", 416))
PHOTO_HW = (480, 640)  # of the image that is preprocessed
CONFIDENCE = 0.3

Forward = Callable[[Tensor], list[Tensor]]  # images [B 3 H W] uint8 -> raw maps


@dataclass(frozen=True)
class InferenceOptions:
    """What to time."""

    cfg: str = option("", "one network; default: v3-tiny, v5n, v5s and v3-spp")
    img_size: int = option(416, "side of its input in pixels")
    batch_size: int = option(1, "images per forward pass")
    repeats: int = option(9, "timed passes of each; the median counts")
    exports: bool = option(True, "also the exported files, on a CPU")
    device: str = option("", "cpu or a CUDA device")


def in_torch(network: Network) -> dict[str, tuple[Detector, Forward]]:
    """Return the ways to run a network in torch, and the detector that decodes each."""
    detector = Detector(network, CONFIDENCE)
    fused = network.fuse().eval()
    ways: dict[str, tuple[Detector, Forward]] = {
        "plain": (detector, lambda images: network(images.contiguous().float() / 255)),
        "fused": (detector, lambda images: fused(images.contiguous().float() / 255)),
        "fused + channels-last": (detector, detector.raw_outputs),
    }
    if half_type(detector.device) != torch.float32:
        half = Detector(network, CONFIDENCE, half=True)
        ways["--half"] = (half, half.raw_outputs)
    return ways


def exported(network: Network, size: int, batch: int, folder: Path) -> dict[str, tuple[Detector, Forward]]:
    """Return the ways to run exported files; those whose packages are missing are named and left out."""
    about = ExportMetadata(
        tuple(map(str, range(network.num_classes))), (size, size), tuple(head.stride for head in network.heads),
        network.max_stride, "benchmark.cfg", network.cfg_text, "", batch,
    )  # fmt: skip
    int8, half = replace(about, precision="int8"), replace(about, precision="float16")
    noise = list(np.random.default_rng(0).random((8, batch, 3, size, size), dtype=np.float32))
    source = folder / "float.onnx"

    def openvino_int8() -> None:
        write_openvino(quantise_openvino(source, noise, int8)[0], int8, folder / "int8.xml")

    makers: dict[str, tuple[Callable[[], object], Callable[[Path], Network], str]] = {
        "ONNX Runtime": (lambda: write_onnx(DetectionGraph(network), about, source), open_onnx, "float.onnx"),
        "ONNX Runtime int8": (
            lambda: quantise_onnx(source, folder / "int8.onnx", noise, int8), open_onnx, "int8.onnx"),
        "OpenVINO": (
            lambda: write_openvino(read_model(source), about, folder / "float.xml"), open_openvino, "float.xml"),
        "OpenVINO --half": (
            lambda: write_openvino(read_model(source), half, folder / "half.xml"), open_openvino, "half.xml"),
        "OpenVINO int8": (openvino_int8, open_openvino, "int8.xml"),
    }  # fmt: skip
    ways: dict[str, tuple[Detector, Forward]] = {}
    for name, (make, load, file) in makers.items():
        try:
            make()
            detector = Detector(load(folder / file), CONFIDENCE)
        except UserError as error:
            print(f"{name} is left out: {error}")
            continue
        ways[name] = (detector, detector.raw_outputs)
    return ways


@torch.inference_mode()
def measure(cfg: str, size: int, options: InferenceOptions) -> str:
    """Return the lines of one network, the times relative to the fused network's."""
    torch.manual_seed(0)
    device = choose_device(options.device)
    network = build_network(find_file(cfg, "cfg")).to(device).eval()
    photo = np.random.default_rng(0).integers(0, 256, (*PHOTO_HW, 3), dtype=np.uint8)
    meta = letterbox_meta(0, "", PHOTO_HW[::-1], (size, size))
    photos, metas = [photo] * options.batch_size, [meta] * options.batch_size

    def whole(way: tuple[Detector, Forward]) -> Callable[[], object]:
        detector, forward = way
        return lambda: detector.detect(forward(place_images(photos, metas, (size, size)).to(device)), metas)

    with tempfile.TemporaryDirectory() as folder:
        ways = in_torch(network)
        if options.exports and device.type == "cpu":
            with torch.inference_mode(False):
                ways |= exported(network, size, options.batch_size, Path(folder))
        seconds = seconds_alternating({name: whole(way) for name, way in ways.items()}, device, options.repeats)
    medians = {name: statistics.median(values) * 1e3 / options.batch_size for name, values in seconds.items()}
    rows = [f"  {name:<22} {ms:8.1f} ms  {medians['fused'] / ms:5.2f} x" for name, ms in medians.items()]
    return "\n".join([f"{cfg} {size}, per image, and how many times as fast as fused:", *rows])


def main() -> None:
    """Print a table per network."""
    (options,) = parse_options(__doc__.splitlines()[0], InferenceOptions)
    use_threads()
    print(f"{describe_device(choose_device(options.device))}, batch {options.batch_size}")
    for cfg, size in ((options.cfg, options.img_size),) if options.cfg else CASES:
        print(measure(cfg, size, options), flush=True)


if __name__ == "__main__":
    run_command(main)
