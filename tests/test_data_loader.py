"""Loaders: the same batches whatever the number of workers and after a resume; every image once; errors in one line."""

import json
import multiprocessing
import os
import signal
import threading
import time

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from data.augment import AugmentOptions
from data.dataset import BatchPlan, DetectionDataset
from data.labels.read import read_dataset
from data.letterbox import resize_as_darknet
from data.loader import (
    LoaderSettings,
    evaluation_batches,
    evaluation_plans,
    random_size,
    training_batches,
    training_plans,
)
from data.splits import open_data
from data.workers import report_thread
from tests.tiny_project import NO_AUGMENTATION
from utils.errors import LostProcessError, UserError


@pytest.fixture(scope="module")
def notes(tmp_path_factory):
    """21 images of different sizes with 0 to 3 objects."""
    folder = tmp_path_factory.mktemp("set")
    (folder / "images").mkdir()
    (folder / "labels").mkdir()
    rng = np.random.default_rng(0)
    for index in range(21):
        width, height = (int(side) for side in rng.integers(40, 160, 2))
        image = cv2.resize(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8), (width, height))
        cv2.imwrite(str(folder / "images" / f"{index:02d}.jpg"), image)
        rows = [
            f"{rng.integers(3)} .5 .5 {rng.uniform(0.2, 0.9):.3f} {rng.uniform(0.2, 0.9):.3f}" for _ in range(index % 4)
        ]
        (folder / "labels" / f"{index:02d}.txt").write_text("\n".join(rows))
    return read_dataset(open_data(str(folder / "images")), "train")


def same(first, second) -> bool:
    parts = [(first.images, second.images)]
    for name in ("targets", "crowd"):
        for column in ("image", "label", "boxes_cxcywh"):
            parts.append((getattr(getattr(first, name), column), getattr(getattr(second, name), column)))
    return first.metas == second.metas and all(torch.equal(a, b) for a, b in parts)


def epoch_of(batches, epoch):
    batches.set_epoch(epoch)
    return list(batches)


SETTINGS = {"image_hw": (96, 128), "batch_size": 4, "seed": 3}


@pytest.mark.parametrize("options", [{}, {"multi_scale": True}, {"rect": True}], ids=["mosaic", "multi-scale", "rect"])
def test_workers_change_nothing_and_an_epoch_can_be_made_again(notes, options):
    augment = AugmentOptions(mixup=0.5, degrees=5.0)
    alone = training_batches(notes, LoaderSettings(**SETTINGS, **options), augment)
    shared_out = training_batches(notes, LoaderSettings(**SETTINGS, **options, workers=2), augment)
    for epoch in (0, 1):
        ours, theirs = epoch_of(alone, epoch), epoch_of(shared_out, epoch)
        assert len(ours) == len(theirs) == len(alone) == 6
        assert all(same(a, b) for a, b in zip(ours, theirs, strict=True))
    # A resumed run begins with epoch 1; what epoch 0 left in caches must not matter.
    resumed = epoch_of(training_batches(notes, LoaderSettings(**SETTINGS, **options), augment), 1)
    assert all(same(a, b) for a, b in zip(ours, resumed, strict=True))
    first = epoch_of(alone, 0)
    assert [batch.metas for batch in first] != [batch.metas for batch in ours]


@pytest.mark.parametrize("workers", [0, 1])
def test_closed_mosaic_is_an_epoch_without_mosaic_and_mixup(notes, workers):
    settings = LoaderSettings(**SETTINGS, workers=workers)
    batches = training_batches(notes, settings, AugmentOptions(mixup=0.5, degrees=5.0, close_mosaic=1))
    plain = training_batches(notes, settings, AugmentOptions(mosaic=0.0, mixup=0.0, degrees=5.0))
    before = epoch_of(batches, 1)
    batches.set_epoch(1, closes_mosaic=True)
    assert all(same(*pair) for pair in zip(batches, epoch_of(plain, 1), strict=True))
    batches.set_epoch(1)
    assert all(same(*pair) for pair in zip(before, batches, strict=True))
    assert not same(before[0], epoch_of(plain, 1)[0])


def test_cached_images_change_nothing(notes):
    plain = epoch_of(training_batches(notes, LoaderSettings(**SETTINGS), AugmentOptions()), 2)
    cached = epoch_of(training_batches(notes, LoaderSettings(**SETTINGS, cache="ram", workers=1), AugmentOptions()), 2)
    assert all(same(a, b) for a, b in zip(plain, cached, strict=True))


def test_loading_leaves_the_global_generators_alone(notes):
    torch.manual_seed(5)
    np.random.seed(5)
    epoch_of(training_batches(notes, LoaderSettings(**SETTINGS, workers=1), AugmentOptions()), 0)
    after = torch.rand(1), np.random.rand()
    torch.manual_seed(5)
    np.random.seed(5)
    assert after == (torch.rand(1), np.random.rand())


def test_an_epoch_has_each_image_once_in_its_own_order(notes):
    settings = LoaderSettings(**SETTINGS)
    orders = [[i for plan in training_plans(notes.image_wh, settings, epoch) for i in plan.indices] for epoch in (0, 1)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(21))
    assert orders[0] != orders[1]


@pytest.mark.parametrize("rect", [False, True])
def test_processes_share_the_epoch_of_one_process(notes, rect):
    whole = training_plans(notes.image_wh, LoaderSettings((96, 96), 8, rect=rect, seed=1), 4)
    parts = [
        training_plans(notes.image_wh, LoaderSettings((96, 96), 4, rect=rect, seed=1, rank=rank, world_size=2), 4)
        for rank in (0, 1)
    ]
    assert [len(plan.indices) for plan in parts[0]] == [len(plan.indices) for plan in parts[1]]
    seen = set()
    for all_of_it, *mine in zip(whole, *parts, strict=True):
        assert {plan.net_hw for plan in mine} == {all_of_it.net_hw}
        together = [i for plan in mine for i in plan.indices]
        if len(all_of_it.indices) == 8:
            assert sorted(together) == sorted(all_of_it.indices)
        assert set(all_of_it.indices) <= set(together)
        seen |= {i for plan in mine for i in plan.indices}
    assert seen == set(range(21))


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_the_images_of_the_batches_before_a_resume_are_those_of_all_processes(notes, processes):
    for rank in range(processes):  # whichever number of them had made these batches
        settings = LoaderSettings((96, 96), 8 // processes, rank=rank, world_size=processes)
        batches = training_batches(notes, settings, AugmentOptions())
        assert batches.images_before() == 0
        batches.set_epoch(0, first=2)
        assert batches.images_before() == 16


def test_mosaic_partners_come_from_the_block_of_the_picture():
    plans = training_plans(np.full((300, 2), 50), LoaderSettings((96, 96), 8), 0)
    order = [i for plan in plans for i in plan.indices]
    for number, plan in enumerate(plans):
        start = number * 8 // 64 * 64
        assert list(plan.pool) == order[start : start + 64] and set(plan.indices) <= set(plan.pool)


def test_an_image_is_augmented_anew_in_each_epoch_and_by_each_seed(notes):
    def picture(epoch, seed):
        dataset = DetectionDataset(notes, augment=AugmentOptions(), seed=seed)
        return dataset[BatchPlan((3,), (96, 96), epoch, (4, 5, 6))].images

    assert torch.equal(picture(0, 0), picture(0, 0))
    assert not torch.equal(picture(0, 0), picture(1, 0)) and not torch.equal(picture(0, 0), picture(0, 1))


def test_evaluation_shards_hold_each_image_once(notes):
    found = []
    for rank in range(3):
        settings = LoaderSettings((96, 96), 2, rect=True, rank=rank, world_size=3)
        found += [i for plan in evaluation_plans(notes.image_wh, settings) for i in plan.indices]
    assert sorted(found) == list(range(21))


def test_evaluation_gives_the_image_as_it_is_and_its_boxes(notes):
    for rect, resize in ((False, "letterbox"), (True, "letterbox"), (False, "stretch")):
        seen = 0
        for batch in evaluation_batches(notes, LoaderSettings((96, 128), 4, rect=rect, resize=resize)):
            height, width = batch.images.shape[2:]
            assert (
                height % 32 == 0 and width % 32 == 0 and batch.images.is_contiguous(memory_format=torch.channels_last)
            )
            for b, meta in enumerate(batch.metas):
                index = notes.image_paths.index(meta.path)
                assert meta.original_wh == tuple(notes.image_wh[index]) and meta.image_id == notes.image_ids[index]
                rows = batch.targets.image == b
                cx, cy, w, h = (batch.targets.boxes_cxcywh[rows] * torch.tensor([width, height, width, height])).T
                corners = torch.stack((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), dim=1)
                truth = notes.boxes_xyxy[notes.rows_of(index)]
                np.testing.assert_allclose(meta.to_original(corners).numpy(), truth, atol=1e-2)
                assert batch.targets.label[rows].tolist() == notes.labels[notes.rows_of(index)].tolist()
                seen += 1
        assert seen == 21


def test_a_stretched_image_is_not_rounded_to_bytes(notes):
    batches = {resize: next(iter(evaluation_batches(notes, LoaderSettings((96, 128), 4, resize=resize))))
               for resize in ("letterbox", "stretch")}  # fmt: skip
    assert batches["letterbox"].images.dtype == torch.uint8 and batches["stretch"].images.dtype == torch.float32
    stretched = batches["stretch"].images
    assert (stretched != stretched.round()).any() and stretched.min() >= 0 and stretched.max() < 255.1
    image = cv2.imread(batches["stretch"].metas[0].path)[:, :, ::-1]
    np.testing.assert_array_equal(stretched[0].permute(1, 2, 0).numpy(), resize_as_darknet(image, (128, 96)))


def test_evaluation_pixels_are_rgb(tmp_path):
    (tmp_path / "a.png").parent.mkdir(exist_ok=True)
    cv2.imwrite(str(tmp_path / "a.png"), np.full((64, 64, 3), (10, 20, 200), np.uint8))  # BGR: red
    (tmp_path / "a.txt").write_text("0 .5 .5 .5 .5\n")
    red = read_dataset(open_data(str(tmp_path)), "train")
    (plain,) = evaluation_batches(red, LoaderSettings((64, 64)))
    (trained,) = training_batches(red, LoaderSettings((64, 64)), NO_AUGMENTATION)
    assert plain.images[0, :, 30, 30].tolist() == trained.images[0, :, 30, 30].tolist() == [200, 20, 10]


def test_rect_batches_are_small_and_hold_similar_shapes(notes):
    plans = evaluation_plans(notes.image_wh, LoaderSettings((128, 128), 3, rect=True))
    assert sum(np.prod(plan.net_hw) * len(plan.indices) for plan in plans) < 0.9 * 21 * 128 * 128
    aspects = [notes.image_wh[i, 1] / notes.image_wh[i, 0] for plan in plans for i in plan.indices]
    assert aspects == sorted(aspects)


def test_multi_scale_range_and_reproducibility():
    settings = LoaderSettings((416, 416), multi_scale=True, seed=2)
    sizes = [random_size(settings, 0, number) for number in range(400)]
    # .67 x 416 / 32 = 8.7 -> 8 strides; 1.5 x 416 / 32 = 19.5 -> 19 strides
    assert {height for height, _ in sizes} == {32 * n for n in range(8, 20)}
    assert all(height == width for height, width in sizes)
    assert sizes == [random_size(settings, 0, number) for number in range(400)]
    assert sizes != [random_size(settings, 1, number) for number in range(400)]
    # 416 / 1.4 / 32 = 9.3 and 416 x 1.4 / 32 = 18.2
    narrow = LoaderSettings((416, 416), multi_scale=True, multi_scale_range=(1 / 1.4, 1.4))
    assert {random_size(narrow, 0, number)[0] for number in range(400)} == {32 * n for n in range(9, 19)}
    wide = LoaderSettings((256, 512), multi_scale=True)
    assert all(abs(w / h - 2) < 0.3 for h, w in (random_size(wide, 0, n) for n in range(50)))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("damage", ["rubbish", "cut", "cut png", "gone", "other size"])
def test_an_unreadable_image_is_one_clear_line_from_any_process(tmp_path, workers, damage):
    suffix = "png" if damage == "cut png" else "jpg"
    for index in range(3):
        image = np.random.default_rng(index).integers(0, 256, (80, 60, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / f"{index}.{suffix}"), image)
        (tmp_path / f"{index}.txt").write_text("0 .5 .5 .5 .5\n")
    notes = read_dataset(open_data(str(tmp_path)), "train")
    victim = tmp_path / f"1.{suffix}"
    data = victim.read_bytes()
    if damage == "gone":
        victim.unlink()
    elif damage == "other size":
        cv2.imwrite(str(victim), np.zeros((10, 20, 3), np.uint8))
    else:
        victim.write_bytes(b"rubbish" if damage == "rubbish" else data[: len(data) // 2])
    for batches in (
        evaluation_batches(notes, LoaderSettings((64, 64), 2, workers=workers)),
        training_batches(notes, LoaderSettings((64, 64), 2, workers=workers), AugmentOptions()),
    ):
        with pytest.raises(UserError) as caught:
            list(batches)
        assert str(caught.value).startswith(f"{victim}: ") and "\n" not in str(caught.value)
        assert caught.value.__cause__ is None


def test_a_worker_that_is_killed_is_one_clear_line(notes, monkeypatch):
    def die(*_args):
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(DetectionDataset, "training_batch", die)
    batches = training_batches(notes, LoaderSettings(**SETTINGS, workers=1), AugmentOptions())
    with pytest.raises(UserError, match=r"a loading process died .* fewer --workers"):
        list(batches)


def workers_of_this_process():
    return [process.pid for process in multiprocessing.active_children()]


@pytest.mark.parametrize("held_by", ["a cycle", "a generator"])
def test_closed_batches_have_no_processes_whoever_holds_them(notes, held_by):
    batches = training_batches(notes, LoaderSettings(**SETTINGS, workers=2), AugmentOptions())
    if held_by == "a cycle":
        batches.cycle = batches
        list(batches)
    else:
        iterator = iter(batches)
        next(iterator)
    assert len(workers_of_this_process()) == 2
    start = time.monotonic()
    batches.close()
    assert not workers_of_this_process() and time.monotonic() - start < 4  # torch waits five seconds, then kills
    batches.set_epoch(1)
    assert len(list(batches)) == len(batches)  # with new ones
    batches.close()
    batches.close()


@pytest.mark.parametrize("moment", ["first batch", "between batches", "end of the epoch", "between epochs"])
@pytest.mark.parametrize("kind", ["training", "evaluation"])
def test_a_worker_that_is_killed_at_any_moment_is_one_clear_line(notes, monkeypatch, capfd, moment, kind):
    settings = LoaderSettings(**SETTINGS, workers=2)
    if kind == "training":
        batches = training_batches(notes, settings, AugmentOptions())
    else:
        batches = evaluation_batches(notes, settings)
    count = len(batches)
    kill_at = {"first batch": 1, "between batches": 3, "end of the epoch": count}.get(moment)

    def use(epoch):
        batches.set_epoch(epoch)
        for number, _ in enumerate(batches, 1):
            if epoch == 1 and number == kill_at:
                os.kill(workers_of_this_process()[0], signal.SIGKILL)
            time.sleep(0.05)  # what is done with a batch goes on undisturbed

    use(0)
    if moment == "between epochs":
        os.kill(workers_of_this_process()[0], signal.SIGKILL)
        time.sleep(0.2)
    with pytest.raises(LostProcessError, match=r"^a loading process died .*, or 0$"):
        use(1)
        use(2)  # at the end of an epoch, nobody waits for the worker until the next
    use(3)  # with new workers
    assert "Traceback" not in capfd.readouterr().err


def test_a_worker_that_dies_after_the_last_batch_is_no_news(notes, capfd):
    batches = evaluation_batches(notes, LoaderSettings(**SETTINGS, workers=2))
    assert sum(len(batch.images) for batch in batches) == len(notes)
    for pid in workers_of_this_process():
        os.kill(pid, signal.SIGKILL)
    time.sleep(0.2)
    del batches
    assert capfd.readouterr().err == ""


def test_an_error_of_the_code_in_a_worker_is_no_lost_process(notes, monkeypatch):
    for kind in (RuntimeError, FileNotFoundError):

        def fail(*_args, kind=kind):
            raise kind("a mistake of ours")

        monkeypatch.setattr(DetectionDataset, "training_batch", fail)
        batches = training_batches(notes, LoaderSettings(**SETTINGS, workers=1), AugmentOptions())
        with pytest.raises(kind, match="a mistake of ours") as caught:
            list(batches)
        assert not isinstance(caught.value, UserError)


def test_the_thread_that_pins_memory_is_silent_where_it_lost_a_worker(monkeypatch, capfd):
    monkeypatch.setattr(threading, "excepthook", report_thread)

    def _pin_memory_loop(error):  # torch's has this name
        raise error

    for error, is_silent in ((ConnectionResetError(), True), (EOFError(), True), (KeyError("a mistake"), False)):
        thread = threading.Thread(target=_pin_memory_loop, args=(error,))
        thread.start()
        thread.join()
        assert (capfd.readouterr().err == "") == is_silent


@pytest.mark.filterwarnings("error")
def test_other_kinds_of_pictures_are_read_as_three_channels(tmp_path):
    rng = np.random.default_rng(0)
    pictures = {
        "gray.png": rng.integers(0, 256, (30, 40), dtype=np.uint8),
        "alpha.png": rng.integers(0, 256, (30, 40, 4), dtype=np.uint8),
        "deep.png": rng.integers(0, 65536, (30, 40, 3), dtype=np.uint16),
        "one.bmp": rng.integers(0, 256, (1, 1, 3), dtype=np.uint8),
        "line.webp": rng.integers(0, 256, (2, 300, 3), dtype=np.uint8),
    }
    for name, image in pictures.items():
        cv2.imwrite(str(tmp_path / name), image)
        (tmp_path / name).with_suffix(".txt").write_text("0 .5 .5 1 1\n")
    notes = read_dataset(open_data(str(tmp_path)), "train")
    for batches in (
        evaluation_batches(notes, LoaderSettings((64, 64), 2, rect=True)),
        training_batches(notes, LoaderSettings((64, 64), 2), AugmentOptions()),
    ):
        assert sum(len(batch.images) for batch in batches) == 5


def test_training_without_any_object_is_refused(notes):
    empty = notes.select_boxes(np.zeros(len(notes.labels), bool))
    with pytest.raises(UserError, match="the 21 training images have no objects at all"):
        training_batches(empty, LoaderSettings((96, 96)), AugmentOptions())
    assert len(list(evaluation_batches(empty, LoaderSettings((96, 96))))) == 2


def test_sizes_that_do_not_fit_the_stride_are_refused():
    with pytest.raises(ValueError, match="no multiples of the stride 32"):
        LoaderSettings((416, 400))
    with pytest.raises(ValueError, match="no multiples of the stride 32"):
        LoaderSettings((0, 416))
    with pytest.raises(ValueError, match="resize 'squash'; known: letterbox, stretch"):
        LoaderSettings((416, 416), resize="squash")


def test_exif_orientation(tmp_path):
    """For YOLO labels the upright picture counts; for a COCO JSON the one whose size it gives."""
    stored = np.zeros((40, 80, 3), np.uint8)
    stored[:, :20] = (255, 0, 0)  # RGB: the left quarter is red
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter to the right: the left edge becomes the top
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    Image.fromarray(stored).save(tmp_path / "a.jpg", exif=exif, quality=95)
    for name in ("a.png", "a.jpg"):
        other = tmp_path / ("a.jpg" if name == "a.png" else "a.png")
        kept = other.read_bytes()
        other.unlink()
        (tmp_path / "a.txt").write_text("0 .5 .125 1 .25\n")
        notes = read_dataset(open_data(str(tmp_path)), "train")
        assert notes.image_wh.tolist() == [[40, 80]]
        assert notes.boxes_xyxy.tolist() == [[0, 0, 40, 20]]
        (batch,) = evaluation_batches(notes, LoaderSettings((96, 96)))
        top, middle = batch.images[0, :, 5, 48].tolist(), batch.images[0, :, 60, 48].tolist()
        assert top[0] > 200 and middle[0] < 50
        for width, height in ((80, 40), (40, 80)):
            image = {"id": 1, "file_name": name, "width": width, "height": height}
            top = {"images": [image], "annotations": [], "categories": [{"id": 1, "name": "x"}]}
            (tmp_path / "c.json").write_text(json.dumps(top))
            (batch,) = evaluation_batches(
                read_dataset(open_data(str(tmp_path / "c.json")), "train"), LoaderSettings((96, 96))
            )
            first = batch.images[0, :, 48, 5] if width > height else batch.images[0, :, 5, 48]
            assert first[0] > 200
        other.write_bytes(kept)
        (tmp_path / "c.json").unlink()


@pytest.mark.parametrize("workers", [1025, 10**9])
def test_more_workers_than_any_machine_has_are_refused(workers):
    with pytest.raises(UserError, match="--workers"):
        LoaderSettings(**SETTINGS, workers=workers)
