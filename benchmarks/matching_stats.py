"""What --matching-stats costs on top of the forward passes.

Runs the same batches through the network alone, as test.py does, and through the network and everything that
--matching-stats measures, alternately in one process, and prints the ratio. Images are loaded beforehand.
Run: ``python -m benchmarks.matching_stats --weights …``; exits with status 1 where the ratio is above the limit.
"""

from __future__ import annotations

import itertools
import statistics
import sys
from dataclasses import dataclass
from functools import partial

import torch

from analysis.matching.command import Source, loader_settings, open_everything
from analysis.matching.measure import measure_raw_maps, to_device
from analysis.matching.options import MatchingOptions
from analysis.strategies import StrategyOptions
from benchmarks.harness import seconds_alternating
from data.image_checks import ImageCheckOptions
from data.loader import evaluation_batches
from engine.network_input import size_option
from models.assignment.assigner import build_assigner
from utils.boxes import IOU_KINDS
from utils.config import build_options, option, parse_options
from utils.errors import run_command
from utils.structures import Batch

LIMIT = 1.15  # times the forward passes alone


@dataclass(frozen=True)
class MatchingStatsOptions:
    """What to time."""

    weights: str = option("", "default: the newest run's best.pt")
    cfg: str = option("", "the network of the weights, where they do not say it")
    data: str = option("", "data set; default: the one of the training")
    split: str = option("valid", "which part of it")
    img_size: tuple[int, ...] = size_option("that of the training")
    match: str = option("standard", "strategies, separated by commas")
    match_iou: tuple[str, ...] = option(("iou",), "kinds of IoU that are measured", tuple(IOU_KINDS))
    hard: int = option(0, "above 0: measure the loss of every image, too")
    batches: int = option(8, "batches that are timed")
    rounds: int = option(10, "how often each batch is timed; the median counts")
    device: str = option("", "cpu or a CUDA device")


def main() -> None:
    """Measure and print; exit with status 1 where the limit is passed."""
    (options,) = parse_options(__doc__.splitlines()[0], MatchingStatsOptions)
    wanted = {name: getattr(options, name) for name in ("weights", "hard", "device", "match", "match_iou")}
    # No workers: those that load the next batches would compete with what is timed.
    matching, strategies = build_options(wanted | {"workers": 0}, (MatchingOptions, StrategyOptions))
    source = Source(options.data, options.split, options.cfg, options.img_size)
    inputs = open_everything(source, matching, strategies, ImageCheckOptions(max_bad=0))
    plan = inputs.plan
    assigners = {name: build_assigner(one, plan.detector.heads) for name, one in plan.strategies.items()}
    loaded = evaluation_batches(inputs.annotations, loader_settings(inputs, matching))
    batches = list(itertools.islice(loaded, options.batches))

    def forward(batch: Batch) -> None:
        plan.detector.raw_outputs(batch.images)

    def forward_and_measure(batch: Batch) -> None:
        raw_maps = plan.detector.raw_outputs(batch.images)
        measure_raw_maps(to_device(batch, plan.detector.device), raw_maps, plan, assigners)

    with torch.inference_mode():
        seconds = [
            seconds_alternating(
                {"alone": partial(forward, batch), "both": partial(forward_and_measure, batch)},
                plan.detector.device,
                options.rounds,
            )
            for batch in batches
        ]
    # Seconds of a round: one pass over all batches.
    alone, both = (
        [sum(round_) for round_ in zip(*(batch[name] for batch in seconds), strict=True)] for name in ("alone", "both")
    )
    images = sum(len(batch.images) for batch in batches)
    objects = sum(len(batch.targets) for batch in batches)
    ratio = statistics.median(two / one for one, two in zip(alone, both, strict=True))
    print(
        f"{images} images with {objects} objects, {options.rounds} rounds: forward passes alone "
        f"{statistics.median(alone) / images * 1e3:.2f} ms per image, with the statistics "
        f"{statistics.median(both) / images * 1e3:.2f} ms; median ratio {ratio:.3f} (limit {LIMIT}), of the fastest "
        f"rounds {min(both) / min(alone):.3f}; {torch.get_num_threads()} threads"
    )
    sys.exit(ratio > LIMIT)


if __name__ == "__main__":
    run_command(main)
