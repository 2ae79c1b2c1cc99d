"""What several processes hold in memory and what their exchange costs, counted and on paper.

Bytes are counted, not measured: of the parameters, their gradients, what the optimizer keeps, the average, and the
activations that the forward pass of one image keeps for the backward pass. Images per second of N machines follow from
the seconds of a step and of the exchange: each machine of a ring sends and receives 2 (N - 1) / N times the gradients,
after the backward pass (worst) or as far as possible beside it (best).

Run: ``python -m benchmarks.processes [--images-per-second 207 533] [--gbit 25]``; also under ``torchrun
--nproc_per_node=2 -m``, where it measures the exchange of the gradients as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from benchmarks.harness import time_ms
from models.network import build_network
from utils import distributed
from utils.config import find_file, option, parse_options
from utils.devices import choose_device, describe_device, use_threads
from utils.errors import run_command
from utils.files import write_json_atomically

CASES = (("yolov3-spp.cfg", 608, 16), ("yolov5s.cfg", 640, 32))  # network, side in pixels, images per step and process
FLOAT = 4  # bytes
MACHINES = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class ProcessesOptions:
    """From what to compute."""

    images_per_second: tuple[float, ...] = option(
        (207.0, 533.0), "of one process, for yolov3-spp and yolov5s; default: one H100 in docs/gpu.md"
    )
    gbit: float = option(25.0, "bandwidth between two machines, Gbit/s")
    device: str = option("", "cpu or a CUDA device, for the exchange under torchrun")


def bytes_held(cfg: str, side: int) -> dict[str, int]:
    """Return the bytes that a training process holds in float32: of the state, and of one image's activations.

    Args:
        cfg: name of the network.
        side: of its square input in pixels.
    """
    network = build_network(find_file(cfg, "cfg"), num_classes=80).to("meta")
    parameters = FLOAT * sum(parameter.numel() for parameter in network.parameters())
    return {
        "parameters": parameters,
        "gradients": parameters,
        "optimizer (SGD)": parameters,
        "average": parameters,
        "activations": activation_bytes(network, side),
    }


def activation_bytes(network: nn.Module, side: int) -> int:
    """Return the bytes that a forward pass of one image in training keeps; the network is on the device "meta"."""
    kept: dict[int, torch.UntypedStorage] = {}  # kept alive, so that no other one gets its address

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    state = {tensor.untyped_storage()._cdata for tensor in network.state_dict(keep_vars=True).values()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = network.train()(torch.zeros(1, 3, side, side, device="meta"))  # holds the graph until all is counted
    total = sum(storage.nbytes() for address, storage in kept.items() if address not in state)
    del outputs
    return total


def ring_seconds(num_bytes: int, machines: int, gbit: float) -> float:
    """Return how long a ring of machines needs to sum so many bytes, by the bandwidth alone."""
    return 2 * (machines - 1) / machines * num_bytes / (gbit * 1e9 / 8)


def throughput(step: float, exchange: float, images: int, machines: int) -> tuple[float, float]:
    """Return images per second of all machines, at worst and at best.

    Args:
        step: seconds that one process needs for a step.
        exchange: seconds that the gradients need.
        images: per step and process.
        machines: with one process each.
    """
    backward = step * 2 / 3  # twice the operations of the forward pass
    best = step + max(0.0, exchange - backward)
    return machines * images / (step + exchange), machines * images / best


def measure_exchange(num_bytes: int, device: torch.device) -> float:
    """Return the seconds in which the processes of ``torchrun`` sum as many bytes as the gradients have."""
    gradients = torch.zeros(num_bytes // FLOAT, device=device)
    return time_ms(lambda: torch.distributed.all_reduce(gradients), device, repeats=5).median_ms / 1e3


def main() -> None:
    """Print bytes and images per second; write them as JSON."""
    (options,) = parse_options(__doc__.splitlines()[0], ProcessesOptions)
    device = choose_device(options.device)
    use_threads()
    distributed.start(device)
    results = {}
    for (cfg, side, images), speed in zip(CASES, options.images_per_second, strict=True):
        held = bytes_held(cfg, side)
        row: dict[str, object] = {"side": side, "images_per_step": images, "bytes": held}
        if distributed.world_size() > 1:
            row["exchange_seconds"] = measure_exchange(held["gradients"], device)
            row["exchanged_by"] = f"{distributed.world_size()} processes on {describe_device(device)}"
        row["images_per_second"] = {
            machines: throughput(
                images / speed, ring_seconds(held["gradients"], machines, options.gbit), images, machines
            )
            for machines in MACHINES
        }
        results[cfg] = row
        if distributed.is_main():
            report(cfg, row, held, options.gbit)
    if distributed.is_main():
        write_json_atomically(Path("runs/benchmarks/processes.json"), results)
    distributed.stop()


def report(cfg: str, row: dict, held: dict[str, int], gbit: float) -> None:
    """Print the numbers of one network."""
    state = sum(size for name, size in held.items() if name != "activations")
    print(f"{cfg} at {row['side']}, MB: " + ", ".join(f"{name} {size / 1e6:.1f}" for name, size in held.items()))
    print(
        f"  state {state / 1e6:.0f} MB, activations of {row['images_per_step']} images "
        f"{row['images_per_step'] * held['activations'] / 1e9:.1f} GB"
    )
    if "exchange_seconds" in row:
        print(f"  exchange of the gradients, measured: {row['exchange_seconds']:.3f} s, {row['exchanged_by']}")
    for machines, (worst, best) in row["images_per_second"].items():
        print(f"  {machines:3} machines at {gbit:g} Gbit/s: {worst:7.0f} to {best:7.0f} images per second")


if __name__ == "__main__":
    run_command(main)
