"""The choice of a device, alone and in several processes, and the clock that waits for it."""

import pytest
import torch

from utils.devices import (
    amp_dtype,
    choose_device,
    describe_device,
    half_is_ignored,
    half_type,
    synchronised_time,
    use_threads,
)
from utils.errors import UserError


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize(
    "name, expected",
    [("", "cuda:0"), ("cpu", "cpu"), ("0", "cuda:0"), ("1", "cuda:1"), ("cuda:1", "cuda:1"), (" CUDA ", "cuda:0")],
)
def test_with_two_gpus(two_gpus, name, expected):
    assert choose_device(name) == torch.device(expected)


def test_each_process_takes_its_gpu(two_gpus, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    for name in ("", "cuda", "gpu"):
        assert choose_device(name) == torch.device("cuda:1")
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(UserError, match="--device cuda"):
        choose_device("0")


def test_more_processes_than_gpus(two_gpus, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(UserError, match="3 processes here, but there are 2 GPUs"):
        choose_device("")


@pytest.mark.parametrize("name, words", [("2", "0..1"), ("0,1", "nproc_per_node=2"), ("tpu", "cuda:0")])
def test_mistakes_with_two_gpus(two_gpus, name, words):
    with pytest.raises(UserError, match=words):
        choose_device(name)


def test_without_gpu(no_gpu):
    assert choose_device("") == choose_device("CPU") == torch.device("cpu")
    for name in ("0", "cuda", "cuda:0"):
        with pytest.raises(UserError, match="--device cpu"):
            choose_device(name)


@pytest.mark.parametrize(
    "name, capability, expected",
    [
        ("Tesla V100", (7, 0), torch.float16),
        ("NVIDIA H200", (9, 0), torch.float16),
        ("GeForce GTX 1660 Ti", (7, 5), None),
        ("Tesla P100", (6, 0), None),
    ],
)
def test_mixed_precision_only_where_it_helps(monkeypatch, name, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert amp_dtype(torch.device("cuda:0")) == expected
    assert amp_dtype(torch.device("cpu")) is None


def test_the_clock_waits_for_the_gpu_that_is_asked_for(monkeypatch):
    events = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: events.append(device))
    monkeypatch.setattr("time.perf_counter", lambda: events.append("clock") or 7.5)
    assert synchronised_time(torch.device("cpu")) == 7.5 and events == ["clock"]
    assert synchronised_time(torch.device("cuda:1")) == 7.5
    assert events[1:] == [torch.device("cuda:1"), "clock"]  # first the wait, then the time


def test_processes_share_the_cores(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    try:
        use_threads()
        assert torch.get_num_threads() == 3
        use_threads(1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    assert "cpu" in describe_device(torch.device("cpu"))


@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [({}, torch.float32), ({"avx512_bf16": False, "amx_bf16": False}, torch.float32),
     ({"avx512_bf16": True}, torch.bfloat16), ({"amx_bf16": True}, torch.bfloat16), ({"bf16": True}, torch.bfloat16)],
)  # fmt: skip
def test_sixteen_bits_of_a_cpu(monkeypatch, capabilities, dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    cpu = torch.device("cpu")
    assert half_type(cpu) == dtype
    assert ("--half means nothing" in half_is_ignored(True, cpu)) == (dtype == torch.float32)
    assert half_is_ignored(False, cpu) == ""
    assert half_type(torch.device("cuda")) == torch.float16


@pytest.mark.parametrize(("supported", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_sixteen_bits_of_a_cpu_in_torch_2_10(monkeypatch, supported, dtype):
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: supported)
    assert half_type(torch.device("cpu")) == dtype
