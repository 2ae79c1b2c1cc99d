"""Messages to the user on any console."""

import os
import subprocess
import sys
from dataclasses import fields

import pytest

import train
from tests.tiny_project import REPOSITORY
from utils.config import flag
from utils.errors import count_edits, suggestion


def test_a_console_without_greek_letters_does_not_end_the_program():
    code = "from utils.errors import run_command; run_command(lambda: print('α 0.5'))"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "? 0.5", "")


FLAGS = [flag(item.name) for group in train.GROUPS for item in fields(group)]
SLIPS = [  # what is typed, what is meant; or nothing near
    ("--epoch", "--epochs"),
    ("--epcohs", "--epochs"),
    ("--epohcs", "--epochs"),
    ("--weight", "--weights"),
    ("--wieghts", "--weights"),
    ("--imgsize", "--img-size"),
    ("--img-sise", "--img-size"),
    ("--batchsize", "--batch-size"),
    ("--batch-szie", "--batch-size"),
    ("--multiscale", "--multi-scale"),
    ("--multi-scales", "--multi-scale"),
    ("--lr", "--lr0"),
    ("--lr1", "--lr0"),
    ("--momentun", "--momentum"),  # codespell:ignore momentun
    ("--weightdecay", "--weight-decay"),
    ("--warmup", "--warmup-epochs"),
    ("--label-smooth", "--label-smoothing"),
    ("--mosiac", "--mosaic"),  # codespell:ignore mosiac
    ("--Mosaic", "--mosaic"),
    ("--mix-up", "--mixup"),
    ("--worker", "--workers"),
    ("--devise", "--device"),  # codespell:ignore devise
    ("--freez", "--freeze"),  # codespell:ignore freez
    ("--no-save", "--nosave"),
    ("--resume-from", "--resume"),
    ("--datas", "--data"),
    ("--x", ""),
    ("--learning-rate", ""),
    ("--batch-sampler", ""),
    ("--imagesize", "--img-size"),
    ("--early-stop", ""),
    ("--ema", ""),
    ("--dropout", ""),
    ("--backbone", ""),
    ("--output", ""),
    ("--steps", ""),
    ("--gpu", ""),
]


@pytest.mark.parametrize("typed, meant", SLIPS)
def test_a_suggestion_is_near_in_spelling_or_nothing(typed, meant):
    assert suggestion(typed, FLAGS) == (f"; did you mean '{meant}'?" if meant else "")


def test_patience_was_not_balance():
    known = [name for name in FLAGS if name != "--patience"]
    assert suggestion("--patience", known) == ""


@pytest.mark.parametrize(
    "first, second, edits",
    [
        ("", "abc", 3),
        ("abc", "abc", 0),
        ("abc", "acb", 1),
        ("abc", "abxc", 1),
        ("abcd", "bcd", 1),
        ("kitten", "sitting", 3),
    ],
)
def test_edits_by_hand(first, second, edits):
    assert count_edits(first, second) == count_edits(second, first) == edits


def test_a_suggestion_for_a_very_long_word_costs_nothing():
    assert suggestion("x" * 1_000_000, FLAGS) == ""
