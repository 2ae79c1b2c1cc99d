"""Find anchors that fit a data set: ``python kmeans_anchors.py --data my.data --cfg yolov3-tiny.cfg --write my.cfg``.

Prints the anchors as one line for a cfg, beside the cfg's present ones, and how well both fit; writes results.json,
tables.md, CSV files and a scatter plot into runs/analyze/<name>/. Without arguments: the demo set and yolov3-nano.cfg.
As Darknet's ``calc_anchors`` it takes ``--width 416 --height 256`` and counts the objects of every class.
"""

from __future__ import annotations

from utils.errors import UserError, run_command  # first: for Ctrl-C during the imports below

# isort: split
import shlex
import sys
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch

from analysis.mode import ANALYSES
from analysis.output.plots import anchor_scatter
from analysis.output.result import Result, Table, print_result, with_problems, write_result
from data.description import SPLITS
from data.labels.read import read_dataset
from data.objects import select_objects, sizes_in_input
from data.splits import open_data, split_shown
from engine.network_input import choose_resize, input_size, refuse_size, resize_option, size_option
from engine.run_folder import new_run_folder
from models.anchor_fit import (
    METHOD_OPTIONS,
    AnchorFitOptions,
    BoxSizes,
    Fit,
    count_sizes,
    fit_anchors,
    measure,
    recall_rule,
)
from models.anchor_text import anchors_line, head_sections, refuse_own_anchors, with_anchors
from models.network import Network, build_network
from utils.config import build_options, find_file, flag, option, parse_flags
from utils.files import write_text_atomically
from utils.words import how_many


@dataclass(frozen=True)
class KmeansOptions:
    """For which data and which network anchors are wanted."""

    data: str = option("shapes.data", "a .data file, a COCO JSON, a list of images or a folder")
    split: str = option("train", "which split of the data set", SPLITS)
    cfg: str = option("yolov3-nano.cfg", "network whose anchors are replaced and compared with")
    img_size: tuple[int, ...] = size_option("the cfg's")
    sides: tuple[int, ...] = option((), "instead: sides of several square inputs, for training with --multi-scale")
    width: int = option(0, "with --height, as calc_anchors: the same as --img-size with --resize stretch, pixels")
    height: int = option(0, "with --width")
    resize: str = resize_option()
    write: str = option(
        "", "write the cfg with the found anchors to this new file; masks and filters follow their number"
    )
    name: str = option("kmeans-anchors", "results go to runs/analyze/<name>")

    def __post_init__(self) -> None:
        refuse_size(self.img_size, "--img-size")
        if min(self.width, self.height) < 0 or (self.width > 0) != (self.height > 0):
            raise ValueError("--width and --height belong together: both in pixels, above 0")
        if sum(map(bool, (self.img_size, self.sides, self.width))) > 1:
            raise ValueError("--img-size, --sides and --width --height stand for one another; leave the others out")


def main() -> None:
    """Read the boxes, find anchors, compare them with the cfg's, and write both."""
    given = parse_flags(__doc__.splitlines()[0], KmeansOptions, AnchorFitOptions)
    options, fit_options = build_options(given, (KmeansOptions, AnchorFitOptions))
    refuse_unused(given, fit_options.method)
    annotations = read_dataset(open_data(options.data), options.split, need_images=False)
    objects = select_objects(annotations, crowd=False)
    network = read_network(options, len(objects.names))
    refuse_own_anchors(network)
    present = np.array(network.heads[0].all_anchors_wh)
    num = fit_options.num or len(present)
    if options.write:
        refuse_write(options.write, network, num)

    if options.width:
        options = replace(options, img_size=(options.width, options.height), resize="stretch", width=0, height=0)
    inputs_wh = [input_size((side,), network) for side in options.sides] or [input_size(options.img_size, network)]
    resize = choose_resize(options.resize, network)
    boxes_wh = np.concatenate([sizes_in_input(objects, input_wh, resize.kind) for input_wh in inputs_wh])
    sizes = count_sizes(boxes_wh)
    counters = np.bincount(objects.labels, minlength=len(objects.names))
    print(
        f"kmeans_anchors: {how_many(num, 'anchor')} for {how_many(len(objects), 'object')} of {options.data} "
        f"({split_shown(options.data, options.split)}), {' and '.join(map(resize.to, inputs_wh))}, by --method "
        f"{fit_options.method}, beside those of {options.cfg}\n"
    )
    found = fit_anchors(sizes, num, fit_options)
    options = replace(options, img_size=() if options.sides else inputs_wh[0], resize=resize.kind)

    result = describe(found, present, sizes, boxes_wh, counters, options, fit_options)
    result = with_problems(result, annotations)
    folder = new_run_folder(ANALYSES, options.name)
    write_result(result, folder, f"python {shlex.join(sys.argv)}")
    print_result(result)
    write_text_atomically(folder / "counters_per_class.txt", counters_line(counters))
    print(f"\n{anchors_line(found)}\n{counters_line(counters)}\n")
    print(f"results.json, tables.md, CSV and the scatter plot are in {folder}")
    if options.write:
        write_text_atomically(options.write, with_anchors(network, found, counters))
        print(f"{options.write}: {options.cfg} with these anchors")


def refuse_unused(given: dict[str, Any], method: str) -> None:
    """Refuse an option that the chosen method does not read."""
    for name in sorted(given.keys() & set().union(*METHOD_OPTIONS.values()) - METHOD_OPTIONS[method]):
        readers = ", ".join(key for key, read in METHOD_OPTIONS.items() if name in read)
        raise UserError(f"{flag(name)} is not used by --method {method}; used by: {readers}")


def read_network(options: KmeansOptions, num_classes: int) -> Network:
    """Build the cfg's network without allocating any weights."""
    with torch.device("meta"):
        network = build_network(find_file(options.cfg, "cfg"), num_classes)
    network.require_heads()
    if any(not head.anchors_wh for head in network.heads):
        raise UserError(f"{options.cfg}: its boxes have no anchors")
    return network


def refuse_write(path: str, network: Network, num: int) -> None:
    """Refuse to overwrite a file, or a cfg that the anchors cannot be written into."""
    if Path(path).exists():
        raise UserError(f"{path}: exists already; name a new file with --write")
    for section in head_sections(network):
        if "anchors" not in section:
            raise section.error("has no anchors; write 'anchors = 1,1' with num=1 there for --write to replace")
    if num < len(network.heads):
        raise UserError(f"--num {num}: each of the {len(network.heads)} heads of {network.cfg_path} needs an anchor")
    with_anchors(network, np.ones((num, 2)), np.zeros(network.num_classes, dtype=int))  # fails before the search


def counters_line(counters: np.ndarray) -> str:
    """Return the line of a cfg that says how many objects each class has, as Darknet's ``calc_anchors`` writes it."""
    return f"counters_per_class = {', '.join(map(str, counters))}"


def describe(
    found: np.ndarray,
    present: np.ndarray,
    sizes: BoxSizes,
    boxes_wh: np.ndarray,
    counters: np.ndarray,
    options: KmeansOptions,
    fit_options: AnchorFitOptions,
) -> Result:
    """Return the statistics of found and present anchors side by side."""
    # The search may round the sizes; judged are the boxes as they are.
    boxes = BoxSizes(torch.from_numpy(boxes_wh), torch.ones(len(boxes_wh), dtype=torch.float64))
    sets = {"found": found, "present": present}
    fits = {name: measure(boxes, anchors_wh, fit_options) for name, anchors_wh in sets.items()}
    statistics: dict[str, Any] = {
        "boxes": len(boxes_wh),
        "distinct_sizes": len(sizes),
        "iou_t": fit_options.iou_t,
        "anchor_t": fit_options.anchor_t,
        "anchors_line": anchors_line(found),
        "counters_per_class": counters,
    }
    for name, anchors_wh in sets.items():
        aspect_ratios = anchors_wh[:, 0] / anchors_wh[:, 1]
        statistics[name] = {"anchors": anchors_wh, "aspect_ratios": aspect_ratios, **asdict(fits[name])}
    of_input = {"img_size": options.img_size, "sides": options.sides, "resize": options.resize}
    settings = {**of_input, "cfg": options.cfg, **asdict(fit_options), "num": len(found)}
    data = {"data": options.data, "split": split_shown(options.data, options.split), **settings}
    plot = anchor_scatter(
        boxes_wh, {"found": found, f"present ({Path(options.cfg).name})": present}, "Boxes and anchors"
    )
    return Result(
        "kmeans-anchors", data, statistics, tables(sets, fits, fit_options), {"anchors": plot}, notes(fits, fit_options)
    )


def tables(sets: dict[str, np.ndarray], fits: dict[str, Fit], options: AnchorFitOptions) -> tuple[Table, ...]:
    """Return how both sets fit, and their anchors side by side."""
    rows = (
        ("mean best IoU", *(f"{fit.mean_iou:.4f}" for fit in fits.values())),
        (f"recall: shape IoU > {options.iou_t:g}", *(f"{fit.recall_iou * 100:.2f} %" for fit in fits.values())),
        (
            f"recall: ratio of sides < {options.anchor_t:g}",
            *(f"{fit.recall_ratio * 100:.2f} %" for fit in fits.values()),
        ),
    )
    parts = [
        [
            (float(w), float(h), float(w / h), boxes)
            for (w, h), boxes in zip(anchors_wh, fits[name].boxes_per_anchor, strict=True)
        ]
        for name, anchors_wh in sets.items()
    ]
    side_by_side = zip_longest(*parts, fillvalue=(None,) * 4)
    anchors = tuple((index, *left, *right) for index, (left, right) in enumerate(side_by_side))
    columns = ("anchor", *(f"{name} {what}" for name in sets for what in ("w", "h", "w/h", "boxes")))
    return (
        Table("fit", "How well the anchors fit", ("statistic", *sets), rows),
        Table("anchors", "Anchors in network pixels: the found by area, the present as in the cfg", columns, anchors),
    )


def notes(fits: dict[str, Fit], options: AnchorFitOptions) -> tuple[str, ...]:
    """Say what the reader should not miss."""
    lines = []
    if options.method == "evolve" and not recall_rule(options.match):
        lines.append(f"--match {options.match} gives every object an anchor: evolve maximised mean best IoU alone")
    if fits["found"].mean_iou < fits["present"].mean_iou:
        lines.append("the present anchors have the higher mean best IoU")
    return tuple(lines)


if __name__ == "__main__":
    run_command(main)
