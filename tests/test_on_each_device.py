"""What must be the same on a GPU as on the CPU, where the other tests compare it with their oracles."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from analysis.matching.measure import MeasurementPlan, measure_raw_maps
from analysis.matching.suppression import SuppressionRule
from engine.ema import AveragedModel
from engine.optimizer import OptimizerOptions, Schedule, build_optimizer
from engine.train_loop import TrainState, train_one_epoch
from models.assignment.assigner import build_assigner
from models.assignment.candidates import CANDIDATES
from models.assignment.options import AssignmentOptions
from models.assignment.strategies import strategies_for
from models.loss import LossOptions, build_loss
from models.network import build_network_from_text
from tests.analysis_scenes import random_scene
from tests.tiny_project import CFG
from utils.structures import Batch, ImageMeta, Targets

CPU, GPU = torch.device("cpu"), torch.device("cuda")
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
MATCHES = (*strategies_for(), "atss+fast", "standard+tal")


def loss_on(device, match):
    """Loss parts, counts and gradients of a random scene, on the CPU."""
    heads, raw_maps, targets, _ = random_scene(5)
    raw_maps = [raw.to(device).requires_grad_() for raw in raw_maps]
    crowd = Targets(torch.tensor([0]), torch.tensor([1]), torch.tensor([[0.5, 0.5, 0.4, 0.4]])).to(device)
    alpha = 0.4 if match in ("pure", "split", "fast") or "+" in match else 0.0
    options = AssignmentOptions(match=match, alpha=alpha, ignore_thresh=0.6, ignore_crowd=True)
    result = build_loss(LossOptions(), options, heads)(raw_maps, targets.to(device), crowd)
    sum(result.parts.values()).backward()
    return {name: part.item() for name, part in result.parts.items()}, result.counts.summary(), [
        raw.grad.cpu() for raw in raw_maps
    ]  # fmt: skip


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("match", MATCHES)
def test_losses_counts_and_gradients(match):
    expected, found = loss_on(CPU, match), loss_on(GPU, match)
    assert found[0] == pytest.approx(expected[0], rel=1e-4)
    assert found[1] == pytest.approx(expected[1], rel=1e-4)
    for one, other in zip(found[2], expected[2], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("match", ["standard", "fast", "simota"])
def test_the_same_batch_twice_gives_the_same_gradients_to_the_last_bit(device, match):
    first, second = loss_on(device, match), loss_on(device, match)
    assert all(torch.equal(one, other) for one, other in zip(first[2], second[2], strict=True))


def columns_on(device, candidates):
    heads, raw_maps, targets, _ = random_scene(6)
    options = {name: AssignmentOptions(match=name) for name in ("standard", "fast")}
    detector = SimpleNamespace(heads=heads, device=device)
    plan = MeasurementPlan(detector, options, ("iou", "ciou"), candidates, candidates, 0.1, SuppressionRule(), None)
    metas = tuple(ImageMeta(number, "", (64, 64)) for number in range(len(raw_maps[0])))
    batch = Batch(torch.zeros(len(metas), 3, 1, 1), targets.to(device), Targets.empty().to(device), metas)
    assigners = {name: build_assigner(one, heads) for name, one in options.items()}
    objects, images, _ = measure_raw_maps(batch, [raw.to(device) for raw in raw_maps], plan, assigners)
    return {name: value.cpu().numpy() for name, value in (objects | images).items()}


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("candidates", CANDIDATES)
def test_matching_statistics(candidates):
    expected, found = columns_on(CPU, candidates), columns_on(GPU, candidates)
    assert expected.keys() == found.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-5, err_msg=name)


def test_mixed_precision_learns(device):
    """Two epochs over one batch: float16 with a loss scale on a GPU, bfloat16 on a CPU."""
    torch.manual_seed(0)
    model = build_network_from_text(CFG, "tiny.cfg").to(device, memory_format=torch.channels_last)
    options = OptimizerOptions(lr0=0.002, optimizer="AdamW", warmup_epochs=0)
    has_scale = device.type == "cuda"
    scaler = torch.amp.GradScaler(device.type, enabled=has_scale)
    state = TrainState(model, AveragedModel(model), build_optimizer(model, options, 4), scaler)
    targets = Targets(torch.arange(4), torch.tensor([0, 1, 2, 0]), torch.tensor([[0.5, 0.5, 0.3, 0.4]] * 4))
    metas = tuple(ImageMeta(number, "", (96, 64)) for number in range(4))
    images = torch.randint(0, 256, (4, 3, 64, 96), dtype=torch.uint8)
    batches = [Batch(images, targets, Targets.empty(), metas)] * 30
    learner = model.learner(LossOptions(), AssignmentOptions(), model.input_wh)
    learner.amp_dtype = torch.float16 if has_scale else torch.bfloat16
    schedule = Schedule(options, epochs=2, batches_per_epoch=30, accumulate=1)
    losses = []
    for _ in range(2):
        parts, counts = train_one_epoch(state, learner, batches, schedule, lambda *_: None)
        losses.append(sum(parts.values()))
        state.end_epoch()
    assert losses[1] < 0.8 * losses[0] and counts.summary()["objects"] == 120
    assert state.average.updates > 50  # a step or two may be left out while the scale is looked for
