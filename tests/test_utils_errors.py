"""Messages to the user on any console."""

import os
import subprocess
import sys
from dataclasses import fields

import pytest

from engine import train_options
from tests.tiny_project import REPOSITORY
from utils.config import flag
from utils.errors import count_edits, suggestion


def test_a_console_without_greek_letters_does_not_end_the_program():
    code = "from utils.errors import run_command; run_command(lambda: print('α 0.5'))"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "? 0.5", "")


FLAGS = [flag(item.name) for group in train_options.GROUPS for item in fields(group)]
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


@pytest.mark.parametrize(
    "typed, known, meant", [("--batch-sampler", "--batch", ""), ("--batch-s", "--batch", "--batch")]
)
def test_what_begins_a_long_word_is_not_near(typed, known, meant):
    assert suggestion(typed, [known]) == (f"; did you mean '{meant}'?" if meant else "")


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


def run_code(folder, code, **environment):
    command = [sys.executable, "-c", f"import sys\nfrom utils.errors import run_command\n{code}", "--name", "a b"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "TMPDIR": str(folder), **environment}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, cwd=folder)


@pytest.mark.parametrize("raised", ["KeyError('x')", "RuntimeError('two\\nlines')", "ValueError('\\ud800 α')"])
def test_an_unexpected_exception_leaves_its_traceback_in_a_file(tmp_path, raised):
    done = run_code(tmp_path, f"def main():\n    raise {raised}\nrun_command(main)")
    assert done.returncode == 1 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    (path,) = (tmp_path / "runs").glob("error-*.txt")
    assert line.startswith("error: a fault of this program (") and line.endswith(f"runs/{path.name}")
    text = path.read_text(encoding="utf-8")
    assert "Traceback (most recent call last)" in text and "--name 'a b'" in text.splitlines()[0]
    assert raised.split("(")[0] in text.splitlines()[-1] or raised.startswith("RuntimeError")


def test_where_the_folder_cannot_be_written_to_the_file_is_among_the_temporary_ones(tmp_path):
    (tmp_path / "runs").touch()
    done = run_code(tmp_path, "run_command(lambda: 1 / 0)")
    (path,) = tmp_path.glob("error-*.txt")
    assert done.returncode == 1 and str(path) in done.stderr and "ZeroDivisionError" in path.read_text()


def test_mistakes_and_interrupts_leave_no_file(tmp_path):
    for code, status in (
        ("UserError('no')", 2),
        ("KeyboardInterrupt()", 130),
        ("MemoryError()", 2),
        ("OSError(2, 'x')", 2),
    ):
        done = run_code(
            tmp_path, f"from utils.errors import UserError\ndef main():\n    raise {code}\nrun_command(main)"
        )
        assert done.returncode == status and len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
