"""The loss on the validation images: that of the learner on the same maps, summed over uneven batches."""

import copy

import pytest
import torch

from data.labels.read import read_dataset
from data.loader import LoaderSettings, evaluation_batches
from data.splits import open_data
from engine.evaluate import evaluate
from engine.validation_loss import ValidationLoss
from models.assignment.options import AssignmentOptions
from models.detector import Detector
from models.families.own_loss import OwnLossLearner
from models.loss import LossOptions
from models.network import build_network_from_text
from tests.tiny_project import CFG, make_project, random_network
from utils.structures import Batch, ImageMeta, Targets


def batch_of(count, seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, 64, 96), generator=generator).to(torch.uint8)
    boxes = torch.rand(count, 4, generator=generator) * 0.4 + 0.2
    targets = Targets(torch.arange(count), torch.randint(0, 3, (count,), generator=generator), boxes)
    return Batch(images, targets, Targets.empty(), tuple(ImageMeta(i, "", (96, 64)) for i in range(count)))


def test_it_is_the_mean_over_images_of_the_learners_loss():
    torch.manual_seed(0)
    network = build_network_from_text(CFG, "tiny.cfg", 3)
    learner = network.learner(LossOptions(), AssignmentOptions(match="standard+fast", alpha=0.3), (96, 64))
    learner.start_epoch(7)
    detector, measured = Detector(network), ValidationLoss.of(learner)
    batches = [batch_of(3, 1), batch_of(1, 2)]
    expected: dict[str, float] = {}
    plain = copy.deepcopy(learner).eval()
    for batch in batches:
        raw = detector.raw_outputs(batch.images)
        found = detector.detect(raw, batch.metas)
        measured.add(raw, batch)
        for one, other in zip(found, detector(batch.images, batch.metas), strict=True):
            assert torch.equal(one.boxes_xyxy, other.boxes_xyxy)  # what is found does not depend on it
        with torch.no_grad():
            result = plain(batch.images.float() / 255, batch.targets, batch.crowd)
        for name, part in result.parts.items():
            expected[name] = expected.get(name, 0.0) + part.item()
    assert measured.means() == {name: pytest.approx(total / 4, rel=1e-4) for name, total in expected.items()}
    assert learner.loss_function.images_seen == 7  # counts the images of the training only


def test_an_evaluation_with_it_looks_at_each_image_once(tmp_path):
    make_project(tmp_path, num_images=7)
    notes = read_dataset(open_data(str(tmp_path / "tiny.data")), "train")
    network = random_network()
    learner = network.learner(LossOptions(), AssignmentOptions(), (96, 96))
    batches = evaluation_batches(notes, LoaderSettings((96, 96), 3, stride=8))
    totals = dict.fromkeys(("box", "obj", "cls"), 0.0)
    for batch in batches:  # of the network that is not fused
        with torch.no_grad():
            parts = learner.loss_function(network(batch.images.float() / 255), batch.targets, batch.crowd).parts
        totals = {name: total + float(parts[name]) for name, total in totals.items()}
    detector, calls = Detector(network), []
    detector.network.register_forward_hook(lambda *_: calls.append(1))
    measured = ValidationLoss.of(learner)
    with_loss = evaluate(detector, batches, notes.to_coco(), loss=measured)
    assert len(calls) == len(batches) == 3
    assert measured.means() == {name: pytest.approx(total / 7, rel=1e-4) for name, total in totals.items()}
    assert with_loss == evaluate(detector, batches, notes.to_coco())


def test_darknets_loss_has_none():
    text = CFG[: CFG.index("[yolo]")] + "[region]\nanchors=1,1, 2,2, 4,4\nnum=3\nclasses=3\n"
    learner = build_network_from_text(text, "x.cfg").learner(
        LossOptions(loss="darknet"), AssignmentOptions(match="darknet"), (96, 64)
    )
    assert ValidationLoss.of(learner) is None


def test_networks_with_a_loss_inside_have_none():
    assert ValidationLoss.of(OwnLossLearner(build_network_from_text(CFG, "tiny.cfg", 3))) is None
