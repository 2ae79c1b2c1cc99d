"""Train a detector: ``python train.py --cfg yolov3-spp.cfg --data coco2017.data --multi-scale``.

Without arguments it draws the built-in demo set and trains ``yolov3-nano.cfg`` on it. Under ``torchrun`` the batch is
shared among the processes.
"""

from __future__ import annotations

from utils.errors import UserError, run_command  # first: for Ctrl-C during the imports below
from utils.words import how_many

# isort: split
import math
from dataclasses import replace
from typing import Any

import torch

from data.labels.annotations import Annotations
from data.loader import Batches, LoaderSettings, evaluation_batches, training_batches
from data.sampling import EpochSampler
from data.splits import open_training_splits
from engine.anchor_check import check_anchors
from engine.ema import AveragedModel
from engine.evaluate import evaluate
from engine.network_input import Resize, choose_resize, input_size
from engine.optimizer import Schedule, build_optimizer
from engine.precision import Precision, choose_precision
from engine.recipes import FROM_CFG, notes_of_recipe
from engine.resolve import as_decoded, start_with_classes, tell_oddities, warn_of_decode
from engine.run_folder import plot_labels
from engine.train_loop import TrainState, freeze_layers, train_one_epoch, wrap_for_processes
from engine.train_options import TrainGroups, TrainOptions, choose_options, with_epochs
from engine.training_run import EpochBar, TrainingRun
from engine.training_state import load_training_state
from engine.validation_loss import ValidationLoss
from evaluation.coco import Metrics, has_objects
from models.assignment.counts import MatchCounts
from models.checkpoints.load import load_weights
from models.darknet.scaled_decode import DECODES
from models.detector import Detector
from models.loss import DetectionLoss, build_loss
from models.network import (
    Network,
    build_network,
    build_network_from_text,
    initialise_head_biases,
    require_heads,
    require_trainable,
)
from utils import distributed
from utils.config import find_file
from utils.devices import choose_device, describe_device, use_threads
from utils.seeding import seed_epoch, seed_everything


def main() -> None:
    """Train one detector; leave checkpoints, log and resolved configuration in runs/train/<name>."""
    options, checkpoint = choose_options(__doc__.splitlines()[0])
    device = choose_device(options.train.device)
    use_threads()
    distributed.start(device)
    seed_everything(options.train.seed)

    train_set, test_set = open_training_splits(
        options.train.data, options.train.val_fraction, options.train.single_cls, options.images
    )
    check_names(options.train, train_set.names, checkpoint)

    network, resize = new_network(options.train, train_set.names, checkpoint)
    input_wh = input_size(options.train.img_size, network)
    if not checkpoint:
        network = check_anchors(network, train_set, input_wh, resize.kind, options.anchors, options.train)
    network = network.to(device).to(memory_format=torch.channels_last)
    precision = choose_precision(options.train.precision, options.train.amp, network, input_wh, device)
    options = replace(options, train=replace(options.train, resize=resize.kind, precision=precision.name))
    loss_function = build_loss(options.loss, options.assignment, network.heads, math.sqrt(math.prod(input_wh)))
    state = new_state(network, options, precision)
    if checkpoint:
        load_training_state(state, checkpoint, options.train.resume)

    train_settings, test_settings = loader_settings(options, network, device)
    sampler = EpochSampler(train_set, options.sampling)
    train_batches = training_batches(train_set, train_settings, options.augment, sampler)
    options = with_epochs(options, len(train_batches))
    test_batches = evaluation_batches(test_set, test_settings)
    ground_truth = test_set.to_coco()
    schedule = Schedule(options.optimizer, options.train.epochs, len(train_batches), options.train.batches_per_step)

    run = TrainingRun.start(options.train.project, options.as_dict(), (train_set, test_set), network.cfg_text, state)
    with run.interruptible():
        announce(run, options, network, resize, train_set, device, precision, sampler.note())
        if distributed.is_main() and not has_objects(ground_truth):
            print(f"{options.train.data} (valid): not a single object to find; best.pt goes by the training loss")
        wrapped = wrap_for_processes(network, device)
        while not run.is_over(state):
            sampler.class_ap, sampler.with_mosaic = state.class_ap, options.has_mosaic(state.epoch)
            train_batches.set_epoch(state.epoch)
            seed_epoch(options.train.seed, state.epoch, distributed.rank())
            loss_function.images_seen = state.epoch * len(train_set)
            with EpochBar(run, state.epoch, len(train_batches)) as bar:
                losses, counts = train_one_epoch(
                    state, wrapped, train_batches, loss_function, schedule, precision.dtype, bar.update
                )
            state.epoch += 1
            metrics, val_losses = None, None
            if state.epoch == options.train.epochs or not options.train.notest:
                metrics, val_losses = validate(state, test_batches, ground_truth, loss_function)
            run.finish_epoch(state, epoch_row(losses, counts, metrics, val_losses, state), fitness(metrics, losses))
            report_epoch(counts, metrics)
        run.finish(state, test_batches)
    del wrapped  # it holds the process group, which must not outlive the interpreter
    distributed.stop()


def check_names(options: TrainOptions, names: tuple[str, ...], checkpoint: dict[str, Any] | None) -> None:
    """Refuse a checkpoint to resume from that had other classes."""
    if checkpoint and tuple(checkpoint["names"]) != names:
        raise UserError(
            f"{options.data}: has other classes than when {options.resume} was written "
            f"({', '.join(checkpoint['names'])}); put them back, or start a new run with --weights"
        )


def new_network(
    options: TrainOptions, names: tuple[str, ...], checkpoint: dict[str, Any] | None
) -> tuple[Network, Resize]:
    """Build the network for these classes, with fresh, given or (before a resume) arbitrary weights.

    Returns:
        The network, and how images get into its input.
    """
    report = None
    if checkpoint:
        network = build_network_from_text(checkpoint["cfg_text"], checkpoint["cfg_name"], len(checkpoint["names"]))
    else:
        network = build_network(find_file(options.cfg, "cfg"), len(names))
        require_heads(network)
        if options.decode == "scaled":
            network = as_decoded(network)
        require_trainable(network)
        from_cfg = options.hyp == FROM_CFG
        for note in notes_of_recipe(network.config, network.notes) if from_cfg else network.notes:
            if note not in network.config.oddities:
                print(note)
        tell_oddities(network, options.strict)
        initialise_head_biases(network, "yolov5" if network.heads[0].new_coords else "yolov3")
        if options.weights:
            report = load_weights(network, options.weights)
            print(report)
            if not report.names and options.decode == DECODES[0]:
                warn_of_decode(network)
            network = start_with_classes(network, report, names)
    resize = Resize(options.resize, "as before") if checkpoint else choose_resize(options.resize, network, report)
    frozen = freeze_layers(network, options.freeze)
    if frozen and distributed.is_main():
        print(f"--freeze: {len(frozen)} of the {len(network.layers)} layers of {network.cfg_path} stay as they are")
    return network, resize


def new_state(network: Network, options: TrainGroups, precision: Precision) -> TrainState[Network]:
    """Return the state before the first epoch: weights, their average, optimizer and loss scale."""
    optimizer = build_optimizer(network, options.optimizer, options.train.batch_size * options.train.batches_per_step)
    device = next(network.parameters()).device
    scaler = torch.amp.GradScaler(device.type, enabled=precision.needs_scale)
    return TrainState(network, AveragedModel(network), optimizer, scaler)


def loader_settings(
    groups: TrainGroups, network: Network, device: torch.device
) -> tuple[LoaderSettings, LoaderSettings]:
    """Return how the training and the testing batches are made."""
    options = groups.train
    test = LoaderSettings(
        image_hw=input_size(options.test_size or options.img_size, network)[::-1],
        batch_size=max(1, options.batch_size // distributed.world_size()),
        stride=network.max_stride,
        rect=True,
        resize=options.resize,
        workers=options.workers,
        seed=options.seed,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        pin_memory=device.type == "cuda",
        max_bad=groups.images.max_bad,
    )
    train = replace(
        test,
        image_hw=input_size(options.img_size, network)[::-1],
        rect=options.rect,
        multi_scale=options.multi_scale,
        multi_scale_range=(options.multi_scale_range[0], options.multi_scale_range[1]),
        cache_images=options.cache == "ram",
        paint_later=options.augment_on == "device",
    )
    return train, test


def announce(
    run: TrainingRun,
    options: TrainGroups,
    network: Network,
    resize: Resize,
    train_set: Annotations,
    device: torch.device,
    precision: Precision,
    note: str,
) -> None:
    """Say in one line what was chosen, add a note, and draw how the training labels are distributed."""
    if not distributed.is_main():
        return
    train = options.train
    parameters = sum(parameter.numel() for parameter in network.parameters())
    rule = f"--match {options.assignment.match}" + (" --loss darknet" if options.loss.loss == "darknet" else "")
    images = resize.to(*(input_size(size, network) for size in (train.img_size, train.test_size or train.img_size)))
    print(
        f"train: {train.cfg} ({parameters:,} parameters) on {train.data}, {images}, {how_many(train.epochs, 'epoch')}, "
        f"recipe {train.hyp}, {rule} -> {run.folder} ({describe_device(device)}, {precision})"
    )
    if note:
        print(note)
    objects = train_set.select_boxes(~train_set.crowd)
    image_wh = objects.image_wh[objects.box_image]
    corners = objects.boxes_xyxy.reshape(-1, 2, 2)  # M corner xy
    centers_xy = corners.mean(axis=1) / image_wh
    sizes_wh = (corners[:, 1] - corners[:, 0]) / image_wh
    plot_labels(run.folder / "labels.png", objects.labels, centers_xy, sizes_wh, objects.names)


def validate(
    state: TrainState[Network], batches: Batches, ground_truth: dict, loss_function: DetectionLoss
) -> tuple[Metrics, dict[str, float]]:
    """Return how good the averaged model is, and its loss by part, from the same forward pass."""
    distributed.copy_from_main(state.average.model)  # batch norms have seen other images in each process
    loss = ValidationLoss(loss_function)
    metrics = evaluate(Detector(state.average.model), batches, ground_truth, loss=loss)
    state.class_ap = list(metrics.class_ap)
    return metrics, loss.means()


def epoch_row(
    losses: dict[str, float],
    counts: MatchCounts,
    metrics: Metrics | None,
    val_losses: dict[str, float] | None,
    state: TrainState,
) -> dict[str, float]:
    """Return one line of ``results.csv``, in the order of ultralytics/yolov5 v7.0; a test adds metrics and losses."""
    row = {f"train/{name}": value for name, value in losses.items()}
    if metrics:
        columns = {
            "metrics/precision": metrics.precision,
            "metrics/recall": metrics.recall,
            "metrics/mAP_0.5": metrics.ap50,
            "metrics/mAP_0.5:0.95": metrics.ap,
        }
        row |= {name: value for name, value in columns.items() if value >= 0}  # nothing is defined without an object
    row |= {f"val/{name}": value for name, value in (val_losses or {}).items()}
    row |= {f"match/{name}": value for name, value in counts.summary().items()}
    return row | {"lr": state.optimizer.param_groups[-1]["lr"]}


def report_epoch(counts: MatchCounts, metrics: Metrics | None) -> None:
    """Say in two lines how the epoch went."""
    if not distributed.is_main():
        return
    print(f"  {counts.line()}")
    if metrics and metrics.num_instances:
        print(
            f"  test: P {metrics.precision:.3f}  R {metrics.recall:.3f}  "
            f"mAP@0.5 {metrics.ap50:.4f}  mAP@0.5:0.95 {metrics.ap:.4f}"
        )


def fitness(metrics: Metrics | None, losses: dict[str, float]) -> float | None:
    """Return what decides which epoch is the best, 0 to 1; None where it was not tested.

    It is 0.1 mAP@0.5 + 0.9 mAP@0.5:0.95, with the weights of ultralytics/yolov5 v7.0 (utils/metrics.py, fitness). Where
    there was no object to find, the epoch with the lowest training loss is the best.
    """
    if metrics is None:
        return None
    if metrics.num_instances == 0:
        return 1 / (1 + sum(losses.values()))
    return 0.1 * metrics.ap50 + 0.9 * metrics.ap


if __name__ == "__main__":
    run_command(main)
