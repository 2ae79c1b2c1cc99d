"""What --amp computes in: chosen by trying, the same after a resume and in every process."""

import pytest
import torch

import train
from engine import precision
from engine.precision import Precision, choose_precision
from engine.train_options import TrainOptions
from models.assignment.options import AssignmentOptions
from models.checkpoints.format import read_checkpoint
from models.loss import LossOptions
from models.network import build_network_from_text
from tests.tiny_project import CFG, make_project

CPU = torch.device("cpu")


@pytest.fixture
def learner():
    return build_network_from_text(CFG, "tiny.cfg").learner(LossOptions(), AssignmentOptions(), (96, 64))


@pytest.fixture(autouse=True)
def native(monkeypatch):
    """Let this CPU have instructions for bfloat16, whether it has or not."""
    monkeypatch.setattr(precision, "half_type", lambda _device: torch.bfloat16)


@pytest.fixture
def timed(monkeypatch):
    """Let every network be large enough to be tried, and bfloat16 be so many times as fast."""

    def set_gain(gain):
        monkeypatch.setattr(precision, "LEAST_OPERATIONS", 0)
        monkeypatch.setattr(
            precision, "_seconds_of_step", lambda _net, _images, dtype: 1.0 if dtype is None else 1 / gain
        )

    return set_gain


@pytest.mark.parametrize(("gain", "name"), [(0.25, "float32"), (1.05, "float32"), (1.5, "bfloat16")])
def test_bfloat16_has_to_pay(learner, timed, gain, name):
    timed(gain)
    found = choose_precision("", True, learner, (96, 64), CPU)
    assert found.name == name and f"{gain:.2f} times" in found.reason
    assert found.dtype == (torch.bfloat16 if name == "bfloat16" else None) and not found.needs_scale


def test_a_small_network_is_not_tried(learner, monkeypatch):
    monkeypatch.setattr(precision, "_seconds_of_step", lambda *_: pytest.fail("it is tried"))
    assert choose_precision("", True, learner, (96, 64), CPU) == Precision("float32")


def test_a_cpu_that_would_emulate_bfloat16_does_not_try_it(learner, timed, monkeypatch):
    timed(1.5)
    monkeypatch.setattr(precision, "half_type", lambda _device: torch.float32)
    monkeypatch.setattr(precision, "_seconds_of_step", lambda *_: pytest.fail("it is tried"))
    found = choose_precision("", True, learner, (96, 64), CPU)
    assert str(found) == "float32: this CPU has no instructions for bfloat16"
    assert choose_precision("bfloat16", True, learner, (96, 64), CPU) == Precision("bfloat16")


def test_what_is_named_is_taken(learner, timed):
    timed(0.1)
    assert choose_precision("bfloat16", True, learner, (96, 64), CPU) == Precision("bfloat16")
    assert choose_precision("bfloat16", False, learner, (96, 64), CPU) == Precision("float32")  # --no-amp
    assert choose_precision("float16", True, learner, (96, 64), CPU).name == "float32"  # a run of a GPU goes on here


def test_trying_changes_neither_the_network_nor_what_is_drawn_afterwards(learner, monkeypatch):
    monkeypatch.setattr(precision, "LEAST_OPERATIONS", 0)
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    torch.manual_seed(3)
    choose_precision("", True, learner, (96, 64), CPU)
    drawn = torch.rand(4)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(4))
    assert all(torch.equal(value, before[name]) for name, value in learner.state_dict().items())
    assert all(parameter.grad is None for parameter in learner.parameters())


def test_a_run_says_and_records_it_and_keeps_it_when_it_is_resumed(tmp_path, monkeypatch, run_main, timed):
    make_project(tmp_path, num_images=4)
    monkeypatch.chdir(tmp_path)
    flags = ["--data", "tiny.data", "--cfg", "tiny.cfg", "--img", 64, "--batch", 4, "--workers", 0, "--device", "cpu"]
    timed(2.0)
    status, out, error = run_main(train, *flags, "--epochs", 1, "--name", "fast")
    assert status == 0, error
    assert "bfloat16: 2.00 times as fast as float32 on this CPU" in out
    assert read_checkpoint("runs/train/fast/last.pt")["options"]["precision"] == "bfloat16"
    assert "precision: bfloat16" in (tmp_path / "runs/train/fast/config.yaml").read_text()
    timed(0.5)
    status, out, error = run_main(train, "--resume", "runs/train/fast", "--epochs", 2)
    assert status == 0, error
    assert "bfloat16)" in out and "float32" not in out


def test_a_type_of_mixed_precision_without_it_is_refused():
    with pytest.raises(ValueError, match="--precision bfloat16 is a type of --amp; leave it out, or --no-amp"):
        TrainOptions(amp=False, precision="bfloat16")
    assert TrainOptions(amp=False, precision="float32").precision == "float32"  # as a run without it is recorded
