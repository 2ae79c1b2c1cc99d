"""``analyze.py --anchor-stats``: which anchors match which objects; needs annotations and anchors only.

The matches are those of ``models/assignment``, the code that training uses, on letterboxed boxes. Crowd regions do not
count as objects here. Shape letters: M objects, T those of one block, K anchors of all heads together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from analysis.mode import Mode, Request, side_or_sides
from analysis.objects import anchor_rows
from analysis.output.plots import anchor_labels, anchor_scatter, bars, positives_per_object
from analysis.output.result import Result, Table, counted, distribution, rows_of, share, table_of, with_problems
from analysis.strategies import StrategyOptions
from data.objects import Objects, boxes_in_input, select_objects, sizes_in_input
from models.anchor_fit import one_thread, side_ratio
from models.assignment.assigner import build_assigner
from models.assignment.grid import SlotGrid, grid_shapes, slot_grid
from models.assignment.options import AssignmentOptions
from models.assignment.prior import Ratio, Standard
from models.assignment.strategies import prior_strategies, reads_predictions
from models.heads import Head
from utils.boxes import SIZE_NAMES, shape_iou
from utils.errors import UserError
from utils.limits import above, below
from utils.structures import Matches, Targets

if TYPE_CHECKING:
    from data.labels.annotations import Annotations

OBJECTS_PER_BLOCK = 16_384  # matched at once: bounds the memory
IMAGES_PER_BLOCK = 4_096  # at most, where images have few objects
STRATEGY_COLUMNS = {
    "strategy": "strategy",
    "objects": "objects",
    "without a match": "unmatched/objects",
    "share without": "unmatched/object_share",
    "positives per object": "positives_per_object/mean",
    "slots": "collisions/slots",
    "slots of several objects": "collisions/shared_slots",
    "share of slots": "collisions/shared_slot_share",
    "share of surplus matches": "collisions/surplus_match_share",
}
ANCHOR_COLUMNS = {
    **{name: name for name in ("strategy", "head", "stride", "anchor", "width", "height", "objects")},
    "share of objects": "object_share",
    "positives": "positives",
    "mean shape IoU": "mean_shape_iou",
}


@dataclass(frozen=True)
class Counts:
    """Counts of one strategy's matches; the arrays are added to block by block."""

    objects_of_anchor: np.ndarray  # [K] int64, objects with at least one match of the anchor
    positives_of_anchor: np.ndarray  # [K] int64, matches
    shape_iou_sum: np.ndarray  # [K] float64, over the objects of the anchor
    matches_of_object: np.ndarray  # [M] int64
    slots: np.ndarray  # [2] int64: slots with a match; of these, slots that several objects claim

    @staticmethod
    def zeros(num_objects: int, num_anchors: int) -> Counts:
        """Return the counts before the first block."""
        sizes = (num_anchors, num_anchors, num_anchors, num_objects, 2)
        kinds = (np.int64, np.int64, np.float64, np.int64, np.int64)
        return Counts(*(np.zeros(size, dtype=kind) for size, kind in zip(sizes, kinds, strict=True)))


@dataclass(frozen=True)
class ObjectBlock:
    """The objects of some whole images, letterboxed."""

    rows: slice  # of Objects
    targets: Targets


def anchor_stats(
    annotations: Annotations,
    heads: Sequence[Head],
    strategies: Mapping[str, AssignmentOptions],
    input_wh: tuple[int, int],
    resize: str = "letterbox",
) -> Result:
    """Count the matches of every strategy over a data set; docs/analysis.md defines the statistics.

    Args:
        annotations: of the data set.
        heads: of the network; their strides divide the input.
        strategies: name -> options, of strategies that look only at priors.
        input_wh: width and height of the network input, pixels.
        resize: how images get into it, a key of :data:`data.letterbox.RESIZES`.
    """
    objects = select_objects(annotations, crowd=False)
    boxes_cxcywh = boxes_in_input(objects, input_wh, resize)
    boxes_wh = torch.from_numpy(sizes_in_input(objects, input_wh, resize))
    anchors_wh = torch.tensor([wh for head in heads for wh in head.anchors_wh], dtype=torch.float64)
    counts = {name: Counts.zeros(len(objects), len(anchors_wh)) for name in strategies}
    grid = slot_grid(tuple(heads), grid_shapes(heads, input_wh), torch.device("cpu"))
    assigners = {name: build_assigner(options, tuple(heads)) for name, options in strategies.items()}
    best_iou, best_ratio = np.zeros(len(objects)), np.full(len(objects), np.inf)
    with one_thread(), tqdm(total=len(objects), desc="matching", unit=" objects", disable=None, leave=False) as bar:
        for block in object_blocks(objects, boxes_cxcywh):
            shape_ious = shape_iou(boxes_wh[block.rows], anchors_wh)  # T K
            best_iou[block.rows] = shape_ious.amax(dim=1)
            best_ratio[block.rows] = side_ratio(boxes_wh[block.rows], anchors_wh).amin(dim=1)
            for name, assigner in assigners.items():
                _count(counts[name], assigner.match(block.targets, grid).base, grid, block, shape_ious)
            bar.update(len(block.targets))
    statistics = {
        "img_size": side_or_sides(input_wh),
        "resize": resize,
        "objects": len(objects),
        "best_possible_recall": _recall(best_iou, best_ratio, strategies),
        "strategies": {name: _strategy_statistics(counts[name], objects, heads) for name in strategies},
    }
    data = {"images": objects.num_images, "objects": len(objects), "names": objects.names}
    lost = _unmatched_table(annotations, objects, counts, boxes_wh.numpy(), best_iou)
    plots = _plots(statistics, boxes_wh.numpy(), anchors_wh.numpy())
    return Result("anchor-stats", data, statistics, (*_tables(statistics), lost), plots, _notes(statistics))


def object_blocks(objects: Objects, boxes_cxcywh: np.ndarray) -> Iterator[ObjectBlock]:
    """Yield the objects of whole images, about OBJECTS_PER_BLOCK at a time."""
    until = np.searchsorted(objects.image, np.arange(objects.num_images), side="right")  # objects up to each image
    first_image = first_row = 0
    while first_row < len(objects):
        stop = int(np.searchsorted(until, first_row + OBJECTS_PER_BLOCK, side="right"))
        stop = min(max(stop, first_image + 1), first_image + IMAGES_PER_BLOCK, objects.num_images)
        rows = slice(first_row, int(until[stop - 1]))
        targets = Targets(
            torch.from_numpy(objects.image[rows] - first_image),
            torch.from_numpy(objects.labels[rows]),
            torch.from_numpy(boxes_cxcywh[rows]),
        )
        yield ObjectBlock(rows, targets)
        first_image, first_row = stop, rows.stop


def _count(counts: Counts, matches: Matches, grid: SlotGrid, block: ObjectBlock, shape_ious: Tensor) -> None:
    """Add the matches of a block to the counts; ``shape_ious`` [T K] are those of its objects with every anchor."""
    anchor = grid.anchor_of_matches(matches)
    matched = torch.zeros(shape_ious.shape, dtype=torch.bool)
    matched[matches.target, anchor] = True
    counts.objects_of_anchor[:] += matched.sum(dim=0).numpy()
    counts.positives_of_anchor[:] += torch.bincount(anchor, minlength=shape_ious.shape[1]).numpy()
    counts.shape_iou_sum[:] += torch.where(matched, shape_ious, 0.0).sum(dim=0, dtype=torch.float64).numpy()
    counts.matches_of_object[block.rows] += torch.bincount(matches.target, minlength=len(shape_ious)).numpy()
    claims = torch.unique(grid.number_of_matches(matches), return_counts=True)[1]
    counts.slots[:] += (len(claims), int((claims > 1).sum()))


def _recall(
    best_iou: np.ndarray, best_ratio: np.ndarray, strategies: Mapping[str, AssignmentOptions]
) -> dict[str, float | None]:
    given = list(strategies.values())
    iou_t = next((options.iou_t for options in given if options.iou_t is not None), Standard.iou_t)
    anchor_t = next((options.anchor_t for options in given if options.anchor_t is not None), Ratio.anchor_t)
    return {
        "iou_t": iou_t,
        "by_iou": share(above(best_iou, iou_t).sum(), len(best_iou)),
        "anchor_t": anchor_t,
        "by_ratio": share(below(best_ratio, anchor_t).sum(), len(best_ratio)),
        "mean_best_iou": share(best_iou.sum(), len(best_iou)),
    }


def _strategy_statistics(counts: Counts, objects: Objects, heads: Sequence[Head]) -> dict[str, Any]:
    unmatched = counts.matches_of_object == 0
    positives, (slots, shared) = int(counts.matches_of_object.sum()), counts.slots.tolist()
    return {
        "positives": positives,
        "positives_per_object": distribution(counts.matches_of_object),
        "unmatched": {
            **counted(unmatched),
            "by_size": _split(unmatched, objects.sizes, SIZE_NAMES),
            "by_class": _split(unmatched, objects.labels, objects.names),
        },
        "collisions": {
            "slots": slots,
            "shared_slots": shared,
            "shared_slot_share": share(shared, slots),
            "surplus_matches": positives - slots,
            "surplus_match_share": share(positives - slots, positives),
        },
        "anchors": _anchor_statistics(counts, heads, len(objects)),
    }


def _split(unmatched: np.ndarray, group: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return, for each group, how many objects it has, how many of them are unmatched, and their share."""
    every = np.bincount(group, minlength=len(names))
    lost = np.bincount(group[unmatched], minlength=len(names))
    return [
        {"name": name, "objects": int(every[i]), "unmatched": int(lost[i]), "unmatched_share": share(lost[i], every[i])}
        for i, name in enumerate(names)
    ]


def _anchor_statistics(counts: Counts, heads: Sequence[Head], num_objects: int) -> list[dict[str, Any]]:
    return [
        row
        | {
            "objects": int(counts.objects_of_anchor[place]),
            "object_share": share(counts.objects_of_anchor[place], num_objects),
            "positives": int(counts.positives_of_anchor[place]),
            "mean_shape_iou": share(counts.shape_iou_sum[place], counts.objects_of_anchor[place]),
        }
        for place, row in enumerate(anchor_rows(heads))
    ]


def _tables(statistics: Mapping[str, Any]) -> tuple[Table, ...]:
    strategies, recall = statistics["strategies"], statistics["best_possible_recall"]
    rules = (
        (f"shape IoU > {recall['iou_t']:g}", recall["by_iou"]),
        (f"ratio of sides < {recall['anchor_t']:g}", recall["by_ratio"]),
    )
    overview = ({**row, "objects": statistics["objects"]} for row in rows_of(strategies, "strategy"))
    anchors = ({"strategy": name, **row} for name, one in strategies.items() for row in one["anchors"])
    width, height = np.broadcast_to(statistics["img_size"], 2)
    title = f"Matches at {width} x {height}"
    return (
        table_of("strategies", title, overview, STRATEGY_COLUMNS),
        Table(
            "recall",
            "Best possible recall of the anchors",
            ("rule", "share of objects"),
            rules,
            explanations={
                "rule": "of anchor and object",
                "share of objects": "objects that an anchor meets by the rule",
            },
        ),
        table_of("anchors", "Per anchor (network pixels)", anchors, ANCHOR_COLUMNS),
        _split_table("unmatched_by_size", "size", "by_size", strategies),
        _split_table("unmatched_by_class", "class", "by_class", strategies),
        _positives_table(strategies),
    )


def _split_table(stem: str, heading: str, key: str, strategies: Mapping[str, Any]) -> Table:
    rows = [{"strategy": name, **row} for name, one in strategies.items() for row in one["unmatched"][key]]
    if key == "by_class":  # perhaps 80: the worst first, those without objects left out
        rows = sorted((row for row in rows if row["objects"]), key=lambda row: -row["unmatched"])
    columns = {"strategy": "strategy", heading: "name", "objects": "objects", "without a match": "unmatched",
               "share without": "unmatched_share"}  # fmt: skip
    return table_of(stem, f"Objects without a match, by {heading}", rows, columns)


def _positives_table(strategies: Mapping[str, Any]) -> Table:
    counts = (one["positives_per_object"]["counts"] for one in strategies.values())
    rows = tuple((number, *row) for number, row in enumerate(zip_longest(*counts, fillvalue=0)))
    words = dict.fromkeys(strategies, "objects with so many positives by this strategy")
    return Table(
        "positives_per_object",
        "Objects by their number of positives",
        ("positives", *strategies),
        rows,
        explanations=words | {"positives": "number of slots that learn from one object"},
    )


def _unmatched_table(
    annotations: Annotations, objects: Objects, counts: Mapping[str, Counts], boxes_wh: np.ndarray, best_iou: np.ndarray
) -> Table:
    """Return the listing of every object without a match: which image and annotation, and its best shape IoU."""
    columns = ("strategy", "image id", "annotation id", "class", "width", "height", "best shape IoU")
    rows = [
        (
            name,
            str(annotations.image_ids[objects.image[row]]),
            str(annotations.annotation_ids[objects.source_row[row]]),
            objects.names[objects.labels[row]],
            *(round(float(side), 2) for side in boxes_wh[row]),
            round(float(best_iou[row]), 4),
        )
        for name, one in counts.items()
        for row in np.flatnonzero(one.matches_of_object == 0)
    ]
    return Table("unmatched_objects", "Objects without a match (network pixels)", columns, tuple(rows), listing=True)


def _plots(statistics: Mapping[str, Any], boxes_wh: np.ndarray, anchors_wh: np.ndarray) -> dict[str, Any]:
    strategies = statistics["strategies"]
    labels = anchor_labels(next(iter(strategies.values()))["anchors"])
    per_anchor = {name: [row["objects"] for row in one["anchors"]] for name, one in strategies.items()}
    return {
        "anchors": anchor_scatter(boxes_wh, {"anchors": anchors_wh}, "Objects and anchors"),
        "objects_per_anchor": bars(labels, per_anchor, "Objects that each anchor matches", "objects"),
        "positives_per_object": positives_per_object(strategies),
    }


def _notes(statistics: Mapping[str, Any]) -> tuple[str, ...]:
    if not statistics["objects"]:
        return ("there is no object to match: shares and means are undefined",)
    notes = []
    for name, one in statistics["strategies"].items():
        unused = sum(row["objects"] == 0 for row in one["anchors"])
        if unused:
            notes.append(f"{name}: {unused} of {len(one['anchors'])} anchors match no object at all")
    return tuple(notes)


def run(request: Request) -> Result:
    """Count the matches of every strategy that looks only at priors.

    Raises:
        UserError: a strategy that looks at predictions, or an option that none of the strategies uses.
    """
    options = request.options(StrategyOptions)
    names = options.match.split(",") if options.match else prior_strategies()
    if "matching_stats" in request.chosen:  # --match may then name strategies for that analysis alone
        names = [name for name in names if not reads_predictions(name)] or prior_strategies()
    for name in names:
        if reads_predictions(name):
            raise UserError(
                f"--match {name} looks at predictions, which --anchor-stats has none of; use --matching-stats"
            )
    try:
        strategies = options.for_strategies(names)
    except ValueError as error:
        raise UserError(str(error)) from error
    annotations = request.annotations()
    heads, input_wh, resize = request.heads(len(annotations.names))
    result = with_problems(anchor_stats(annotations, heads, strategies, input_wh, resize), annotations)
    return request.described(result, cfg=request.about.cfg, img_size=side_or_sides(input_wh), resize=resize)


MODE = Mode(
    name="anchor_stats",
    text="which anchors match which objects, by every strategy that looks only at priors",
    run=run,
    groups=(StrategyOptions,),
    reads=frozenset({"data", "split", "val_fraction", "cfg", "img_size", "resize"}),
)
