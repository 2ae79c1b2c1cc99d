"""What users of ultralytics/yolov5 and ultralytics type: other names of our options and files, or what to use instead.

The names are those of ultralytics/yolov5 v1.0 to v7.0 (train.py, val.py, detect.py, data/hyps) and of the settings of
ultralytics 8. A name that a script uses for an option of its own is never taken for a foreign one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SAME = {  # option -> its other names
    "batch_size": ("batch", "total_batch_size"),
    "conf_thres": ("conf",),
    "every_frame": ("stream_buffer",),
    "img_size": ("img", "imgsz"),
    "iou_thres": ("iou", "nms_thres"),
    "line_width": ("line_thickness",),
    "notest": ("noval",),
    "task": ("split",),
    "view_img": ("show",),
}
SHORT = {  # a flag without a value -> the option and the value that it stands for
    "adam": ("optimizer", "AdamW"),
    "no_adam": ("optimizer", "SGD"),
    "cache_images": ("cache", "ram"),
    "no_cache_images": ("cache", ""),
    "cos_lr": ("schedule", "cosine"),
    "linear_lr": ("schedule", "linear"),
}
WITHOUT_EFFECT = {  # accepted with this note; each may have a value
    "local_rank": "torchrun says which process this is",
    "noautoanchor": "anchors stay those of the cfg without --auto-anchor",
    "noplots": "curves and pictures are drawn all the same",
    "plots": "curves and pictures are always drawn",
}
DRAWING = "drawing has detect.py --line-width, --hide-labels, --hide-conf and --nosave"
NO_LOGGING_SERVICE = "results.csv and the TensorBoard events are in the folder of the run; --log adds wandb and mlflow"
IN_ANALYSES = "analyses are written to runs/analyze/<name>; choose a --name"
NO_SEGMENTS = "boxes only: there are no masks and no poses here"
ANSWERS = {  # what is not here -> what to use instead
    "artifact_alias": NO_LOGGING_SERVICE,
    "agnostic_nms": "test.py and detect.py have it; for an evaluation without classes: test.py --single-cls",
    "augment": "test.py and detect.py have it; train.py paints each image anew: --hsv-h, --mixup, …",
    "auto_augment": "the augmentations are those of --help, such as --hsv-h, --degrees and --mixup",
    "bbox_interval": NO_LOGGING_SERVICE,
    "bucket": "nothing is downloaded or sent; --data names files on the disk",
    "classes": "all classes of the data set count; test.py --verbose lists each, detect.py --classes chooses some",
    "copy_paste": NO_SEGMENTS + "; --mixup blends images",
    "cutmix": "--mosaic and --mixup combine images",
    "dfl": "the heads are those of YOLOv3 to YOLOv5; the gains are --box, --obj and --cls",
    "dnn": "networks run in torch only; OpenCV itself reads a cfg with Darknet .weights",
    "dropout": "write a [dropout] section into the cfg",
    "entity": NO_LOGGING_SERVICE,
    "erasing": "the augmentations are those of --help, such as --hsv-h, --degrees and --mixup",
    "exist_ok": IN_ANALYSES,
    "fourcc": "videos are written as mp4",
    "fraction": "name a list of the images to train on in the data set (--data)",
    "half": "float16 is for test.py and detect.py; train.py has mixed precision where it helps, and --no-amp",
    "hide_conf": DRAWING,
    "hide_labels": DRAWING,
    "line_thickness": DRAWING,
    "line_width": DRAWING,
    "log_artifacts": NO_LOGGING_SERVICE,
    "log_imgs": NO_LOGGING_SERVICE,
    "logdir": "use --project: runs are written to <project>/<name>",
    "mask_ratio": NO_SEGMENTS,
    "model": "use --weights FILE for a trained network, --cfg FILE for its description",
    "nbs": "an optimizer step sees 64 images; --accumulate says how many batches make a step",
    "output": "use --project and --name: results are written to <project>/<name>",
    "overlap_mask": NO_SEGMENTS,
    "perspective": "pictures are turned, moved, scaled and sheared: --degrees, --translate, --scale, --shear",
    "pretrained": "use --weights FILE; without it training starts from random weights",
    "project": IN_ANALYSES,
    "quad": "batches are made of single pictures; --multi-scale trains at other sizes",
    "resume_evolve": "--evolve, given again, goes on with its search",
    "retina_masks": NO_SEGMENTS,
    "save_crop": "detect.py --save-crop cuts detections out",
    "save_csv": "detect.py --save-csv writes a line per detection",
    "save_format": "--save-txt writes relative centre and size; --save-json left, top, width and height in pixels",
    "save_frames": "drawn frames are kept as one video",
    "save_hybrid": "detect.py --save-txt writes detections as labels",
    "save_json": "test.py --save-json and detect.py --save-json write detections",
    "save_txt": "detect.py --save-txt writes detections as labels, test.py --save-json as COCO results",
    "save_conf": "detect.py --save-txt --save-conf writes detections as labels with their scores",
    "show_boxes": DRAWING,
    "show_conf": DRAWING,
    "show_labels": DRAWING,
    "source": "detect.py --source looks at pictures; test.py evaluates a labelled data set (--data)",
    "stream_buffer": "detect.py --every-frame looks at each frame of a stream",
    "time": "use --epochs; an interrupted run goes on with --resume",
    "update": "a file of weights is read as it is; best.pt holds nothing that is only needed to train on",
    "upload_dataset": NO_LOGGING_SERVICE,
    "vid_stride": "detect.py --vid-stride leaves out frames of videos",
    "visualize": "analyze.py --matching-stats --report shows what a network predicts, image by image",
}
FILES = {"coco.yaml": "coco2017.data", "hyp.scratch-low.yaml": "yolov5.yaml"}  # theirs -> ours of the same content
ADDRESSES = (  # pattern of the name of a file that is not here -> where it is, or why it would not help
    (r"yolov5[nsmlx]6?\.pt", "the official ones are at https://github.com/ultralytics/yolov5/releases"),
    (
        r"yolov3(-spp|-tiny)?u?\.pt|yolov5[nsmlx]6?(u|-seg|-cls)\.pt|yolov?(8|9|10|11|12|26).*\.pt",
        "its network is another one and would not be read; the official YOLOv5 weights that are read "
        "(yolov5n.pt, …) are at https://github.com/ultralytics/yolov5/releases",
    ),
    (
        r".*\.weights|.*\.conv\.\d+",
        "Darknet's are at https://pjreddie.com/darknet/yolo and https://github.com/AlexeyAB/darknet/releases",
    ),
    (r"hyp\..*\.yaml", "YOLOv5's recipes are at https://github.com/ultralytics/yolov5/tree/v7.0/data/hyps"),
)


def answer_to(argument: str) -> str:
    """Return what to use instead of an argument that no option takes, as words that follow it; or an empty string."""
    name, equals, value = argument.partition("=")
    if not name.startswith("-"):
        if equals:
            return f"options are written --{name.replace('_', '-')} {value}"
        return "belongs to no option; or the option before it takes fewer values"
    return ANSWERS.get(name.lstrip("-").replace("-", "_"), "")


def our_file(name: str, ending: str) -> str:
    """Return the name of our file of the same content as one of theirs: ``yolov5s.cfg`` for ``models/yolov5s.yaml``.

    Args:
        name: as the user typed it.
        ending: of our files of this kind.
    """
    path = Path(name)
    return FILES.get(path.name, f"{path.stem}{ending}" if path.suffix in (".yaml", ".yml") else name)


def address_of(name: str | Path) -> str:
    """Return ``"; "`` and where to get a well-known file that is not on the disk, or an empty string."""
    found = (text for pattern, text in ADDRESSES if re.fullmatch(pattern, Path(name).name, re.IGNORECASE))
    text = next(found, "")
    return f"; {text}" if text else ""


RECIPE_KEYS = {"box", "cls", "obj", "iou_t", "anchor_t"}  # that each recipe of YOLOv5 has
RECIPE_MEANS = {"match": "ratio", "gains": "yolov5", "box_loss": "ciou"}  # what goes without saying there
RECIPE_NOT_HERE = {  # key -> the values with which it changes nothing there either
    "anchors": (0,),
    "copy_paste": (0,),
    "iou_t": (0.2,),  # YOLOv5 does not use it: its matching knows anchor_t only
    "perspective": (0,),
}


def from_yolov5_recipe(values: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Return what a recipe of ultralytics/yolov5 means in our options, and a note; other recipes stay as they are.

    Its keys are ours: the gains are scaled with heads, classes and image size by ``gains: yolov5``, the weight decay
    with the batch, and ``lrf`` is a share of ``lr0`` in both. What it leaves out is how boxes are matched and compared.
    """
    renamed = {"box" if name == "giou" else name: value for name, value in values.items()}  # giou: before v4.0
    if RECIPE_KEYS - renamed.keys() or RECIPE_MEANS.keys() & renamed.keys():
        return dict(values), ""
    if renamed["anchor_t"] == 4:
        del renamed["anchor_t"]  # the default; left out, --match may choose a strategy that does not know it
    lost = [name for name, same in RECIPE_NOT_HERE.items() if renamed.pop(name, same[0]) not in same]
    meaning = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in RECIPE_MEANS.items())
    note = f"a recipe of YOLOv5, read with {meaning}; its --linear-lr is an option here, too"
    if lost:
        note += f"; without a meaning here: {', '.join(lost)}"
    return RECIPE_MEANS | renamed, note
