"""The parser of Darknet's dialect: spacing, comments, types, and an error with file and line for everything else."""

import pytest

from models.darknet.cfg import MAX_BYTES, parse_cfg, parse_cfg_text
from utils.errors import UserError

NET = "[net]\nwidth=64\nheight=32\n"  # three lines: the first line after it is line 4


def parse(text):
    return parse_cfg_text(text, "x.cfg")


def test_spacing_comments_aliases_and_types():
    config = parse(
        "\ufeff# head\n;semicolon\n[ network ]\nwidth = 64\n height=\t32 \n"
        "[conv]\nfilters= 1 6 # Darknet strips every blank\nstride=2;end\nactivation = Leaky\n\n"
        "[yolo]\nmask = 0, 1\nanchors = 10,14,  23.5,27,\nnum=2\nscale_x_y=1.05\n"
        "[route]\nlayers = -1, 0\r\n"
    )
    conv, yolo, route = config.sections
    assert (config.net["width"], config.net["height"], config.net["channels"]) == (64, 32, 3)
    assert (conv.kind, conv.index, conv.line, conv["filters"], conv["stride"]) == ("convolutional", 0, 6, 16, 2)
    assert (conv["activation"], conv["size"], conv["batch_normalize"], conv["dilation"]) == ("leaky", 1, 0, 1)
    assert (yolo["mask"], yolo["anchors"], yolo["scale_x_y"]) == ((0, 1), (10.0, 14.0, 23.5, 27.0), 1.05)
    assert (route["layers"], route.index, route.lines["layers"]) == ((-1, 0), 2, 17)


def test_activation_spellings_and_darknet_defaults():
    text = (
        NET
        + "[convolutional]\n[convolutional]\nactivation=silu\n[convolutional]\nactivation=hard-swish\n"
        + "[shortcut]\nfrom=-2"
    )
    names = [section["activation"] for section in parse(text).sections]
    assert names == ["logistic", "swish", "hard_swish", "linear"]  # Darknet's default of a convolution is logistic


def test_first_of_two_keys_counts_as_in_darknet():
    config = parse(NET + "[convolutional]\nstride=2\nstride=2\nfilters=8\nfilters=9\n")
    assert config.sections[0]["filters"] == 8
    assert config.notes == ("x.cfg:8: the second 'filters' has no effect; the first, 8, counts",)


def test_keys_without_effect_are_listed_once():
    yolo = "[yolo]\njitter=.3\niou_loss=ciou\nmax_delta=5\n"
    config = parse(NET + "batch=64\nB1=.9\nsteps=1,2\n[convolutional]\nstopbackward=1\n" + yolo + yolo)
    assert config.notes == (
        "x.cfg: without effect here: [net] batch, b1, steps; [convolutional] stopbackward; "
        "[yolo] jitter, iou_loss, max_delta",
    )


def test_keys_that_change_darknets_matching_are_said_to():
    yolo = "[yolo]\niou_thresh_kind=ciou\ntruth_thresh=.7\n"
    assert parse(NET + yolo + yolo).notes == (
        "x.cfg: without effect here: [yolo] iou_thresh_kind, truth_thresh",
        "x.cfg: Darknet's own matching follows iou_thresh_kind=ciou, truth_thresh=0.7; "
        "--match darknet uses IoU and no truth_thresh",
    )
    assert len(parse(NET + "[yolo]\niou_thresh_kind=iou\ntruth_thresh=1\n").notes) == 1


def test_replace_keeps_lines_and_leaves_the_original():
    section = parse(NET + "[convolutional]\nfilters=8\n").sections[0]
    assert section.replace(filters=21)["filters"] == 21
    assert section["filters"] == 8
    assert str(section.replace(filters=21).error("is wrong", "filters")) == "x.cfg:5: [convolutional] is wrong"


ERRORS = [
    ("", "x.cfg: no sections"),
    ("# nothing\n\n", "x.cfg: no sections"),
    ("width=3\n[net]\n", "x.cfg:1: 'width=3' stands before the first [section]"),
    ("\n[convolutional]\n", "x.cfg:2: the first section must be [net], not [convolutional]"),
    (NET, "x.cfg:1: [net] is the only section"),
    (NET + "[convolutional]\n[net]\n", "x.cfg:5: [net] only the first section may be [net]"),
    (NET + "[convolutionl]\n", "x.cfg:4: unknown section [convolutionl]; did you mean 'convolutional'?"),
    (NET + "[convolutional\n", "x.cfg:4: '[convolutional' is no section header"),
    (NET + "[iseg]\n", "x.cfg:4: Darknet knows [iseg], this toolkit does not build it"),
    (NET + "[convolutional]\nfilters=1=2\n", "x.cfg:5: [convolutional] filters=1=2: expected a whole number"),
    (NET + "[convolutional]\nfilters=3.5\n", "x.cfg:5: [convolutional] filters=3.5: expected a whole number"),
    (NET + "[convolutional]\nfilters=many\n", "expected a whole number"),
    (NET + "[convolutional]\nfilters=-3\n", "x.cfg:5: [convolutional] filters=-3 is outside 1..65536"),
    (NET + "[convolutional]\nfilters=999999999\n", "is outside 1..65536"),
    (NET + "[convolutional]\nfilters=" + "9" * 5000 + "\n", "x.cfg:5: [convolutional] filters=9999"),
    (NET + "[convolutional]\nsize=100000\n", "x.cfg:5: [convolutional] size=100000 is outside 1..255"),
    ("[net]\nwidth=99999999\n[avgpool]", "x.cfg:2: [net] width=99999999 is outside 1..16384"),
    (NET + "[dropout]\nprobability=nan\n", "x.cfg:5: [dropout] probability=nan: expected a finite number"),
    (NET + "[route]\nlayers=1,,2\n", "x.cfg:5: [route] layers=: expected a whole number"),
    (NET + "[yolo]\nanchors=1,x\n", "x.cfg:5: [yolo] anchors=x: expected a finite number"),
    (NET + "[convolutional]\nactivation=leeky\n", "activation=leeky is not known; did you mean 'leaky'?"),
    (NET + "[convolutional]\n\nsway=1\n", "x.cfg:6: [convolutional] sway=1 is not supported (deforms the kernels)"),
    (NET + "[shortcut]\nfrom=-1\nweights_type=per_pixel\n", "x.cfg:6: [shortcut] weights_type=per_pixel is not known"),
]


@pytest.mark.parametrize(("text", "message"), ERRORS)
def test_errors_name_file_and_line(text, message):
    with pytest.raises(UserError) as caught:
        parse(text)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 800
    assert "\n" not in str(caught.value)


def test_neutral_value_of_a_refused_key_is_accepted():
    assert parse(NET + "[convolutional]\nsway=0\nflipped=0\n").sections[0]["sway"] == 0


PASSED_OVER = [
    ("[convolutional]\nfilter=3\n", "5: [convolutional] has no key 'filter'; without effect, in Darknet, too; did you "
     "mean 'filters'?"),
    ("[maxpool]\nfilters=3\n", "5: [maxpool] has no key 'filters'; without effect, in Darknet, too"),
    ("[convolutional]\nfilters\n", "5: 'filters' is no 'key = value'; passed over, as Darknet does"),
    ("[convolutional]\n=3\n", "5: '=3' is no 'key = value'; passed over, as Darknet does"),
    ("[convolutional]\nfilters=\n", "5: 'filters=' is no 'key = value'; passed over, as Darknet does"),
    ("decay=\n[avgpool]\n", "4: 'decay=' is no 'key = value'; passed over, as Darknet does"),
    ("steps=16000d\n[avgpool]\n", "4: steps=16000d cannot be read; without effect here"),
    ("[maxpool]\nx=1\n[avgpool]\n[maxpool]\nx=2\nx=3\n", "5: [maxpool] has no key 'x'; without effect, in Darknet, too "
     "(and in 2 more lines)"),
    ("[Avgpool]\n", "4: Darknet knows [avgpool] and no [Avgpool]; read as the former"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "line"), PASSED_OVER)
def test_what_darknet_passes_over_is_told_in_a_line(text, line):
    config = parse(NET + text)
    assert config.oddities == (f"x.cfg:{line}",)
    assert config.notes[-1:] == config.oddities


@pytest.mark.parametrize(
    ("written", "read"),
    [("silu", "swish"), ("Leaky", "leaky"), ("hard_swish", "hard_swish"), ("Hard-Mish", "hard_mish"), ("MISH", "mish")],
)
def test_activations_that_darknet_does_not_know_are_read_and_told(written, read):
    config = parse(NET + f"[shortcut]\nfrom=-1\nactivation={written}\n")
    assert config.sections[0]["activation"] == read
    line = f"x.cfg:6: Darknet does not know activation={written} and computes relu; here it is {read}"
    assert config.oddities == (line,)


def test_no_oddity_where_there_is_none():
    text = "[convolutional]\nactivation=revleaky\n[Convolutional]\nactivation=swish\n".replace("[C", "[c")
    assert parse(NET + text + "\x1a").oddities == parse(NET + text + "\0\0").oddities == ()


def test_whole_numbers_may_have_a_fraction_of_zero():
    config = parse("[net]\nwidth=64.0\nheight=3.2e1\n[avgpool]\n[route]\nlayers=-1.0, 0\n")
    assert (config.net["width"], config.net["height"], config.sections[1]["layers"]) == (64, 32, (-1, 0))
    assert isinstance(config.net["width"], int)
    with pytest.raises(UserError, match=r"layers=-1\.5: expected a whole number"):
        parse(NET + "[avgpool]\n[route]\nlayers=-1.5\n")


def test_files_that_are_no_cfg(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        parse_cfg(tmp_path / "none.cfg")
    with pytest.raises(UserError, match="directory"):
        parse_cfg(tmp_path)
    (tmp_path / "big.cfg").write_bytes(b"\0" * (MAX_BYTES + 1))
    with pytest.raises(UserError, match="are these the weights"):
        parse_cfg(tmp_path / "big.cfg")
    (tmp_path / "noise.cfg").write_bytes(bytes(range(256)))
    with pytest.raises(UserError, match=r"noise\.cfg:\d"):
        parse_cfg(tmp_path / "noise.cfg")


def test_too_many_sections():
    with pytest.raises(UserError, match=r"x\.cfg:2003: more than 2000 sections"):
        parse(NET + "[avgpool]\n" * 3000)
