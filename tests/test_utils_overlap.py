"""Work on threads against the same work in a loop: order, exceptions, and how much may wait."""

import threading
from contextlib import closing

import pytest

from utils import overlap
from utils.errors import UserError
from utils.overlap import LeftToThread, computed_ahead


def size_of(result):
    return len(result)


@pytest.mark.parametrize("threads", [1, 3])
def test_results_come_in_order_though_later_ones_are_ready_sooner(threads):
    later = threading.Event()

    def call(number):
        if number == 0 and threads > 1:
            assert later.wait(20)  # the first is ready only after the second
        if number == 1:
            later.set()
        return [number] * number

    assert list(computed_ahead(call, range(7), 3, size_of, threads)) == [[n] * n for n in range(7)]
    assert list(computed_ahead(call, [], 3, size_of)) == []


@pytest.mark.parametrize("most_bytes, may_wait", [(5, 1), (17, 2), (10**9, 4)])
def test_no_more_is_begun_than_may_wait(monkeypatch, most_bytes, may_wait):
    monkeypatch.setattr(overlap, "MOST_BYTES", most_bytes)
    begun = []

    def call(number):
        begun.append(number)
        return bytes(6)

    with closing(computed_ahead(call, range(100), 4, size_of)) as results:
        for used in range(1, 31):
            next(results)
            assert len(begun) <= used + may_wait
    assert begun == list(range(len(begun))) and 30 <= len(begun) <= 30 + may_wait


def test_an_exception_of_the_thread_comes_where_its_result_would():
    def call(number):
        if number == 2:
            raise UserError("two is broken")
        return [number]

    seen = []
    with pytest.raises(UserError, match="two is broken"):
        for result in computed_ahead(call, range(5), 4, size_of, threads=2):
            seen.append(result)
    assert seen == [[0], [1]]


def test_work_is_done_in_order_and_whole_when_the_block_ends():
    done = []
    with LeftToThread(2) as behind:
        for number in range(9):
            future = behind.submit(1, done.append, number)
            assert len(done) >= number - 2  # at most two wait, and one is being done
    assert done == list(range(9)) and future.done()


def test_large_work_waits_for_what_was_before(monkeypatch):
    monkeypatch.setattr(overlap, "MOST_BYTES", 100)
    done = []
    with LeftToThread(50) as behind:
        for number in range(9):
            behind.submit(101, done.append, number)
            assert len(done) >= number - 1
    assert done == list(range(9))


def test_an_exception_of_the_work_ends_the_block_with_its_line():
    done = []

    def work(number):
        if number == 3:
            raise UserError("three cannot be written")
        done.append(number)

    with pytest.raises(UserError, match="three cannot"), LeftToThread(1) as behind:
        for number in range(9):
            behind.submit(1, work, number)
    assert done[:3] == [0, 1, 2] and 8 not in done
    with pytest.raises(UserError, match="three cannot"), LeftToThread(9) as behind:
        behind.submit(1, work, 3)  # known only on leaving


def test_what_was_left_is_done_although_the_block_fails():
    done = []
    with pytest.raises(KeyError), LeftToThread(9) as behind:
        for number in range(5):
            behind.submit(1, done.append, number)
        raise KeyError
    assert done == list(range(5))
