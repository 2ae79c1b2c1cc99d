"""Which images an epoch shows: weights and repeat factors by hand, the same in every process and for any workers."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from data.augment import AugmentOptions
from data.dataset import BatchPlan, DetectionDataset
from data.labels.read import read_dataset
from data.loader import LoaderSettings, training_batches, training_plans
from data.sampling import (
    EpochSampler,
    SamplingOptions,
    image_weights,
    objects_per_image,
    repeat_factors,
    rounded_at_random,
    times_before,
)
from data.splits import open_data
from tests.tiny_project import make_project

# Four images and two classes: three images have class 0, one has class 1, the last has nothing.
OBJECTS = np.array([[2, 0], [1, 0], [1, 1], [0, 0]])


@pytest.fixture(scope="module")
def notes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    make_project(folder, num_images=7)
    return read_dataset(open_data(str(folder / "tiny.data")), "train")


def test_weights_by_hand():
    # Before the first evaluation an object of class 0 weighs 1/4, the one of class 1 weighs 1: 2/4, 1/4, 1/4 + 1, 0.
    assert image_weights(OBJECTS, ()).tolist() == pytest.approx([0.25, 0.125, 0.625, 0])
    # AP 0.5 and 0.9: 0.25 / 4 and 0.01: 0.125, 0.0625, 0.0725, in all 0.26.
    expected = [0.125 / 0.26, 0.0625 / 0.26, 0.0725 / 0.26, 0]
    assert image_weights(OBJECTS, (0.5, 0.9)).tolist() == pytest.approx(expected)
    # A class that the validation images do not have counts as the mean of the others.
    assert image_weights(OBJECTS, (0.5, -1)).tolist() == pytest.approx(image_weights(OBJECTS, (0.5, 0.5)).tolist())
    assert image_weights(OBJECTS, (1, 1)).tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0])


def test_repeat_factors_by_hand():
    # Class 0 is in 3/4 of the images, class 1 in 1/4: with t = 0.5, r = 1 and sqrt(0.5 / 0.25).
    assert repeat_factors(OBJECTS, 0.5).tolist() == pytest.approx([1, 1, 2**0.5, 1])
    assert repeat_factors(OBJECTS, 0.001).tolist() == [1, 1, 1, 1]
    assert repeat_factors(OBJECTS, 1.0).tolist() == pytest.approx([(4 / 3) ** 0.5, (4 / 3) ** 0.5, 2, 1])


def test_factors_are_rounded_to_their_means_and_to_one_length():
    factors = np.array([1.0, 1.25, 2.5, 1.75, 3.5, 1.0])  # in all 11
    rng = np.random.default_rng(0)
    drawn = np.array([rounded_at_random(factors, rng) for _ in range(4000)])
    assert set(drawn.sum(axis=1)) == {11}
    assert ((drawn == np.floor(factors)) | (drawn == np.ceil(factors))).all()
    # Of 4000 draws with a probability of 1/2 the mean has a standard deviation of 0.008.
    assert np.abs(drawn.mean(axis=0) - factors).max() < 0.04


def test_showings_are_counted():
    assert times_before(np.array([4, 1, 4, 4, 1, 0])).tolist() == [0, 0, 1, 2, 1, 0]
    assert times_before(np.array([], dtype=int)).tolist() == []


def test_objects_are_counted_without_crowd_regions(notes):
    expected = np.zeros((len(notes), 3), int)
    for image, label in zip(notes.box_image, notes.labels, strict=True):
        expected[image, label] += 1
    assert (objects_per_image(notes) == expected).all()
    crowd = replace(notes, crowd=np.ones_like(notes.crowd))
    assert objects_per_image(crowd).sum() == 0


def shown(notes, options, epoch, class_ap=(), **settings):
    sampler = EpochSampler(notes, options)
    sampler.class_ap = class_ap
    plans = training_plans(notes.image_wh, LoaderSettings((96, 96), **settings), epoch, sampler)
    return [(index, repeat) for plan in plans for index, repeat in zip(plan.indices, plan.repeats, strict=True)]


@pytest.mark.parametrize("options", [SamplingOptions(image_weights=True), SamplingOptions(class_balanced=0.9)])
@pytest.mark.parametrize("rect", [False, True])
def test_an_epoch_is_a_function_of_seed_epoch_and_ap(notes, options, rect):
    ap = (0.2, 0.9, 0.5)
    first = shown(notes, options, 3, ap, rect=rect, seed=1)
    assert first == shown(notes, options, 3, ap, rect=rect, seed=1) and len(set(first)) == len(first)
    assert first != shown(notes, options, 4, ap, rect=rect, seed=1)
    assert first != shown(notes, options, 3, ap, rect=rect, seed=2)
    parts = [shown(notes, options, 3, ap, rect=rect, seed=1, batch_size=8, rank=i, world_size=2) for i in (0, 1)]
    assert set(parts[0] + parts[1]) == set(first)
    assert abs(len(parts[0] + parts[1]) - len(first)) <= 1  # an image may serve twice, so that both have as many


def test_without_options_the_order_is_as_it_was(notes):
    plain = training_plans(notes.image_wh, LoaderSettings((96, 96), seed=5), 2)
    sampled = training_plans(
        notes.image_wh, LoaderSettings((96, 96), seed=5), 2, EpochSampler(notes, SamplingOptions())
    )
    assert plain == sampled


def test_an_image_shown_again_is_another_picture_and_workers_change_nothing(notes):
    options = SamplingOptions(class_balanced=1.0)

    def pictures(workers):
        settings = LoaderSettings((64, 64), 4, seed=2, workers=workers)
        batches = training_batches(notes, settings, AugmentOptions(), EpochSampler(notes, options))
        batches.set_epoch(1)
        return [image for batch in batches for image in batch.images]

    alone = pictures(0)
    assert all(torch.equal(a, b) for a, b in zip(alone, pictures(1), strict=True))
    assert all(not torch.equal(a, b) for i, a in enumerate(alone) for b in alone[:i])
    dataset = DetectionDataset(notes, augment=AugmentOptions(), seed=2)
    once, again = (dataset[BatchPlan((3,), (64, 64), 1, (3, 4, 5, 6), repeats=(n,))].images for n in (0, 1))
    assert not torch.equal(once, again)


def test_the_plan_follows_the_ap(notes):
    """The same epoch may be asked for before and after a test, and it may go on within."""
    sampler = EpochSampler(notes, SamplingOptions(image_weights=True))
    batches = training_batches(notes, LoaderSettings((64, 64), 4), AugmentOptions(), sampler)
    before = batches.plans()
    sampler.class_ap = (0.9, 0.1, 0.5)
    batches.set_epoch(0, first=1)
    after = batches.plans()
    assert before != after and len(batches) == len(before) == len(after)
    indices = [int(meta.image_id) for batch in batches for meta in batch.metas]
    assert indices == [int(notes.image_ids[index]) for plan in after[1:] for index in plan.indices]


@pytest.mark.parametrize("values", [{"class_balanced": 2.0}, {"class_balanced": 0.1, "image_weights": True}])
def test_contradictions_are_refused(values):
    with pytest.raises(ValueError, match="class-balanced"):
        SamplingOptions(**values)
