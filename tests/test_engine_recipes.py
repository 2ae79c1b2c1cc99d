"""``--hyp cfg``: the keys of a cfg as options, and that an optimizer step with them is Darknet's own."""

import pytest
import torch
from torch import nn

from data.augment import AugmentOptions
from engine.optimizer import OptimizerOptions, Schedule, build_optimizer
from engine.recipes import as_many_epochs, default_recipe, notes_of_recipe, recipe_of_cfg, values_of_cfg
from engine.train_options import GROUPS
from models.darknet.cfg import parse_cfg_text
from models.network import build_network_from_text
from utils.config import build_options
from utils.errors import UserError

BODY = """
[convolutional]
filters=21
size=1
stride=8
activation=linear
"""
YOLO = "[yolo]\nmask=0,1,2\nanchors=8,8, 16,16, 32,32\nclasses=2\nnum=3\n"
REGION = "[region]\nanchors=1,1, 2,2, 4,4\nclasses=2\nnum=3\nsoftmax=1\n"
TRAINING = "batch=64\nsubdivisions=16\nmax_batches=500\n"


def config(net=TRAINING, head=YOLO):
    return parse_cfg_text(f"[net]\nwidth=64\nheight=64\nchannels=3\n{net}{BODY}{head}", "x.cfg")


def recipe(net=TRAINING, head=YOLO, **given):
    return recipe_of_cfg(config(net, head), given)


# What is written, and the options that it becomes; of Darknet's own defaults where nothing is.
KEYS = [
    ("", "", {"batch_size": 4, "accumulate": 16, "lr0": 0.001, "momentum": 0.9, "weight_decay": 1e-4, "epochs": 0,
              "schedule": "constant", "burn_in": 0, "fliplr": 0.5, "mosaic": 0.0, "mixup": 0.0, "saturation": 1.0,
              "exposure": 1.0, "hue": 0.0, "jitter": 0.2, "optimizer": "SGD", "nesterov": False, "clip_norm": 0.0,
              "warmup_epochs": 0.0, "match": "darknet", "degrees": 0.0, "hsv_s": 0.0, "translate": 0.0}),
    ("learning_rate=0.00261\nmomentum=.949\ndecay=0.0005\nburn_in=1000\npower=2\n", "",
     {"lr0": 0.00261, "momentum": 0.949, "warmup_momentum": 0.949, "weight_decay": 0.0005, "burn_in": 1000,
      "lr_power": 2.0}),
    ("policy=steps\nsteps=400000,450000\nscales=.1,.1\n", "",
     {"schedule": "steps", "lr_steps": (400000, 450000), "lr_scales": (0.1, 0.1), "max_batches": 500}),
    ("policy=steps\nsteps=-1,9\nscales=.1,10,.5\n", "", {"lr_steps": (-1, 9), "lr_scales": (0.1, 10.0)}),
    ("policy=poly\n", "", {"schedule": "poly", "lr_power": 4.0}),
    ("policy=sgdr\nsgdr_cycle=100\nsgdr_mult=3\nlearning_rate=.01\nlearning_rate_min=.001\n", "",
     {"schedule": "sgdr", "lr_cycle": 100, "lr_cycle_growth": 3, "lrf": pytest.approx(0.1)}),
    ("policy=Steps\n", "", {"schedule": "constant"}),  # Darknet does not know it
    ("adam=1\nB1=.8\nB2=.99\neps=0.0064\n", "",
     {"optimizer": "Adam", "momentum": 0.8, "beta2": 0.99, "adam_eps": pytest.approx(1e-4), "lr0": 0.001}),
    ("saturation = 1.5\nexposure=2\nhue=.1\nflip=0\n", "jitter=.3\n",
     {"saturation": 1.5, "exposure": 2.0, "hue": 0.1, "fliplr": 0.0, "jitter": 0.3}),
    ("mosaic=1\n", "", {"mosaic": 0.5, "mixup": 0.0}),
    ("mixup=1\n", "", {"mosaic": 0.0, "mixup": 0.5}),
    ("mosaic=1\nmixup=1\n", "", {"mosaic": 0.5, "mixup": 0.0}),
    ("", "random=1\n", {"multi_scale": True, "multi_scale_range": (1 / 1.4, 1.4)}),
    ("", "random=.5\n", {"multi_scale": True, "multi_scale_range": (0.5, 2.0)}),
    ("", "iou_loss=diou\nlabel_smooth_eps=0.1\n", {"box_loss": "diou", "label_smoothing": 0.1}),
    ("angle=30\naspect=.75\n", "", {"degrees": 0.0}),  # without effect in Darknet's detector, too
]  # fmt: skip


@pytest.mark.parametrize(("net", "head", "options"), KEYS)
def test_keys_become_options(net, head, options):
    found = recipe(TRAINING + net, YOLO + head)
    assert {name: found[name] for name in options} == options
    build_options(found, GROUPS)


def test_what_is_not_written_is_not_changed():
    assert not {"multi_scale", "box_loss"} & recipe(head=YOLO + "random=0\niou_loss=mse\n").keys()


def test_the_last_head_counts_as_in_darknet():
    assert recipe(head=YOLO + "jitter=.1\n" + BODY + YOLO + "jitter=.4\n")["jitter"] == 0.4
    found = recipe(head=REGION + "jitter=.25\nrandom=1\n")
    assert found["jitter"] == 0.25 and found["multi_scale"] and "label_smoothing" not in found


BATCHES = [  # batch, subdivisions, options of the command line -> images per batch, batches per step
    (64, 16, {}, (4, 16)),
    (64, 1, {}, (64, 1)),
    (10, 3, {}, (3, 3)),  # Darknet's whole numbers: 9 images a step
    (64, 16, {"batch_size": 8}, (8, 8)),
    (64, 16, {"batch_size": 128}, (128, 1)),
    (64, 16, {"batch_size": 4}, (4, 16)),
    (64, 16, {"batch_size": 4, "accumulate": 2}, (4, 2)),
    (64, 16, {"accumulate": 0}, (4, 16)),
    (1, 1, {"batch_size": 16}, (16, 1)),
]


@pytest.mark.parametrize(("batch", "subdivisions", "given", "expected"), BATCHES)
def test_images_of_a_batch_and_of_a_step(batch, subdivisions, given, expected):
    found = recipe(f"batch={batch}\nsubdivisions={subdivisions}\nmax_batches=9\nlearning_rate=.002\n", **given)
    assert (found["batch_size"], found["accumulate"]) == expected
    # The losses are divided by 64, whatever the images of a step: the rate makes up for it.
    assert found["lr0"] == pytest.approx(0.002 * 64 / (expected[0] * expected[1]))


REFUSED = [
    ("batch=1\nsubdivisions=1\nmax_batches=9\n", "x.cfg:5: [net] batch=1 and subdivisions=1 are no training"),
    ("max_batches=9\n", "x.cfg:1: [net] batch=1 and subdivisions=1 are no training"),
    ("batch=8\nsubdivisions=16\nmax_batches=9\n", "x.cfg:5: [net] batch=8 and subdivisions=16 are no training"),
    ("batch=8\n", "x.cfg:1: [net] max_batches is missing"),
    *((TRAINING + f"policy={name}\n", f"x.cfg:8: [net] policy={name}: --hyp cfg follows constant, steps, poly, sgdr")
      for name in ("step", "exp", "sigmoid", "random")),
    (TRAINING + "policy=steps\n", "x.cfg:1: [net] policy=steps needs steps, and a scale for each"),
    (TRAINING + "policy=steps\nsteps=1,2\nscales=.1\n", "x.cfg:9: [net] policy=steps needs steps, and a scale for"),
]  # fmt: skip


@pytest.mark.parametrize(("net", "message"), REFUSED)
def test_what_darknet_would_not_train_or_we_do_not_follow(net, message):
    with pytest.raises(UserError) as caught:
        recipe(net)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("net", "words"), [("hue=2\n", "hue = 2.0"), ("momentum=1\n", "--momentum"), ("learning_rate=0\n", "--lr0")]
)
def test_a_number_that_no_option_allows_names_the_cfg(tmp_path, net, words):
    path = tmp_path / "x.cfg"
    path.write_text(config(TRAINING + net).text)
    with pytest.raises(UserError, match=words) as caught:
        values_of_cfg(str(path), {}, GROUPS)
    assert str(caught.value).startswith(f"{path} (--hyp cfg): ")


def test_epochs_given_make_the_length_unnecessary():
    assert "epochs" not in recipe("batch=8\n", epochs=3)


@pytest.mark.parametrize(("head", "loss"), [(YOLO, "alpha"), (REGION, "darknet"), (YOLO + "new_coords=1\n", "alpha")])
def test_the_loss_is_that_of_the_heads(tmp_path, head, loss):
    path = tmp_path / "yolov3-nano.cfg"  # whose own recipe in cfg/hyp is another
    path.write_text(config(head=head).text)
    found = values_of_cfg(str(path), {}, GROUPS)
    assert found.get("loss", "alpha") == loss and found["gains"] == ("yolov5" if "new_coords" in head else "yolov3")
    assert found["optimizer"] == "SGD" and "hyp" not in found
    assert default_recipe("yolov3-nano.cfg") == "yolov3-nano.yaml"
    assert default_recipe("centernet_resnet18") == "centernet.yaml"
    assert default_recipe("fcos_resnet50_fpn") == "detectors.yaml"


def test_only_keys_without_an_equal_are_announced():
    net = TRAINING + "angle=0\nmosaic=1\nresize_step=64\ncutmix=1\nletter_box=0\nhue=.1\npolicy=Poly\n"
    network = build_network_from_text(
        config(net, YOLO + "jitter=.3\nrandom=1\nmax_delta=5\niou_loss=ciou\nresize=1.5\n").text, "x.cfg"
    )
    before = network.notes
    assert "batch, subdivisions, max_batches, angle, mosaic" in before[0]
    notes = notes_of_recipe(network)
    assert notes[:2] == [
        "x.cfg: without effect here: [net] angle, resize_step, cutmix; [yolo] max_delta, resize",
        "x.cfg: Darknet does not know policy=Poly and keeps the learning rate constant",
    ]
    assert notes[2:] == list(before[1:])
    text = config(TRAINING, YOLO + "iou_loss=mse\nlabel_smooth_eps=.1\n").text  # a loss that is not here
    assert notes_of_recipe(build_network_from_text(text, "x.cfg")) == ["x.cfg: without effect here: [yolo] iou_loss"]
    plain = build_network_from_text(config().text, "x.cfg")
    assert notes_of_recipe(plain) == []


@pytest.mark.parametrize(
    ("iterations", "batches", "accumulate", "epochs"), [(12, 4, 4, 12), (12, 7, 3, 4), (13, 7, 3, 5), (1, 99, 1, 1)]
)
def test_epochs_for_a_number_of_iterations(iterations, batches, accumulate, epochs):
    assert as_many_epochs(iterations, batches, accumulate) == epochs
    with pytest.raises(UserError, match="--epochs must be at least 1"):
        as_many_epochs(0, batches, accumulate)


class PlainDarknet:
    """Darknet's update of one array of numbers, with the sums of gradients that it keeps (src/convolutional_layer.c).

    It keeps sums over images of what points downhill. Momentum shrinks the whole sum after every step.
    """

    def __init__(self, numbers, batch, momentum, decay):
        self.numbers, self.batch, self.momentum, self.decay = numbers.clone(), batch, momentum, decay
        self.downhill = torch.zeros_like(numbers)

    def step(self, gradient_sum, rate):
        self.downhill = self.downhill - gradient_sum - self.decay * self.batch * self.numbers
        self.numbers = self.numbers + rate / self.batch * self.downhill
        self.downhill = self.downhill * self.momentum


class PlainAdam:
    """The same with ``adam=1`` (src/blas_kernels.cu)."""

    def __init__(self, numbers, batch, decay, b1, b2, eps):
        self.numbers, self.batch, self.decay, self.b1, self.b2, self.eps = numbers.clone(), batch, decay, b1, b2, eps
        self.mean, self.square, self.count = torch.zeros_like(numbers), torch.zeros_like(numbers), 0

    def step(self, gradient_sum, rate):
        self.count += 1
        downhill = -gradient_sum - self.decay * self.batch * self.numbers
        self.mean = self.b1 * self.mean + (1 - self.b1) * downhill
        self.square = self.b2 * self.square + (1 - self.b2) * downhill**2
        mean, square = self.mean / (1 - self.b1**self.count), self.square / (1 - self.b2**self.count)
        self.numbers = self.numbers + rate * mean / (square.sqrt() + self.eps)


@pytest.mark.parametrize(("batch", "subdivisions", "given"), [(64, 16, {}), (24, 4, {}), (64, 16, {"batch_size": 5})])
@pytest.mark.parametrize("adam", [False, True])
def test_an_optimizer_step_is_darknets(batch, subdivisions, given, adam):
    net = f"batch={batch}\nsubdivisions={subdivisions}\nmax_batches=8\nlearning_rate=.05\nmomentum=.8\ndecay=.03\n"
    net += "burn_in=3\npolicy=steps\nsteps=5,7\nscales=.1,.5\n" + ("adam=1\nB1=.7\nB2=.9\neps=.01\n" if adam else "")
    values = recipe(net, **given)
    options = build_options({n: v for n, v in values.items() if n in OptimizerOptions.__dataclass_fields__},
                            [OptimizerOptions])[0]  # fmt: skip
    images, accumulate = values["batch_size"] * values["accumulate"], values["accumulate"]
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)).double()
    decays = {"0.weight", "2.weight"}  # Darknet's decay is that of kernels alone
    kinds = {
        name: PlainAdam(p.data, images, 0.03 * (name in decays), 0.7, 0.9, 0.01) if adam
        else PlainDarknet(p.data, images, 0.8, 0.03 * (name in decays))
        for name, p in model.named_parameters()
    }  # fmt: skip
    optimizer = build_optimizer(model, options, images)
    schedule = Schedule(options, epochs=8, batches_per_epoch=accumulate, accumulate=accumulate)
    rates = [0.05 * factor for factor in ((1 / 3) ** 4, (2 / 3) ** 4, 1, 1, 0.1, 0.1, 0.05, 0.05)]
    for iteration, rate in enumerate(rates):
        for name, parameter in model.named_parameters():
            gradient_sum = torch.randn_like(parameter) * images
            parameter.grad = gradient_sum / 64  # the loss is a sum over images / 64
            kinds[name].step(gradient_sum, rate)
        schedule.set_rates(optimizer, iteration * accumulate + accumulate - 1)
        optimizer.step()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.data, kinds[name].numbers, rtol=1e-9, atol=1e-12)


# After 1, 4 and 8 calls of update_convolutional_layer of AlexeyAB/darknet 59596d7 (CPU): rate, five weights, bias and
# scale of two filters. The sums of the gradients in each step are those of the test below.
RECORDED = {
    1: (0.000617284037, 0.50006789, -0.999852896, 2.00014305, 0.100229628, -0.299711525, 0.200000003, 1.0,
        -0.400025725, 1.9999485),
    4: (0.0500000007, 0.498947531, -0.996829808, 1.96854901, 0.07622426, -0.329048306, 0.182838485, 1.01716161,
        -0.42916134, 1.99316192),
    8: (0.00250000018, 0.498449534, -0.996813059, 1.96162307, 0.070475854, -0.3361049, 0.175137624, 1.02486241,
        -0.439176202, 1.99623477),
}  # fmt: skip


def test_eight_steps_are_those_that_darknet_took():
    net = "batch=24\nsubdivisions=6\nmax_batches=8\nlearning_rate=.05\nmomentum=.8\ndecay=.03\nburn_in=3\n"
    values = recipe(net + "policy=steps\nsteps=5,7\nscales=.1,.5\n")
    (options,) = build_options({n: values[n] for n in values if n in OptimizerOptions.__dataclass_fields__},
                               [OptimizerOptions])  # fmt: skip
    model = nn.Sequential(nn.Linear(5, 1, bias=False), nn.BatchNorm2d(2)).double()
    weight, scale, bias = model[0].weight, model[1].weight, model[1].bias
    for parameter, start in ((weight, [[0.5, -1, 2, 0.1, -0.3]]), (scale, [1.0, 2]), (bias, [0.2, -0.4])):
        parameter.data = torch.tensor(start, dtype=torch.float64)
    optimizer, schedule = build_optimizer(model, options, 24), Schedule(options, 8, 6, 6)
    for step in range(8):
        weight.grad = torch.tensor([[3.0 * (i + 1) * (step % 3 - 1) + i for i in range(5)]]).double() / 64
        bias.grad = torch.tensor([step, step + 1.0]).double() / 64
        scale.grad = torch.tensor([-step, 2.0 - step]).double() / 64
        schedule.set_rates(optimizer, 6 * step + 5)
        optimizer.step()
        if recorded := RECORDED.get(step + 1):
            rate = optimizer.param_groups[0]["lr"] * 24 / 64
            pairs = [number for pair in zip(bias.tolist(), scale.tolist(), strict=True) for number in pair]
            assert [rate, *weight.flatten().tolist(), *pairs] == pytest.approx(recorded, rel=1e-6)


def test_augmentation_of_the_toolkit_is_off():
    found = recipe()
    ours = {"hsv_h", "hsv_s", "hsv_v", "degrees", "translate", "scale", "shear", "flipud", "fliplr", "mosaic", "mixup"}
    ours |= {"close_mosaic"}
    darknets = {"jitter", "saturation", "exposure", "hue"}
    assert ours | darknets == set(AugmentOptions.__dataclass_fields__) and ours | darknets <= found.keys()
