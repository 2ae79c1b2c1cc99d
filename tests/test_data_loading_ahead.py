"""Batches that the workers load before their epoch begins: the same ones, and those of another epoch are dropped."""

import multiprocessing
import os
import signal
import time

import pytest

from data.augment import AugmentOptions
from data.dataset import DetectionDataset
from data.loader import LoaderSettings, training_batches
from data.sampling import EpochSampler, SamplingOptions
from tests.test_data_loader import SETTINGS, notes, same, workers_of_this_process  # noqa: F401
from utils.errors import LostProcessError


def batches_of(notes, workers, sampler=None):  # noqa: F811
    return training_batches(notes, LoaderSettings(**SETTINGS, workers=workers), AugmentOptions(mixup=0.5), sampler)


def expect(batches, expected, *choice):
    batches.set_epoch(*choice)
    expected.set_epoch(*choice)
    assert all(same(*pair) for pair in zip(batches, expected, strict=True))


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("chosen", [(1,), (2,), (1, 3), (1, 0, True)])
def test_the_batches_are_those_of_the_choice_whatever_was_begun(notes, workers, chosen):  # noqa: F811
    batches, expected = batches_of(notes, workers), batches_of(notes, 0)
    expect(batches, expected, 0)
    batches.set_epoch(1)
    batches.begin()
    expect(batches, expected, *chosen)
    expect(batches, expected, 1)  # what was begun serves once
    batches.close()


def test_an_epoch_that_the_test_has_changed_is_not_the_one_that_was_begun(notes):  # noqa: F811
    ahead, expected = (EpochSampler(notes, SamplingOptions(image_weights=True)) for _ in range(2))
    batches = batches_of(notes, 1, ahead)
    batches.set_epoch(1)
    batches.begin()
    ahead.class_ap = expected.class_ap = (0.9, *[0.1] * (len(notes.names) - 1))
    expect(batches, batches_of(notes, 0, expected), 1)
    batches.close()


def test_workers_load_until_they_may_load_no_more(notes, monkeypatch):  # noqa: F811
    loaded, load = multiprocessing.get_context("fork").Value("i"), DetectionDataset.training_batch

    def counted(self, plan, augment):
        with loaded.get_lock():
            loaded.value += 1
        return load(self, plan, augment)

    monkeypatch.setattr(DetectionDataset, "training_batch", counted)
    batches = batches_of(notes, 2)
    batches.begin()
    deadline = time.monotonic() + 60
    while loaded.value < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    assert loaded.value == 4  # two for each, as torch has it
    assert len(list(batches)) == loaded.value == len(batches)
    batches.begin()
    batches.close()
    assert not workers_of_this_process()


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_worker_that_dies_is_one_line_of_the_next_iteration(notes, capfd, moment):  # noqa: F811
    batches = batches_of(notes, 2)
    list(batches)
    victim = workers_of_this_process()[0]
    if moment == "after":
        batches.begin()
    os.kill(victim, signal.SIGKILL)
    time.sleep(0.2)
    if moment == "before":
        batches.begin()
    with pytest.raises(LostProcessError, match="a loading process died"):
        list(batches)
    assert len(list(batches)) == len(batches)  # with new ones
    batches.close()
    assert "Traceback" not in capfd.readouterr().err
