"""Which recipe a cfg trains by: a file of ``cfg/hyp``, or with ``--hyp cfg`` the training keys of the cfg itself.

docs/darknet_training.md says key by key what becomes of them. Defaults are those of Darknet's src/parser.c.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from engine.iteration_rates import POLICIES
from engine.optimizer import NOMINAL_BATCH
from models.darknet.cfg import keys_without_effect, parse_cfg
from models.darknet.scaled_decode import DECODES
from models.darknet.section import DarknetConfig, Section
from models.families.table import FAMILIES, is_family
from models.loss import LossOptions
from models.network import Network
from utils.config import REPOSITORY, build_options, find_file, read_recipe
from utils.errors import UserError

FROM_CFG = "cfg"  # what --hyp says for the keys of the cfg
OTHER_POLICIES = ("step", "exp", "sigmoid", "random")  # of Darknet, without an equal here
IOU_LOSSES = ("iou", "giou", "diou", "ciou")
RANDOM_FACTOR = 1.4  # what random=1 stands for
EVEN_CHANCE = 0.5  # with which Darknet flips, blends and puts images together
# Keys that the recipe is made of; those of a head are read in the last one, as in Darknet.
NET_KEYS = (
    "batch", "subdivisions", "learning_rate", "learning_rate_min", "burn_in", "power", "policy", "steps", "scales",
    "max_batches", "sgdr_cycle", "sgdr_mult", "momentum", "decay", "adam", "b1", "b2", "eps", "saturation", "exposure",
    "hue", "flip", "mosaic", "mixup", "letter_box",
)  # fmt: skip
HEAD_KEYS = ("jitter", "random")
YOLO_KEYS = ("iou_loss", "label_smooth_eps")
# Of the toolkit's own augmentation and schedule nothing is left, and no gradient is clipped.
NEUTRAL = {
    "hsv_h": 0.0, "hsv_s": 0.0, "hsv_v": 0.0, "degrees": 0.0, "translate": 0.0, "scale": 0.0, "shear": 0.0,
    "flipud": 0.0, "close_mosaic": 0, "warmup_epochs": 0.0, "warmup_bias_lr": 0.0, "clip_norm": 0.0, "nesterov": False,
}  # fmt: skip


def default_recipe(cfg: str, decode: str = DECODES[0]) -> str:
    """Return the recipe for a network.

    That of a cfg is one of its name, else by its heads: darknet.yaml, yolov5.yaml or yolov3.yaml. Others have it in
    their table.

    Args:
        cfg: as the user named it.
        decode: of the boxes, one of ``DECODES``.
    """
    if is_family(cfg):
        return FAMILIES[cfg].recipe
    path = find_file(cfg, "cfg")
    if (REPOSITORY / "cfg/hyp" / f"{path.stem}.yaml").is_file():
        return f"{path.stem}.yaml"
    return recipe_by_heads(parse_cfg(path).sections, decode)


def recipe_by_heads(sections: Sequence[Section], decode: str) -> str:
    """Return the recipe whose loss fits the heads: darknet.yaml, yolov5.yaml or yolov3.yaml."""
    if any(section.kind in ("region", "gaussian_yolo") for section in sections):
        return "darknet.yaml"
    scaled = decode == "scaled" or any(section.kind == "yolo" and section["new_coords"] for section in sections)
    return "yolov5.yaml" if scaled else "yolov3.yaml"


def values_of_cfg(cfg: str, given: Mapping[str, Any], groups: Sequence[type]) -> dict[str, Any]:
    """Return the options that the training keys of a cfg stand for, with the loss of the recipe for its heads.

    Args:
        cfg: as the user named it.
        given: options on the command line.
        groups: dataclasses of all options.

    Raises:
        UserError: as :func:`recipe_of_cfg`, or a number that an option does not allow.
    """
    if is_family(cfg):
        raise UserError(f"--hyp {FROM_CFG}: {cfg} has no cfg; leave it out, or name a recipe of cfg/hyp")
    config = parse_cfg(find_file(cfg, "cfg"))
    recipe = recipe_by_heads(config.sections, given.get("decode", DECODES[0]))
    usual = read_recipe(find_file(recipe, "recipe"), groups)
    values = {item.name: usual[item.name] for item in fields(LossOptions) if item.name in usual}
    values |= recipe_of_cfg(config, given)
    build_options(values, groups, f"{config.source} (--hyp {FROM_CFG})")  # names the cfg where a value is impossible
    return values


def recipe_of_cfg(config: DarknetConfig, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that the training keys of a cfg ask for; what belongs to the loss comes from elsewhere.

    Args:
        config: the cfg.
        given: options on the command line, which win: another batch changes what makes a step.

    Raises:
        UserError: Darknet would refuse to train with these keys, or has a policy that is not here.
    """
    net, head = config.net, _last_head(config)
    size, accumulate = _batches(net, given)
    step = _optimizer(net, size * accumulate) | _schedule(net, "epochs" in given)
    return NEUTRAL | step | _augmentation(net, head) | {"batch_size": size, "accumulate": accumulate}


def notes_of_recipe(network: Network) -> list[str]:
    """Return the notes on a cfg that is its own recipe: its training keys are not among those without effect."""
    config = network.config
    plain = keys_without_effect(config.source, (config.net, *config.sections), {})
    has_equal = _value(_last_head(config), "iou_loss", "") in IOU_LOSSES
    of_loss = [key for key in YOLO_KEYS if key != "iou_loss" or has_equal]
    used = {"net": NET_KEYS, "region": HEAD_KEYS, "gaussian_yolo": HEAD_KEYS, "yolo": [*HEAD_KEYS, *of_loss]}
    others = keys_without_effect(config.source, (config.net, *config.sections), used)
    lines = [others] if others else []
    policy = _value(config.net, "policy", "constant")
    if policy not in POLICIES:
        lines.append(f"{config.source}: Darknet does not know policy={policy:.40} and keeps the learning rate constant")
    return lines + [note for note in network.notes if note != plain]


def _value(section: Section | None, key: str, default: Any) -> Any:
    """Return what a section says, or Darknet's default."""
    if section is None or key not in section.keys or section[key] is None:
        return default
    return section[key]


def _last_head(config: DarknetConfig) -> Section | None:
    heads = [section for section in config.sections if section.kind in ("yolo", "gaussian_yolo", "region")]
    return heads[-1] if heads else None


def _batches(net: Section, given: Mapping[str, Any]) -> tuple[int, int]:
    """Return images per batch, and batches per optimizer step: Darknet's batch / subdivisions, and subdivisions."""
    batch, subdivisions = (_value(net, key, 1) for key in ("batch", "subdivisions"))
    each = batch // max(1, subdivisions)
    if "batch_size" not in given and (each < 1 or batch < 2 or subdivisions < 1):
        raise net.error(
            f"batch={batch} and subdivisions={subdivisions} are no training, in Darknet either; write batch=64 and, "
            "for less memory, subdivisions=16, or give --batch-size",
            "batch",
        )
    size = given.get("batch_size", each)
    if "accumulate" in given:
        return size, given["accumulate"] or max(1, round(NOMINAL_BATCH / size))
    return size, subdivisions if size == each else max(1, round(batch / max(1, size)))


def _optimizer(net: Section, images: int) -> dict[str, Any]:
    """Return optimizer, rate, momentum and decay whose step on ``images`` images is Darknet's.

    Darknet divides the sum of the gradients over a batch by its images. The losses here are divided by 64: with SGD the
    learning rate makes up for it, with Adam, which is blind to factors, what is added to the root. Either way the decay
    that ``build_optimizer`` scales with the images of a step is Darknet's.
    """
    rate = float(_value(net, "learning_rate", 0.001))
    decay = {"weight_decay": float(_value(net, "decay", 0.0001))}
    if _value(net, "adam", 0):
        momentum, eps = float(_value(net, "b1", 0.9)), float(_value(net, "eps", 1e-6)) / NOMINAL_BATCH
        adam = {"optimizer": "Adam", "lr0": rate, "beta2": float(_value(net, "b2", 0.999)), "adam_eps": eps}
        return decay | adam | {"momentum": momentum, "warmup_momentum": momentum}
    momentum = float(_value(net, "momentum", 0.9))
    sgd = {"optimizer": "SGD", "lr0": rate * NOMINAL_BATCH / max(1, images)}
    return decay | sgd | {"momentum": momentum, "warmup_momentum": momentum}


def _schedule(net: Section, has_epochs: bool) -> dict[str, Any]:
    """Return how the learning rate changes and, unless ``has_epochs``, how long the run is."""
    policy, iterations = _value(net, "policy", "constant"), _value(net, "max_batches", 0)
    if policy in OTHER_POLICIES:
        raise net.error(f"policy={policy}: --hyp cfg follows {', '.join(POLICIES)}; write one of these", "policy")
    if iterations < 1 and not has_epochs:
        raise net.error("max_batches is missing, by which Darknet trains; write it, or give --epochs", "max_batches")
    values: dict[str, Any] = {
        "schedule": policy if policy in POLICIES else "constant",
        "max_batches": max(0, iterations),
        "burn_in": _value(net, "burn_in", 0),
        "lr_power": float(_value(net, "power", 4.0)),
    }
    if policy == "steps":
        steps, scales = _value(net, "steps", ()), _value(net, "scales", ())
        if not 0 < len(steps) <= len(scales):
            raise net.error("policy=steps needs steps, and a scale for each of them", "steps")
        values |= {"lr_steps": steps, "lr_scales": scales[: len(steps)]}  # Darknet, too, reads no more of them
    if policy == "sgdr":
        lowest, rate = _value(net, "learning_rate_min", 1e-5), _value(net, "learning_rate", 0.001)
        values |= {"lr_cycle": _value(net, "sgdr_cycle", 0), "lr_cycle_growth": _value(net, "sgdr_mult", 2)}
        values["lrf"] = lowest / rate if rate else 0.0
    return values if has_epochs else values | {"epochs": 0}


def _augmentation(net: Section, head: Section | None) -> dict[str, Any]:
    """Return how pictures are changed, at which sizes, and what the last head says of the loss."""
    mosaic, mixup = bool(_value(net, "mosaic", 0)), bool(_value(net, "mixup", 0))
    values: dict[str, Any] = {
        "saturation": float(_value(net, "saturation", 1.0)),
        "exposure": float(_value(net, "exposure", 1.0)),
        "hue": float(_value(net, "hue", 0.0)),
        "jitter": float(_value(head, "jitter", 0.2)),
        "fliplr": EVEN_CHANCE if _value(net, "flip", 1) else 0.0,
        "mosaic": EVEN_CHANCE if mosaic else 0.0,
        "mixup": EVEN_CHANCE if mixup and not mosaic else 0.0,
        "match": "darknet",
    }
    if random := float(_value(head, "random", 0.0)):
        factor = RANDOM_FACTOR if random == 1 else max(random, 1 / random)
        values |= {"multi_scale": True, "multi_scale_range": (1 / factor, factor)}
    if head is not None and head.kind == "yolo":
        iou_loss = _value(head, "iou_loss", "mse")
        values |= {"box_loss": iou_loss} if iou_loss in IOU_LOSSES else {}
        values |= {"label_smoothing": float(_value(head, "label_smooth_eps", 0.0))}
    return values


def as_many_epochs(max_batches: int, batches_per_epoch: int, accumulate: int) -> int:
    """Return the epochs that so many iterations take, the last one whole.

    Raises:
        UserError: no number of iterations is known.
    """
    if max_batches < 1:
        raise UserError("--epochs must be at least 1; with 0 --max-batches says how many iterations the run has")
    return -(-max_batches // -(-batches_per_epoch // accumulate))
