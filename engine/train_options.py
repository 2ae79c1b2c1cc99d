"""The options of ``train.py``: what they are, and where those come from that the command line leaves open."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from data.augment import AugmentOptions
from data.image_cache import CACHES
from data.image_checks import ImageCheckOptions
from data.loader import MULTI_SCALE, PAINTERS
from data.sampling import SamplingOptions
from engine.auto_anchor import AnchorOptions
from engine.network_input import refuse_size, resize_option, size_option
from engine.optimizer import AUTO, AUTO_BATCH, CHOSEN_BY_AUTO, NOMINAL_BATCH, SHORT_RUN, OptimizerOptions, resolve_auto
from engine.precision import PRECISIONS
from engine.recipes import FROM_CFG, as_many_epochs, default_recipe, values_of_cfg
from engine.resumed_run import NEWEST, go_on_after_restart, options_to_resume, other_length
from engine.run_folder import TRAINING_RUNS
from engine.run_logs import LogOptions
from engine.saving import SafetyOptions
from models.assignment.options import AssignmentOptions
from models.checkpoints.load import cfg_of_weights, decode_of_weights
from models.darknet.scaled_decode import DECODES
from models.families.catalogue import print_if_asked
from models.families.table import is_family, match_of
from models.loss import LossOptions
from utils import distributed
from utils.config import build_options, find_file, flat_dict, found_name, option, read_recipe
from utils.errors import UserError


@dataclass(frozen=True)
class TrainOptions:
    """What to train, on what, for how long."""

    cfg: str = option(
        "yolov3-nano.cfg",
        "network, looked up here and in cfg/, or a name that --cfg help lists; with --weights: the one that fits them",
    )
    decode: str = option("cfg", "boxes as the cfg says, or as PyTorch_YOLOv4, ScaledYOLOv4 and yolor compute", DECODES)
    strict: bool = option(False, "refuse a cfg with keys, lines or names that Darknet does not know")
    data: str = option("shapes.data", "data set, looked up here and in cfg/; shapes.data is the built-in demo set")
    weights: str = option(
        "", "weights to start from: a .pt of this toolkit, Darknet .weights or an official yolov5 .pt"
    )
    weights_backbone: str = option(
        "", "file of a classifier, as torchvision and timm publish them, to start the backbone of a named network from"
    )
    hyp: str = option(
        "", "YAML recipe of options, or cfg: the cfg's own training keys; default: what fits it in cfg/hyp"
    )
    epochs: int = option(300, "passes over the training images; 0: as many as --max-batches iterations take")
    batch_size: int = option(
        16, "images per batch, over all processes; auto or -1: as many as fit into a GPU", words={"auto": AUTO_BATCH}
    )
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
    cache: str = option("", "decode the images once, into memory (also without a value) or a file", CACHES, bare="ram")
    single_cls: bool = option(False, "treat all objects as one class")
    freeze: tuple[int, ...] = option((0,), "keep the first N layers of the cfg as they are; of several numbers: these")
    device: str = option("", "cpu, or a CUDA device such as 0; default: CUDA if there is one")
    amp: bool = option(True, "mixed precision where it helps")
    precision: str = option(
        "", "type of --amp; default: float16 on a GPU, on a CPU bfloat16 where it is faster", PRECISIONS
    )
    sync_bn: bool = option(False, "batch norms take the statistics of the images of all processes of torchrun")
    workers: int = option(2, "processes that load images, per training process")
    compile: bool = option(False, "let torch compile the network, which takes minutes, and say whether that pays")
    profile: bool = option(False, "measure ten steps: where their time goes, whether the loader is the limit, a trace")
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
        if self.epochs < 0 or (self.batch_size < 1 and not self.finds_batch_size):
            raise ValueError(f"--epochs and --batch-size must be at least 1, not {self.epochs} and {self.batch_size}")
        if len(self.multi_scale_range) != 2 or not 0 < self.multi_scale_range[0] <= self.multi_scale_range[1] <= 4:
            raise ValueError("--multi-scale-range takes two numbers in 0..4, the smaller first")
        if min(self.accumulate, self.workers, self.patience, self.seed, *self.freeze) < 0:
            raise ValueError("--accumulate, --workers, --patience, --freeze and --seed must not be negative")
        if self.patience and self.notest:
            raise ValueError("--patience needs a test after every epoch; leave out --notest")
        if self.save_period > 0 and self.nosave:
            raise ValueError("--save-period writes checkpoints and --nosave none; leave one of them out")
        if self.precision not in ("", "float32") and not self.amp:
            raise ValueError(f"--precision {self.precision} is a type of --amp; leave it out, or --no-amp")
        if self.weights and self.weights_backbone:
            raise ValueError("--weights-backbone: leave it out; --weights fills the backbone, too")
        if self.seed >= 2**63:
            raise ValueError(f"--seed {self.seed} is too large: it must be below 2^63")
        refuse_size(self.img_size, "--img-size")
        refuse_size(self.test_size, "--test-size")
        if not self.finds_batch_size and self.batch_size % distributed.world_size():
            raise ValueError(
                f"--batch-size {self.batch_size} cannot be shared among {distributed.world_size()} processes"
            )

    @property
    def finds_batch_size(self) -> bool:
        """Whether engine/batch_size.py is to find the number of images per batch."""
        return self.batch_size == AUTO_BATCH

    @property
    def batches_per_step(self) -> int:
        """Batches whose gradients are summed before an optimizer step."""
        return self.accumulate or max(1, round(NOMINAL_BATCH / self.batch_size))


GROUPS = (
    TrainOptions,
    OptimizerOptions,
    AugmentOptions,
    AssignmentOptions,
    LossOptions,
    ImageCheckOptions,
    SafetyOptions,
    SamplingOptions,
    AnchorOptions,
    LogOptions,
)


@dataclass(frozen=True)
class TrainGroups:
    """All options of a run, by group."""

    train: TrainOptions
    optimizer: OptimizerOptions
    augment: AugmentOptions
    assignment: AssignmentOptions
    loss: LossOptions
    images: ImageCheckOptions
    safety: SafetyOptions
    sampling: SamplingOptions
    anchors: AnchorOptions
    logs: LogOptions

    def __post_init__(self) -> None:
        if self.sampling.image_weights and self.train.notest:
            raise UserError("--image-weights goes by the AP of every epoch; leave out --notest")

    def as_dict(self) -> dict[str, Any]:
        """Return all options as one flat dict of plain values."""
        return flat_dict(*(getattr(self, item.name) for item in fields(self)))


def choose_options(given: dict[str, Any]) -> tuple[TrainGroups, dict[str, Any] | None]:
    """Return the resolved options and, for ``--resume``, the checkpoint to go on from.

    Args:
        given: on the command line.

    Raises:
        UserError: an option, a recipe, a checkpoint or a cfg cannot be used.
    """
    given = go_on_after_restart(dict(given))
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
    print_if_asked(cfg)
    if given.get("hyp") == FROM_CFG:
        if given.get("batch_size") == AUTO_BATCH:
            raise UserError("--batch-size auto: with --hyp cfg the rates follow from the batch; give a number")
        values = values_of_cfg(cfg, given, GROUPS) | given
    else:
        recipe = find_file(given.get("hyp") or default_recipe(cfg, given.get("decode", DECODES[0])), "recipe")
        values = read_recipe(recipe, GROUPS) | given | {"hyp": str(recipe)}
    if values.get("optimizer") == AUTO:
        values["optimizer"] = auto_or_sgd(given)
    # Named without its ending, or by YOLOv5's name of it; the record of the run has the whole name.
    named = values.get("cfg") or cfg
    if match := match_of(named):
        values.setdefault("match", match)
    values |= {"cfg": named if is_family(named) else found_name(named, "cfg")}
    values |= {"data": found_name(values.get("data") or TrainOptions.data, "data file")}
    return TrainGroups(*build_options(values, GROUPS)), None


def auto_or_sgd(given: Mapping[str, Any]) -> str:
    """Return the optimizer where it is left open: SGD where the command line has something that ``auto`` would choose.

    Raises:
        UserError: the command line has both.
    """
    chosen = [f"--{name}" for name in CHOSEN_BY_AUTO if given.get(name)]
    if chosen and "optimizer" in given:
        raise UserError(f"--optimizer auto chooses {chosen[0]} itself; leave out one of the two")
    return "SGD" if chosen else AUTO


def with_length(options: TrainGroups, batches_per_epoch: int, num_classes: int) -> TrainGroups:
    """Return the options with what they leave to the length of the run.

    That is the number of epochs, where ``--epochs 0`` leaves it to the number of iterations, and what
    ``--optimizer auto`` chooses, which is printed.
    """
    train, optimizer = options.train, options.optimizer
    is_open = optimizer.optimizer == AUTO

    def epochs(batches_per_step: int) -> int:
        return train.epochs or as_many_epochs(optimizer.max_batches, batches_per_epoch, batches_per_step)

    chosen = resolve_auto(optimizer, epochs(1) * batches_per_epoch, num_classes)
    if is_open and chosen.optimizer != "SGD":
        train = replace(train, accumulate=1)
    train = replace(train, epochs=epochs(train.batches_per_step))
    if is_open and distributed.is_main():
        print(chosen_by_auto(chosen, train.batches_per_step, train.epochs * batches_per_epoch))
    return replace(options, train=train, optimizer=chosen)


def chosen_by_auto(chosen: OptimizerOptions, batches_per_step: int, batches: int) -> str:
    """Return a line that says what ``--optimizer auto`` has chosen for a run of so many batches, and how to differ."""
    rate = f"--optimizer {chosen.optimizer} --lr0 {chosen.lr0:g} --momentum {chosen.momentum:g}"
    other = "" if chosen.optimizer == "SGD" else f", fewer than {SHORT_RUN:,}; the recipe's own: --optimizer SGD"
    return f"--optimizer auto: {rate} --accumulate {batches_per_step}, as the run has {batches:,} batches{other}"
