"""Messages to the user on any console."""

import os
import subprocess
import sys

from tests.tiny_project import REPOSITORY


def test_a_console_without_greek_letters_does_not_end_the_program():
    code = "from utils.errors import run_command; run_command(lambda: print('α 0.5'))"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "? 0.5", "")
