"""Which sections and keys a Darknet cfg may hold, their types and ranges, and what we do with each.

A key is *honoured* (the builder reads it), *refused* unless it has the one value that changes nothing, or *ignored*: it
concerns Darknet's own training or display and can change neither our inference nor our training. Of the ignored keys,
those in ``MATCHES_OTHERWISE`` change Darknet's matching, which ``--match darknet`` does not follow; the user is told.
Names, defaults and meanings are those of Darknet's ``src/parser.c``; the keys marked "ours" are additions that Darknet
reports as unused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

HONOURED, REFUSED, IGNORED = "honoured", "refused", "ignored"

ACTIVATION_NAMES = (
    "linear", "leaky", "relu", "relu6", "logistic", "tanh", "elu", "selu", "gelu", "swish", "silu", "mish", "hard_mish",
    "hard_swish", "loggy", "relie", "ramp", "revleaky", "plse", "stair", "hardtan", "lhtan",
    "normalize_channels", "normalize_channels_softmax", "normalize_channels_softmax_maxval",
)  # fmt: skip
DARKNET_ACTIVATIONS = tuple(name for name in ACTIVATION_NAMES if name not in ("silu", "hard_swish"))
ACTIVATION_ALIASES = {"silu": "swish", "hard-swish": "hard_swish", "hardswish": "hard_swish", "hard-mish": "hard_mish"}


@dataclass(frozen=True)
class Key:
    """One key of a section: its type, default, range and what becomes of it."""

    kind: str  # int, float, text, ints, floats
    default: Any = None
    low: float | None = None  # inclusive
    high: float | None = None  # inclusive
    choices: tuple[str, ...] = ()
    role: str = HONOURED
    why: str = ""  # for a refused key: what it would do


def integer(default: int | None, low: int, high: int) -> Key:
    """An int within bounds that keep a mistyped cfg from asking for all of the memory."""
    return Key("int", default, low, high)


def number(default: float | None, low: float | None = None, high: float | None = None) -> Key:
    """A finite float."""
    return Key("float", default, low, high)


def choice(default: str, *names: str) -> Key:
    """One of a few words."""
    return Key("text", default, choices=names)


def ignored(kind: str = "float") -> Key:
    """A key without effect here; its value must still have the right type."""
    return Key(kind, role=IGNORED)


def refused(why: str, kind: str = "int", default: Any = 0) -> Key:
    """A key that would change the result in a way we do not reproduce; only its neutral value is accepted."""
    return Key(kind, default, role=REFUSED, why=why)


def activation(default: str) -> Key:
    """An activation by Darknet's name, or by one of the spellings in ``ACTIVATION_ALIASES``."""
    return choice(default, *ACTIVATION_NAMES, *ACTIVATION_ALIASES)


FLAG = integer(0, 0, 1)
LAYER = integer(None, -10_000, 10_000)
LAYERS = Key("ints", None, -10_000, 10_000)
SIDE = integer(1, 1, 255)  # kernel sizes and strides
CHANNELS = integer(1, 1, 65_536)

COMMON = {
    "onlyforward": ignored("int"), "dont_update": ignored("int"), "burnin_update": ignored("int"),
    "stopbackward": ignored("int"), "train_only_bn": ignored("int"), "learning_rate": ignored(), "clip": ignored(),
    "dontload": refused("the layer keeps its random weights"),
    "dontloadscales": refused("the layer keeps its initial batch-norm values"),
}  # fmt: skip

_NET_IGNORED_INTS = (
    "batch subdivisions max_batches sgdr_cycle sgdr_mult time_steps track augment_speed seen sequential_subdivisions "
    "try_fix_nan dynamic_minibatch optimized_memory adam max_crop min_crop flip blur gaussian_noise mixup "
    "cutmix mosaic mosaic_bound burn_in step contrastive contrastive_jit_flip contrastive_color "
    "unsupervised use_cuda_graph equidistant_point full_time_batches init_sequential_subdivisions weights_reject_freq"
)
_NET_IGNORED_FLOATS = (
    "learning_rate learning_rate_min momentum decay loss_scale workspace_size_limit_mb b1 b2 eps label_smooth_eps "
    "resize_step attention adversarial_lr max_chart_loss angle aspect saturation exposure hue power scale gamma "
    "ema_alpha badlabels_rejection_percentage num_sigmas_reject_badlabels badlabels_reject_threshold"
)

LARGEST_SIDE = 16_384  # of a network's input, pixels

NET = {
    "width": integer(None, 1, LARGEST_SIDE), "height": integer(None, 1, LARGEST_SIDE), "channels": integer(3, 1, 4_096),
    "inputs": integer(None, 1, 1_000_000),  # in place of the three
    "letter_box": Key("int"),  # how images get into the input; without it, and at 0, they are stretched
    "bn_eps": number(None, 0.0, 1.0),  # ours: batch norm's epsilon, 1e-5 as Darknet without it
    "bn_momentum": number(None, 0.0, 1.0),  # ours: weight of the new batch in the running statistics, 0.03 without it
    **{name: ignored("int") for name in _NET_IGNORED_INTS.split()},
    **{name: ignored() for name in _NET_IGNORED_FLOATS.split()},
    "policy": ignored("text"), "show_receptive_field": ignored("int"),
    "steps": ignored("ints"), "scales": ignored("floats"), "seq_scales": ignored("floats"),
}  # fmt: skip

CONVOLUTIONAL = {
    "filters": CHANNELS, "size": SIDE, "stride": SIDE, "stride_x": integer(0, -1, 255), "stride_y": integer(0, -1, 255),
    "pad": integer(0, 0, 255), "padding": integer(0, 0, 255), "dilation": SIDE, "groups": CHANNELS,
    "batch_normalize": integer(0, 0, 2), "cbn": FLAG, "activation": activation("logistic"),
    "antialiasing": integer(0, 0, 2),
    "binary": FLAG, "xnor": FLAG, "share_index": LAYER,
    "sway": refused("deforms the kernels"), "rotate": refused("deforms the kernels"),
    "stretch": refused("deforms the kernels"), "stretch_sway": refused("deforms the kernels"),
    "coordconv": ignored("int"), "reverse": refused("transposes the convolution"),
    "flipped": refused("flips the kernels while loading"),
    "bin_output": ignored("int"), "assisted_excitation": ignored(), "dot": ignored(), "angle": ignored(),
    "grad_centr": ignored("int"), "stream": ignored("int"), "wait_stream": ignored("int"),
}  # fmt: skip

_POOL = {"size": integer(0, 0, 255), "stride": SIDE, "stride_x": integer(0, 0, 255), "stride_y": integer(0, 0, 255),
         "padding": integer(-1, -1, 509)}  # fmt: skip

_YOLO_IGNORED_FLOATS = (
    "truth_thresh jitter resize random max_delta label_smooth_eps iou_normalizer obj_normalizer "
    "cls_normalizer delta_normalizer uc_normalizer sim_thresh track_ciou_norm"
)
_YOLO_IGNORED_INTS = (
    "max focal_loss objectness_smooth show_details embedding_layer track_history_size dets_for_track dets_for_show"
)

YOLO = {
    "mask": Key("ints", None, 0, 999), "anchors": Key("floats", None, 0.0, 1e5), "num": integer(1, 1, 1000),
    "classes": integer(20, 1, 100_000), "scale_x_y": number(1.0, 0.1, 10.0), "new_coords": FLAG,
    "ignore_thresh": number(0.5, 0.0, 1.0), "iou_thresh": number(1.0, 0.0, 1.0),
    "nms_kind": choice("default", "default", "greedynms", "diounms", "cornersnms"), "beta_nms": number(0.6, 0.01, 1e2),
    **{name: ignored() for name in _YOLO_IGNORED_FLOATS.split()},
    **{name: ignored("int") for name in _YOLO_IGNORED_INTS.split()},
    **{name: ignored("text") for name in ("iou_loss", "iou_thresh_kind", "map")},
    "counters_per_class": ignored("ints"),
}  # fmt: skip

# Ignored here, though Darknet matches differently unless they have these values; published cfgs set them.
MATCHES_OTHERWISE = {"iou_thresh_kind": "iou", "truth_thresh": 1}

_SHORTCUT_NORMALIZATION = choice("none", "none", "relu", "avg_relu", "softmax")

# Keys of the sections that this toolkit builds; models/darknet/kinds.py has what builds them.
SECTIONS: dict[str, dict[str, Key]] = {
    "convolutional": CONVOLUTIONAL,
    "maxpool": {**_POOL, "maxpool_depth": FLAG, "out_channels": CHANNELS, "antialiasing": integer(0, 0, 2)},
    "local_avgpool": _POOL,
    "avgpool": {},
    "upsample": {"stride": integer(2, 1, 64), "scale": number(1.0)},
    "route": {"layers": LAYERS, "groups": CHANNELS, "group_id": integer(0, 0, 65_535),
              "stream": ignored("int"), "wait_stream": ignored("int")},
    "route_lhalf": {"layers": LAYERS},  # of Darknet's copies: the first half of the channels
    "shortcut": {"from": LAYERS, "activation": activation("linear"),
                 "weights_type": choice("none", "none", "per_feature", "per_layer", "per_channel"),
                 "weights_normalization": _SHORTCUT_NORMALIZATION, "weights_normalizion": _SHORTCUT_NORMALIZATION},
    "dropout": {"probability": number(0.2, 0.0, 1.0), "dropblock": FLAG, "dropblock_size_rel": number(0.0, 0.0, 1.0),
                "dropblock_size_abs": integer(0, 0, 1_000)},
    "yolo": YOLO,
    "batchnorm": {},
    "activation": {"activation": activation("linear")},
    "reorg": {"stride": SIDE, "reverse": FLAG},
    "reorg3d": {"stride": SIDE, "reverse": FLAG},
    "sam": {"from": LAYER, "activation": activation("linear")},
    "scale_channels": {"from": LAYER, "activation": activation("linear"), "scale_wh": FLAG},
    "implicit": {"filters": integer(128, 1, 65_536), "atoms": integer(1, 1, 65_536), "mean": number(0.0),
                 "std": number(0.2, 0.0)},
    "implicit_add": {"filters": CHANNELS, "mean": number(0.0), "std": number(0.02, 0.0)},
    "implicit_mul": {"filters": CHANNELS, "mean": number(1.0), "std": number(0.02, 0.0)},
    "shift_channels": {"from": LAYER, "activation": activation("linear")},
    "control_channels": {"from": LAYER, "activation": activation("linear")},
    "softmax": {"groups": CHANNELS, "temperature": number(1.0, 1e-6), "spatial": FLAG, "noloss": ignored("int"),
                "tree": refused("a softmax over a word tree", "text", None)},
    "contrastive": {name: ignored() for name in (
        "classes", "temperature", "yolo_layer", "cls_normalizer", "max_delta", "contrastive_neg_max")},
    "cost": {"type": ignored("text"), "scale": ignored(), "ratio": ignored()},
    "silence": {},  # also [empty]: Darknet's place holder
}  # fmt: skip

SECTION_ALIASES = {
    "network": "net", "conv": "convolutional", "max": "maxpool", "avg": "avgpool", "local_avg": "local_avgpool",
    "soft": "softmax", "empty": "silence", "conn": "connected",
}  # fmt: skip

WITH_CAPITALS = ("[Gaussian_yolo]",)

UNSUPPORTED_SECTIONS = (
    "history", "normalization", "lrn", "deconvolutional", "iseg", "logistic", "l2norm",
)  # fmt: skip
