"""Train a detector: ``python train.py --cfg yolov3-spp.cfg --data coco2017.data --multi-scale``.

Without arguments it draws the built-in demo set and trains ``yolov3-nano.cfg`` on it. Under ``torchrun`` the batch is
shared among the processes.
"""

from __future__ import annotations

from utils.errors import UserError, run_command  # first: for Ctrl-C during the imports below
from utils.words import how_many

# isort: split
import math
from contextlib import closing
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from data.labels.annotations import Annotations
from data.loader import Batches, LoaderSettings, evaluation_batches, training_batches
from data.sampling import EpochSampler
from data.splits import open_training_splits
from engine.anchor_check import anchor_line, search_command
from engine.auto_anchor import with_fitting_anchors
from engine.batch_size import with_batch_size
from engine.compiling import compile_network, require_compilable
from engine.ema import AveragedModel
from engine.evaluate import evaluate
from engine.network_input import Resize, choose_resize, input_size
from engine.optimizer import Schedule, build_optimizer
from engine.precision import Precision, choose_precision
from engine.profiling import step_clock
from engine.recipes import FROM_CFG, notes_of_recipe
from engine.resolve import as_decoded, start_with_classes, tell_oddities, warn_of_decode
from engine.resumed_run import check_data
from engine.run_folder import draw_labels, fitness
from engine.saving import use_deterministic_operations
from engine.search.command import SearchOptions, is_of_many, train_many
from engine.train_loop import TrainState, freeze_layers, train_one_epoch, wrap_for_processes
from engine.train_options import GROUPS, TrainGroups, TrainOptions, choose_options, with_length
from engine.training_run import EpochBar, TrainingRun
from engine.training_state import load_training_state
from engine.validation_loss import ValidationLoss
from evaluation.coco import Metrics, has_objects
from models.assignment.counts import MatchCounts
from models.checkpoints.backbone_file import load_backbone
from models.checkpoints.load import load_weights
from models.darknet.scaled_decode import DECODES
from models.detection_network import DetectionNetwork
from models.detector import Detector
from models.families.table import found_besides_boxes, open_network, open_network_from_text
from models.learner import Learner
from models.network import require_cfg
from utils import distributed
from utils.config import parse_flags
from utils.devices import choose_device, describe_device, use_threads
from utils.seeding import seed_epoch, seed_everything


def main() -> None:
    """Train one detector; with --search, --evolve or --study start this program for each of many."""
    given = parse_flags(__doc__.splitlines()[0], *GROUPS, SearchOptions)
    if is_of_many(given):
        train_many(given)
    else:
        train_detector(*choose_options(given))


def train_detector(options: TrainGroups, checkpoint: dict[str, Any] | None) -> None:
    """Train one detector; leave checkpoints, log and resolved configuration in runs/train/<name>.

    Args:
        options: all of them, resolved.
        checkpoint: to go on from, None for a new run.
    """
    device = choose_device(options.train.device)
    use_threads()
    distributed.start(device)
    seed_everything(options.train.seed)
    if options.safety.deterministic:
        use_deterministic_operations()

    wants = found_besides_boxes(options.train.cfg)
    train_set, test_set = open_training_splits(
        options.train.data, options.train.val_fraction, options.train.single_cls, options.images, wants
    )
    network, resize = new_network(options.train, train_set.names, checkpoint, train_set.num_key_points)
    if checkpoint:
        check_data(checkpoint, options.train.resume, options.train.data, train_set, network.num_key_points)
    if options.anchors.auto_anchor and not checkpoint:
        network = with_fitting_anchors(network, train_set, options.train.img_size, resize.kind, options.train.seed)
    network = network.to(device).to(memory_format=torch.channels_last)
    learner, precision, options = new_learner(network, resize, options, device)

    train_settings, test_settings = loader_settings(options, network, device)
    sampler = EpochSampler(train_set, options.sampling)
    train_batches = training_batches(train_set, train_settings, options.augment, sampler)
    options = with_length(options, len(train_batches), len(train_set.names))
    state = new_state(network, options, precision)
    if checkpoint:
        load_training_state(state, checkpoint, options.train.resume)

    test_batches = evaluation_batches(test_set, test_settings)
    ground_truth = test_set.to_coco()
    schedule = Schedule(options.optimizer, options.train.epochs, len(train_batches), options.train.batches_per_step)

    run = TrainingRun.start(options.train.project, options.as_dict(), (train_set, test_set), network.cfg_text, state)
    with closing(train_batches), closing(test_batches), run.interruptible(state):
        announce(run, options, network, resize, train_set, ground_truth, sampler, precision)
        batches_left = len(train_batches) * (options.train.epochs - state.epoch)
        wrapped = learner_for_steps(options.train, learner, train_settings, batches_left)
        clock = step_clock(options.train.profile, run.folder, device, options.train.workers)
        learner.part = clock.part
        while not run.is_over(state):
            sampler.class_ap = state.class_ap
            choose_epoch(train_batches, options, state.epoch, state.progress.batches)
            seed_epoch(options.train.seed, state.epoch, distributed.rank())
            learner.start_epoch(state.epoch * sampler.num_pictures + train_batches.images_before())
            with run.steps(state) as after_step, EpochBar(run, state, len(train_batches)) as bar:
                losses, counts = train_one_epoch(state, wrapped, train_batches, schedule, bar.update, after_step, clock)
            load_ahead(train_batches, options, state.epoch + 1)
            metrics, loss = validate(options.train, state, learner, test_batches, ground_truth)
            run.finish_epoch(state, epoch_row(losses, counts, metrics, loss, state), fitness(metrics, losses))
            report_epoch(counts, metrics, run.time_left(state))
        clock.finish()
        run.finish(state, test_batches)
    del wrapped  # it holds the process group, which must not outlive the interpreter
    distributed.stop()


def new_network(
    options: TrainOptions, names: tuple[str, ...], checkpoint: dict[str, Any] | None, key_points: int = 0
) -> tuple[DetectionNetwork, Resize]:
    """Build the network for these classes and key points, with fresh, given or (before a resume) arbitrary weights.

    Returns:
        The network, and how images get into its input.
    """
    report = None
    if checkpoint:
        network = open_network_from_text(checkpoint["cfg_text"], checkpoint["cfg_name"], len(checkpoint["names"]))
    else:
        network = open_network(options.cfg, len(names), key_points)
        network.require_heads()
        if options.decode == "scaled":
            network = as_decoded(network)
        network.require_trainable()
        if network.fixed_size and (options.multi_scale or options.rect):
            raise UserError(f"--multi-scale and --rect: leave them out; {network.cfg_path} works at one size only")
        from_cfg = options.hyp == FROM_CFG
        for note in notes_of_recipe(require_cfg(network, "--hyp cfg")) if from_cfg else network.notes:
            if note not in network.oddities:
                print(note)
        tell_oddities(network, options.strict)
        network.initialise()
        if options.weights_backbone:
            print(load_backbone(network, options.weights_backbone))
        if options.weights:
            report = load_weights(network, options.weights)
            print(report)
            if not report.names and options.decode == DECODES[0]:
                warn_of_decode(network)
            network = start_with_classes(network, report, names)
    resize = Resize(options.resize, "as before") if checkpoint else choose_resize(options.resize, network, report)
    frozen = freeze_layers(network, options.freeze)
    if frozen and distributed.is_main():
        print(f"--freeze: {len(frozen)} of the {len(network.parts())} layers of {network.cfg_path} stay as they are")
    return network, resize


def new_learner(
    network: DetectionNetwork, resize: Resize, options: TrainGroups, device: torch.device
) -> tuple[Learner, Precision, TrainGroups]:
    """Return the network with its loss, in what it computes, and the options with what they had left open."""
    input_wh = input_size(options.train.img_size, network)
    learner = network.learner(options.loss, options.assignment, input_wh)
    if options.train.compile:
        require_compilable(learner)
    precision = choose_precision(options.train.precision, options.train.amp, learner, input_wh, device)
    learner.amp_dtype = precision.dtype
    options = replace(options, train=replace(options.train, resize=resize.kind, precision=precision.name))
    return learner, precision, with_batch_size(options, learner, input_wh)


def new_state(network: DetectionNetwork, options: TrainGroups, precision: Precision) -> TrainState[DetectionNetwork]:
    """Return the state before the first epoch: weights, their average, optimizer and loss scale."""
    optimizer = build_optimizer(network, options.optimizer, options.train.batch_size * options.train.batches_per_step)
    device = next(network.parameters()).device
    scaler = torch.amp.GradScaler(device.type, enabled=precision.needs_scale)
    return TrainState(network, AveragedModel(network), optimizer, scaler)


def learner_for_steps(
    options: TrainOptions, learner: Learner, settings: LoaderSettings, batches_left: int
) -> nn.Module:
    """Return the learner wrapped for several processes where there are several, its network compiled on demand."""
    if options.compile:
        compile_network(learner, settings, batches_left)
    return wrap_for_processes(learner, next(learner.parameters()).device, options.sync_bn)


def loader_settings(
    groups: TrainGroups, network: DetectionNetwork, device: torch.device
) -> tuple[LoaderSettings, LoaderSettings]:
    """Return how the training and the testing batches are made."""
    options = groups.train
    test = LoaderSettings(
        image_hw=input_size(options.test_size or options.img_size, network)[::-1],
        batch_size=max(1, options.batch_size // distributed.world_size()),
        stride=network.max_stride,
        rect=not network.fixed_size,
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
        cache=options.cache,
        paint_later=options.augment_on == "device",
    )
    return train, test


def choose_epoch(batches: Batches, options: TrainGroups, epoch: int, first: int = 0) -> None:
    """Choose the batches of an epoch, from the given one on."""
    closes_mosaic = epoch >= options.train.epochs - options.augment.close_mosaic
    batches.set_epoch(epoch, first, closes_mosaic)


def load_ahead(batches: Batches, options: TrainGroups, epoch: int) -> None:
    """Have the workers begin with an epoch during the test of the one before, if that does not decide what it shows."""
    if epoch < options.train.epochs and not options.sampling.image_weights:
        choose_epoch(batches, options, epoch)
        batches.begin()


def announce(
    run: TrainingRun,
    options: TrainGroups,
    network: DetectionNetwork,
    resize: Resize,
    train_set: Annotations,
    ground_truth: dict[str, Any],
    sampler: EpochSampler,
    precision: Precision,
) -> None:
    """Say in one line what was chosen, and draw how the training labels are distributed."""
    if not distributed.is_main():
        return
    train, device = options.train, next(network.parameters()).device
    parameters = sum(parameter.numel() for parameter in network.parameters())
    rule = f"--match {options.assignment.match}" if network.heads else "its own assignment"
    rule += " --loss darknet" if options.loss.loss == "darknet" else ""
    images = resize.to(*(input_size(size, network) for size in (train.img_size, train.test_size or train.img_size)))
    print(
        f"train: {train.cfg} ({parameters:,} parameters) on {train.data}, {images}, {how_many(train.epochs, 'epoch')}, "
        f"recipe {train.hyp}, {rule} -> {run.folder} ({describe_device(device)}, {precision})"
    )
    if sampler.note():
        print(sampler.note())
    if not has_objects(ground_truth):
        print(f"{train.data} (valid): not a single object to find; best.pt goes by the training loss")
    input_wh = input_size(train.img_size, network)
    better = search_command(network, train.data, train.cfg, input_wh, resize.kind)
    if line := anchor_line(network.heads, train_set, input_wh, resize.kind, better):
        print(line)
    draw_labels(run.folder / "labels.png", train_set)


def validate(
    options: TrainOptions,
    state: TrainState[DetectionNetwork],
    learner: Learner,
    batches: Batches,
    ground_truth: dict[str, Any],
) -> tuple[Metrics | None, ValidationLoss | None]:
    """Return how good the averaged model is, and its loss where it has one; nothing where the epoch is not tested."""
    if options.notest and state.epoch + 1 < options.epochs:
        return None, None
    distributed.copy_from_main(state.average.model)  # batch norms have seen other images in each process
    loss = ValidationLoss.of(learner)
    metrics = evaluate(Detector(state.average.model), batches, ground_truth, loss=loss)
    state.class_ap = list(metrics.class_ap)
    return metrics, loss


def epoch_row(
    losses: dict[str, float],
    counts: MatchCounts | None,
    metrics: Metrics | None,
    loss: ValidationLoss | None,
    state: TrainState,
) -> dict[str, float]:
    """Return one line of ``results.csv``."""
    row = {f"train/{name}": value for name, value in losses.items()}
    if metrics:
        columns = {
            "metrics/precision": metrics.precision,
            "metrics/recall": metrics.recall,
            "metrics/mAP_0.5": metrics.ap50,
            "metrics/mAP_0.5:0.95": metrics.ap,
        }
        row |= {name: value for name, value in columns.items() if value >= 0}  # nothing is defined without an object
        # A value that is no number could not be read again; the cell stays empty.
        row |= {f"val/{name}": value for name, value in loss.means().items() if math.isfinite(value)} if loss else {}
    row |= {f"match/{name}": value for name, value in counts.summary().items()} if counts else {}
    return row | {"lr": state.optimizer.param_groups[-1]["lr"]}


def report_epoch(counts: MatchCounts | None, metrics: Metrics | None, time_left: str) -> None:
    """Say in two lines how the epoch went, and in a third how long the rest of the run may take."""
    if not distributed.is_main():
        return
    if counts:
        print(f"  {counts.line()}")
    if metrics and metrics.num_instances:
        print(
            f"  test: P {metrics.precision:.3f}  R {metrics.recall:.3f}  "
            f"mAP@0.5 {metrics.ap50:.4f}  mAP@0.5:0.95 {metrics.ap:.4f}"
        )
    if time_left:
        print(f"  {time_left}")


if __name__ == "__main__":
    run_command(main)
