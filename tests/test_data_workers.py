"""Which loading process gets which batches, and where it puts their pixels."""

import os

import numpy as np
import pytest

from data.augment import AugmentOptions
from data.dataset import DetectionDataset
from data.loader import LoaderSettings, training_batches
from data.workers import MOST_EARLY, dealt
from tests.test_data_loader import notes  # noqa: F401


@pytest.mark.parametrize(
    ("pools", "workers", "expected"),
    [
        ("", 2, []),
        ("aabb", 1, [0, 1, 2, 3]),
        ("aaabbb", 2, [0, 3, 1, 4, 2, 5]),
        ("aaab", 2, [0, 3, 1, None, 2]),
        ("aabbbccdd", 2, [0, 2, 1, 3, None, 4, 5, 7, 6, 8]),
        ("aabbc", 2, [0, 2, 1, 3, 4]),  # c alone: whoever is next
        ("aabb", 3, [0, 1, 2, 3]),  # fewer pools than workers: shared by all
    ],
)
def test_tasks_of_a_pool_come_to_one_worker(pools, workers, expected):
    assert dealt(pools, workers) == expected


@pytest.mark.parametrize("workers", [1, 2, 3, 5, 16, 100])
@pytest.mark.parametrize("length", [1, 3, 16, 300])
def test_every_task_once_and_few_before_their_turn(workers, length):
    pools = [number // length for number in range(1000)]
    order = dealt(pools, workers)
    assert sorted(number for number in order if number is not None) == list(range(1000))
    early, following, most = set(), 0, 0
    for number in order:
        early |= {number} - {None}
        while following in early:
            early.remove(following)
            following += 1
        most = max(most, len(early))
    assert most <= max(MOST_EARLY, workers)


def test_each_image_of_a_block_is_decoded_by_one_process(notes, tmp_path, monkeypatch):  # noqa: F811
    decode = DetectionDataset.decode

    def noted(self, index):
        (tmp_path / f"{index}-{os.getpid()}").touch()
        return decode(self, index)

    monkeypatch.setattr(DetectionDataset, "decode", noted)
    monkeypatch.setattr("data.loader.BLOCK", 8)
    count = len(notes) // 16 * 16  # whole blocks, as many for each worker
    part = notes.select_images(np.arange(len(notes)) < count)
    batches = training_batches(part, LoaderSettings((32, 32), 4, workers=2), AugmentOptions())
    assert sum(len(batch.images) for batch in batches) == count
    assert len(list(tmp_path.iterdir())) == count
