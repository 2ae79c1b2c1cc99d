"""Draw which slots of a small real image each strategy selects: the pictures of docs/assignment.md.

The image is matplotlib's sample portrait of Rear Admiral Grace Hopper (James S. Davis, U.S. Navy, public domain), so
that the pictures can be drawn wherever matplotlib is installed; the boxes were drawn by hand. The predictions that some
strategies look at are made up, like those of a half-trained network: every slot's prior, moved towards the object
that it overlaps best by a random share of the way. Run: ``python -m docs.make_figures [--folder docs]``
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib import cbook
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor

from benchmarks.harness import yolov3_heads
from data.image_files import decode_image
from data.letterbox import letterbox_meta, place_image
from models.assignment.assigner import build_assigner
from models.assignment.grid import grid_of_maps
from models.assignment.options import AssignmentOptions
from models.assignment.strategies import prior_strategies, reads_predictions, strategies_for
from models.heads import Head, cell_grid, priors_wh
from utils.boxes import box_iou, cxcywh_to_xyxy, xyxy_to_cxcywh
from utils.config import option, parse_options
from utils.errors import run_command
from utils.files import atomic_path
from utils.structures import Targets

SIZE = 320  # the network's input, pixels
OBJECTS = {  # corners in the pixels of the sample image, 512 x 600
    "person": (12, 18, 508, 600),
    "cap": (129, 18, 361, 154),
    "flag": (2, 2, 131, 420),
    "ribbons": (320, 488, 456, 528),
    "cap badge": (208, 44, 273, 102),
    "collar pin": (197, 395, 221, 418),
    "name tag": (79, 484, 160, 518),
}
COLORS = ("tab:red", "tab:orange", "tab:cyan")  # per head: stride 32, 16, 8
FIGURES = {
    "assignment_priors.png": tuple(prior_strategies()),
    "assignment_predictions.png": (*(name for name in strategies_for() if reads_predictions(name)), "atss+fast"),
}


@dataclass(frozen=True)
class DrawOptions:
    """Where the pictures go."""

    folder: str = option("docs", "folder for the PNG files")


def main() -> None:
    """Draw the pictures."""
    (options,) = parse_options("Draw which slots each strategy selects.", DrawOptions)
    matplotlib.use("Agg")
    heads = yolov3_heads(len(OBJECTS))
    image, targets = sample()
    raw_maps = half_trained_maps(heads, targets)
    for name, strategies in FIGURES.items():
        figure = draw(strategies, image, targets, heads, raw_maps)
        with atomic_path(Path(options.folder) / name) as path:
            save_small(figure, path)
        print(f"{Path(options.folder) / name}: {', '.join(strategies)}")


def sample() -> tuple[np.ndarray, Targets]:
    """Return the letterboxed image [320 320 3] uint8 RGB and its objects."""
    original = decode_image(str(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)))[..., ::-1]
    meta = letterbox_meta(0, "", original.shape[1::-1], (SIZE, SIZE))
    image = np.empty((SIZE, SIZE, 3), np.uint8)
    place_image(original, meta, image)
    boxes = xyxy_to_cxcywh(meta.to_network(torch.tensor(list(OBJECTS.values())).float())) / SIZE
    return image, Targets(torch.zeros(len(boxes), dtype=torch.int64), torch.arange(len(boxes)), boxes)


def half_trained_maps(heads: tuple[Head, ...], targets: Targets) -> list[Tensor]:
    """Return raw maps whose boxes lie between each slot's prior and the object that the prior overlaps best."""
    generator = torch.Generator().manual_seed(0)
    raw_maps = []
    for head in heads:
        cells = SIZE // head.stride
        cell_xy = cell_grid(cells, cells, torch.device("cpu"))[None].expand(head.num_anchors, -1, -1, -1)  # A H W 2
        prior_wh = priors_wh(head, torch.device("cpu"))[:, None, None].expand_as(cell_xy)
        priors = torch.cat((cell_xy + 0.5, prior_wh), dim=-1)  # A H W 4, cells
        truth = targets.boxes_cxcywh * cells
        overlap, best = box_iou(cxcywh_to_xyxy(priors), cxcywh_to_xyxy(truth)).max(dim=-1)
        wanted = truth[best]
        pull = overlap.sqrt() * torch.rand(overlap.shape, generator=generator)  # 0: the prior, 1: the object
        offset = (wanted[..., :2] - cell_xy).clamp(0.02, 0.98).logit() * pull[..., None]
        size = (wanted[..., 2:] / prior_wh).log() * pull[..., None]
        confidence = overlap.clamp(0.01, 0.99).logit()[..., None]
        classes = torch.nn.functional.one_hot(best, len(OBJECTS)) * 6.0 - 3.0
        raw_maps.append(torch.cat((offset, size, confidence, classes), dim=-1)[None])
    return raw_maps


def draw(
    strategies: tuple[str, ...], image: np.ndarray, targets: Targets, heads: tuple[Head, ...], raw_maps: list
) -> Figure:
    """Return one panel per strategy: filled cells are base matches, dotted outlines are extra ones."""
    columns = 2 if len(strategies) <= 4 else 3
    rows = -(-len(strategies) // columns)
    figure = Figure(figsize=(3.3 * columns, 3.6 * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns).flat)
    for axes in panels[len(strategies) :]:
        axes.set_axis_off()
    for axes, match in zip(panels, strategies, strict=False):
        assigner = build_assigner(AssignmentOptions(match=match), heads)
        assignment = assigner.match(targets, grid_of_maps(heads, raw_maps), raw_maps)
        axes.imshow(image, alpha=0.75)
        for x1, y1, x2, y2 in (cxcywh_to_xyxy(targets.boxes_cxcywh) * SIZE).tolist():
            axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, color="white", linewidth=1.2))
        for matches, filled in ((assignment.base, True), (assignment.extra, False)):
            for head, color, place in zip(heads, COLORS, matches.place_per_head(), strict=True):
                draw_cells(axes, place, head, color, filled)
        found = {*assignment.base.target.tolist(), *assignment.extra.target.tolist()}
        extra_text = f" + {len(assignment.extra)} extra" if len(assignment.extra) else ""
        title = f"{match}: {len(assignment.base)} base{extra_text}, {len(found)}/{len(targets)} objects"
        axes.set_title(title, fontsize=9)
        axes.set_axis_off()
    return figure


def draw_cells(axes: Axes, place: tuple[Tensor, ...], head: Head, color: str, filled: bool) -> None:
    """Mark each matched cell once, with the number of its matches where there are several."""
    cells: dict[tuple[int, int], int] = {}
    _, _, rows, cols = place
    for col, row in zip(cols.tolist(), rows.tolist(), strict=True):
        cells[col, row] = cells.get((col, row), 0) + 1
    for (col, row), count in cells.items():
        side, x, y = head.stride, col * head.stride, row * head.stride
        if filled:
            axes.add_patch(Rectangle((x, y), side, side, facecolor=color, alpha=0.55))
        else:
            axes.add_patch(Rectangle((x, y), side, side, fill=False, edgecolor=color, linewidth=1.3, linestyle=":"))
        if count > 1 and side >= 16:
            axes.text(x + side / 2, y + side / 2, str(count), color="white", fontsize=7, ha="center", va="center")


def save_small(figure: Figure, path: Path) -> None:
    """Save a figure as a PNG of 256 colours, which has about a third of the size."""
    figure.savefig(path, dpi=110)
    with Image.open(path) as image:
        small = image.convert("RGB").quantize(256)
    small.save(path, optimize=True)


if __name__ == "__main__":
    run_command(main)
