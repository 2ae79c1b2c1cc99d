"""The worked example of docs/assignment.md: three objects, two heads, a handful of predictions, every strategy.

Run: ``python -m docs.make_example`` prints the tables, ``--write`` puts them into the document.
"""

from __future__ import annotations

import argparse
import math

import torch
from torch import Tensor

from docs.document import write_part
from models.assignment.assigner import build_assigner
from models.assignment.grid import grid_of_maps
from models.assignment.options import AssignmentOptions
from models.assignment.strategies import strategies_for
from models.heads import Head
from models.loss import LossOptions, build_loss
from utils.errors import run_command
from utils.structures import Assignment, Matches, Targets

WIDTH, HEIGHT = 128, 96
FINE = Head(((16.0, 16.0), (24.0, 40.0)), 16, 3, mask=(0, 1))  # anchors F0 and F1 on 8 x 6 cells
COARSE = Head(((48.0, 40.0), (96.0, 80.0)), 32, 3, mask=(2, 3))  # anchors C0 and C1 on 4 x 3 cells
HEADS = (FINE, COARSE)
ANCHOR_NAMES = (("F0", "F1"), ("C0", "C1"))
OBJECTS = {"a": (56, 44, 40, 30), "b": (100, 20, 12, 10), "c": (104, 24, 6, 6)}  # centre and size, pixels
PREDICTIONS = {  # (head, anchor, column, row): centre and size in pixels; all others predict almost no size
    (0, 0, 3, 2): (56, 44, 20, 15),
    (0, 1, 3, 2): (56, 44, 40, 24),
    (1, 0, 1, 1): (56, 44, 32, 20),
    (1, 1, 1, 1): (56, 44, 44, 30),
    (0, 0, 4, 2): (65, 44, 40, 30),
    (0, 0, 6, 1): (100, 20, 12, 10),
    (0, 1, 6, 1): (103, 23, 8, 8),
}
VARIANTS = {  # more rows of the table: options that change what a strategy selects in the example
    "standard": ("match_anchors=best", "match_fallback=True"),
    "split": ("extra_topk=1", "refilter=True", "assign_rate=0.5"),
    "fast": ("extra_iou=0.25", "extra_iou=0.25 remove_duplicate=True", "linear_reweight=0.2"),
}
RUNS = (
    *(f"{name} {options}".strip() for name in strategies_for() for options in ("", *VARIANTS.get(name, ()))),
    "atss+fast",
)


def targets() -> Targets:
    """Return the three objects, of classes 0, 1 and 2."""
    size = torch.tensor([WIDTH, HEIGHT] * 2)
    boxes = torch.tensor(list(OBJECTS.values())) / size
    return Targets(torch.zeros(3, dtype=torch.int64), torch.arange(3), boxes)


def example_maps() -> list[Tensor]:
    """Return the raw maps that decode to the predictions; classes and objectness are undecided everywhere."""
    raw_maps = []
    for head in HEADS:
        raw = torch.zeros(1, HEIGHT // head.stride, WIDTH // head.stride, head.num_anchors, 8)
        raw[..., 2:4] = -4.0
        raw_maps.append(raw.permute(0, 3, 1, 2, 4))
    for (number, anchor, col, row), (x, y, width, height) in PREDICTIONS.items():
        head = HEADS[number]
        prior_wh = head.anchors_wh[anchor]
        offsets = [x / head.stride - col, y / head.stride - row]
        sizes = [math.log(side / prior) for side, prior in zip((width, height), prior_wh, strict=True)]
        raw_maps[number][0, anchor, row, col, :4] = torch.tensor([math.log(p / (1 - p)) for p in offsets] + sizes)
    return raw_maps


def assign(run: str) -> Assignment:
    """Match the example; ``run`` is a strategy and its options, separated by spaces."""
    match, *words = run.split()
    options = dict(word.split("=") for word in words)
    kinds = {
        "extra_topk": int,
        "match_anchors": str,
        "extra_iou": float,
        "assign_rate": float,
        "linear_reweight": float,
    }
    values = {name: kinds.get(name, bool)(value) for name, value in options.items()}
    maps = example_maps()
    assigner = build_assigner(AssignmentOptions(match=match, **values), HEADS)
    return assigner.match(targets(), grid_of_maps(HEADS, maps), maps)


def describe(matches: Matches, weights: bool) -> dict[str, str]:
    """Return, per object, its matches as text: anchor, cell as (column, row), deciding IoU."""
    texts: dict[str, list[str]] = {name: [] for name in OBJECTS}
    columns = (matches.target, matches.head, matches.anchor, matches.col, matches.row, matches.iou, matches.weight)
    for target, head, anchor, col, row, iou, weight in zip(*(column.tolist() for column in columns), strict=True):
        weighted = f" × {weight:.3f}" if weights else ""
        texts[list(OBJECTS)[target]].append(f"{ANCHOR_NAMES[head][anchor]}({col},{row}) {iou:.3f}{weighted}")
    return {name: ", ".join(parts) or "–" for name, parts in texts.items()}


def tables() -> str:
    """Return the tables of the document."""
    lines = ["| `--match` | set | a | b | c |", "|---|---|---|---|---|"]
    for run in RUNS:
        assignment = assign(run)
        for name, matches in (("base", assignment.base), ("extra", assignment.extra)):
            if name == "base" or len(matches):
                row = describe(matches, "reweight" in run and name == "extra")
                match, *words = run.split()
                words = ["--" + word.replace("_", "-").replace("=True", "").replace("=", " ") for word in words]
                lines.append(f"| {' '.join([match, *words])} | {name} | {row['a']} | {row['b']} | {row['c']} |")
    lines += ["", "| `--match fast`, IoU loss | box part |", "|---|---|"]
    for alpha in (0.0, 0.3, 0.5, 1.0):
        options = LossOptions(box=64.0, box_loss="iou")
        loss = build_loss(options, AssignmentOptions(match="fast", alpha=alpha), HEADS)
        lines.append(f"| α = {alpha} | {loss(example_maps(), targets()).parts['box'].item():.4f} |")
    return "\n".join(lines)


def main() -> None:
    """Print the tables, or write them into the document."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put the tables into docs/assignment.md")
    if parser.parse_args().write:
        write_part("example", tables())
    else:
        print(tables())


if __name__ == "__main__":
    run_command(main)
