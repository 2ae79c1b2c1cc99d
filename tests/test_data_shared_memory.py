"""Memory that workers write again: never while anything still uses it, and not more of it than is needed."""

import gc
import random
from collections import deque
from multiprocessing import get_context
from queue import SimpleQueue
from types import SimpleNamespace

import pytest
import torch

from data import shared_memory
from data.augment import AugmentOptions
from data.loader import LoaderSettings, evaluation_batches, training_batches
from data.shared_memory import Lender, Loaded, Task, lent_tensor, shared_tensor, taken
from tests.test_data_loader import notes  # noqa: F401

pytestmark = pytest.mark.skipif(not shared_memory.IS_KEPT, reason="on Linux only")


def make(notes, kind="training", workers=2, batch_size=2, **settings):  # noqa: F811
    many = notes.select_images([number % len(notes) for number in range(60 * batch_size)])
    settings = LoaderSettings((64, 96), batch_size, workers=workers, **settings)
    return (
        training_batches(many, settings, AugmentOptions()) if kind == "training" else evaluation_batches(many, settings)
    )


@pytest.fixture
def allocated(monkeypatch):
    """Counts the pieces of shared memory that all processes have asked for."""
    count, new = get_context("fork").Value("i"), torch.UntypedStorage._new_shared

    def counted(size, *args, **options):
        with count.get_lock():
            count.value += 1
        return new(size, *args, **options)

    monkeypatch.setattr(torch.UntypedStorage, "_new_shared", counted)
    return count


@pytest.mark.parametrize("kind", ["training", "evaluation"])
@pytest.mark.parametrize("settings", [{}, {"multi_scale": True}, {"rect": True}, {"resize": "stretch"}], ids=str)
def test_what_is_still_used_never_changes(notes, kind, settings):  # noqa: F811
    """Batches, views, single pictures and arrays that are held for as long as chance has it."""
    chance, held = random.Random(0), deque()
    batches, expected = make(notes, kind, **settings), make(notes, kind, 0, **settings)
    views = [
        lambda x: x,
        lambda x: x[:1],
        lambda x: x[0, 1, 3:9].numpy(),
        lambda x: x.permute(0, 2, 3, 1).numpy()[..., 1],
    ]
    for epoch in (0, 1, 2):
        batches.set_epoch(epoch)
        expected.set_epoch(epoch)
        for number, (batch, right) in enumerate(zip(batches, expected, strict=True)):
            view = chance.choice(views)
            held.append((view(batch.images), view(right.images)))
            del batch
            while len(held) > chance.choice((1, 3, 30)):
                assert (held[0][0] == held[0][1]).all()
                held.popleft()
            if epoch == 1 and number == 20:
                break
    assert all((pixels == right).all() for pixels, right in held)
    batches.close()
    assert all((pixels == right).all() for pixels, right in held)


@pytest.mark.parametrize(
    ("size", "held", "least", "most"), [(16, 1, 3, 2 * 9), (16, 60, 60, 60), (4, 1, 3, 2 * 16)], ids=str
)
def test_no_more_memory_than_is_in_use(notes, allocated, size, held, least, most):  # noqa: F811
    """60 batches, 64 images of a pool: each of two workers has 2 to load, a pool that waits, and some in use."""
    batches, last = make(notes, batch_size=size), deque(maxlen=held)
    for batch in batches:
        last.append(batch)
    assert len(batches) == 60 and least <= allocated.value <= most
    batches.close()


def test_a_worker_keeps_nothing_between_epochs(notes, monkeypatch):  # noqa: F811
    kept = get_context("fork").Array("i", [-1, -1])
    load = shared_memory.LendingDataset.__getitem__

    def watched(self, task):
        loaded = load(self, task)
        lender = shared_memory._lender
        kept[torch.utils.data.get_worker_info().id] = len(lender._lent) + len(lender._free)
        return loaded

    monkeypatch.setattr(shared_memory.LendingDataset, "__getitem__", watched)
    batches = make(notes)
    next(iter(batches))
    assert max(kept) > 0
    batches.set_epoch(1)
    list(batches)
    assert list(kept) == [0, 0]
    batches.close()


def test_leases_end_once_and_are_forgotten_with_their_iteration():
    lender = Lender()

    def lend(size, returned=(), iteration=1):
        lender.begin(Task(None, iteration, tuple(returned)))
        return lender.lend(size, 3).data_ptr(), lender.lease

    first, one = lend(100)
    second, two = lend(100)
    assert first != second and one != two and one % shared_memory.MOST_WORKERS == 3
    again, three = lend(80, [one, 7])
    assert again == first
    assert lend(100, [one])[0] not in (first, second)  # that is lent anew
    _, four = lend(100, [two, three], 2)  # of the iteration before
    assert set(lender._lent) == {four} and not lender._free
    assert lend(200, [four], 2)[1] and not lender._free  # which was too small
    leases = [lend(10, (), 3)[1] for _ in range(shared_memory.MOST_LENT + 2)]
    assert all(leases[:-2]) and leases[-2:] == [0, 0]


def test_a_worker_paints_into_shared_memory(monkeypatch):
    assert not shared_tensor((2, 4, 4, 3), torch.uint8).is_shared()
    assert not lent_tensor((2, 4, 4, 3), torch.uint8).is_shared()
    monkeypatch.setattr(shared_memory, "get_worker_info", lambda: SimpleNamespace(id=0))
    for make_tensor in (shared_tensor, lent_tensor):
        for dtype in (torch.uint8, torch.float32):
            tensor = make_tensor((2, 4, 5, 3), dtype)
            assert tensor.is_shared() and tensor.shape == (2, 4, 5, 3) and tensor.dtype == dtype
        assert make_tensor((0, 4, 4, 3), torch.uint8).shape == (0, 4, 4, 3)


def test_the_lease_of_a_pinned_copy_ends_on_arrival(notes, monkeypatch):  # noqa: F811
    batch, ended = next(iter(make(notes, workers=0))), SimpleQueue()
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda _self: True)
    assert taken(Loaded(batch, 5), ended) is batch and ended.get_nowait() == 5
    monkeypatch.undo()
    received = taken(Loaded(batch, 6), ended)
    view = received.images[:1]
    del received
    gc.collect()
    assert ended.empty()
    del view
    gc.collect()
    assert ended.get_nowait() == 6
