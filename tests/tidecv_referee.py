"""tidecv 1.0.1, the referee of the error breakdown: ``pip install --no-deps tidecv==1.0.1``.

Its plots need pandas, seaborn and appdirs, which are not installed for them, and opencv-python, which would overwrite
opencv-python-headless: all of these are stood in for. Run as a script it prints what the tests have recorded.
"""

import contextlib
import importlib.machinery
import json
import sys
import tempfile
import types

import pytest


def load_tidecv():
    """The package; skips the test where it is missing."""
    for name in ("pandas", "seaborn", "appdirs"):
        with contextlib.suppress(ImportError):
            __import__(name)
        if name not in sys.modules:
            module = types.ModuleType(name)
            module.__spec__ = importlib.machinery.ModuleSpec(name, None)
            module.user_data_dir = lambda *_, **__: tempfile.mkdtemp()
            module.set = module.set_palette = lambda *_, **__: None
            module.color_palette = lambda *_, **__: [(0, 0, 0)] * 10
            sys.modules[name] = module
    return pytest.importorskip("tidecv", reason="pip install --no-deps tidecv==1.0.1")


def tidecv_breakdown(truth, results):
    """What mending each kind of error gives, and how many there are, with COCO's limit and mean over the classes.

    tidecv keeps 100 detections of an image, COCO as many of an image and class; and tidecv's mean counts a class
    without objects as 0 as soon as there is a detection of it.
    """
    tidecv = load_tidecv()
    objects, found = (tidecv.Data(name, max_dets=10**9) for name in ("objects", "found"))
    for category in truth["categories"]:
        objects.add_class(category["id"], category["name"])
    for image in truth["images"]:
        objects.add_image(image["id"], str(image["id"]))
    for one in truth["annotations"]:
        add = objects.add_ignore_region if one["iscrowd"] else objects.add_ground_truth
        add(one["image_id"], one["category_id"], one["bbox"])
    ranks = {}
    for one in sorted(results, key=lambda one: -one["score"]):
        key = one["image_id"], one["category_id"]
        ranks[key] = ranks.get(key, 0) + 1
        if ranks[key] <= 100:
            found.add_detection(one["image_id"], one["category_id"], one["score"], one["bbox"])
    present = {one["category_id"] for one in truth["annotations"] if not one["iscrowd"]}

    def mean_ap(self):
        return sum(one.get_ap() for key, one in self.objs.items() if key in present) / len(present)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tidecv.ClassedAPDataObject, "get_mAP", mean_ap)
        run = tidecv.TIDE().evaluate(objects, found)
        lost = {kind.short_name: value / 100 for kind, value in run.fix_main_errors().items()}
        special = {kind.short_name: value / 100 for kind, value in run.fix_special_errors().items()}
    lost |= {"FP": special["FalsePos"], "FN": special["FalseNeg"]}
    return lost, {kind.short_name: count for kind, count in run.count_errors().items()}


if __name__ == "__main__":
    from tests.test_evaluation_error_kinds import RECORDED, tide_case

    print(json.dumps({seed: tidecv_breakdown(*tide_case(seed)) for seed in RECORDED}))
