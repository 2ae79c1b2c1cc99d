"""Train a detector: ``python train.py --cfg yolov3-spp.cfg --data coco2017.data --multi-scale``.

Without arguments it draws the built-in demo set and trains ``yolov3-nano.cfg`` on it. Under ``torchrun`` the batch is
shared among the processes.
"""

from __future__ import annotations

from utils.errors import UserError, run_command  # first: for Ctrl-C during the imports below
from utils.words import how_many

# isort: split
import math
from dataclasses import dataclass, replace
from typing import Any

import torch

from data.augment import AugmentOptions
from data.image_checks import ImageCheckOptions
from data.labels.annotations import Annotations
from data.loader import MULTI_SCALE, PAINTERS, LoaderSettings, evaluation_batches, training_batches
from data.splits import open_training_splits
from engine.ema import AveragedModel
from engine.evaluate import evaluate
from engine.network_input import Resize, choose_resize, input_size, refuse_size, resize_option, size_option
from engine.optimizer import NOMINAL_BATCH, OptimizerOptions, Schedule, build_optimizer
from engine.precision import PRECISIONS, Precision, choose_precision
from engine.recipes import FROM_CFG, as_many_epochs, default_recipe, notes_of_recipe, values_of_cfg
from engine.resolve import as_decoded, start_with_classes, tell_oddities, warn_of_decode
from engine.resumed_run import NEWEST, options_to_resume, other_length
from engine.run_folder import TRAINING_RUNS, plot_labels
from engine.train_loop import TrainState, freeze_layers, train_one_epoch, wrap_for_processes
from engine.training_run import EpochBar, TrainingRun
from engine.training_state import load_training_state
from evaluation.coco import Metrics, has_objects
from models.assignment.counts import MatchCounts
from models.assignment.options import AssignmentOptions
from models.checkpoints.load import cfg_of_weights, decode_of_weights, load_weights
from models.darknet.scaled_decode import DECODES
from models.detector import Detector
from models.loss import LossOptions, build_loss
from models.network import (
    Network,
    build_network,
    build_network_from_text,
    initialise_head_biases,
    require_heads,
    require_trainable,
)
from utils import distributed
from utils.config import build_options, find_file, flat_dict, found_name, option, parse_flags, read_recipe
from utils.devices import choose_device, describe_device, use_threads
from utils.seeding import seed_epoch, seed_everything


@dataclass(frozen=True)
class TrainOptions:
    """What to train, on what, for how long."""

    cfg: str = option("yolov3-nano.cfg", "network, looked up here and in cfg/; with --weights: the one that fits them")
    decode: str = option("cfg", "boxes as the cfg says, or as PyTorch_YOLOv4, ScaledYOLOv4 and yolor compute", DECODES)
    strict: bool = option(False, "refuse a cfg with keys, lines or names that Darknet does not know")
    data: str = option("shapes.data", "data set, looked up here and in cfg/; shapes.data is the built-in demo set")
    weights: str = option(
        "", "weights to start from: a .pt of this toolkit, Darknet .weights or an official yolov5 .pt"
    )
    hyp: str = option(
        "", "YAML recipe of options, or cfg: the cfg's own training keys; default: what fits it in cfg/hyp"
    )
    epochs: int = option(300, "passes over the training images; 0: as many as --max-batches iterations take")
    batch_size: int = option(16, "images per batch, over all processes")
    accumulate: int = option(0, "batches per optimizer step; 0: as many as make 64 images")
    img_size: tuple[int, ...] = size_option("the cfg's")
    test_size: tuple[int, ...] = option((), "the same for testing; default: --img-size")
    resize: str = resize_option()
    multi_scale: bool = option(False, "another image size for every batch, within --multi-scale-range")
    multi_scale_range: tuple[float, ...] = option(
        MULTI_SCALE, "smallest and largest size of --multi-scale / --img-size"
    )
    rect: bool = option(False, "rectangular training batches: images of similar shape together, without mosaic")
    val_fraction: float = option(0.0, "share of the training images to hold out for validation, where there are none")
    cache: str = option("", "ram (also without a value): keep the decoded images in memory", bare="ram")
    single_cls: bool = option(False, "treat all objects as one class")
    freeze: tuple[int, ...] = option((0,), "keep the first N layers of the cfg as they are; of several numbers: these")
    device: str = option("", "cpu, or a CUDA device such as 0; default: CUDA if there is one")
    amp: bool = option(True, "mixed precision where it helps")
    precision: str = option(
        "", "type of --amp; default: float16 on a GPU, on a CPU bfloat16 where it is faster", PRECISIONS
    )
    workers: int = option(2, "processes that load images, per training process")
    augment_on: str = option("workers", "where pictures are painted: device spares the cores for decoding", PAINTERS)
    project: str = option(TRAINING_RUNS, "folder of runs; test.py and detect.py look for the newest in runs/train only")
    name: str = option("exp", "the run is written to <project>/<name>")
    exist_ok: bool = option(False, "replace the run in <project>/<name> instead of writing to <name>2, <name>3, …")
    seed: int = option(0, "every random choice follows from it")
    resume: str = option(
        "",
        "folder or last.pt of a run, without a value the newest; goes on as if it had not been interrupted, with "
        "--epochs or --patience for a longer time",
        bare=NEWEST,
    )
    nosave: bool = option(False, "write checkpoints only after the last epoch")
    notest: bool = option(False, "test only after the last epoch")
    patience: int = option(0, "stop after so many epochs without a better one; 0: never")
    save_period: int = option(0, "keep the weights of every N-th epoch as epoch<N>.pt; 0: never")

    def __post_init__(self) -> None:
        if self.epochs < 0 or self.batch_size < 1:
            raise ValueError(f"--epochs and --batch-size must be at least 1, not {self.epochs} and {self.batch_size}")
        if len(self.multi_scale_range) != 2 or not 0 < self.multi_scale_range[0] <= self.multi_scale_range[1] <= 4:
            raise ValueError("--multi-scale-range takes two numbers in 0..4, the smaller first")
        if min(self.accumulate, self.workers, self.patience, self.seed, *self.freeze) < 0:
            raise ValueError("--accumulate, --workers, --patience, --freeze and --seed must not be negative")
        if self.cache not in ("", "ram"):
            raise ValueError(f"--cache {self.cache} is not here: --cache ram keeps decoded images in memory")
        if self.patience and self.notest:
            raise ValueError("--patience needs a test after every epoch; leave out --notest")
        if self.save_period > 0 and self.nosave:
            raise ValueError("--save-period writes checkpoints and --nosave none; leave one of them out")
        if self.seed >= 2**63:
            raise ValueError(f"--seed {self.seed} is too large: it must be below 2^63")
        refuse_size(self.img_size, "--img-size")
        refuse_size(self.test_size, "--test-size")
        if self.batch_size % distributed.world_size():
            raise ValueError(
                f"--batch-size {self.batch_size} cannot be shared among {distributed.world_size()} processes"
            )

    @property
    def batches_per_step(self) -> int:
        """Batches whose gradients are summed before an optimizer step."""
        return self.accumulate or max(1, round(NOMINAL_BATCH / self.batch_size))


GROUPS = (TrainOptions, OptimizerOptions, AugmentOptions, AssignmentOptions, LossOptions, ImageCheckOptions)


@dataclass(frozen=True)
class TrainGroups:
    """All options of a run, by group."""

    train: TrainOptions
    optimizer: OptimizerOptions
    augment: AugmentOptions
    assignment: AssignmentOptions
    loss: LossOptions
    images: ImageCheckOptions

    def as_dict(self) -> dict[str, Any]:
        """Return all options as one flat dict of plain values."""
        return flat_dict(self.train, self.optimizer, self.augment, self.assignment, self.loss, self.images)


def main() -> None:
    """Train one detector; leave checkpoints, log and resolved configuration in runs/train/<name>."""
    options, checkpoint = choose_options()
    device = choose_device(options.train.device)
    use_threads()
    distributed.start(device)
    seed_everything(options.train.seed)

    train_set, test_set = open_training_splits(
        options.train.data, options.train.val_fraction, options.train.single_cls, options.images
    )
    check_names(options.train, train_set.names, checkpoint)

    network, resize = new_network(options.train, train_set.names, checkpoint)
    network = network.to(device).to(memory_format=torch.channels_last)
    input_wh = input_size(options.train.img_size, network)
    precision = choose_precision(options.train.precision, options.train.amp, network, input_wh, device)
    options = replace(options, train=replace(options.train, resize=resize.kind, precision=precision.name))
    loss_function = build_loss(options.loss, options.assignment, network.heads, math.sqrt(math.prod(input_wh)))
    state = new_state(network, options, precision)
    if checkpoint:
        load_training_state(state, checkpoint, options.train.resume)

    train_settings, test_settings = loader_settings(options, network, device)
    train_batches = training_batches(train_set, train_settings, options.augment)
    options = with_epochs(options, len(train_batches))
    test_batches = evaluation_batches(test_set, test_settings)
    ground_truth = test_set.to_coco()
    schedule = Schedule(options.optimizer, options.train.epochs, len(train_batches), options.train.batches_per_step)

    run = TrainingRun.start(options.train.project, options.as_dict(), (train_set, test_set), network.cfg_text, state)
    with run.interruptible():
        announce(run, options, network, resize, train_set, device, precision)
        if distributed.is_main() and not has_objects(ground_truth):
            print(f"{options.train.data} (valid): not a single object to find; best.pt goes by the training loss")
        wrapped = wrap_for_processes(network, device)
        while not run.is_over(state):
            train_batches.set_epoch(state.epoch)
            seed_epoch(options.train.seed, state.epoch, distributed.rank())
            loss_function.images_seen = state.epoch * len(train_set)
            with EpochBar(run, state.epoch, len(train_batches)) as bar:
                losses, counts = train_one_epoch(
                    state, wrapped, train_batches, loss_function, schedule, precision.dtype, bar.update
                )
            state.epoch += 1
            metrics = None
            if state.epoch == options.train.epochs or not options.train.notest:
                distributed.copy_from_main(state.average.model)  # batch norms have seen other images in each process
                metrics = evaluate(Detector(state.average.model), test_batches, ground_truth)
            run.finish_epoch(state, epoch_row(losses, counts, metrics, state), fitness(metrics, losses))
            report_epoch(counts, metrics)
        run.finish(state, test_batches)
    del wrapped  # it holds the process group, which must not outlive the interpreter
    distributed.stop()


def choose_options() -> tuple[TrainGroups, dict[str, Any] | None]:
    """Return the resolved options and, for ``--resume``, the checkpoint to go on from."""
    given = parse_flags(__doc__.splitlines()[0], *GROUPS)
    if given.get("resume"):
        values, checkpoint = options_to_resume(given)
        options = TrainGroups(*build_options(values, GROUPS, values["resume"]))
        planned = checkpoint["options"]["epochs"]
        note = other_length(options.optimizer, checkpoint["epoch"], planned, options.train.epochs)
        if note and distributed.is_main():
            print(f"{options.train.resume}: {note}")
        return options, checkpoint
    if given.get("weights") and not given.get("cfg"):
        given["cfg"] = cfg_of_weights(given["weights"])
    if given.get("weights") and decode_of_weights(given["weights"]) == "scaled":
        given["decode"] = "scaled"
    cfg = given.get("cfg") or TrainOptions.cfg
    if given.get("hyp") == FROM_CFG:
        values = values_of_cfg(cfg, given, GROUPS) | given
    else:
        recipe = find_file(given.get("hyp") or default_recipe(cfg, given.get("decode", DECODES[0])), "recipe")
        values = read_recipe(recipe, GROUPS) | given | {"hyp": str(recipe)}
    # Named without its ending, or by YOLOv5's name of it; the record of the run has the whole name.
    values |= {"cfg": found_name(values.get("cfg") or cfg, "cfg")}
    values |= {"data": found_name(values.get("data") or TrainOptions.data, "data file")}
    return TrainGroups(*build_options(values, GROUPS)), None


def with_epochs(options: TrainGroups, batches_per_epoch: int) -> TrainGroups:
    """Return the options with a number of epochs, where ``--epochs 0`` leaves it to the number of iterations."""
    if options.train.epochs:
        return options
    epochs = as_many_epochs(options.optimizer.max_batches, batches_per_epoch, options.train.batches_per_step)
    return replace(options, train=replace(options.train, epochs=epochs))


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
) -> None:
    """Say in one line what was chosen, and draw how the training labels are distributed."""
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
    objects = train_set.select_boxes(~train_set.crowd)
    image_wh = objects.image_wh[objects.box_image]
    corners = objects.boxes_xyxy.reshape(-1, 2, 2)  # M corner xy
    centers_xy = corners.mean(axis=1) / image_wh
    sizes_wh = (corners[:, 1] - corners[:, 0]) / image_wh
    plot_labels(run.folder / "labels.png", objects.labels, centers_xy, sizes_wh, objects.names)


def epoch_row(
    losses: dict[str, float], counts: MatchCounts, metrics: Metrics | None, state: TrainState
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
