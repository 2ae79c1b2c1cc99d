"""The few things a script must know when ``torchrun`` starts several copies of it; all work with one process."""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from utils import interrupts
from utils.errors import LostProcessError
from utils.files import this_machine

Value = TypeVar("Value")
# Within so many seconds the processes find each other: torchrun starts them when all machines are there.
JOIN_SECONDS = 180.0
_is_alone = False  # see alone()


def start(device: torch.device) -> None:
    """Make a GPU this process's own, and join the process group that ``torchrun`` announces in the environment."""
    if device.type == "cuda":
        torch.cuda.set_device(device)  # NCCL's collectives of objects use the current device
    if world_size() > 1 and not dist.is_initialized():
        # DistributedDataParallel imports torch.distributed.nn, whose functions keep the process group of that moment
        # as a default argument for ever. Imported before there is a group, they keep none, and stop() can end it.
        importlib.import_module("torch.distributed.nn")
        with joined(), _not_for_ever():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")


@contextmanager
def _not_for_ever() -> Iterator[None]:
    """Within this block, the process ends after ``JOIN_SECONDS``, and at once by a signal: nothing can be lost yet.

    When one of them is killed while they connect, and at times after torchrun's restart, Gloo waits for the connection
    for hours, without an error and deaf to Python's handlers, so that torchrun cannot start the processes again.
    """

    def give_up() -> None:
        line = f"error: the processes of this run did not find each other within {JOIN_SECONDS:g} s; start it again"
        os.write(2, f"{line} (torchrun --max-restarts does so by itself)\n".encode())
        os._exit(1)

    timer = threading.Timer(JOIN_SECONDS, give_up)
    timer.daemon = True
    timer.start()
    try:
        with interrupts.end_at_once():
            yield
    finally:
        timer.cancel()


def stop() -> None:
    """Leave the process group, if there is one, and end its threads.

    A thread that outlives the interpreter aborts the process when it releases a Python object. The threads end with the
    last reference to the group, so whatever holds one, such as DistributedDataParallel, must be deleted before.
    """
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def joined() -> Iterator[None]:
    """Within this block, it is one line that another process has ended, for which this one waits or to which it sends.

    Raises:
        LostProcessError: instead of what Gloo or NCCL raise.
    """
    try:
        yield
    except RuntimeError as error:
        if world_size() == 1 or not (isinstance(error, dist.DistError) or "gloo/transport" in str(error)):
            raise
        raise LostProcessError("another process of this run has ended; it has said why, unless it was killed") from None


def rank() -> int:
    """Return this process's number, 0 for a single process."""
    return int(os.environ.get("RANK", 0))


def local_rank() -> int:
    """Return this process's number on its machine, which is also its GPU."""
    return int(os.environ.get("LOCAL_RANK", 0))


def local_world_size() -> int:
    """Return how many processes ``torchrun`` started on this machine, 1 without it."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


@contextmanager
def alone() -> Iterator[None]:
    """Within this block this process computes as if there were no others: for trials that not all of them make."""
    global _is_alone
    _is_alone = True
    try:
        yield
    finally:
        _is_alone = False


def world_size() -> int:
    """Return how many processes ``torchrun`` started, 1 without it and within :func:`alone`."""
    return 1 if _is_alone else int(os.environ.get("WORLD_SIZE", 1))


def restarts() -> int:
    """Return how often ``torchrun`` has started this process again, after one of the run had died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


def launch() -> str:
    """Return what tells one call of ``torchrun`` from others, also after restarts; empty where nothing does.

    That is the ``--rdzv-id``, which is the same on all machines; without one, on a single machine, torchrun's process.
    """
    name = os.environ.get("TORCHELASTIC_RUN_ID", "")
    if name != "none":
        return name
    return f"{this_machine()}-{os.getppid()}" if world_size() == local_world_size() else ""


def is_main() -> bool:
    """Whether this process is the one that prints and writes files."""
    return rank() == 0


def broadcast(value: Any) -> Any:
    """Return the main process's value in every process."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather(value: Value) -> list[Value] | None:
    """Return the values of all processes in the main one, None in the others; a single process is its own main one."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] | None = [None] * world_size() if is_main() else None
    dist.gather_object(value, values, dst=0)
    return values


def copy_from_main(module: nn.Module) -> None:
    """Give every process the main one's parameters and buffers, batch-norm statistics among them."""
    if dist.is_initialized():
        for tensor in module.state_dict().values():
            dist.broadcast(tensor, src=0)


def sum_over_processes(values: torch.Tensor) -> torch.Tensor:
    """Return the sum of a tensor over all processes."""
    if dist.is_initialized():
        values = values.clone()
        dist.all_reduce(values)
    return values
