"""Milliseconds of a forward pass: fused and channels-last, as the detector runs it, against fused, against plain.

The same network, weights and image in one process, alternating.
Run: ``python -m benchmarks.inference [--batch-size 1]``
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.harness import seconds_alternating
from models.detector import Detector
from models.network import Network, build_network
from utils.config import find_file, option, parse_options
from utils.devices import choose_device, describe_device, use_threads
from utils.errors import run_command

CASES = (("yolov3-nano.cfg", 320), ("yolov3-tiny.cfg", 416), ("yolov3-spp.cfg", 416), ("yolov5s.cfg", 640))


@dataclass(frozen=True)
class InferenceOptions:
    """What to time."""

    cfg: str = option("", "one network; default: nano, v3-tiny, v3-spp and v5s")
    img_size: int = option(416, "side of its input in pixels")
    batch_size: int = option(1, "images per forward pass")
    repeats: int = option(9, "timed passes of each; the median counts")
    device: str = option("", "cpu or a CUDA device")


def contestants(network: Network, images: torch.Tensor) -> dict[str, Callable[[], object]]:
    """Return the ways to run a network, each a function without arguments."""
    detector = Detector(network)
    fused = network.fuse().eval()
    floats = images.float() / 255
    return {
        "fused + channels-last": lambda: detector.raw_maps(images),
        "fused": lambda: fused(floats),
        "plain": lambda: network(floats),
    }


@torch.inference_mode()
def measure(cfg: str, size: int, options: InferenceOptions) -> str:
    """Return the line of one network."""
    torch.manual_seed(0)
    device = choose_device(options.device)
    network = build_network(find_file(cfg, "cfg")).to(device).eval()
    images = torch.randint(0, 256, (options.batch_size, 3, size, size), dtype=torch.uint8, device=device)
    seconds = seconds_alternating(contestants(network, images), device, options.repeats)
    medians = {name: statistics.median(values) * 1e3 for name, values in seconds.items()}
    best = medians["fused + channels-last"]
    shown = ", ".join(f"{name} {value:.1f} ms ({value / best:.2f} x)" for name, value in medians.items())
    return f"{cfg} {size}: {shown}"


def main() -> None:
    """Print a line per network."""
    (options,) = parse_options(__doc__.splitlines()[0], InferenceOptions)
    use_threads()
    print(f"{describe_device(choose_device(options.device))}, batch {options.batch_size}")
    for cfg, size in ((options.cfg, options.img_size),) if options.cfg else CASES:
        print(measure(cfg, size, options), flush=True)


if __name__ == "__main__":
    run_command(main)
