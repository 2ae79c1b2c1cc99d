"""Analyse data sets, anchors, networks and runs: ``python analyze.py --dataset-stats --data coco2017.data``.

Every analysis writes results.json, tables.md, CSV files and pictures into runs/analyze/<name>/ and prints its tables;
docs/analysis.md defines each figure. Without arguments it looks at the newest run's data, anchors and best.pt.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from analysis.anchor_stats import anchor_stats
from analysis.compare_runs import CompareOptions, compare_runs, read_run
from analysis.dataset_stats import DatasetStatsOptions, dataset_stats
from analysis.matching.command import Source, matching_stats, open_everything, resumed_options, start_folder
from analysis.matching.options import MatchingOptions
from analysis.output.report import ReportOptions, write_report
from analysis.output.result import Result, print_result, with_problems, write_result
from analysis.strategies import StrategyOptions
from data.data_file import SPLITS, open_data, split_shown
from data.labels.annotations import Annotations
from data.labels.read import read_dataset
from engine.run_folder import new_run_folder, newest_run, options_of_run, weights_of_run
from models.assignment.strategies import prior_strategies, reads_predictions
from models.heads import Head
from models.network import build_network, check_image_size, require_heads
from utils import distributed
from utils.config import build_options, find_file, flat_dict, option, parse_flags
from utils.errors import UserError, run_command

ANALYSES = Path("runs/analyze")
OF_ANNOTATIONS = ("dataset_stats", "anchor_stats")


@dataclass(frozen=True)
class AnalyzeOptions:
    """What to analyse."""

    dataset_stats: bool = option(False, "pairs, overlaps, sizes, elongation and occlusion of the annotations")
    anchor_stats: bool = option(False, "which anchors match which objects, by every strategy that looks only at priors")
    matching_stats: bool = option(False, "which slots match which objects, and how well a network's predictions fit")
    compare: tuple[str, ...] = option((), "compare training runs: their folders, such as runs/train/exp")
    data: str = option("", "a .data file, COCO JSON, image list or folder; default: the newest run's, else shapes.data")
    split: str = option("train", "which split of the data set", SPLITS)
    cfg: str = option("", "network whose anchors are counted; default: the newest run's, else yolov3-nano.cfg")
    img_size: int = option(0, "side of the network input, pixels; 0: the cfg's width")
    name: str = option("", "results go to runs/analyze/<name>; default: the name of the analysis")


GROUPS = (AnalyzeOptions, DatasetStatsOptions, CompareOptions, StrategyOptions, MatchingOptions, ReportOptions)


@dataclass(frozen=True)
class AnalyzeGroups:
    """All options, by group."""

    analyze: AnalyzeOptions
    dataset_stats: DatasetStatsOptions
    compare: CompareOptions
    strategies: StrategyOptions
    matching: MatchingOptions
    report: ReportOptions
    asked: AnalyzeOptions = AnalyzeOptions()  # as the user gave them, without the defaults of the newest run


@dataclass(frozen=True)
class Mode:
    """One kind of analysis: what runs it and which options it reads."""

    run: Callable[[AnalyzeGroups], Result | None]  # None: another process has the result
    reads: frozenset[str]
    distributed: bool = False  # runs in every process of ``torchrun``; else the main one does it alone


def main() -> None:
    """Run the chosen analyses one after the other; each writes a folder of its own."""
    given = resumed_options(parse_flags(__doc__.splitlines()[0], *GROUPS))
    options, modes = choose(given)
    command, results = f"python {shlex.join(sys.argv)}", []
    for mode in modes:
        if not distributed.is_main() and not MODES[mode].distributed:
            continue
        result = MODES[mode].run(options)
        if result is None:
            continue
        results.append(result)
        folder = result.folder or new_run_folder(ANALYSES, run_name(options.analyze.name, mode, len(modes)))
        write_result(result, folder, command)
        print_result(result)
        print(f"\n{flag(mode)}: results.json, tables.md, CSV and pictures are in {folder}\n")
    if options.report.report and results:
        folder = new_run_folder(ANALYSES, run_name(options.analyze.name, "report", 2))
        write_report(results, folder / "report.html", command)
        print(f"--report: open {folder / 'report.html'} in a browser")


def choose(given: dict[str, Any]) -> tuple[AnalyzeGroups, list[str]]:
    """Return all options and the analyses to run; say in one line what was chosen where the user did not.

    Raises:
        UserError: an option that none of the analyses reads.
    """
    options = AnalyzeGroups(*build_options(given, GROUPS))
    modes = [mode for mode in MODES if getattr(options.analyze, mode)]
    chosen = not modes
    modes = modes or default_modes(given)
    for name in given:
        if (
            name not in MODES
            and name not in ("name", "report")
            and not any(name in MODES[mode].reads for mode in modes)
        ):
            readers = [flag(mode) for mode in MODES if name in MODES[mode].reads]
            remedy = "add it" if len(readers) == 1 else "add one of them"
            raise UserError(f"{flag(name)} is read by {', '.join(readers)} only; {remedy}, or leave {flag(name)} out")
    options = replace(options, analyze=with_defaults(options.analyze), asked=options.analyze)
    if "anchor_stats" in modes:
        find_file(options.analyze.cfg, "cfg")  # before a long analysis that comes first
    announce(options.analyze, modes if chosen else [mode for mode in modes if mode in OF_ANNOTATIONS])
    return options, modes


def announce(options: AnalyzeOptions, modes: list[str]) -> None:
    """Say in one line what is analysed; the other analyses say it themselves."""
    if modes and distributed.is_main():
        anchors = f" with the anchors of {options.cfg}" if "anchor_stats" in modes else ""
        what = " ".join(flag(mode) for mode in modes)
        print(f"analyze: {what} of {options.data} ({split_shown(options.data, options.split)}){anchors}\n")


def default_modes(given: dict[str, Any]) -> list[str]:
    """Return what is analysed where nothing was chosen: without any option also the newest trained network."""
    if "report" in given:
        return ["dataset_stats", "matching_stats"]
    trained = not given and weights_of_run(newest_run())
    return ["dataset_stats", "anchor_stats", *(["matching_stats"] if trained else [])]


def with_defaults(options: AnalyzeOptions) -> AnalyzeOptions:
    """Fill in data and cfg: those of the newest training run, else the demo set and its network."""
    newest = {} if options.data and options.cfg else options_of_run(newest_run())
    data = options.data or newest.get("data") or "shapes.data"
    return replace(options, data=data, cfg=options.cfg or newest.get("cfg") or "yolov3-nano.cfg")


def run_dataset_stats(options: AnalyzeGroups) -> Result:
    """Statistics of the annotations alone."""
    return described(dataset_stats(read_annotations(options.analyze), options.dataset_stats), options.analyze)


def run_anchor_stats(options: AnalyzeGroups) -> Result:
    """Matches of every strategy that looks only at priors."""
    names = options.strategies.match.split(",") if options.strategies.match else prior_strategies()
    if options.analyze.matching_stats:  # which also looks at the others
        names = [name for name in names if not reads_predictions(name)] or prior_strategies()
    for name in names:
        if reads_predictions(name):
            raise UserError(
                f"--match {name} looks at predictions, which --anchor-stats has none of; use --matching-stats"
            )
    try:
        strategies = options.strategies.for_strategies(names)
    except ValueError as error:
        raise UserError(str(error)) from error
    annotations = read_annotations(options.analyze)
    heads, img_size = read_heads(options.analyze, len(annotations.names))
    result = with_problems(anchor_stats(annotations, heads, strategies, img_size), annotations)
    return described(result, options.analyze, cfg=options.analyze.cfg, img_size=img_size)


def run_matching_stats(options: AnalyzeGroups) -> Result | None:
    """Matches and predictions of a network; under ``torchrun`` only the main process has the result."""
    asked = options.asked
    source = Source(asked.data, asked.split, asked.cfg, asked.img_size)
    inputs = open_everything(source, options.matching, options.strategies)
    given = flat_dict(asked, options.matching, options.strategies, options.report)
    several = options.report.report or sum(bool(getattr(asked, mode)) for mode in MODES) > 1
    name = run_name(asked.name, "matching_stats", 1 + several)
    folder = start_folder(options.matching.resume, ANALYSES, name, given, inputs)
    report_images = options.report.report_images if options.report.report else 0
    result = matching_stats(inputs, options.matching, folder, report_images)
    distributed.stop()
    return result


def run_compare(options: AnalyzeGroups) -> Result:
    """Training runs side by side."""
    return compare_runs([read_run(folder) for folder in options.analyze.compare], options.compare)


def read_annotations(options: AnalyzeOptions) -> Annotations:
    """Read the annotations of the chosen split; no image is needed where the format knows their sizes."""
    return read_dataset(open_data(options.data), options.split, need_images=False)


def read_heads(options: AnalyzeOptions, num_classes: int) -> tuple[tuple[Head, ...], int]:
    """Return the heads of the cfg and the input size, without allocating any weights."""
    with torch.device("meta"):
        network = build_network(find_file(options.cfg, "cfg"), num_classes)
    require_heads(network)
    img_size = options.img_size or max(network.input_wh)
    check_image_size(network, img_size)
    return network.heads, img_size


def described(result: Result, options: AnalyzeOptions, **more: Any) -> Result:
    """Return the result with the files it is about."""
    return replace(
        result, data={"data": options.data, "split": split_shown(options.data, options.split), **more, **result.data}
    )


def run_name(name: str, mode: str, num_modes: int) -> str:
    """Return the name of an analysis' folder."""
    plain_mode = flag(mode).removeprefix("--")
    if not name:
        return plain_mode
    return f"{name}-{plain_mode}" if num_modes > 1 else name


def flag(field_name: str) -> str:
    """Return the command-line flag of an option."""
    return "--" + field_name.replace("_", "-")


def names_of(*groups: type) -> frozenset[str]:
    """Return the names of the options of some groups."""
    return frozenset(item.name for group in groups for item in fields(group))


MODES = {
    "dataset_stats": Mode(run_dataset_stats, names_of(DatasetStatsOptions) | {"data", "split"}),
    "anchor_stats": Mode(run_anchor_stats, names_of(StrategyOptions) | {"data", "split", "cfg", "img_size"}),
    "matching_stats": Mode(
        run_matching_stats,
        names_of(MatchingOptions, StrategyOptions) | {"data", "split", "cfg", "img_size", "report_images"},
        distributed=True,
    ),
    "compare": Mode(run_compare, names_of(CompareOptions)),
}


if __name__ == "__main__":
    run_command(main)
