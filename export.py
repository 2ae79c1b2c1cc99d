"""Export a network for other runtimes: ``python export.py --weights runs/train/exp/best.pt --format onnx openvino``.

Every file is run and compared with the network before it gets its name. ``test.py`` and ``detect.py`` take the results
with ``--weights``, and ``from models import load`` does; docs/export.md says what is in them.
"""

from __future__ import annotations

from utils.errors import run_command  # first: for Ctrl-C during the imports below

# isort: split
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from engine.exports import FORMATS, Exported, Job, export, metadata_of
from engine.network_input import refuse_size, resize_option, size_option
from engine.resolve import Resolved, name_classes, resolve, wanted_by
from engine.run_folder import new_run_folder
from models.darknet.scaled_decode import DECODES
from models.exported.onnx_file import OPSET
from models.exported.onnx_nms import GraphNms
from utils.config import option, parse_options
from utils.devices import use_threads
from utils.files import write_json_atomically

RUNS = "runs/export"
WITH_NMS, WITH_HALF = ("onnx", "openvino"), ("onnx", "openvino", "torchscript")  # formats that take these options


@dataclass(frozen=True)
class ExportOptions:
    """What to export, and how."""

    weights: str = option("", "checkpoint, Darknet .weights or official yolov5 .pt; default: the newest run's best.pt")
    format: tuple[str, ...] = option(("onnx",), "one or several of these", tuple(FORMATS))
    cfg: str = option("", "network, looked up here and in cfg/; default: the one that belongs to the weights")
    strict: bool = option(False, "refuse a cfg with keys, lines or names that Darknet does not know")
    decode: str = option("cfg", "boxes as the cfg says, or as PyTorch_YOLOv4, ScaledYOLOv4 and yolor compute", DECODES)
    data: str = option("", "data set whose training images calibrate int8; default: the one of the training")
    names: str = option("", "file of class names, one per line")
    img_size: tuple[int, ...] = size_option("that of the training, else the cfg's")
    batch_size: int = option(1, "images at once; without effect with --dynamic")
    dynamic: bool = option(False, "any number of images and any size that the strides divide; not for int8")
    resize: str = resize_option()
    half: bool = option(False, "float16 weights in onnx, openvino and torchscript; inputs and outputs stay float32")
    opset: int = option(OPSET, "of ONNX's standard operators")
    nms: bool = option(False, "append ONNX's NonMaxSuppression to onnx and openvino, which then return detections")
    conf_thres: float = option(0.001, "with --nms: minimum objectness x class probability of a detection")
    iou_thres: float = option(0.6, "with --nms: drop a box that overlaps a stronger one of its class by a higher IoU")
    max_det: int = option(300, "with --nms: detections per image and class")
    calibration_images: int = option(128, "training images that int8 is calibrated with")
    project: str = option(RUNS, "folder of results")
    name: str = option("exp", "results are written to <project>/<name>")
    exist_ok: bool = option(False, "write into <project>/<name> even if it is there, instead of <name>2, <name>3, …")

    def __post_init__(self) -> None:
        if not 0 <= self.conf_thres <= 1 or not 0 <= self.iou_thres <= 1:
            raise ValueError("--conf-thres and --iou-thres must lie between 0 and 1")
        if min(self.batch_size, self.max_det, self.calibration_images) < 1:
            raise ValueError("--batch-size, --max-det and --calibration-images must be at least 1")
        if not OPSET <= self.opset <= 23:
            raise ValueError(f"--opset must lie between {OPSET} and 23")
        if self.dynamic and any(name.endswith("int8") for name in self.format):
            raise ValueError("--dynamic: int8 is calibrated for one size; leave --dynamic or the int8 formats out")
        refuse_size(self.img_size, "--img-size")


def main() -> None:
    """Write the files of all formats and export.json into runs/export/<name>."""
    (options,) = parse_options(__doc__.splitlines()[0], ExportOptions)
    use_threads()
    torch.manual_seed(0)
    resolved = name_classes(resolve(wanted_by(options), needs_data=False), options.names)
    job = job_of(options, resolved)
    folder = new_run_folder(options.project, options.name, options.exist_ok)
    print(f"export: {resolved.weights}, {resolved.resize.to(resolved.input_wh)}, opset {options.opset} -> {folder}")
    done: list[Exported] = []
    for name in dict.fromkeys(options.format):
        exported = export(job, name, folder)
        for line in exported.lines:
            print(f"{name}: {line}")
        print(f"{name}: {exported}")
        done.append(exported)
        write_record(folder, options, job, done)
    print(f"Written to {folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")


def job_of(options: ExportOptions, resolved: Resolved) -> Job:
    """Return what is to be written.

    Raises:
        UserError: the network is exported already, or cannot be exported with these options.
    """
    metadata = metadata_of(resolved, options.batch_size, options.dynamic)
    nms = GraphNms(options.conf_thres, options.iou_thres, options.max_det) if options.nms else None
    for name, is_given, takes in (("--nms", options.nms, WITH_NMS), ("--half", options.half, WITH_HALF)):
        if is_given and (without := [one for one in dict.fromkeys(options.format) if one not in takes]):
            print(f"{name}: means nothing for {', '.join(without)}; it is for {', '.join(takes)}")
    if nms and metadata.nms_beta:
        print(f"--nms: ONNX's NMS compares plain IoU; {metadata.cfg_name} asks for one with distances, as test.py does")
    return Job(resolved, metadata, options.opset, nms, options.half, options.calibration_images)


def write_record(folder: Path, options: ExportOptions, job: Job, done: list[Exported]) -> None:
    """Write export.json: the options, what all files say of themselves, and each file's check and speed."""
    content = {"options": asdict(options), "metadata": asdict(job.metadata), "files": [one.to_dict() for one in done]}
    write_json_atomically(folder / "export.json", content)


if __name__ == "__main__":
    run_command(main)
