"""Command lines that people copy from the README and the tutorials of ultralytics/yolov5: each works or is answered.

The project of the tests has the names of their data set, recipe and weights, so that the lines can stay as they are.
"""

import importlib
import shlex
import shutil

import pytest

from tests.tiny_project import REPOSITORY, make_project

QUICK = "--workers 0 --device cpu --epochs 1"
WORKS = [
    "train --img 96 --batch 4 --data coco128.data --weights yolov5s.pt --cfg tiny.cfg",
    "train --imgsz 96 --batch-size 4 --data coco128 --weights '' --cfg tiny --cache",
    "train --img-size 96 96 --batch_size 4 --data data/coco128.yaml --cfg models/tiny.yaml --cache ram --noautoanchor",
    "train --img 96 --batch 4 --data coco128 --weights yolov5s.pt --cfg tiny --hyp hyp.scratch-low.yaml --freeze 1",
    "train --img 96 --batch -1 --data coco128 --cfg tiny --optimizer Adam --cos-lr --noval --nosave --noplots",
    "train --img 96 --batch 4 --data coco128 --cfg tiny --adam --linear-lr --notest --rect --local_rank 0",
    "train --img 96 --batch 4 --data coco128 --project mine --name x --cfg tiny --save-period -1 --patience 5",
    "train --img=96 --batch=4 --data=coco128 --cfg=tiny --multi-scale --single-cls --label-smoothing 0.1 --seed 1",
    "train --img 96 --batch 4 --data coco128 --cfg tiny --weights yolov5s.pt --freeze 0 1 --image-weights",
    "test --weights yolov5s.pt --data coco128 --img 96 --batch 2 --conf 0.001 --iou 0.65 --half --verbose",
    "test --weights yolov5s.pt --data coco128 --imgsz 96 --task val --save-json --project mine --name v --exist-ok",
    "test --weights yolov5s.pt --data coco128 --img 96 --task speed --batch-size 1",
    "test --weights yolov5s.pt --data coco128 --img 96 --split train --single-cls --max-det 100",
    "test --weights yolov5s.pt --data coco128 --img 96 --augment",
    "test --weights yolov5s.pt --data coco128 --task study",
    "detect --weights yolov5s.pt --source images --img 96 --augment",
    "detect --weights yolov5s.pt --img 96 --conf 0.25 --source images",
    "detect --weights yolov5s.pt --source 'images/*.png' --imgsz 96 --iou-thres 0.45 --classes 0 2 --agnostic-nms",
    "detect --weights yolov5s.pt --source images/000.png --img 96 --save-txt --save-conf --nosave --max-det 10",
    "detect --weights yolov5s.pt --source images --img 96 --project mine --name d --exist-ok --data coco128 --half",
    "detect --weights yolov5s.pt --source images --img 96 --line-thickness 1 --hide-labels --hide-conf --vid-stride 2",
    "detect --weights yolov5s.pt --source images --img 96 --save-crop --save-csv --batch 4 --stream-buffer",
]
ANSWERED = [
    ("train --img 640 --batch 16 --data coco128.yaml --weights yolov5l.pt", "github.com/ultralytics/yolov5/releases"),
    ("train --data coco.yaml --weights '' --cfg yolov5s-ghost.yaml --batch-size 128", "shipped: "),
    ("train --data VOC.yaml --cfg tiny", "data file 'VOC.yaml' does not exist"),
    (
        "train --data coco128 --cfg tiny --hyp hyp.scratch-high.yaml",
        "github.com/ultralytics/yolov5/tree/v7.0/data/hyps",
    ),
    ("train --data coco128 --cfg tiny --batch 4 --device 0,1", "torchrun --nproc_per_node=2"),
    ("train --data coco128 --cfg tiny --batch 0", "--batch-size must be at least 1"),
    ("train --data coco128 --weights yolov5s.pt --cache gpu", "choose from '', 'ram', 'disk'"),
    ("train --data coco128 --weights yolov5s.pt --resume_evolve x", "goes on with its search"),
    ("train --data coco128 --weights yolov5s.pt --upload_dataset --bbox_interval 1", "TensorBoard"),
    ("train --resume", "no run in runs/train/ has a last.pt"),
    ("train --resume runs/train/none/weights/last.pt", "no such checkpoint"),
    ("train data=coco128.yaml model=yolov8n.pt epochs=100 imgsz=640", "--data coco128.yaml"),
    ("train --data coco128 --weights yolov8n.pt", "another one"),
    ("test --weights yolov5s.pt yolov5m.pt --data coco128", "fewer values"),
    ("test --weights yolov5s.pt --data coco128 --save-txt", "detect.py --save-txt"),
    ("test --weights yolov3.weights --data coco128", "pjreddie.com"),
    ("detect --weights yolov5s.pt --source images --save-frames", "one video"),
    ("detect --weights yolov5s.pt --source images --show-boxes", "--nosave"),
    ("detect --weights yolov5s.pt --source images --dnn", "OpenCV"),
    ("detect --weights yolov5x6.pt --source 0", "github.com/ultralytics/yolov5/releases"),
]


@pytest.fixture
def project(tmp_path, monkeypatch):
    checkpoint = make_project(tmp_path, num_images=4)
    shutil.copy(checkpoint, tmp_path / "yolov5s.pt")
    checkpoint.unlink()
    (tmp_path / "tiny.data").rename(tmp_path / "coco128.data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("line", WORKS)
def test_a_command_that_works(project, line, run_main):
    script, *arguments = shlex.split(line)
    quick = {"train": QUICK, "test": "--workers 0 --device cpu", "detect": "--device cpu"}[script]
    quick += " --study-sizes 64 96" if "study" in arguments else ""  # by default 49, up to 640
    status, _, error = run_main(importlib.import_module(script), *arguments, *quick.split())
    assert status == 0, error


@pytest.mark.parametrize("line, words", ANSWERED)
def test_a_command_that_is_answered(project, line, words, run_main):
    script, *arguments = shlex.split(line)
    status, _, error = run_main(importlib.import_module(script), *arguments)
    assert status == 2 and words in error and len(error.splitlines()) == 1, error


def test_our_recipe_is_the_one_that_stands_for_theirs(project, run_main):
    import train

    given = "--img 96 --batch 4 --data coco128 --cfg tiny --notest --hyp data/hyps/hyp.scratch-low.yaml"
    status, out, error = run_main(train, *given.split(), *QUICK.split())
    assert status == 0, error
    assert f"recipe {REPOSITORY / 'cfg/hyp/yolov5.yaml'}" in out
