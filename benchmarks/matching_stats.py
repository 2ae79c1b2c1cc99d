"""What --matching-stats costs on top of the forward passes: ``python benchmarks/matching_stats.py --weights …``.

Runs the same batches through the network alone, as test.py does, and through the network and everything that
--matching-stats measures, alternately in one process, and prints the ratio. Images are loaded beforehand.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from analysis.matching.command import Source, loader_settings, open_everything
from analysis.matching.measure import measure_raw_maps, to_device
from analysis.matching.options import MatchingOptions
from analysis.strategies import StrategyOptions
from data.loader import evaluation_batches
from models.assignment.assigner import build_assigner
from utils.structures import Batch

LIMIT = 1.15


def main() -> None:
    """Measure and print; exit with status 1 where the limit is passed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", default="", help="default: the newest run's best.pt")
    parser.add_argument("--cfg", default="")
    parser.add_argument("--data", default="")
    parser.add_argument("--split", default="valid")
    parser.add_argument("--img-size", type=int, default=0)
    parser.add_argument("--match", default="standard")
    parser.add_argument("--match-iou", nargs="+", default=["iou"])
    parser.add_argument("--hard", type=int, default=0, help="above 0: measure the loss of every image, too")
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--device", default="")
    args = parser.parse_args()
    options = MatchingOptions(weights=args.weights, hard=args.hard, workers=0, device=args.device)
    strategies = StrategyOptions(match=args.match, match_iou=tuple(args.match_iou))
    inputs = open_everything(Source(args.data, args.split, args.cfg, args.img_size), options, strategies)
    plan = inputs.plan
    assigners = {name: build_assigner(one, plan.detector.heads) for name, one in plan.strategies.items()}
    batches = []
    for batch in evaluation_batches(inputs.annotations, loader_settings(inputs, options)):
        batches.append(batch)
        if len(batches) == args.batches:
            break

    device = plan.detector.device

    def forward(batch: Batch) -> None:
        plan.detector.raw_maps(batch.images)

    def forward_and_measure(batch: Batch) -> None:
        measure_raw_maps(to_device(batch, device), plan.detector.raw_maps(batch.images), plan, assigners)

    alone, both = [], []
    with torch.inference_mode():
        for number in range(args.rounds + 1):
            seconds = {forward: 0.0, forward_and_measure: 0.0}
            for batch in batches:
                for run in (forward, forward_and_measure)[:: 1 if number % 2 else -1]:  # neither always comes second
                    seconds[run] += timed(run, batch, device)
            if number:  # the first round warms up
                alone.append(seconds[forward])
                both.append(seconds[forward_and_measure])
    images = sum(len(batch.images) for batch in batches)
    objects = sum(len(batch.targets) for batch in batches)
    ratio = statistics.median(two / one for one, two in zip(alone, both, strict=True))
    of_fastest = min(both) / min(alone)
    print(
        f"{images} images with {objects} objects, {args.rounds} rounds: forward passes alone "
        f"{statistics.median(alone) / images * 1e3:.2f} ms per image, with the statistics "
        f"{statistics.median(both) / images * 1e3:.2f} ms; median ratio {ratio:.3f} (limit {LIMIT}), of the fastest "
        f"rounds {of_fastest:.3f}; {torch.get_num_threads()} threads"
    )
    sys.exit(ratio > LIMIT)


def timed(run: Callable[[Batch], None], batch: Batch, device: torch.device) -> float:
    """Return the seconds that a call takes."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run(batch)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
