"""Options: flags, recipes, types, and one clear line for every mistake."""

from dataclasses import dataclass

import pytest

from utils.config import build_options, find_file, flat_dict, option, parse_flags, parse_options, read_recipe
from utils.errors import UserError


@dataclass(frozen=True)
class Running:
    """Running options."""

    epochs: int = option(3, "passes")
    sizes: tuple[int, ...] = option((320,), "pixels")
    deep: bool = option(False, "optimizer")
    amp: bool = option(True, "mixed precision")
    kind: str = option("iou", "measure", choices=("iou", "giou"))

    def __post_init__(self):
        if self.epochs < 1:
            raise ValueError("--epochs must be at least 1")


@dataclass(frozen=True)
class Gains:
    """Gains."""

    box: float = option(0.5, "gain")
    topk: int | None = option(None, "at most this many")


GROUPS = (Running, Gains)


def test_flags_give_typed_values_and_keep_defaults():
    running, gains = parse_options(
        "d", *GROUPS, argv=["--epochs", "5", "--sizes", "320", "640", "--deep", "--no-amp", "--box", "1e-3"]
    )
    assert running == Running(epochs=5, sizes=(320, 640), deep=True, amp=False)
    assert gains == Gains(box=0.001)


def test_a_choice_is_known_however_it_is_written():
    assert parse_flags("d", *GROUPS, argv=["--kind", "GIoU"]) == {"kind": "giou"}


def test_what_a_recipe_switches_on_a_flag_switches_off():
    assert parse_flags("d", *GROUPS, argv=["--no-deep"]) == {"deep": False}


def test_only_given_flags_are_reported():
    assert parse_flags("d", *GROUPS, argv=["--topk", "4"]) == {"topk": 4}


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--epoch", "3"], ["--epoch", "--epochs"]),  # abbreviations are typos, not flags
        (["--kind", "giuo"], ["giuo", "giou"]),
        (["--epochs", "x"], ["--epochs", "x"]),
        (["--epochs", "0"], ["at least 1"]),
    ],
)
def test_a_wrong_command_line_names_the_flag(argv, words):
    with pytest.raises(UserError) as error:
        parse_options("d", *GROUPS, argv=argv)
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)


def test_flat_dict_and_build_options_are_inverse():
    instances = (Running(sizes=(1, 2)), Gains(topk=7))
    assert build_options(flat_dict(*instances) | {"sizes": (1, 2)}, GROUPS) == instances


def test_recipe_round_trip_through_yaml(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("epochs: 7  # comment\nbox: 1e-3\nsizes: [1, 2]\ntopk: null\nkind: giou\n")
    # YAML 1.1 reads 1e-3 (no dot) as a string; the field is a float, so it becomes 0.001 all the same.
    assert read_recipe(path, GROUPS) == {"epochs": 7, "box": 0.001, "sizes": (1, 2), "topk": None, "kind": "giou"}


@pytest.mark.parametrize(
    "text, words",
    [
        ("epochs: 1\nboxx: 2\n", [":2:", "boxx", "did you mean 'box'"]),
        ("epochs: many\n", [":1:", "epochs", "int"]),
        ("epochs: true\n", [":1:", "int"]),
        ("deep: 1\n", [":1:", "bool"]),
        ("kind: xiou\n", [":1:", "giou"]),
        ("a: [1\n", ["not valid YAML"]),
        ("- 1\n", ["option: value"]),
    ],
)
def test_a_wrong_recipe_names_file_and_line(tmp_path, text, words):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        read_recipe(path, GROUPS)
    assert all(word in str(error.value) for word in ["r.yaml", *words])


def test_find_file_prefers_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cfg").mkdir()
    (tmp_path / "cfg" / "only-here.cfg").touch()
    assert find_file("only-here.cfg", "cfg").as_posix() == "cfg/only-here.cfg"
    (tmp_path / "only-here.cfg").touch()
    assert find_file("only-here.cfg", "cfg").as_posix() == "only-here.cfg"
    with pytest.raises(UserError, match=r"missing\.cfg"):
        find_file("missing.cfg", "cfg")


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e400", "x"])
def test_numbers_that_pass_every_comparison_are_refused(tmp_path, text):
    with pytest.raises(UserError, match="argument --box: invalid number value"):
        parse_options("d", *GROUPS, argv=[f"--box={text}"])
    path = tmp_path / "r.yaml"
    path.write_text(f"epochs: 1\nbox: {'.' if text in ('nan', 'inf') else ''}{text}\n")
    with pytest.raises(UserError, match=r"r\.yaml:2: 'box' must be a value of type float"):
        read_recipe(path, GROUPS)


@pytest.mark.parametrize("number", ["9223372036854775808", "9" * 5000, "-" + "9" * 30])
def test_whole_numbers_have_64_bits(tmp_path, number):
    with pytest.raises(UserError, match="argument --epochs: invalid int value"):
        parse_options("d", *GROUPS, argv=[f"--epochs={number}"])
    path = tmp_path / "r.yaml"
    path.write_text(f"epochs: {number}\n")
    with pytest.raises(UserError, match=r"r\.yaml:1: .* is no number"):
        read_recipe(path, GROUPS)


@pytest.mark.parametrize("value", ["2024-01-31", "2024-13-45", "[1]", "{a: 1}", "~"])
def test_a_recipe_value_of_another_kind_names_its_line(tmp_path, value):
    path = tmp_path / "r.yaml"
    path.write_text(f"box: 1\nepochs: {value}\n")
    with pytest.raises(UserError, match=r"r\.yaml:2: 'epochs' must be a value of type int"):
        read_recipe(path, GROUPS)


@pytest.mark.parametrize(
    ("values", "words"),
    [({"epochs": "many"}, "'epochs' must be"), ({"epochs": 10**30}, "'epochs' must be"), ({"box": [1.0]}, "'box' must"),
     ({"kind": "xiou"}, "one of"), ({"deep": None}, "'deep' must be"), ({"boxx": 1}, "did you mean 'box'")]
)  # fmt: skip
def test_options_of_a_file_are_checked_like_those_of_a_recipe(values, words):
    with pytest.raises(UserError, match=r"last\.pt: ") as error:
        build_options(values, GROUPS, "last.pt")
    assert words in str(error.value)
