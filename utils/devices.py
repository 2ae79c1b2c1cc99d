"""Where the work is done: the device a user names, whether mixed precision helps there, how many threads are used."""

from __future__ import annotations

import os
import re
import time

import cv2
import torch

from utils import distributed
from utils.errors import UserError


def choose_device(name: str = "") -> torch.device:
    """Return the device that a user means.

    Args:
        name: ``""`` for the first GPU if there is one, else the CPU; ``cpu``; ``0``, ``1``, … or ``cuda:0`` for one
            GPU; ``cuda`` or ``gpu`` for the first. Under ``torchrun`` each process takes a GPU of its own.

    Raises:
        UserError: no such device on this machine, or not one for each process; the message says what there is.
    """
    text = name.strip().lower()
    if text == "cpu":
        return torch.device("cpu")
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    processes = distributed.local_world_size()
    if text in ("", "cuda", "gpu") and available:
        if processes > available:
            raise UserError(
                f"torchrun started {processes} processes here, but there are {available} GPUs; lower --nproc_per_node"
            )
        return torch.device("cuda", distributed.local_rank())
    if text == "":
        return torch.device("cpu")
    if "," in text:
        count = len(text.split(","))
        raise UserError(
            f"--device {name}: a process uses one GPU; for several: torchrun --nproc_per_node={count} SCRIPT"
        )
    match = re.fullmatch(r"(?:cuda:)?(\d+)", text)
    if match is None and text not in ("cuda", "gpu"):
        raise UserError(f"--device '{name}' is not a device; use cpu, 0, 1, … or cuda:0")
    number = int(match[1]) if match else 0
    if number >= available:
        there = f"GPUs 0..{available - 1}" if available else "no GPU that torch can use; --device cpu works"
        raise UserError(f"--device {name}: this machine has {there}")
    if processes > 1:
        raise UserError(f"--device {name}: under torchrun each process takes a GPU of its own; use --device cuda")
    return torch.device("cuda", number)


def describe_device(device: torch.device) -> str:
    """Return one line for the log: torch's version, the device, its memory or threads."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"torch {torch.__version__}, {device} ({properties.name}, {properties.total_memory / 2**30:.0f} GiB)"
    return f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads"


def synchronised_time(device: torch.device) -> float:
    """Return a clock's seconds after all work given to a device is done: a GPU still computes when Python goes on."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def amp_dtype(device: torch.device) -> torch.dtype | None:
    """Return the type in which mixed precision is faster and safe on a device, None where there is none.

    That is float16 on GPUs with tensor cores: of the two 16-bit types it is the one whose 11 bits still tell
    neighbouring pixels apart; it needs loss scaling. There is none on the GTX 16xx, which have no tensor cores and
    produce NaN. Whether bfloat16 is fast on a CPU has to be tried (:mod:`engine.precision`).
    """
    if device.type != "cuda":
        return None
    major, _ = torch.cuda.get_device_capability(device)
    return torch.float16 if major >= 7 and "GTX 16" not in torch.cuda.get_device_name(device) else None


def half_type(device: torch.device) -> torch.dtype:
    """Return the type that ``--half`` computes in, float32 where none of 16 bits is faster.

    A GPU takes float16; a CPU bfloat16 where it has instructions for it, without which torch emulates it.
    """
    if device.type == "cuda":
        return torch.float16
    return torch.bfloat16 if _computes_bfloat16() else torch.float32


def _computes_bfloat16() -> bool:
    """Whether the CPU has instructions for bfloat16: AVX-512's, AMX's or ARM's."""
    if not hasattr(torch.cpu, "get_capabilities"):  # torch 2.10; a CPU with AMX has AVX-512's, too
        return torch.cpu._is_avx512_bf16_supported()
    has = torch.cpu.get_capabilities()
    return any(has.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def half_is_ignored(half: bool, device: torch.device) -> str:
    """Return the line that says so where ``--half`` changes nothing on a device, else nothing."""
    if not half or half_type(device) != torch.float32:
        return ""
    return "--half means nothing on this device, which has no fast 16-bit numbers: computing in float32"


def use_threads(count: int | None = None) -> None:
    """Set the threads of torch and OpenCV in this process.

    Args:
        count: threads; None leaves torch's choice of one per core, except under ``torchrun``, which asks for a single
            one per process: there the cores are shared out among the processes of this machine.
    """
    processes = distributed.local_world_size()
    if count is None and processes > 1:
        count = max(1, (os.cpu_count() or 1) // processes)
    if count is not None:
        torch.set_num_threads(count)
    cv2.setNumThreads(0)  # images are decoded in worker processes; OpenCV's own threads would only compete with them
