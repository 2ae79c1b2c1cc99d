"""The few things a script must know when ``torchrun`` starts several copies of it; all work with one process."""

from __future__ import annotations

import importlib
import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.rendezvous import rendezvous

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
        store = _met().store
        with joined(), _not_for_ever():
            backend = "nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(backend, store=store, rank=rank(), world_size=world_size())


def is_restart() -> bool:
    """Whether ``torchrun`` had started processes before these, one of which has died; all get the same answer.

    Its own count differs between machines, and stays as it is where another machine has left or come.
    """
    return _met().is_restart if world_size() > 1 else _restarts() > 0


@dataclass(frozen=True)
class Meeting:
    """What the processes that ``torchrun`` has started together know of each other."""

    store: dist.Store  # of these processes only
    is_restart: bool  # whether there were others before that have not come to their end
    common: dist.Store  # of all that torchrun has started


@cache
def _met() -> Meeting:
    """Wait for the other processes, once."""
    with joined(), _not_for_ever():
        store, own_rank, size = next(rendezvous("env://"))
        return meet(store, own_rank, size)


def meet(store: dist.Store, own_rank: int, size: int) -> Meeting:
    """Find those processes that were started with this one, in a store where those of earlier starts have left things.

    torchrun keeps one store over its restarts, and torch the same names in it: a process then finds the address of one
    that has been killed, if it looks before the new one has written its own. Here each process writes a name that no
    other ever had, and the main one answers all that it finds, until as many as there are now have had an answer.

    Args:
        store: which all processes share.
        own_rank: of this process.
        size: how many processes there are.
    """
    own_name = uuid.uuid4().hex
    if own_rank == 0:
        part = dist.PrefixStore(own_name, store)
        while part.add("answered", 0) < size - 1:
            for other in range(1, size):
                store.set(f"answer to {store.get(f'name of {other}').decode()}", own_name)
            time.sleep(0.01)
        restarts = part.add("restarts", _restarts()) + store.add("under way", 1) - 1
        part.set("is_restart", str(int(restarts > 0)))
    else:
        store.set(f"name of {own_rank}", own_name)
        part = dist.PrefixStore(store.get(f"answer to {own_name}").decode(), store)
        part.add("restarts", _restarts())
        part.add("answered", 1)
    return Meeting(part, part.get("is_restart") == b"1", store)


@contextmanager
def _not_for_ever() -> Iterator[None]:
    """Within this block, the process ends after ``JOIN_SECONDS``, and at once by a signal: nothing can be lost yet.

    When one of them is killed while they connect, Gloo waits for the connection for hours, without an error and deaf to
    Python's handlers, so that torchrun cannot start the processes again.
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
    if _met.cache_info().currsize and is_main():
        with suppress(RuntimeError):  # torchrun has gone
            _met().common.add("under way", -1)
    _met.cache_clear()


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


def _restarts() -> int:
    """Return how often ``torchrun`` on this machine has started its processes again, after one of them had died."""
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
