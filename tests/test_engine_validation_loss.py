"""The loss on validation images: the same as that of the unfused network, from one forward pass."""

from dataclasses import replace

import pytest
import torch

from data.labels.read import read_dataset
from data.loader import LoaderSettings, evaluation_batches
from data.splits import open_data
from engine.evaluate import evaluate
from engine.validation_loss import ValidationLoss
from models.assignment.options import AssignmentOptions
from models.detector import Detector
from models.loss import LossOptions, build_loss
from tests.tiny_project import make_project, random_network


@pytest.fixture(scope="module")
def notes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    make_project(folder, num_images=7)
    return read_dataset(open_data(str(folder / "tiny.data")), "train")


def test_the_loss_is_the_mean_of_every_batch_and_the_detections_stay(notes):
    network = random_network()
    batches = evaluation_batches(notes, LoaderSettings((96, 96), 3, stride=8))
    loss_function = build_loss(LossOptions(), AssignmentOptions(), network.heads)
    totals = dict.fromkeys(("box", "obj", "cls"), 0.0)
    for batch in batches:
        with torch.no_grad():
            parts = loss_function(network(batch.images.float() / 255), batch.targets, batch.crowd).parts
        totals = {name: total + float(parts[name]) for name, total in totals.items()}

    detector, calls = Detector(network), []
    detector.network.register_forward_hook(lambda *_: calls.append(1))
    loss = ValidationLoss(loss_function)
    with_loss = evaluate(detector, batches, notes.to_coco(), loss=loss)
    assert len(calls) == len(batches)
    assert loss.means() == {name: pytest.approx(total / 7, rel=1e-4) for name, total in totals.items()}
    assert list(loss.means()) == ["box", "obj", "cls"]
    assert with_loss == evaluate(detector, batches, notes.to_coco())


def test_a_part_that_is_not_finite_is_left_out_and_nothing_counts_as_trained(notes):
    network = random_network()
    (batch, *_) = evaluation_batches(notes, LoaderSettings((96, 96), 3, stride=8))
    loss_function = build_loss(LossOptions(), AssignmentOptions(), network.heads)

    class Infinite:
        images_seen = 64

        def __call__(self, *arguments):
            assert self.images_seen is None  # no image of the training
            result = loss_function(*arguments)
            return replace(result, parts=result.parts | {"obj": torch.tensor(float("inf"))})

    loss = ValidationLoss(Infinite())
    loss.detect(Detector(network), batch)
    assert loss.means().keys() == {"box", "cls"} and loss.loss_function.images_seen == 64
