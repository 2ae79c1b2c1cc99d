"""A folder as a user would have it after a training: a cfg, pictures with labels, a .data file and a checkpoint.

The network is random and the labels are what it finds, so evaluations give numbers strictly between 0 and 1.
"""

import importlib.util
import sys
from pathlib import Path

import cv2
import numpy as np
import torch

from data.augment import AugmentOptions
from data.letterbox import letterbox_meta, place_images
from models.checkpoints.format import save_checkpoint
from models.detector import Detector
from models.network import build_network_from_text
from utils.errors import run_command

REPOSITORY = Path(__file__).resolve().parent.parent
NAMES = ("disc", "Würfel", "bar")
NO_AUGMENTATION = AugmentOptions(hsv_h=0.0, hsv_s=0.0, hsv_v=0.0, translate=0.0, scale=0.0, fliplr=0.0, mosaic=0.0)
CFG = """
[net]
width=96
height=64
channels=3

[convolutional]
batch_normalize=1
filters=8
size=3
stride=2
pad=1
activation=leaky

[convolutional]
batch_normalize=1
filters=16
size=3
stride=4
pad=1
activation=leaky

[convolutional]
filters=24
size=1
stride=1
pad=1
activation=linear

[yolo]
mask=0,1,2
anchors=10,14, 23,27, 37,40
classes=3
num=3
"""


def random_network(seed=0):
    """Return a network whose objectness and classes vary, so that scores spread over 0..1."""
    torch.manual_seed(seed)
    network = build_network_from_text(CFG, "tiny.cfg")
    last = network.head_convolution(0).conv
    last.weight.data.normal_(std=1.5)
    return network.eval()


def make_project(folder, num_images=7):
    """Write the project into a folder; return the path of the checkpoint."""
    generator = np.random.default_rng(0)
    network = random_network()
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    detector = Detector(network, confidence=0.3, iou=0.3, max_detections=9)
    for number in range(num_images):
        width, height = [(120, 80), (90, 130), (64, 64)][number % 3]
        image = cv2.resize(generator.integers(0, 256, (6, 6, 3), dtype=np.uint8), (width, height))
        path = folder / "images" / f"{number:03d}.png"
        cv2.imwrite(str(path), image)
        meta = letterbox_meta(0, "", (width, height), (96, 96))
        (found,) = detector(place_images([image[:, :, ::-1]], [meta], (96, 96)), [meta])
        lines = []
        for label, (x1, y1, x2, y2) in zip(found.labels.tolist(), found.boxes_xyxy.tolist(), strict=True):
            shift = generator.uniform(-2, 2)
            w, h = max(3.0, x2 - x1 + shift), max(3.0, y2 - y1 - shift)
            x, y = min(max((x1 + x2) / 2, w / 2), width - w / 2), min(max((y1 + y2) / 2, h / 2), height - h / 2)
            lines.append(f"{label} {x / width:.6f} {y / height:.6f} {w / width:.6f} {h / height:.6f}\n")
        labels = "" if number == 1 else "".join(lines)  # one image without objects
        (folder / "labels" / f"{number:03d}.txt").write_text(labels)
    (folder / "tiny.cfg").write_text(CFG)
    (folder / "tiny.names").write_text("\n".join(NAMES) + "\n")
    (folder / "tiny.data").write_text("classes=3\ntrain=images\nvalid=images\nnames=tiny.names\n")
    return save_run(folder, network)


def save_run(folder, network, name="exp"):
    """Write a checkpoint as train.py does."""
    path = folder / "runs/train" / name / "best.pt"
    path.parent.mkdir(parents=True)
    content = {
        "cfg_name": "tiny.cfg", "cfg_text": CFG, "names": list(NAMES), "epoch": 3,
        "options": {"data": "tiny.data", "img_size": [96], "single_cls": False},
        "ema": network.state_dict(),
    }  # fmt: skip
    save_checkpoint(path, content)
    return path


def load_script(name):
    """Import a script of the repository's root under a name that hides no module."""
    spec = importlib.util.spec_from_file_location(f"script_{name}", REPOSITORY / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def run_script(script, monkeypatch, *arguments):
    """Run a script's main with arguments in this process; return the exit status."""
    monkeypatch.setattr(sys, "argv", ["script", *map(str, arguments)])
    try:
        run_command(script.main)
    except SystemExit as stop:
        return stop.code
    return 0
