"""Ctrl-C, SIGTERM and SIGHUP at every moment of a command: its status, one line, no traceback."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.tiny_project import REPOSITORY

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SCRIPTS = ("train.py", "test.py", "detect.py", "analyze.py", "kmeans_anchors.py")


def started(arguments, path="", ignored=()):
    """Start Python with the signals as a terminal's foreground job has them, and wait for its first line."""

    def as_in_a_terminal():  # a shell's background jobs ignore some
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)

    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(path), str(REPOSITORY))), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen([sys.executable, *arguments], env=environment, text=True, cwd=path or None,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               preexec_fn=as_in_a_terminal)  # fmt: skip
    line = b"".join(iter(lambda: os.read(process.stdout.fileno(), 1), b"\n"))  # and no letter of the next one
    assert line == b"ready"
    return process


def ended(process):
    """Return status, the rest of the output, and the error output."""
    printed, errors = process.communicate(timeout=60)
    return process.returncode, printed, errors


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("number", SIGNALS)
def test_a_script_that_still_imports_ends_with_one_line(tmp_path, script, number):
    (tmp_path / "torch").mkdir()  # an import that takes long, where torch would be imported
    (tmp_path / "torch/__init__.py").write_text("import time\nprint('ready')\ntime.sleep(600)\n")
    process = started([str(REPOSITORY / script)], tmp_path)
    process.send_signal(number)
    assert ended(process) == (128 + number, "", "interrupted\n")


HEAD = "import os, signal, sys, time\nfrom utils import interrupts\nfrom utils.errors import run_command\n"


def command(body):
    """A command whose main is the given lines."""
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    return ["-c", f"{HEAD}def main():\n{lines}run_command(main)\n"]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_command_that_runs_may_keep_what_it_has_done(number):
    body = (
        "try:\n    print('ready')\n    time.sleep(600)\nexcept KeyboardInterrupt:\n    raise KeyboardInterrupt('kept')"
    )
    process = started(command(body))
    process.send_signal(number)
    assert ended(process) == (128 + number, "", "kept\n")


@pytest.mark.parametrize("number", SIGNALS)
def test_what_is_ignored_from_the_start_stays_ignored(number):
    # As with nohup, and in the background jobs of a shell.
    process = started(command("print('ready')\nsys.stdin.readline()\nprint('done')"), ignored=SIGNALS)
    process.send_signal(number)
    time.sleep(0.2)
    assert ended(process) == (0, "done\n", "")


def test_signals_that_come_together_are_one(tmp_path):
    # torchrun sends again what the terminal has sent already; what the first one started is not disturbed.
    body = "try:\n    print('ready')\n    time.sleep(600)\nfinally:\n    time.sleep(0.5)\n    print('kept')"
    process = started(command(body))
    process.send_signal(signal.SIGTERM)
    for _ in range(5):
        process.send_signal(signal.SIGINT)
    status, printed, errors = ended(process)
    assert (printed, errors) == ("kept\n", "interrupted\n") and status in (130, 143)


def test_a_signal_in_a_callback_that_cannot_raise_comes_again():
    # Python ignores what is raised while an object is freed.
    body = (
        "class Slow:\n    def __del__(self):\n        print('ready')\n        time.sleep(600)\n"
        "slow = Slow()\ndel slow\nprint('went on')\ntime.sleep(600)"
    )
    process = started(command(body))
    process.send_signal(signal.SIGTERM)
    assert ended(process) == (143, "went on\n", "interrupted\n")


def test_signals_wait_while_they_are_held_back():
    body = (
        "with interrupts.held_back():\n    print('ready')\n    sys.stdin.readline()\n    print('whole')\n"
        "print('not reached')"
    )
    process = started(command(body))
    process.send_signal(signal.SIGHUP)
    time.sleep(0.2)
    assert ended(process) == (129, "whole\n", "interrupted\n")


@pytest.mark.parametrize("number", SIGNALS)
def test_a_forked_process_leaves_the_signals_to_its_parent(number):
    body = (
        "with interrupts.held_back():\n    child = os.fork()\n    if not child:\n        time.sleep(0.3)\n"
        "        interrupts.leave_to_parent()\n        time.sleep(0.3)\n        os._exit(7)\n"
        "print('ready')\nprint(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"
    )
    process = started(command(body))
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(child), number)
    # The parent ends it by SIGTERM where need be; the others are nothing to it.
    assert ended(process) == (0, "-15\n" if number == signal.SIGTERM else "7\n", "")


def test_a_program_that_only_imports_the_toolkit_keeps_its_handlers():
    code = "import signal, utils.errors; print('ready'); print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)"
    assert ended(started(["-c", code])) == (0, "True\n", "")


POSTPONED = (
    "with interrupts.postponed('waits') as noted:\n"
    "    print('ready')\n    while not noted.number:\n        time.sleep(0.01)\n    print('whole')\n{more}"
    "print('not reached')"
)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_postponed_signal_is_said_at_once_and_answered_at_the_end_of_the_block(number):
    process = started(command(POSTPONED.format(more="")))
    process.send_signal(number)
    assert ended(process) == (128 + number, "whole\n", "\nwaits\ninterrupted\n")


def test_a_second_signal_is_not_postponed():
    body = POSTPONED.format(more="    interrupts.ONE_EVENT = 0.0\n    time.sleep(600)\n")
    process = started(command(body))
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "whole\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert ended(process) == (143, "", "\nwaits\ninterrupted\n")
