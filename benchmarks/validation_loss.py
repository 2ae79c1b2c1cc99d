"""What the loss on validation images costs: CPU time of an evaluation with it and without, alternating.

``python -m benchmarks.validation_loss --data FOLDER`` takes the labelled images of a folder and a network with random
weights; CPU time counts all threads of the process, so that other programs on the machine matter little.
"""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass

from data.loader import LoaderSettings, evaluation_batches
from data.splits import open_split
from engine.evaluate import collect_results
from engine.validation_loss import ValidationLoss
from models.assignment.options import AssignmentOptions
from models.detector import Detector
from models.loss import LossOptions, build_loss
from models.network import build_network, initialise_head_biases
from utils.config import find_file, option, parse_options
from utils.errors import run_command


@dataclass(frozen=True)
class Options:
    """What is evaluated."""

    data: str = option("shapes.data", "a .data file, a COCO JSON, a list of images or a folder")
    cfg: str = option("yolov5n.cfg", "the network")
    size: int = option(320, "side of the input, pixels")
    rounds: int = option(5, "evaluations of each kind")


def main() -> None:
    """Print both times per image and their ratio."""
    (options,) = parse_options(__doc__.splitlines()[0], Options)
    notes = open_split(options.data, "valid")
    network = build_network(find_file(options.cfg, "cfg"), len(notes.names))
    initialise_head_biases(network)
    batches = evaluation_batches(notes, LoaderSettings((options.size,) * 2, stride=network.max_stride, rect=True))
    loss_function = build_loss(LossOptions(), AssignmentOptions(), network.heads, math.sqrt(options.size**2))
    detector, truth = Detector(network), notes.to_coco()
    seconds: dict[str, list[float]] = {"without": [], "with": []}
    for _ in range(options.rounds + 1):
        for name, loss in (("without", None), ("with", ValidationLoss(loss_function))):
            start = time.process_time()
            collect_results(detector, batches, truth, loss=loss)
            seconds[name].append((time.process_time() - start) / len(notes))
    plain, with_loss = (statistics.median(values[1:]) for values in seconds.values())  # the first one warms up
    print(
        f"{options.cfg} at {options.size}, {len(notes)} images: {plain * 1e3:.2f} ms of CPU time per image without the "
        f"loss, {with_loss * 1e3:.2f} ms with it, {with_loss / plain:.3f} times as much"
    )


if __name__ == "__main__":
    run_command(main)
