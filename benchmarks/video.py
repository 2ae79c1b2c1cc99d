"""Frames per second of detect.py on a video, against decoding, detecting and drawing with encoding alone; its memory.

The video is made first: a scene that moves, H.264 where PyAV is installed. The weights are random.
Everything runs as in detect.py: the frames are read ahead by one thread and written behind by another one. The rate
should reach 95 % of the slowest of the three, where the network does not need the processors that the other two run on;
where it does, the processors allow no more than their number by the processor time that a frame takes of all three.

Run: ``python -m benchmarks.video`` or, quickly, ``python -m benchmarks.video --frames 300 --img-size 320``
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import resident_mib
from data.letterbox import letterbox_meta, place_images
from data.sources import open_source
from data.video import Picture, in_batches
from engine.detect_loop import Detect, Looking, keep, look_at
from engine.video_writer import Mp4Writer
from engine.window import PictureWindow
from engine.writers import KeepOptions, open_writer
from models.detector import Detector
from models.network import build_network
from utils.config import find_file, option, parse_options
from utils.devices import choose_device, describe_device, use_threads
from utils.draw import DrawStyle
from utils.errors import run_command
from utils.structures import Detections, ImageMeta
from utils.words import how_many

ALONE = ("decode", "detect", "draw and encode")
CYCLE = 64  # different frames; a longer video repeats them
FOUND = 20  # detections that are drawn in a frame


@dataclass(frozen=True)
class VideoBenchmarkOptions:
    """What is measured."""

    frames: int = option(10_000, "length of the video")
    size: tuple[int, ...] = option((1280, 720), "width and height of the video")
    cfg: str = option("yolov5n.cfg", "network")
    img_size: int = option(640, "side of the network input")
    batch_size: int = option(1, "frames that the network sees at once")
    device: str = option("", "cpu, or a CUDA device; default: CUDA if there is one")


def make_video(path: Path, options: VideoBenchmarkOptions) -> list[Picture]:
    """Write the video; return its first frames."""
    width, height = options.size
    rng = np.random.default_rng(0)
    scene = cv2.resize(rng.integers(0, 256, (24, 48, 3), dtype=np.uint8), (2 * width, height))
    pictures = []
    with Mp4Writer(path, 30.0) as video:
        for number in range(options.frames):
            left = (number % CYCLE) * width // CYCLE
            frame = np.ascontiguousarray(scene[:, left : left + width])
            video.add(frame)
            if number < CYCLE:
                pictures.append(Picture(frame, str(path), number))
    return pictures


def make_detect(options: VideoBenchmarkOptions, example: Picture) -> Detect:
    """Return a function that detects in pictures with a random network, by a threshold that some boxes pass.

    The threshold is the score of the best box but ``FOUND`` of an example: detect.py's own, which a random network
    does not know, would let none or all pass, and then NMS is what would be timed.
    """
    torch.manual_seed(0)
    network = build_network(find_file(options.cfg, "cfg")).eval().to(choose_device(options.device))
    side = options.img_size

    def prepare(pictures: Sequence[Picture]) -> tuple[Tensor, list[ImageMeta]]:
        sizes = [picture.image_bgr.shape[1::-1] for picture in pictures]
        metas = [letterbox_meta(0, "", (width, height), (side, side)) for width, height in sizes]
        images = place_images([picture.image_bgr for picture in pictures], metas, (side, side)).flip(1)
        return images.contiguous(memory_format=torch.channels_last), metas

    (all_found,) = Detector(network, confidence=0.0, max_detections=FOUND + 1)(*prepare([example]))
    detector = Detector(network, confidence=float(all_found.scores[-1]), max_detections=FOUND)
    return lambda pictures: ([found.cpu() for found in detector(*prepare(pictures))], 0.0)


@dataclass(frozen=True)
class FrameRate:
    """How fast something went."""

    frames_per_s: float
    cpu_ms: float  # processor time per frame, of all threads

    @staticmethod
    def of(work: Callable[[], int]) -> FrameRate:
        """Time a function that returns how many frames it has worked on."""
        start, cpu_start = time.perf_counter(), time.process_time()
        count = work()
        return FrameRate(count / (time.perf_counter() - start), (time.process_time() - cpu_start) / count * 1e3)


def decode_alone(path: Path) -> int:
    """Read the video to its end."""
    (source,) = open_source(str(path))
    with closing(source.batches(1)) as batches:
        return sum(len(pictures) for pictures in batches)


def detect_alone(detect: Detect, pictures: Sequence[Picture], options: VideoBenchmarkOptions) -> int:
    """Detect in pictures that are there already."""
    frames = (pictures[number % len(pictures)] for number in range(options.frames))
    return sum(len(detect(batch)[0]) for batch in in_batches(frames, options.batch_size))


def encode_alone(looking: Looking, pictures: Sequence[Picture], found: Sequence[Detections], count: int) -> int:
    """Draw into copies of pictures and write them as a video."""
    with looking.writer.video("alone.avi", 30.0) as video:
        for number in range(count):
            picture = pictures[number % len(pictures)]
            copy = Picture(picture.image_bgr.copy(), picture.path, number)
            keep(copy, found[number % len(pictures)], video, looking)
    return count


def together(path: Path, looking: Looking, resident: list[float]) -> int:
    """Do what detect.py does with the video, without its lines; note the memory in use after each batch."""
    detect = looking.detect

    def noting(pictures: Sequence[Picture]) -> tuple[list[Detections], float]:
        resident.append(resident_mib())
        return detect(pictures)

    (source,) = open_source(str(path))
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        look_at(source, ["video 1/1"], replace(looking, detect=noting))
    return len(source)


def main() -> None:
    """Print the rates and the memory."""
    (options,) = parse_options(__doc__.splitlines()[0], VideoBenchmarkOptions)
    use_threads()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pictures = make_video(folder / "film.mp4", options)
        detect = make_detect(options, pictures[0])
        writer = open_writer(folder / "out", [str(number) for number in range(80)], KeepOptions())
        looking = Looking(detect, writer, PictureWindow(False), DrawStyle(), options.batch_size)
        found = [detect([picture])[0][0] for picture in pictures]
        width, height = options.size
        print(
            f"{options.frames} frames of {width}x{height}, {options.cfg} at {options.img_size}, batch "
            f"{options.batch_size}, {describe_device(choose_device(options.device))}; frames per second"
        )
        resident: list[float] = []
        rates = {
            "decode": FrameRate.of(lambda: decode_alone(folder / "film.mp4")),
            "detect": FrameRate.of(lambda: detect_alone(detect, pictures, options)),
            "draw and encode": FrameRate.of(lambda: encode_alone(looking, pictures, found, options.frames)),
            "together": FrameRate.of(lambda: together(folder / "film.mp4", looking, resident)),
        }
    for what, rate in rates.items():
        print(f"{what:16} {rate.frames_per_s:8.1f}   {rate.cpu_ms:6.1f} ms of processor time")
    slowest = min(rates[what].frames_per_s for what in ALONE)
    cores = len(os.sched_getaffinity(0))
    allowed = min(slowest, 1e3 * cores / sum(rates[what].cpu_ms for what in ALONE))
    found_rate = rates["together"].frames_per_s
    print(f"together, of the slowest alone: {found_rate / slowest:.0%}")
    print(f"together, of the {allowed:.1f} that {how_many(cores, 'core')} allow: {found_rate / allowed:.0%}")
    tenth, last = resident[len(resident) // 10], resident[-1]
    print(f"memory in use: {tenth:.0f} MiB after a tenth, {last:.0f} MiB at the end, {max(resident):.0f} MiB at most")


if __name__ == "__main__":
    run_command(main)
