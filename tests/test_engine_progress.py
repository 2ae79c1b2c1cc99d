"""How far an epoch has come: what each process sums up, and that a run goes on at the very batch, bit for bit."""

from dataclasses import fields

import pytest
import torch

import train
from engine.progress import Progress, is_progress, share_of_process
from models.assignment.counts import MatchCounts
from models.checkpoints.format import read_checkpoint
from tests.tiny_project import CFG, make_project

SIZED = {"objects", "unmatched", "unmatched_base", "lost_slots", "lost_all_slots"}


def counts_of(value):
    sizes = {item.name: (3,) if item.name in SIZED else () for item in fields(MatchCounts)}
    return MatchCounts(**{name: torch.full(size, value, dtype=torch.float64) for name, size in sizes.items()})


def process(images, box, value):
    progress = Progress(batches=2)
    progress.add(images, {"box": box, "obj": 1.0}, counts_of(value))
    return progress


def test_means_are_per_image():
    progress = process(4, 6.0, 1.0)
    progress.add(2, {"box": 3.0, "obj": 2.0}, counts_of(2.0))
    assert progress.means() == {"box": 1.5, "obj": 0.5} and progress.counts.objects.tolist() == [3.0] * 3


def test_each_process_goes_on_with_its_own_part_and_one_with_the_sum():
    parts = [process(4, 6.0, 1.0), process(2, 3.0, 5.0)]
    assert [share_of_process(parts, rank, 2) for rank in (0, 1)] == parts
    whole = share_of_process(parts, 0, 1)
    assert (whole.batches, whole.images, whole.totals) == (2, 6, {"box": 9.0, "obj": 2.0})
    assert whole.counts.base == 6 and parts[0].images == 4
    assert share_of_process([], 0, 1) == Progress()


def test_of_more_or_fewer_processes_all_but_the_main_one_have_zeros_that_can_be_summed_up():
    for count in (1, 3):  # that were stopped; where they have made all batches, nothing else comes to the sums
        shares = [share_of_process([process(4, 6.0, 1.0)] * count, rank, 2) for rank in (0, 1)]
        assert [one.batches for one in shares] == [2, 2] and shares[1].images == 0
        assert [one.totals for one in shares] == [{"box": 6.0 * count, "obj": 1.0 * count}, {"box": 0.0, "obj": 0.0}]
        assert shares[1].counts is not None and (shares[0].counts + shares[1].counts).summary()
        assert float(shares[1].counts.base) == 0 and float(shares[0].counts.base) == count


def test_a_file_that_holds_something_else_is_refused():
    part = process(4, 6.0, 1.0).taken(torch.device("cpu")).state_dict()
    assert is_progress([]) and is_progress([part, part])
    broken = (
        {"batches": -1}, {"images": "4"}, {"totals": {"box": float("nan")}}, {"totals": [1.0]},
        {"counts": {"objects": 1}}, {"generator": torch.zeros(3)}, {"more": 1},
    )  # fmt: skip
    assert not any(is_progress([part | change]) for change in broken)
    assert not is_progress(part) and not is_progress([None])


def test_the_generator_goes_on_where_it_was():
    device = torch.device("cpu")
    torch.manual_seed(3)
    taken = Progress(batches=1).taken(device)
    expected = torch.rand(4)
    torch.manual_seed(4)
    taken.resumed(device)
    assert torch.equal(torch.rand(4), expected)


@pytest.fixture
def project(tmp_path, monkeypatch):
    make_project(tmp_path, num_images=8).rename(tmp_path / "tiny.pt")
    labels = tmp_path / "labels/000.txt"
    labels.write_text("0" + labels.read_text()[1:])  # the only image with this class
    dropout = "[dropout]\nprobability=.2\n\n[convolutional]\nfilters=24"
    (tmp_path / "drop.cfg").write_text(CFG.replace("[convolutional]\nfilters=24", dropout))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def same_run(first, second):
    return first["history"] == second["history"] and all(
        torch.equal(first[part][key], second[part][key]) for part in ("model", "ema") for key in first[part]
    )


LEARNED = "--cfg tiny.cfg --weights tiny.pt --lr0 1e-6 --test-size 96"  # it finds what is labelled


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    ["--cfg drop.cfg", f"{LEARNED} --image-weights --schedule one-cycle --layer-decay 0.5",
     f"{LEARNED} --class-balanced 0.5 --close-mosaic 1"],
    ids=["plain", "weighted", "balanced"],
)  # fmt: skip
def test_a_run_goes_on_from_every_step_bit_for_bit(project, run_main, options):
    """Two epochs of three batches, two to a step and the last alone; every step is saved, and each file resumed."""
    flags = ["--data", "tiny.data", *options.split(), "--img", 64, "--batch", 3, "--accumulate", 2, "--epochs", 2,
             "--workers", 0, "--device", "cpu", "--multi-scale", "--mixup", 0.5, "--warmup-epochs", 0]  # fmt: skip
    status, said, _ = run_main(train, *flags, "--name", "whole")
    assert status == 0 and ("8 images in 9 pictures, an image up to 2 times" in said) == ("balanced" in options)
    assert run_main(train, *flags, "--name", "saved", "--save-minutes", 1e-9, "--keep", 99)[0] == 0
    whole = read_checkpoint("runs/train/whole/last.pt")
    assert same_run(whole, read_checkpoint("runs/train/saved/last.pt"))
    found = sorted(project.glob("runs/train/saved/last-*.pt"), key=lambda path: int(path.stem.partition("-")[2]))
    places = [(content["epoch"], [part["batches"] for part in content["progress"]])
              for content in map(read_checkpoint, reversed(found))]  # fmt: skip
    assert places == [(0, []), (0, [2]), (0, [3]), (1, []), (1, [2]), (1, [3])]
    assert "tiny.cfg" not in flags or max(whole["class_ap"]) > 0.1
    for number, path in enumerate(found):
        (project / f"runs/train/again{number}").mkdir()
        copy = project / f"runs/train/again{number}/last.pt"
        copy.write_bytes(path.read_bytes())
        assert run_main(train, "--resume", copy, "--workers", number % 2, "--save-minutes", 0)[0] == 0
        assert same_run(whole, read_checkpoint(copy)), path
