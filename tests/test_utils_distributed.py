"""Processes that find each other after a restart, and one that waits for another, which is there and never connects."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist

from tests.tiny_project import REPOSITORY
from utils import distributed
from utils.distributed import meet

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
RESTARTS = """
import os, signal, time, torch
from utils import distributed
restart, rank = int(os.environ["TORCHELASTIC_RESTART_COUNT"]), distributed.rank()
if restart and rank == restart % 2:
    time.sleep(2)  # meanwhile the other finds what is left of the start before
distributed.start(torch.device("cpu"))
os.write(1, f"together {distributed.sum_over_processes(torch.ones(1)).item():g}\\n".encode())
if restart < 2 and rank:
    time.sleep(1)  # until the other has printed
    os.kill(os.getpid(), signal.SIGKILL)
distributed.stop()
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


@pytest.mark.parametrize("late", [0, 1, 2])
def test_each_start_has_its_own_part_of_the_store(late):
    """Whichever process comes late; the names of the starts before are still in the store."""
    store = dist.HashStore()

    def enter(rank: int) -> tuple[int, bool]:
        time.sleep(0.2 * (rank == late))
        meeting = meet(store, rank, 3)
        return meeting.store.add("members", 1), meeting.is_restart

    with ThreadPoolExecutor(3) as pool:
        for is_restart in (False, True, True):
            assert sorted(pool.map(enter, range(3))) == [(number, is_restart) for number in (1, 2, 3)]


def test_a_restart_of_one_machine_is_one_for_all(monkeypatch):
    """Where torchrun has made a new store: its count on one of the machines says so."""
    counts = {0: 0, 1: 1}
    monkeypatch.setattr(distributed, "_restarts", lambda: counts[int(threading.current_thread().name)])
    store, found = dist.HashStore(), []
    threads = [threading.Thread(name=str(rank), target=lambda rank=rank: found.append(meet(store, rank, 2).is_restart))
               for rank in counts]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True, True]


def test_processes_started_again_find_each_other(tmp_path):
    """torchrun's store still has the addresses of those that were killed."""
    program = tmp_path / "program.py"
    program.write_text(RESTARTS)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max-restarts=2"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    ended = subprocess.run([*launcher, program], env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert ended.stdout.splitlines() == ["together 2"] * 6


def test_two_programs_one_after_the_other_are_no_restart(tmp_path):
    """Both in one torchrun; the first has come to its end."""
    (tmp_path / "program.py").write_text(
        "import os, torch\nfrom utils import distributed\ndistributed.start(torch.device('cpu'))\n"
        "os.write(1, f'restart {distributed.is_restart()}\\n'.encode())\ndistributed.stop()\n"
    )
    (tmp_path / "two.sh").write_text(f"{sys.executable} program.py && {sys.executable} program.py")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--no-python"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    ended = subprocess.run([*launcher, "bash", "two.sh"], cwd=tmp_path, env=environment, capture_output=True, text=True,
                           timeout=300)  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert ended.stdout.splitlines() == ["restart False"] * 4
