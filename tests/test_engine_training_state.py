"""What --resume takes from last.pt: as written, or refused with the part that is damaged."""

import copy

import pytest
import torch

from engine.ema import AveragedModel
from engine.optimizer import OptimizerOptions, build_optimizer
from engine.train_loop import TrainState
from engine.training_state import check_resumable, load_training_state
from tests.tiny_project import CFG, NAMES, random_network
from utils.errors import UserError


def new_state(seed, adam=False, steps=0):
    network = random_network(seed)
    optimizer = build_optimizer(network, OptimizerOptions(optimizer="AdamW" if adam else "SGD"), 64)
    for _ in range(steps):
        for parameter in network.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    return TrainState(network, AveragedModel(network), optimizer, torch.amp.GradScaler("cpu", enabled=False))


def content_of(state):
    return copy.deepcopy(
        {"cfg_name": "tiny.cfg", "cfg_text": CFG, "names": list(NAMES), "options": {"epochs": 3}, **state.state_dict()}
    )


def resume(content):
    check_resumable(content, "last.pt")
    load_training_state(new_state(9, "exp_avg" in str(content["optimizer"]["state"])), content, "last.pt")


@pytest.mark.parametrize("adam", [False, True])
@pytest.mark.parametrize("steps", [0, 2])
def test_a_state_comes_back_as_it_was(adam, steps):
    written = content_of(new_state(0, adam, steps))
    state = new_state(1, adam)
    check_resumable(written, "last.pt")
    load_training_state(state, written, "last.pt")
    for name, tensor in written["model"].items():
        assert torch.equal(tensor, state.model.state_dict()[name])
    found = state.optimizer.state_dict()["state"]
    assert found.keys() == written["optimizer"]["state"].keys() and len(found) == (
        len(list(state.model.parameters())) if steps else 0
    )
    assert all(
        torch.equal(found[i][key], value)
        for i, kept in written["optimizer"]["state"].items()
        for key, value in kept.items()
    )


def test_a_flag_that_another_version_of_pytorch_does_not_know_may_be_missing():
    content = content_of(new_state(0, steps=1))
    for group in content["optimizer"]["param_groups"]:
        del group["foreach"], group["fused"]
        group["of_the_future"] = True
    resume(content)


def rename(tensors):
    tensors["layers.0.conv.wait"] = tensors.pop("layers.0.conv.weight")


CHANGES = {
    "a renamed tensor": (lambda c: rename(c["model"]), "layer 0 .* has nothing"),
    "a renamed average": (lambda c: rename(c["ema"]), "layer 0 .* has nothing"),
    "another shape": (lambda c: c["model"].update({"layers.0.bn.bias": torch.zeros(3)}), "needs 8, the file has 3"),
    "nan": (lambda c: c["ema"]["layers.0.bn.bias"].fill_(torch.nan), "not finite"),
    "no model": (lambda c: c.pop("model"), "its 'model'"),
    "model of numbers": (lambda c: c.update(model={"a": 1}), "its 'model'"),
    "epoch": (lambda c: c.update(epoch=-1), "its 'epoch'"),
    "epoch of 5,000 digits": (lambda c: c.update(epoch=10**5000), "its 'epoch'"),
    "updates": (lambda c: c.update(ema_updates="3"), "its 'ema_updates'"),
    "fitness": (lambda c: c.update(best_fitness=float("nan")), "its 'best_fitness'"),
    "history": (lambda c: c.update(history=[{"epoch": "1"}]), "its 'history'"),
    "history without epochs": (lambda c: c.update(history=[{"lr": 0.1}]), "its 'history'"),
    "options": (lambda c: c.update(options={"epochs": "many"}), "its 'options'"),
    "optimizer": (lambda c: c.update(optimizer={"state": {}}), "its optimizer does not have 3 groups"),
    "groups": (lambda c: c["optimizer"]["param_groups"][0].update(params=[7, 8]), "made for other parameters"),
    "no momentum": (lambda c: c["optimizer"]["param_groups"][2].pop("momentum"), "lacks settings"),
    "setting": (lambda c: c["optimizer"]["param_groups"][1].update(lr=torch.ones(1)), "settings that are no numbers"),
    "index": (lambda c: c["optimizer"]["state"].update({99: {"momentum_buffer": torch.zeros(1)}}), "other parameters"),
    "buffer": (lambda c: c["optimizer"]["state"][0].update(momentum_buffer=torch.zeros(1)), "has another shape"),
    "buffer of nan": (lambda c: c["optimizer"]["state"][0]["momentum_buffer"].fill_(torch.nan), "not finite"),
    "something else": (lambda c: c["optimizer"]["state"][0].update(x=1), "something else of parameter 0"),
    "scaler": (lambda c: c.update(scaler={"scale": "big"}), "its 'scaler'"),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_damaged_is_named(change):
    damage, words = CHANGES[change]
    content = content_of(new_state(0, steps=1))
    damage(content)
    with pytest.raises(UserError, match=words) as caught:
        resume(content)
    assert str(caught.value).startswith("last.pt") and "\n" not in str(caught.value)


def test_weights_alone_are_no_training_state():
    content = content_of(new_state(0))
    del content["optimizer"]
    with pytest.raises(UserError, match="start with --weights"):
        resume(content)
