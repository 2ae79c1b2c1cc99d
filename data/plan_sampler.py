"""In which order a loader's processes get the batches of an epoch to load."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from queue import SimpleQueue

from torch.utils.data import Sampler

from data.dataset import BatchPlan
from data.shared_memory import Task, worker_of
from data.workers import dealt


@dataclass(frozen=True)
class Choice:
    """Which batches are loaded, and how."""

    epoch: int = 0
    first: int = 0  # the batch that it begins with
    closes_mosaic: bool = False  # whether pictures are made without mosaic and mixup


class PlanSampler(Sampler):
    """Gives a DataLoader the plans of the epoch that was chosen, in the order in which workers take them.

    Args:
        plans: makes those of an epoch.
        workers: that load.
        sharing: processes that would each decode the same images, were the plans dealt out one by one.
    """

    def __init__(self, plans: Callable[[int], list[BatchPlan]], workers: int, sharing: int) -> None:
        self.choice = Choice()
        self.workers = workers
        self.sharing = sharing
        self.iterations = 0
        self.returned: SimpleQueue[int] = SimpleQueue()  # leases that have ended: see data.shared_memory
        self._make = plans
        self._made: list[BatchPlan] | None = None

    def choose(self, choice: Choice) -> None:
        """Choose what the next iteration gives."""
        self.choice = choice
        self._made = None  # the same epoch may be another one now, by the AP of the classes

    def current(self) -> list[BatchPlan]:
        """Return all plans of the chosen epoch, in the order in which their batches are wanted."""
        if self._made is None:
            plans = self._make(self.choice.epoch)
            self._made = [replace(plan, closes_mosaic=self.choice.closes_mosaic) for plan in plans]
        return self._made

    def order(self) -> list[int | None]:
        """Return the numbers of the plans as they are given out; None: the worker whose turn it is gets nothing."""
        first = self.choice.first
        left = [plan.pool for plan in self.current()[first:]]
        return [None if number is None else number + first for number in dealt(left, self.sharing)]

    def __iter__(self) -> Iterator[Task]:
        self.iterations += 1
        return self._tasks(self.iterations, self.current(), self.order())

    def _tasks(self, iteration: int, plans: list[BatchPlan], order: list[int | None]) -> Iterator[Task]:
        workers = max(1, self.workers)
        ended: list[list[int]] = [[] for _ in range(workers)]
        for turn, number in enumerate(order):  # torch asks for the next when a batch has arrived: the turns go round
            while not self.returned.empty():
                lease = self.returned.get()
                ended[worker_of(lease)].append(lease)
            plan, told = None if number is None else plans[number], tuple(ended[turn % workers])
            ended[turn % workers].clear()
            yield Task(plan, iteration, told, is_last=turn >= len(order) - workers)

    def __len__(self) -> int:
        return len(self.current())
