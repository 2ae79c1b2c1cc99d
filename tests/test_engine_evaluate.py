"""From detections to COCO results: rounding, order, single class, and several processes."""

import json
import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pycocotools.coco import COCO

from engine.evaluate import collect_results, evaluate
from evaluation.results import coco_results
from utils.structures import Batch, Detections, ImageMeta, Targets

REPOSITORY = Path(__file__).resolve().parent.parent


class FixedDetector:
    """Finds in each image what a table says."""

    network = SimpleNamespace(num_classes=3)

    def __init__(self, table):
        self.table = table

    def __call__(self, images, metas):
        return [self.table[meta.image_id] for meta in metas]


def detections(*rows):
    boxes = torch.tensor([row[0] for row in rows]).reshape(-1, 4)
    return Detections(boxes, torch.tensor([row[1] for row in rows]), torch.tensor([row[2] for row in rows]).long())


def batch_of(*ids):
    metas = tuple(ImageMeta(image_id, "", (100, 80)) for image_id in ids)
    return Batch(torch.zeros(len(ids), 3, 32, 32, dtype=torch.uint8), Targets.empty(), Targets.empty(), metas)


GROUND_TRUTH = {
    "images": [{"id": 3, "width": 100, "height": 80}, {"id": 8, "width": 100, "height": 80}, {"id": 5}],
    "categories": [{"id": 4, "name": "a"}, {"id": 2, "name": "b"}, {"id": 9, "name": "c"}],
    "annotations": [
        {"id": 1, "image_id": 3, "category_id": 2, "bbox": [10, 10, 20, 20], "area": 400, "iscrowd": 0},
        {"id": 2, "image_id": 8, "category_id": 4, "bbox": [0, 0, 50, 40], "area": 2000, "iscrowd": 0},
    ],
}
TABLE = {
    3: detections(([10.0, 10, 30, 30], 0.9, 1), ([0.0, 0, 5, 5], 0.25, 2)),
    8: detections(([0.0, 0, 50, 40], 0.8, 0)),
    5: detections(),
}


def test_results_carry_original_ids_and_rounded_numbers():
    found = detections(([1 / 3, 2.0, 10 + 1 / 3, 7.00051], 0.123456789, 2))
    (result,) = coco_results(found, ImageMeta(77, "", (100, 100)), [4, 2, 9])
    # 10.33333 - 0.33333 = 10, 7.00051 - 2 = 5.00051 -> three decimals; the score is float32 0.12345679.
    assert result == {"image_id": 77, "category_id": 9, "bbox": [0.333, 2.0, 10.0, 5.001], "score": 0.12345679}
    assert json.loads(json.dumps(result)) == result
    assert coco_results(detections(), ImageMeta(1, "", (1, 1)), [1]) == []


def test_batches_and_their_order_do_not_matter():
    alone = collect_results(FixedDetector(TABLE), [batch_of(3), batch_of(8), batch_of(5)], GROUND_TRUTH)
    together = collect_results(FixedDetector(TABLE), [batch_of(5, 8), batch_of(3)], GROUND_TRUTH)
    assert alone == together
    assert [result["image_id"] for result in alone] == [3, 3, 8]  # in the order of the ground truth
    assert [result["category_id"] for result in alone] == [2, 9, 4]


def test_an_image_that_padding_repeats_counts_once():
    results = collect_results(FixedDetector(TABLE), [batch_of(3, 8), batch_of(5, 3)], GROUND_TRUTH)
    assert [result["image_id"] for result in results] == [3, 3, 8]


def test_single_class_results_have_the_only_category():
    truth = {**GROUND_TRUTH, "categories": [{"id": 1, "name": "object"}]}
    results = collect_results(FixedDetector(TABLE), [batch_of(3, 8, 5)], truth, single_class=True)
    assert [result["category_id"] for result in results] == [1, 1, 1]


def test_metrics_and_callback():
    seen = []
    metrics = evaluate(FixedDetector(TABLE), [batch_of(3, 8, 5)], GROUND_TRUTH)
    collect_results(FixedDetector(TABLE), [batch_of(3, 8)], GROUND_TRUTH, on_batch=lambda b, f: seen.append(len(f)))
    assert metrics.ap == pytest.approx(1.0) and metrics.num_images == 3 and seen == [2]
    assert metrics.class_ap == (pytest.approx(1.0), pytest.approx(1.0), -1.0)


def test_pycocotools_reads_the_results(tmp_path):
    results = collect_results(FixedDetector(TABLE), [batch_of(3, 8, 5)], GROUND_TRUTH)
    (tmp_path / "truth.json").write_text(json.dumps({**GROUND_TRUTH, "info": {}}))
    (tmp_path / "found.json").write_text(json.dumps(results))
    loaded = COCO(str(tmp_path / "truth.json")).loadRes(str(tmp_path / "found.json"))
    assert len(loaded.anns) == 3


SCRIPT = """
import sys, torch
from tests.test_engine_evaluate import GROUND_TRUTH, TABLE, FixedDetector, batch_of
from engine.evaluate import collect_results, evaluate
from utils import distributed
distributed.start(torch.device("cpu"))
mine = [[batch_of(3, 8)], [batch_of(5, 3)]][distributed.rank()]  # image 3 pads the second share
results = collect_results(FixedDetector(TABLE), mine, GROUND_TRUTH)
metrics = evaluate(FixedDetector(TABLE), mine, GROUND_TRUTH)
# In one piece: the processes share the output.
line = f"RANK {distributed.rank()} {len(results)} {metrics.ap} {metrics.num_images}\\n"
sys.stdout.write(line)
sys.stdout.flush()
distributed.stop()
"""


@pytest.mark.slow
def test_two_processes_give_the_metrics_of_one(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_addr=127.0.0.1"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, f"--master_port={port}", str(script)],
        capture_output=True, text=True, env=environment, cwd=REPOSITORY, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ap = evaluate(FixedDetector(TABLE), [batch_of(3, 8, 5)], GROUND_TRUTH).ap
    assert f"RANK 0 3 {ap} 3" in done.stdout and f"RANK 1 0 {ap} 3" in done.stdout
