"""Damaged files of every kind: each is read or refused in one line, soon and within 1 GiB beyond the imports.

    python -m tests.mutated_files --count 1000 [--kind coco] [--first 0]

Each kind runs in a child process of its own under a limit of its address space; an alarm ends a case that hangs. A
kind is a line of ``KINDS``: how honest files are made, how one of them is damaged, and what a command does with it.
"""

import argparse
import contextlib
import io
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from tests import mutations
from tests.mutations import (
    mutate_arrays,
    mutate_bytes,
    mutate_json,
    mutate_text,
    mutate_torch_zip,
    mutate_zip_entries,
)

REPOSITORY = Path(__file__).resolve().parent.parent
YOLOV5 = REPOSITORY.parent / "shared/data/weights/yolov5n.pt"
CFGS = ("yolov3-nano.cfg", "yolov3-tiny.cfg", "yolov5n.cfg")
SECONDS_PER_CASE = 20
GIBIBYTE = 1 << 30
TEXT = (mutate_text, mutate_text, mutate_text, mutate_bytes)
ZIP = (mutate_zip_entries, mutate_bytes)


@dataclass(frozen=True)
class Kind:
    """One kind of file."""

    make: Callable[[Path], Path]  # fills the working directory with honest files, returns the one that is damaged
    mutations: tuple[Callable, ...]
    read: Callable[[Path], None]  # what a command does with the file; must succeed with the honest one
    memory: int = GIBIBYTE  # bytes beyond the imports
    needs: Path | None = None  # a file that not everybody has


def project(folder: Path) -> Path:
    """Make a data set of seven images with labels, a cfg and a trained network."""
    from tests.tiny_project import make_project

    return make_project(folder)


def make_cfg(folder):
    return Path(shutil.copy(REPOSITORY / "cfg" / CFGS[0], folder / "x.cfg"))


def mutate_cfg(content, rng):
    """Damage one of three cfgs; some sections change their kind."""
    content = (REPOSITORY / "cfg" / rng.choice(CFGS)).read_bytes()
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        content = mutate_text(content, rng)
    if rng.randrange(8) == 0:
        lines = content.split(b"\n")
        lines[rng.randrange(len(lines))] = rng.choice(
            [b"[maxpool]", b"[net]", b"[foo]", b"[", b"[]", b"[crnn]", b"[sam]", b"[reorg]", b"[yolo]", b"[route]"]
        )
        content = b"\n".join(lines)
    return content


def read_cfg(path):
    """Build the network, and run it where that is cheap."""
    import torch

    from models.network import build_network

    network = build_network(path).eval()
    network.require_heads()
    width, height = network.input_wh
    if sum(float(row[7]) for row in network.table if row[7]) < 1 and width * height < 1e6:
        with torch.no_grad():
            raw_maps = network(torch.zeros(1, network.config.net["channels"], height, width))
        assert all(raw.shape[-1] == 5 + network.num_classes for raw in raw_maps)


def make_weights(folder):
    from models.checkpoints.darknet_weights import save_darknet_weights
    from tests.tiny_project import CFG, random_network

    (folder / "x.cfg").write_text(CFG)
    save_darknet_weights(random_network(), folder / "x.weights", seen=5)
    return folder / "x.weights"


def read_weights(path):
    """Load as test.py and detect.py do, and see that the network computes."""
    import torch

    from engine.resolve import Wanted, name_classes, resolve

    found = name_classes(resolve(Wanted(str(path)), needs_data=False))
    with torch.no_grad():
        raw_maps = found.loaded.network.eval()(torch.rand(1, 3, 64, 96))
    assert all(not torch.isnan(raw).any() for raw in raw_maps)


def make_last(folder):
    from engine import train_options
    from models.checkpoints.format import save_checkpoint
    from tests.test_engine_training_state import content_of, new_state

    options = train_options.TrainGroups(*(group() for group in train_options.GROUPS)).as_dict()
    history = [{"epoch": 1, "train/box": 0.5}]
    save_checkpoint(
        folder / "last.pt", content_of(new_state(0, steps=2)) | {"options": options, "epoch": 1, "history": history}
    )
    return folder / "last.pt"


def read_last(path):
    """Take from it what train.py --resume takes."""
    import train
    from engine.precision import Precision

    options, checkpoint = train.choose_options({"resume": str(path), "device": "cpu"})
    network, _ = train.new_network(options.train, tuple(checkpoint["names"]), checkpoint)
    train.load_training_state(train.new_state(network, options, Precision("float32")), checkpoint, path)


def make_official(folder):
    return Path(shutil.copy(YOLOV5, folder / "x.pt"))


def read_official(path):
    from models.checkpoints.load import load_network

    load_network(path)


def make_coco(folder):
    from data.splits import open_split

    project(folder)
    (folder / "x.json").write_text(json.dumps(open_split("tiny.data", "train").to_coco()))
    return folder / "x.json"


def read_annotations(path):
    """Read the annotations, sum them up, and write what is written of them."""
    from analysis.dataset_stats import DatasetStatsOptions, dataset_stats
    from analysis.output.result import with_problems, write_result
    from data.splits import open_split

    for need_images in (True, False):
        annotations = open_split(str(path), "train", need_images=need_images)
        json.dumps(annotations.to_coco(), allow_nan=False).encode()
    found = with_problems(dataset_stats(annotations, DatasetStatsOptions()), annotations)
    write_result(replace(found, plots={}), Path("runs/analyze/x"), "analyze.py")


def make_voc(folder):
    from data.splits import open_split

    project(folder)
    found = open_split("tiny.data", "train")
    (folder / "voc/Annotations").mkdir(parents=True)
    shutil.copytree(folder / "images", folder / "voc/JPEGImages")
    for index, image in enumerate(found.image_paths):
        rows = found.rows_of(index)
        objects = "".join(
            f"\n<object><name>{found.names[label]}</name><difficult>0</difficult>\n<bndbox>"
            f"<xmin>{x1:.1f}</xmin><ymin>{y1:.1f}</ymin><xmax>{x2:.1f}</xmax><ymax>{y2:.1f}</ymax></bndbox></object>"
            for label, (x1, y1, x2, y2) in zip(found.labels[rows], found.boxes_xyxy[rows].tolist(), strict=True)
        )
        width, height = found.image_wh[index].tolist()
        size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
        text = f"<annotation><filename>{Path(image).name}</filename>\n{size}{objects}\n</annotation>\n"
        (folder / "voc/Annotations" / f"{Path(image).stem}.xml").write_text(text)
    return folder / "voc/Annotations/000.xml"


def mutate_xml(content, rng):
    """Damage the text, or put in elements in one another, an entity, half of a tag."""
    kind = rng.randrange(8)
    if kind:
        return mutate_text(content, rng)
    at = rng.randrange(len(content))
    entity = b'<!DOCTYPE a [<!ENTITY x "lol">]>'
    piece = rng.choice([b"<object>", b"</object>", b"<a>" * 300_000, entity, b"&x;", b"<name>", b"<![CDATA[", b"<!--"])
    return content[:at] + piece + content[at:] if piece is not entity else entity + content


def read_voc(path):
    read_annotations(path.parents[1])


def make_yolo(folder):
    project(folder)
    return folder / "labels/000.txt"


def read_yolo(path):
    """Read the labels with names and without."""
    read_annotations(path.parents[1] / "tiny.data")
    read_annotations(path.parents[1] / "images")


def make_data(folder):
    project(folder)
    return folder / "tiny.data"


def make_data_yaml(folder):
    """Describe the project as Roboflow and ultralytics do."""
    project(folder)
    (folder / "x.yaml").write_text(
        "path: .  # of the data\ntrain: images\nval: [images, images]\ntest:\nnc: 3\n"
        "names:\n  0: a\n  1: b\n  2: c\ndownload: rm -r images\n"
    )
    return folder / "x.yaml"


def make_names(folder):
    project(folder)
    return folder / "tiny.names"


def read_names(path):
    """Read the names, and draw them as train.py does."""
    import numpy as np

    from data.splits import open_split
    from engine.run_folder import plot_labels

    annotations = open_split(str(path.with_suffix(".data")), "train")
    if len(path.read_bytes()) % 8 == 0:  # drawing is slow
        plot_labels(
            path.with_name("labels.png"), annotations.labels, np.zeros((0, 2)), np.zeros((0, 2)), annotations.names
        )


def make_recipe(folder):
    import yaml

    from engine import train_options

    values = train_options.TrainGroups(*(group() for group in train_options.GROUPS)).as_dict()
    (folder / "x.yaml").write_text("# a recipe\n" + yaml.safe_dump(values, sort_keys=False))
    return folder / "x.yaml"


def mutate_yaml(content, rng):
    """Damage the text, a value of it, or put in aliases and depth."""
    import yaml

    kind = rng.randrange(8)
    if kind == 0:
        values = [value for value in mutations.VALUES if not (isinstance(value, int) and value > 2**63)]
        return yaml.dump(mutations.mutate_tree(yaml.safe_load(content), rng, values)).encode("utf-8", "surrogatepass")
    if kind == 1:
        laughs = "a0: &a0 [x, x, x]\n" + "".join(
            f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
        )
        return content + rng.choice([laughs.encode(), b"x: " + b"[" * 100_000, b"x: &a [*a]\n", b"<<: {epochs: 1}\n"])
    return mutate_text(content, rng)


def read_recipe(path):
    from engine import train_options
    from utils.config import build_options
    from utils.config import read_recipe as read

    build_options(read(path, train_options.GROUPS), train_options.GROUPS)


def make_run(folder):
    """Make two finished runs of train.py with their tables."""
    from engine.run_folder import save_config, save_results_csv

    options = {"data": "shapes.data", "cfg": "yolov3-nano.cfg", "epochs": 3, "match": "standard", "alpha": 0.0}
    counts = {"match/objects": 7, "match/unmatched": 1, "match/positives_per_object": 1.5}
    history = [
        {"epoch": n, "train/box": 1 / n, "metrics/mAP_0.5": n / 9, "metrics/mAP_0.5:0.95": n / 20, **counts}
        for n in (1, 2, 3)
    ]
    for name, seed in (("a", 0), ("b", 1)):
        run = folder / "runs/train" / name
        run.mkdir(parents=True)
        save_config(run, {**options, "seed": seed, "img_size": [96], "name": name})
        save_results_csv(run / "results.csv", history)
    return folder / "runs/train/b"


def make_config(folder):
    return make_run(folder) / "config.yaml"


def make_results(folder):
    return make_run(folder) / "results.csv"


def read_run(path):
    """Compare the runs, as text and numbers."""
    from analysis.compare_runs import CompareOptions, compare_runs
    from analysis.compare_runs import read_run as read
    from analysis.output.result import print_result, write_result

    found = compare_runs([read(path.parents[1] / name) for name in "ab"], CompareOptions())
    write_result(replace(found, plots={}), Path("runs/analyze/x"), "analyze.py")
    print_result(found)


def read_config(path):
    """Compare the runs; and an analysis of other data only looks which run is the newest."""
    import analyze
    from analysis.mode import AnalyzeOptions

    os.utime(path)
    analyze.with_defaults(AnalyzeOptions(data="other.data"))
    read_run(path)


def make_list(folder):
    project(folder)
    (folder / "x.txt").write_text("".join(f"{path}\n" for path in sorted((folder / "images").iterdir())))
    return folder / "x.txt"


def make_image(folder):
    """Make a picture of every format under one name; which one is damaged changes from case to case."""
    import cv2
    import numpy as np
    from PIL import Image

    pixels = cv2.resize(np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8), (40, 30))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(folder / "x.jpg", exif=exif)
    return folder / "x.jpg"


def mutate_image(content, rng):
    """Damage the picture in one of six formats."""
    from PIL import Image

    form = rng.choice(("JPEG", "JPEG", "PNG", "BMP", "TIFF", "WEBP", "PPM"))
    if form != "JPEG":
        stream = io.BytesIO()
        Image.open(io.BytesIO(content)).save(stream, form)
        content = stream.getvalue()
    for _ in range(rng.choice([1, 1, 3])):
        content = mutate_bytes(content, rng)
    return content


def read_image(path):
    """Read the header and the pixels as training does, and as detect.py does."""
    from data.image_files import image_header
    from data.image_files import read_image as read
    from data.sources import open_source
    from utils.errors import UserError

    for source in open_source(str(path)):
        assert len(list(source)) + len(source.problems) == 1
    header = image_header(str(path))
    for reduce in (1, 2):
        with contextlib.suppress(UserError):
            assert read(str(path), (header.width, header.height), header.orientation, reduce).shape[0] > 0


def make_cache(folder):
    from data.labels import cache
    from data.splits import open_split

    project(folder)
    cache.MIN_IMAGES = 1
    open_split("tiny.data", "train")
    return folder / "images.cache.npz"


def read_cache(path):
    """Read the labels: the same as without a cache."""
    from data.labels import cache
    from data.splits import open_split

    cache.MIN_IMAGES = 1
    recalled = open_split("tiny.data", "train")
    cache.MIN_IMAGES = 1000
    parsed = open_split("tiny.data", "train")
    assert recalled.to_coco() == parsed.to_coco() and recalled.problems == parsed.problems


def plan_of_project():
    """Return how --matching-stats looks at the project: annotations, plan, settings; made once."""
    if not hasattr(plan_of_project, "found"):
        from analysis.matching.command import Source, loader_settings, open_everything
        from analysis.matching.options import MatchingOptions
        from analysis.strategies import StrategyOptions
        from data.image_checks import ImageCheckOptions

        options = MatchingOptions(workers=0, batch_size=2, device="cpu")
        inputs = open_everything(
            Source("", "train", "", 0), options, StrategyOptions(match="standard,simota"), ImageCheckOptions()
        )
        plan_of_project.found = inputs.annotations, inputs.plan, loader_settings(inputs, options)
    return plan_of_project.found


def make_partial(folder):
    from analysis.matching import measure

    project(folder)
    measure.BATCHES_PER_BLOCK = 1
    (folder / "partial").mkdir()
    measure.measure_images(*plan_of_project(), folder / "partial")
    (folder / "partial/block-0000002.npz").unlink()
    return folder / "partial/block-0000001.npz"


def read_partial(path):
    """Go on with the interrupted run, and sum up what was measured."""
    from analysis.matching.measure import measure_images
    from analysis.matching.statistics import groups_of, statistics

    annotations, *rest = plan_of_project()
    try:
        found = measure_images(annotations, *rest, path.parent)
        json.dumps(statistics(found, groups_of(annotations, found.objects, ("class", "size"))), default=str)
    finally:
        path.with_name("block-0000002.npz").unlink(missing_ok=True)


PT = (mutate_torch_zip, mutate_torch_zip, *ZIP)
YAML = (mutate_yaml, mutate_yaml, mutate_bytes)
KINDS = {
    "cfg": Kind(make_cfg, (mutate_cfg,), read_cfg, 2 * GIBIBYTE),  # a network may have 300 million numbers
    "weights": Kind(make_weights, (mutate_bytes,), read_weights),
    "last.pt": Kind(make_last, PT, read_last),
    "best.pt": Kind(project, PT, read_weights),
    "yolov5.pt": Kind(make_official, (mutate_zip_entries, *ZIP), read_official, needs=YOLOV5),
    "coco": Kind(make_coco, (mutate_json, mutate_json, mutate_text, mutate_bytes), read_annotations),
    "voc": Kind(make_voc, (mutate_xml, mutate_xml, mutate_bytes), read_voc),
    "yolo": Kind(make_yolo, TEXT, read_yolo),
    "data": Kind(make_data, TEXT, read_annotations),
    "data.yaml": Kind(make_data_yaml, YAML, read_annotations),
    "names": Kind(make_names, TEXT, read_names),
    "recipe": Kind(make_recipe, YAML, read_recipe),
    "config": Kind(make_config, YAML, read_config),
    "list": Kind(make_list, TEXT, read_annotations),
    "image": Kind(make_image, (mutate_image,), read_image),
    "cache": Kind(make_cache, (mutate_arrays, *ZIP), read_cache),
    "results": Kind(make_results, TEXT, read_run),
    "partial": Kind(make_partial, (mutate_arrays, *ZIP), read_partial),
}


class HangError(BaseException):
    """Not an Exception, so that nothing catches it by chance."""


def hang(*_):
    raise HangError


def run_case(kind, path, seed, outcome):
    """Read one damaged file and record what came of it."""
    from utils.errors import UserError

    signal.alarm(SECONDS_PER_CASE)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            kind.read(path)
        outcome["read"] += 1
    except UserError as error:
        outcome["refused"] += 1
        line = " ".join(str(error).split())  # as run_command prints it
        if not line or len(line) > 600:
            outcome["wrong"].append((seed, f"no line: {line[:200]!r}"))
    except OSError as error:  # run_command makes one line of it
        outcome["refused"] += 1
        if not error.strerror:
            outcome["wrong"].append((seed, f"{type(error).__name__}: {error}"[:300]))
    except (Exception, HangError) as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        what = f"{type(error).__name__}: {error!s:.200} ({Path(place.filename).name}:{place.lineno})"
        outcome["wrong"].append((seed, what))
    signal.alarm(0)


def run_cases(name, count, first, folder):
    """Run the cases of a kind in this process; return what came of them."""
    import torch

    import analyze  # noqa: F401  (the memory of the imports does not count)
    import train  # noqa: F401

    kind = KINDS[name]
    os.chdir(folder)
    warnings.simplefilter("ignore")
    warnings.simplefilter("error", RuntimeWarning)  # NumPy's: numbers that nobody has looked at
    torch.set_num_threads(1)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        path = kind.make(Path(folder)).absolute()
        kind.read(path)
    honest = path.read_bytes()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + kind.memory,) * 2)
    signal.signal(signal.SIGALRM, hang)
    outcome = {"read": 0, "refused": 0, "wrong": [], "slowest": 0.0}
    for seed in range(first, first + count):
        rng = random.Random(f"{name} {seed}")
        path.write_bytes(rng.choice(kind.mutations)(honest, rng))
        start = time.monotonic()
        run_case(kind, path, seed, outcome)
        outcome["slowest"] = max(outcome["slowest"], time.monotonic() - start)
    outcome["MiB"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) // 1024
    return outcome


def outcome_of(name, count, first=0):
    """Run the cases of a kind in a child process; return what came of them."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tests.mutated_files", "--child", folder, "--kind", name]
        command += ["--count", str(count), "--first", str(first)]
        child = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr[-3000:]
    return json.loads(child.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--kind", choices=KINDS, nargs="+", default=list(KINDS))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(run_cases(options.kind[0], options.count, options.first, options.child)))
        return
    wrong = 0
    print(f"{'kind':10}{'read':>7}{'refused':>9}{'wrong':>7}{'slowest':>9}{'MiB':>6}")
    for name in options.kind:
        needs = KINDS[name].needs
        if needs and not needs.is_file():
            print(f"{name:10} needs {needs}")
            continue
        found = outcome_of(name, options.count, options.first)
        wrong += len(found["wrong"])
        print(
            f"{name:10}{found['read']:7}{found['refused']:9}{len(found['wrong']):7}{found['slowest']:8.1f}s{found['MiB']:6}",
            flush=True,
        )
        for seed, what in found["wrong"][:20]:
            print(f"  {seed}: {what}")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
