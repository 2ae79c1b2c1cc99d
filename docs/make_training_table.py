"""Train the same network, seed and epochs with every strategy, and write the table of docs/assignment.md.

Each training is a ``train.py`` of its own, one after the other; a run that is already there, complete, is not repeated,
so the script can be stopped and started again. Run:
``python -m docs.make_training_table --data shapes.data --epochs 30 [--seeds 0 1 2] [--only fast atss] [--write]``
and then the same with ``--data bccd.data``; the document gets one table per data set.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

from analysis.compare_runs import MAP50, POSITIVES, Run, confidence_interval, read_run
from docs.document import DOCUMENT, read_document, with_part
from engine.run_folder import epoch_summary
from models.assignment.strategies import STRATEGIES, strategies_for
from utils.config import REPOSITORY, option, parse_options
from utils.errors import UserError, run_command
from utils.files import write_text_atomically

NOT_RUN = "Not run yet.\n\n"  # stands in the document until the first table
LAST_MARK = "<!-- end of training results -->"
RUNS = Path("runs/train")
ALPHAS = (0.0, 0.3, 0.5, 1.0)
SETTINGS = tuple(
    (name, alpha)
    for name in strategies_for()
    for alpha in (ALPHAS if STRATEGIES[name].extra is not None else ALPHAS[:1])
)
COLLAPSE = 0.8  # of the mAP of standard: a strategy below it is named under the table


@dataclass(frozen=True)
class TrainingTableOptions:
    """What to train, and how."""

    data: str = option("shapes.data", "data set")
    cfg: str = option("yolov3-nano.cfg", "network")
    epochs: int = option(30, "epochs of every training")
    seeds: tuple[int, ...] = option((0,), "seeds; with several, means over them")
    last: int = option(5, "mean and std over the last N epochs")
    only: tuple[str, ...] = option((), "train these strategies only; the table still shows every run that is there")
    extra: str = option("", "further flags of train.py, in quotes, the same for every training")
    write: bool = option(False, "put the table into docs/assignment.md")


def main() -> None:
    """Train what is missing, print the table, and write it into the document where asked to."""
    (options,) = parse_options("Train the same network with every strategy.", TrainingTableOptions)
    wanted = [setting for setting in SETTINGS if not options.only or setting[0] in options.only]
    for match, alpha in wanted:
        for seed in options.seeds:
            train(match, alpha, seed, options)
    text = table(options)
    print(text)
    if options.write:
        write_text_atomically(DOCUMENT, document_with(text, options.data, read_document()))


def run_folder(match: str, alpha: float, seed: int, options: TrainingTableOptions) -> Path:
    """Return the folder of one training."""
    data, cfg = Path(options.data).stem, Path(options.cfg).stem
    return RUNS / f"strategies_{data}_{cfg}_{options.epochs}" / f"{match}_{alpha:g}_{seed}"


def finished_run(folder: Path, options: TrainingTableOptions) -> Run | None:
    """Return the training in a folder if it is there and complete, with the flags that are asked for now."""
    if not (folder / "results.csv").is_file():
        return None
    run = read_run(folder)
    complete = len(run.history) == options.epochs and (folder / "extra.yaml").is_file()
    if complete and yaml.safe_load((folder / "extra.yaml").read_text()) != options.extra:
        raise UserError(f"{folder}: trained with other --extra flags; remove it to train anew")
    return run if complete else None


def train(match: str, alpha: float, seed: int, options: TrainingTableOptions) -> None:
    """Run one training, unless it is there."""
    folder = run_folder(match, alpha, seed, options)
    if finished_run(folder, options):
        return
    if folder.exists():
        raise UserError(f"{folder}: an unfinished training; go on with train.py --resume, or remove the folder")
    flags = {
        "--cfg": options.cfg, "--data": options.data, "--epochs": options.epochs, "--seed": seed, "--match": match,
        "--name": folder.relative_to(RUNS),
    }  # fmt: skip
    command = [sys.executable, str(REPOSITORY / "train.py"), *(str(word) for pair in flags.items() for word in pair)]
    command += (["--alpha", str(alpha)] if alpha else []) + options.extra.split()
    print(" ".join(command), flush=True)
    if subprocess.run(command).returncode:
        raise UserError(f"{folder}: the training failed; its own message is above")
    write_text_atomically(folder / "extra.yaml", yaml.safe_dump(options.extra))


def table(options: TrainingTableOptions) -> str:
    """Return the Markdown table of all runs that are there, and which strategies fall below COLLAPSE."""
    lines = [
        f"`{options.cfg}`, `{options.data}`, {options.epochs} epochs, seeds {' '.join(map(str, options.seeds))}"
        f"{', ' + options.extra if options.extra else ''}; mean and std over the last {options.last} epochs.",
        "",
        "| strategy | α | mAP@0.5 max | mean | std | of standard | positives per object |",
        "|---|---|---|---|---|---|---|",
    ]
    reference, collapsed = None, []
    for match, alpha in SETTINGS:
        runs = [finished_run(run_folder(match, alpha, seed, options), options) for seed in options.seeds]
        summaries = [epoch_summary(run.history, MAP50, options.last) for run in runs if run]
        if not summaries:
            continue
        best, mean, std = (
            confidence_interval([summary[name] for summary in summaries]) for name in ("max", "mean", "std")
        )
        reference = mean[0] if match == "standard" else reference
        share = mean[0] / reference if reference else None
        positives = sum(run.history[-1].get(POSITIVES, 0.0) for run in runs if run) / len(summaries)
        interval = f" ± {mean[1]:.3f}" if mean[1] is not None else ""
        shown = f"{share:.1%}" if share is not None else "–"
        cells = (match, f"{alpha:g}", f"{best[0]:.3f}", f"{mean[0]:.3f}{interval}", f"{std[0]:.3f}", shown)
        lines.append(f"| {' | '.join(cells)} | {positives:.2f} |")
        if share is not None and share < COLLAPSE:
            collapsed.append(f"{match} α = {alpha:g} ({shown})")
    lines += ["", f"Below {COLLAPSE:.0%} of standard: {', '.join(collapsed) or 'none'}."]
    return "\n".join(lines)


def document_with(text: str, data: str, document: str) -> str:
    """Return the document with the data set's table put in, or replaced, between the two marks of the results."""
    mark = f"results of {Path(data).stem}"
    if f"<!-- {mark} -->" not in document:
        if LAST_MARK not in document:
            raise UserError(f"{DOCUMENT}: has no line '{LAST_MARK}' to put the table before")
        document = document.replace(NOT_RUN, "")
        document = document.replace(LAST_MARK, f"<!-- {mark} -->\n\n<!-- end of {mark} -->\n\n{LAST_MARK}")
    return with_part(document, mark, text)


if __name__ == "__main__":
    run_command(main)
