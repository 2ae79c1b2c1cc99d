"""The table of analyses, in the order in which they run.

A new analysis is one file with its options, its function and its ``MODE``, and its line here.
"""

from __future__ import annotations

from analysis import anchor_stats, compare_runs, dataset_stats, evaluation_report
from analysis.matching import command
from analysis.mode import Mode
from analysis.score_mismatch import command as score_mismatch

MODES: dict[str, Mode] = {
    mode.name: mode
    for mode in (
        dataset_stats.MODE,
        anchor_stats.MODE,
        command.MODE,
        score_mismatch.MODE,
        compare_runs.MODE,
        evaluation_report.MODE,
    )
}
