"""Memory in which loading processes hand pictures to the main one, written again for batch after batch.

Fresh shared memory is cleared and mapped page by page when it is written, and freed page by page: a quarter of the time
of a worker that makes mosaics. So a worker keeps what it has lent to the main process, and writes there again once that
has told it, with one of the next tasks, that nothing uses the batch any more.
"""

from __future__ import annotations

import math
import sys
import weakref
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from utils.structures import Batch

MOST_WORKERS = 1024
MOST_LENT = 16  # pieces of memory that a worker keeps; with more batches under way it shares fresh memory
IS_KEPT = sys.platform == "linux"  # elsewhere torch shares memory by other means, which have not been tried


@dataclass(frozen=True)
class Failure:
    """A mistake of the user that loading found; a value, because a DataLoader adds a traceback to exceptions."""

    message: str


@dataclass(frozen=True)
class Task:
    """What a worker gets: what to load, and which memory it may write again."""

    plan: Any  # None: it is the turn of others
    iteration: int  # of the loader: what was lent in another one is forgotten
    returned: tuple[int, ...] = ()  # leases of the worker that have ended
    is_last: bool = False  # of this worker in the iteration: it then keeps no memory


class Loaded(NamedTuple):
    """What a worker gives; a tuple, because a DataLoader pins the memory of what is in those."""

    batch: Batch | Failure
    lease: int  # number of the memory that the batch's pixels are in, 0 for memory that is not used again


class Lender:
    """The memory of one worker that is used again."""

    def __init__(self) -> None:
        self.iteration = -1
        self.lease = 0  # the number of what was lent for the task at hand
        self._count = self._largest = 0
        self._lent: dict[int, torch.UntypedStorage] = {}
        self._free: list[torch.UntypedStorage] = []

    def begin(self, task: Task) -> None:
        """Take back what has been returned."""
        if task.iteration != self.iteration:
            self.forget()
        self.iteration, self.lease = task.iteration, 0
        for lease in task.returned:
            if lease in self._lent:
                self._free.append(self._lent.pop(lease))

    def lend(self, size: int, worker: int) -> torch.UntypedStorage:
        """Return shared memory of at least ``size`` bytes."""
        self._largest = max(self._largest, size)  # all soon have room for the largest batch
        fitting = [number for number, storage in enumerate(self._free) if storage.nbytes() >= size]
        if fitting:
            storage = self._free.pop(fitting[0])
        else:
            self._free.clear()  # they are too small
            storage = torch.UntypedStorage._new_shared(self._largest)
        if IS_KEPT and len(self._lent) < MOST_LENT:
            self._count += 1
            self.lease = self._count * MOST_WORKERS + worker
            self._lent[self.lease] = storage
        return storage

    def forget(self) -> None:
        """Keep nothing: what is lent is freed with its batch."""
        self._lent.clear()
        self._free.clear()


_lender = Lender()  # of this process, where it is a worker


def lent_tensor(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return an uninitialised tensor; in a worker in shared memory, lent for the task at hand: one tensor per task."""
    size, worker = math.prod(shape) * dtype.itemsize, get_worker_info()
    if worker is None or not size:
        return torch.empty(shape, dtype=dtype)
    return _in_storage(_lender.lend(size, worker.id), shape, dtype)


def shared_tensor(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return an uninitialised tensor, in a worker one in fresh shared memory: so it is not copied when it is sent."""
    size = math.prod(shape) * dtype.itemsize
    if get_worker_info() is None or not size:
        return torch.empty(shape, dtype=dtype)
    return _in_storage(torch.UntypedStorage._new_shared(size), shape, dtype)


def _in_storage(storage: torch.UntypedStorage, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return a tensor at the beginning of a storage."""
    whole: Tensor = torch.empty(0, dtype=dtype).set_(storage)
    return whole[: math.prod(shape)].view(shape)


class BatchSource(Protocol):
    """What loads the batch of a plan, with its pixels in a :func:`lent_tensor`."""

    def __getitem__(self, plan: Any, /) -> Batch | Failure: ...


class LendingDataset(Dataset):
    """What a DataLoader asks for the batches of tasks."""

    def __init__(self, source: BatchSource) -> None:
        self.source = source

    def __getitem__(self, task: Task) -> Loaded | None:
        _lender.begin(task)
        loaded = None if task.plan is None else Loaded(self.source[task.plan], _lender.lease)
        if task.is_last:
            _lender.forget()
        return loaded


def worker_of(lease: int) -> int:
    """Return the number of the worker that lent something."""
    return lease % MOST_WORKERS


def taken(loaded: Loaded, returned: SimpleQueue[int]) -> Batch | Failure:
    """Return what was loaded; once nothing uses the memory of its pixels any more, its lease is put into ``returned``.

    Whatever views there are of the pixels, their memory is held by the array that is watched here.
    """
    batch, lease = loaded
    if not lease or isinstance(batch, Failure):
        return batch
    if batch.pixels.is_pinned():  # a copy
        returned.put(lease)
        return batch
    pixels = batch.pixels.numpy()
    weakref.finalize(pixels, returned.put, lease).atexit = False
    return batch.with_pixels(torch.from_numpy(pixels))
