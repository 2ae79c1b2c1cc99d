"""A process that waits for another one of its run, which is there and never connects."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.tiny_project import REPOSITORY

WAITS = """
import sys
from utils import distributed, interrupts
import torch
distributed.JOIN_SECONDS = float(sys.argv[1])
with interrupts.as_exceptions():
    print("waits", flush=True)
    distributed.start(torch.device("cpu"))
"""
IS_THERE = """
import os, time
import torch.distributed as dist
store = dist.TCPStore("localhost", int(os.environ["MASTER_PORT"]), 2, is_master=False)
time.sleep(100)
"""


@pytest.fixture
def start():
    """Starts Python with a program and an argument, as one of two processes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    started = []

    def begin(rank, program, argument=""):
        variables = {"RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
        environment = os.environ | {name: str(value) for name, value in variables.items()}
        command = [sys.executable, "-c", program, str(argument)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, cwd=REPOSITORY, env=environment, **pipes))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def test_one_that_is_not_joined_ends_with_a_line(start):
    waiting = start(0, WAITS, 5)
    start(1, IS_THERE)
    _, errors = waiting.communicate(timeout=100)
    assert waiting.returncode == 1
    assert [line for line in errors.splitlines() if line.startswith("error: ")] == [
        "error: the processes of this run did not find each other within 5 s; start it again "
        "(torchrun --max-restarts does so by itself)"
    ]


def test_sigterm_ends_one_that_is_not_joined(start):
    waiting = start(0, WAITS, 100)
    start(1, IS_THERE)
    assert waiting.stdout.readline() == "waits\n"
    time.sleep(8)  # until it is in Gloo
    waiting.send_signal(signal.SIGTERM)
    waiting.communicate(timeout=20)
    assert waiting.returncode == -signal.SIGTERM
