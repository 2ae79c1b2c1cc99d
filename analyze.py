"""Analyse data sets, anchors, networks and runs: ``python analyze.py --dataset-stats --data coco2017.data``.

Every analysis writes results.json, tables.md, CSV files and pictures into runs/analyze/<name>/ and prints its tables;
docs/analysis.md defines each statistic. Without arguments it looks at the newest run's data, anchors and best.pt.
"""

from __future__ import annotations

from utils.errors import UserError, run_command  # first: for Ctrl-C during the imports below

# isort: split
import shlex
import sys
from collections.abc import Sequence
from dataclasses import fields, make_dataclass, replace
from pathlib import Path
from typing import Any

from analysis.matching.command import resumed_options
from analysis.matching.options import MatchingOptions
from analysis.mode import AnalyzeOptions, Folders, Mode, Request
from analysis.modes import MODES
from analysis.output.report import ReportOptions, write_report
from analysis.output.result import Result, print_result, write_result
from data.splits import split_shown
from engine.network_input import AUTO
from engine.run_folder import newest_run, options_of_run, weights_of_run
from models.assignment.strategies import fits_heads
from models.families.catalogue import print_if_asked
from models.families.table import is_family, match_of
from utils import distributed
from utils.config import build_options, find_file, flag, option, parse_flags

READ_BY_ALL = ("name", "report")  # options that belong to every analysis


def chosen_fields() -> list[tuple[str, type, Any]]:
    """Return (name, type, option) of a flag for every analysis that has none among its own options."""
    return [
        (mode.name, tuple[str, ...], option((), mode.text))
        if mode.takes_values
        else (mode.name, bool, option(False, mode.text))
        for mode in MODES.values()
        if mode.chosen_by is None
    ]


ChosenModes = make_dataclass("ChosenModes", chosen_fields(), namespace={"__doc__": "What to analyse."}, frozen=True)
GROUPS = tuple(
    dict.fromkeys(
        (ChosenModes, AnalyzeOptions, *(group for mode in MODES.values() for group in mode.groups), ReportOptions)
    )
)


@distributed.joined()
def main() -> None:
    """Run the chosen analyses one after the other; each writes a folder of its own."""
    given = resumed_options(parse_flags(__doc__.splitlines()[0], *GROUPS))
    request, modes = choose(given)
    command = f"python {shlex.join(sys.argv)}"
    results = []
    for mode in modes:
        if not distributed.is_main() and not MODES[mode].distributed:
            continue
        result = MODES[mode].run(request)
        if result is None:
            continue
        results.append(result)
        folder = result.folder or request.folders.of(mode)
        write_result(result, folder, command)
        print_result(result)
        print(f"\n{flag(mode)}: results.json, tables.md, CSV and pictures are in {folder}\n")
    if request.options(ReportOptions).report and results:
        folder = folder_of_report(request, results)
        write_report(results, folder / "report.html", command)
        print(f"--report: open {folder / 'report.html'} in a browser")


def folder_of_report(request: Request, results: Sequence[Result]) -> Path:
    """Return where the report is written: into the folder of a run that was resumed, for that has no other."""
    resumed = request.options(MatchingOptions).resume
    return Path(resumed) if resumed and len(results) == 1 else request.folders.of_report()


def choose(given: dict[str, Any]) -> tuple[Request, list[str]]:
    """Return what is asked for and the analyses to run; say in one line what was chosen where the user did not.

    Raises:
        UserError: an option that none of the analyses reads.
    """
    print_if_asked(str(given.get("cfg", "")))
    groups = dict(zip(GROUPS, build_options(given, GROUPS), strict=True))
    chosen = {
        name: value for name, mode in MODES.items() if (value := getattr(groups[mode.chosen_by or ChosenModes], name))
    }
    asked = groups[AnalyzeOptions]
    about = with_defaults(asked)
    modes = list(chosen) or default_modes(given, about.cfg)
    stand_back = {name for mode in modes for name in MODES[mode].instead_of}
    modes = [mode for mode in modes if mode not in stand_back]
    for name in given:
        if name in MODES or name in READ_BY_ALL:
            continue
        if not any(name in names_read(mode) for mode in modes):
            readers = [flag(mode) for mode in MODES if name in names_read(mode)]
            remedy = "add it" if len(readers) == 1 else "add one of them"
            raise UserError(f"{flag(name)} is read by {', '.join(readers)} only; {remedy}, or leave {flag(name)} out")
    if "split" not in given:
        asked, about = (replace(one, split=MODES[modes[-1]].split) for one in (asked, about))
    report = groups[ReportOptions]
    folders = Folders(asked.name, report.report, several=len(modes) > 1)
    num_images = report.report_images if report.report else 0
    request = Request(about, asked, chosen, groups, folders, num_images)
    if "anchor_stats" in modes and not is_family(request.about.cfg):
        find_file(request.about.cfg, "cfg")  # before a long analysis that comes first
    announce(request.about, [mode for mode in modes if not chosen or is_about_annotations(MODES[mode])])
    return request, modes


def names_read(mode: str) -> frozenset[str]:
    """Return the names of the options that an analysis reads."""
    of_groups = (item.name for group in MODES[mode].groups for item in fields(group))
    return MODES[mode].reads.union(of_groups)


def is_about_annotations(mode: Mode) -> bool:
    """Whether an analysis reads the data set and nothing that it would announce itself."""
    return "data" in mode.reads and not mode.distributed


def announce(options: AnalyzeOptions, modes: list[str]) -> None:
    """Say in one line what is analysed; the other analyses say it themselves."""
    if modes and distributed.is_main():
        anchors = f" with the anchors of {options.cfg}" if "anchor_stats" in modes else ""
        what = " ".join(flag(mode) for mode in modes)
        split = split_shown(options.data, options.split, options.val_fraction)
        print(f"analyze: {what} of {options.data} ({split}){anchors}\n")


def default_modes(given: dict[str, Any], cfg: str) -> list[str]:
    """Return what is analysed where nothing was chosen: without any option also the newest trained network.

    Of a network without anchors or slots that is what can be said of it.
    """
    match = match_of(cfg)
    of_network = "matching_stats" if match else "score_mismatch"
    if "report" in given:
        return ["dataset_stats", of_network]
    anchors = ["anchor_stats"] if match and fits_heads(match, has_anchors=True) else []
    trained = not given and weights_of_run(newest_run())
    return ["dataset_stats", *anchors, *([of_network] if trained else [])]


def with_defaults(options: AnalyzeOptions) -> AnalyzeOptions:
    """Fill in data, network and how it sees images: those of the newest training run, else the demo set's."""
    newest = {} if options.data and options.cfg else options_of_newest(data_given=bool(options.data))
    data = options.data or newest.get("data") or "shapes.data"
    of_run = newest if data == newest.get("data") else {}
    # Before there was --resize, training letterboxed.
    of_network = newest.get("resize", "letterbox") if newest.get("cfg") and not options.cfg else AUTO
    resize = of_network if options.resize == AUTO else options.resize
    return replace(
        options,
        data=str(data),
        val_fraction=options.val_fraction or of_run.get("val_fraction", 0.0),
        cfg=str(options.cfg or newest.get("cfg") or "yolov3-nano.cfg"),
        resize=resize,
    )


def options_of_newest(data_given: bool) -> dict[str, Any]:
    """Return the options of the newest training run; where its ``config.yaml`` is damaged, none.

    Raises:
        UserError: it is damaged, and no data are given: the demo set would be silently wrong.
    """
    try:
        return options_of_run(newest_run())
    except UserError as error:
        if not data_given:
            raise UserError(f"{error}, or name the data with --data") from error
        print(f"note: {error}; without --cfg its network is not known, yolov3-nano.cfg is taken", file=sys.stderr)
        return {}


if __name__ == "__main__":
    run_command(main)
