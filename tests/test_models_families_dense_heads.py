"""RetinaNet and FCOS with other assignments: their losses, maps and training, and through the scripts."""

import json
from pathlib import Path

import pytest
import torch
from test_models_families_learn import four_images

import analyze
import train
from models.assignment.assigner import build_assigner
from models.assignment.grid import grid_of_maps
from models.assignment.options import AssignmentOptions
from models.families.dense_heads import look
from models.families.table import open_network
from models.loss import LossOptions
from tests.tiny_project import make_project
from utils.structures import Targets

pytestmark = pytest.mark.slow
pytest.importorskip("torchvision.models.detection", exc_type=(ImportError, RuntimeError))
RETINANET, FCOS = "retinanet_resnet50_fpn", "fcos_resnet50_fpn"
HEIGHT, WIDTH = 96, 160
RULES = (
    *((RETINANET, match) for match in ("atss", "simota", "tal", "standard", "ratio", "maxiou")),
    *((FCOS, match) for match in ("atss", "simota", "tal", "fcos")),
)


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    return {name: open_network(name, 3) for name in (RETINANET, FCOS)}


def scene():
    generator = torch.Generator().manual_seed(3)
    size = torch.rand(12, 2, generator=generator) * 0.5 + 0.1
    center = torch.rand(12, 2, generator=generator) * (1 - size) + size / 2
    boxes = torch.cat((center, size), dim=1)
    images = torch.rand(3, 3, HEIGHT, WIDTH, generator=generator)
    return images, Targets(torch.arange(12) % 3, torch.arange(12) % 3, boxes)


@pytest.mark.parametrize("name, match", RULES)
def test_the_loss_is_torchvisions_for_these_matches(networks, name, match):
    """The object of every slot is found by loops over the matches, then torchvision's loss is called."""
    network = networks[name].train()
    images, targets = scene()
    torch.manual_seed(1)
    found = network.learner(LossOptions(), AssignmentOptions(match=match), (WIDTH, HEIGHT))(
        images, targets, Targets.empty()
    )
    with torch.no_grad():
        maps = network.showing_maps()(images)
    grid = grid_of_maps(network.heads, maps)
    assignment = build_assigner(AssignmentOptions(match=match), network.heads).match(targets, grid, maps)
    outputs = look(network.model, images)
    matched, best = torch.full((3, len(outputs.anchors_xyxy)), -1), {}
    starts = [sum(h.num_anchors * r * c for h, (r, c) in list(zip(network.heads, grid.shapes, strict=True))[:number])
              for number in range(5)]  # fmt: skip
    if assignment.ignore[0] is not None:
        for number, mask in enumerate(assignment.ignore):
            for image, anchor, row, col in mask.nonzero().tolist():
                place = (row * mask.shape[3] + col) * mask.shape[1] + anchor
                matched[image, starts[number] + place] = -2
    base = assignment.base
    columns = (base.target, base.image, base.head, base.anchor, base.row, base.col, base.iou)
    for target, image, number, anchor, row, col, iou in zip(*(one.tolist() for one in columns), strict=True):
        place = starts[number] + (row * grid.shapes[number][1] + col) * network.heads[number].num_anchors + anchor
        if iou > best.get((image, place), -1):
            best[image, place] = iou
            matched[image, place] = int((targets.image[:target] == image).sum())
    assert len(best) > 10
    center, half = targets.boxes_cxcywh[:, :2], targets.boxes_cxcywh[:, 2:] / 2
    corners = torch.cat((center - half, center + half), dim=1) * torch.tensor([WIDTH, HEIGHT] * 2)
    wanted = [{"boxes": corners[targets.image == i], "labels": targets.label[targets.image == i]} for i in range(3)]
    with torch.no_grad():
        losses = network.model.head.compute_loss(wanted, outputs.numbers, [outputs.anchors_xyxy] * 3, list(matched))
    for part, loss in losses.items():
        torch.testing.assert_close(found.parts[part].detach(), loss * 3, rtol=1e-5, atol=1e-5)
    assert found.counts.summary()["objects"] == 12
    assert found.counts.summary()["positives_per_object"] == pytest.approx(len(base) / 12)


@pytest.mark.parametrize("name", [RETINANET, FCOS])
def test_the_maps_say_what_the_network_detects(networks, name):
    network = networks[name]
    images, targets = scene()
    with torch.no_grad():
        for module in network.modules():  # without statistics of its own maps, hardly anything comes through
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None
                module.reset_running_stats()  # of other tests' images
        network.train().learner(LossOptions(), AssignmentOptions(match="atss"), (WIDTH, HEIGHT))(
            images, targets, Targets.empty()
        )
        network.eval()
        network.model.topk_candidates = 10**6
        confidence = 0.02 if name == FCOS else 0.0104  # of random weights: RetinaNet's lie around 0.01
        plain = network.looking_above(confidence)
        expected = plain.candidates(plain(images), confidence)
        shown = network.showing_maps()
        found = shown.candidates(shown(images), confidence)
    assert not network.shows_maps
    for mine, theirs in zip(found, expected, strict=True):
        boxes = mine.boxes_xyxy.clamp(min=0).minimum(torch.tensor([WIDTH, HEIGHT] * 2))
        rows = (torch.cat((one, part.scores[:, None], part.labels[:, None]), dim=1).double()
                for one, part in ((boxes, mine), (theirs.boxes_xyxy, theirs)))  # fmt: skip
        ours, library = (part[(part @ torch.tensor([1.0, 7, 31, 101, 1009, 3]).double()).argsort()] for part in rows)
        assert len(ours) == len(library) > 20
        torch.testing.assert_close(ours, library, rtol=1e-4, atol=2e-3)


@pytest.mark.parametrize("name", [RETINANET, FCOS])
def test_a_batch_without_objects_is_background(networks, name):
    learner = networks[name].train().learner(LossOptions(), AssignmentOptions(match="simota"), (WIDTH, HEIGHT))
    found = learner(scene()[0], Targets.empty(), Targets.empty())
    assert found.parts["classification"] > 0 and found.parts["bbox_regression"] == 0
    assert found.counts.summary()["objects"] == 0


@pytest.mark.parametrize(
    "name, match", [(RETINANET, "atss"), (RETINANET, "simota"), (RETINANET, "tal"), (FCOS, "atss"), (FCOS, "simota")]
)
def test_thirty_steps_on_four_images(name, match):
    torch.manual_seed(0)
    images, targets, _ = four_images(128)
    network = open_network(name, 2)
    learner = network.learner(LossOptions(), AssignmentOptions(match=match), (128, 128)).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-4 if name == RETINANET else 1e-4)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        total = learner(images / 255, targets, Targets.empty()).total * 16
        total.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 10.0)
        optimizer.step()
        losses.append(total.item())
    assert min(losses[25:]) < losses[0] / (3 if match != "tal" else 1.5)


def test_through_the_scripts(tmp_path, monkeypatch, run_main):
    make_project(tmp_path, num_images=4)
    monkeypatch.chdir(tmp_path)
    size = ("--img-size", 96, "--workers", 0, "--device", "cpu")
    for name, match, flags in ((RETINANET, "atss", ("--match", "atss")), (FCOS, "fcos", ())):
        status, out, error = run_main(train, "--data", "tiny.data", "--cfg", name, *size, "--batch-size", 4,
                                      "--epochs", 1, "--name", name, *flags)  # fmt: skip
        assert status == 0 and f"--match {match} ->" in out, error
        assert "anchors:" not in out and "objects without a match" in out
        weights = f"runs/train/{name}/last.pt"
        matches = "maxiou,atss,simota,fast" if name == RETINANET else "fcos,tal"
        status, out, error = run_main(analyze, "--matching-stats", "--weights", weights, "--workers", 0, "--device",
                                      "cpu", "--match", matches, "--name", name)  # fmt: skip
        assert status == 0, error
        found = json.loads(Path("runs/analyze", name, "results.json").read_text())["statistics"]
        assert list(found["strategies"]) == matches.split(",")
        assert all(one["positives"] > 0 for one in found["strategies"].values())
        assert (found["scores"]["iou"]["objectness"]["objects"] is None) == (name == RETINANET)
    status, out, error = run_main(analyze, "--anchor-stats", "--cfg", RETINANET, "--data", "tiny.data", *size[:2])
    assert status == 0 and "| maxiou " in out and "45 anchors" in out, error
    for arguments, message in (
        (("--anchor-stats", "--cfg", FCOS, "--data", "tiny.data"), "has no anchors in grids"),
        (("--matching-stats", "--weights", f"runs/train/{RETINANET}/last.pt", "--hard", 2), "--hard: leave it out"),
        (("--matching-stats", "--weights", weights, "--match", "ratio"), "heads have no anchors"),
    ):
        before = set(Path("runs/analyze").iterdir())
        status, out, error = run_main(analyze, *arguments)
        assert status == 2 and message in error and len(error.splitlines()) == 1
        assert set(Path("runs/analyze").iterdir()) == before
