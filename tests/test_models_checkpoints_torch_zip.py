"""Archives that torch.save wrote elsewhere: read as torch reads them, with no code run and no memory wasted."""

import io
import os
import pickle
import struct
import sys
import types
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from models.checkpoints.format import read_checkpoint
from models.checkpoints.torch_zip import Record, read_torch_zip
from utils.errors import UserError


@pytest.fixture
def archive(tmp_path):
    """Write a zip archive like torch.save's from a pickle's bytes and raw storages."""

    def _write(program, storages=(), name="a.pt", compress=zipfile.ZIP_STORED, extra=()):
        path = tmp_path / name
        with zipfile.ZipFile(path, "w", compress) as file:
            file.writestr("a/data.pkl", program)
            for key, raw in dict(storages).items():
                file.writestr(f"a/data/{key}", raw)
            for entry, raw in extra:
                file.writestr(entry, raw)
        return path

    return _write


def test_it_reads_what_torch_itself_reads(tmp_path):
    content = {
        "epoch": -1,
        "large": 1 << 40,
        "rate": 0.01,
        "text": "aé",
        "nothing": None,
        "flags": [True, False, (1, 2, 3, 4), ("a",), ()],
        "state": OrderedDict(weight=torch.randn(3, 4), half=torch.randn(5).half(), count=torch.tensor(7)),
        "view": torch.arange(24.0).reshape(2, 3, 4)[:, 1:, ::2],
        "bytes": torch.tensor([1, 2], dtype=torch.uint8),
        "bits": torch.tensor([True, False]),
        "empty": torch.empty(0, 4),
        "wide": torch.randn(2, 2, dtype=torch.float64),
        "brain": torch.randn(3).bfloat16(),
        "parameter": nn.Parameter(torch.randn(2)),
        "nested": {"a": {"b": [{1: 2}]}, 5: {"x"}},
    }
    for protocol in (2, 3):
        path = tmp_path / f"{protocol}.pt"
        torch.save(content, path, pickle_protocol=protocol)
        ours = read_torch_zip(path)
        assert ours.keys() == content.keys()
        for key, value in content.items():
            if isinstance(value, torch.Tensor):
                assert ours[key].dtype == value.dtype and torch.equal(ours[key], value), key
            elif key != "state":
                assert ours[key] == value, key
        assert all(torch.equal(ours["state"][key], value) for key, value in content["state"].items())


def test_a_later_pickle_protocol_is_refused_in_words(tmp_path):
    torch.save({"a": 1}, tmp_path / "a.pt", pickle_protocol=4)
    with pytest.raises(UserError, match=r"a.pt: it is in pickle protocol 4; only 2 is read"):
        read_torch_zip(tmp_path / "a.pt")


def test_a_module_becomes_an_inert_record(tmp_path):
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    torch.save({"model": module}, tmp_path / "a.pt")
    record = read_torch_zip(tmp_path / "a.pt")["model"]
    assert isinstance(record, Record) and record.class_name == "torch.nn.modules.container.Sequential"
    conv = record._modules["0"]
    assert conv.kind == "Conv2d" and conv.kernel_size == (3, 3)
    assert torch.equal(conv._parameters["weight"], module[0].weight)


def test_what_a_training_run_leaves_beside_the_model_is_recorded_not_made(tmp_path):
    torch.save({"best_fitness": np.float64(0.5), "opt": {"rate": 0.1}}, tmp_path / "a.pt")
    content = read_torch_zip(tmp_path / "a.pt")
    assert isinstance(content["best_fitness"], Record) and content["opt"] == {"rate": 0.1}


class Reducing:
    """Runs ``function(*arguments)`` in anything that unpickles it."""

    def __init__(self, function, *arguments):
        self.reduced = (function, arguments)

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    ("function", "text", "named"),
    [
        (os.system, "touch {}", "posix.system"),
        (eval, "open({!r}, 'w').close()", r"(__builtin__|builtins).eval"),
        (exec, "open({!r}, 'w').close()", r"(__builtin__|builtins).exec"),
        (os.mkdir, "{}", "posix.mkdir"),
        (getattr, "{}", "getattr"),
        (torch.load, "{}", "torch.serialization.load"),
        (torch.hub.load, "{}", "torch.hub.load"),
    ],
)
def test_a_pickle_that_runs_code_is_refused_by_name_and_runs_nothing(tmp_path, function, text, named, protocol):
    target = tmp_path / "made"
    path = tmp_path / "evil.pt"
    torch.save({"model": Reducing(function, text.format(str(target)))}, path, pickle_protocol=protocol)
    with pytest.raises(UserError, match=named):
        read_torch_zip(path)
    with pytest.raises(UserError, match="not a checkpoint of this toolkit"):  # our own loader refuses it, too
        read_checkpoint(path)
    assert not target.exists()


# Written by hand: each would run "touch <target>", or worse, in pickle.load. \x85 makes a tuple of one, R calls.
PROGRAMS = {
    "GLOBAL and REDUCE": b"\x80\x02cos\nsystem\nX%s%s\x85R.",
    "INST": b"(X%s%sios\nsystem\n.",
    "OBJ": b"(cos\nsystem\nX%s%so.",
    "BUILD": b"\x80\x02cmodels.yolo\nModel\n)\x81}X\x0c\0\0\0__setstate__cos\nsystem\nsb.%.0s%.0s",
    "NEWOBJ_EX": b"\x80\x04cos\nsystem\n)}\x92.%.0s%.0s",
    "a call of a module class": b"\x80\x02ctorch.nn.modules.container\nSequential\nX%s%s\x85R.",
    "an extension registry code": b"\x80\x02\x82\x01.%.0s%.0s",
    "a persistent id that is no storage": b"\x80\x02X%s%sQ.",
    "text persistent id": b"Pos.system\n.%.0s%.0s",
}


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS.keys())
def test_every_way_to_call_is_closed(archive, tmp_path, program):
    target = tmp_path / "made"
    command = f"touch {target}".encode()
    path = archive(program % (struct.pack("<I", len(command)), command))
    with pytest.raises(UserError):
        read_torch_zip(path)
    assert not target.exists()


def tensor_program(size, stride, offset=0, count=4, key="0", kind="FloatStorage"):
    """Return the pickle of one tensor, as torch writes it."""

    class Storage:
        pass

    class Tensor:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (Storage(), offset, size, stride, False, OrderedDict())

    class Pickler(pickle.Pickler):
        def persistent_id(self, thing):
            if isinstance(thing, Storage):
                return ("storage", getattr(torch, kind), key, "cpu", count)

    buffer = io.BytesIO()
    Pickler(buffer, 2).dump(Tensor())
    return buffer.getvalue()


def test_a_storage_is_read_through_its_stride(archive):
    raw = np.arange(4, dtype="<f4").tobytes()
    path = archive(tensor_program((2, 2), (1, 2)), {"0": raw})
    assert read_torch_zip(path).tolist() == [[0, 2], [1, 3]]
    assert read_torch_zip(archive(tensor_program((3,), (0,), 2), {"0": raw})).tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    "settings",
    [
        {"size": (5,), "stride": (1,)},
        {"size": (2,), "stride": (4,)},
        {"size": (1,), "stride": (1,), "offset": 4},
        {"size": (1,), "stride": (1,), "offset": -1},
        {"size": (0,), "stride": (1,), "offset": 5},
        {"size": (1 << 40, 1 << 40), "stride": (0, 0)},
        {"size": (1 << 40,), "stride": (0,)},  # four bytes that a copy would turn into four terabytes
        {"size": (3000, 3000), "stride": (0, 0)},
        {"size": (1 << 62,), "stride": (1 << 62,)},
        {"size": (2,), "stride": (-1,), "offset": 3},
        {"size": (-1,), "stride": (1,)},
        {"size": (2, 2), "stride": (1,)},
        {"size": (1,) * 9, "stride": (1,) * 9},
        {"size": (1,), "stride": (1,), "offset": 1.5},
        {"size": (1,), "stride": (1,), "count": 3},
        {"size": (1,), "stride": (1,), "count": 5},
        {"size": (1,), "stride": (1,), "count": 1 << 40},
        {"size": (1,), "stride": (1,), "count": -1},
        {"size": (1,), "stride": (1,), "kind": "DoubleStorage"},
        {"size": (1,), "stride": (1,), "kind": "HalfStorage"},
        {"size": (1,), "stride": (1,), "key": "../../0"},
        {"size": (1,), "stride": (1,), "key": 7},
    ],
)
def test_tensors_beyond_their_bytes_are_refused(archive, settings):
    with pytest.raises(UserError, match=r"a.pt: .*tensor.* does not fit its storage") as caught:
        read_torch_zip(archive(tensor_program(**settings), {"0": b"\0" * 16}))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_tensor_may_repeat_its_storage_as_cached_grids_do(archive):
    path = archive(tensor_program((2000, 2000), (0, 0)), {"0": b"\0" * 16})
    assert read_torch_zip(path).shape == (2000, 2000)


@pytest.mark.parametrize(
    "name",
    [
        "torch._utils._rebuild_qtensor",
        "torch._utils._rebuild_sparse_tensor",
        "torch._tensor._rebuild_from_type_v2",
        "torch.Tensor",
        "torch.storage.UntypedStorage",
        "builtins.bytearray",
        "torch.nn.modules.conv._pair x",
        "models.network.Network",
        "models.common",
    ],
)
def test_a_name_that_torch_or_we_know_but_nobody_needs_is_refused(archive, name):
    module, _, kind = name.rpartition(".")
    with pytest.raises(UserError, match=f"asks for '{name}'"):
        read_torch_zip(archive(f"\x80\x02c{module}\n{kind}\n.".encode("latin-1")))


def test_no_class_that_exists_under_the_files_name_is_built(archive, monkeypatch):
    touched = []

    class Model:
        def __new__(cls):
            touched.append("made")
            return super().__new__(cls)

        def __setstate__(self, state):
            touched.append("filled")

    monkeypatch.setitem(sys.modules, "models.yolo", types.SimpleNamespace(Model=Model))
    record = read_torch_zip(archive(b"\x80\x02cmodels.yolo\nModel\n)\x81}X\x01\0\0\0aK\x05sb."))
    assert isinstance(record, Record) and record.class_name == "models.yolo.Model" and record.a == 5
    assert touched == []


def test_the_state_of_a_record_cannot_take_its_own_names(archive):
    state = pickle.dumps({"kind": "Conv", "class_name": 1, "__class__": 2}, 2)[2:-1]
    record = read_torch_zip(archive(b"\x80\x02cmodels.yolo\nModel\n)\x81" + state + b"b."))
    assert isinstance(record, Record) and (record.kind, record.class_name) == ("Model", "models.yolo.Model")


def test_torch_reads_the_pickle_that_was_checked(archive):
    # Its own search of an archive takes no notice of case: it would find the unchecked one.
    checked, other = pickle.dumps({"a": 1}, 2), b"\x80\x02cbuiltins\nbytearray\nK\x05\x85R."
    path = archive(checked, extra=[("a/DATA.PKL", other), ("a/version", b"3\n"), ("a/data/0", b"")])
    assert read_torch_zip(path) == {"a": 1}


def test_archives_that_are_not_torchs_are_refused(archive, tmp_path):
    good = pickle.dumps({}, 2)
    with pytest.raises(UserError, match="compressed"):
        read_torch_zip(archive(b"\0" * 10_000_000, compress=zipfile.ZIP_DEFLATED))
    with pytest.raises(UserError, match="one data"):
        read_torch_zip(archive(good, extra=[("b/data.pkl", good)]))
    with pytest.raises(UserError, match="little-endian"):
        read_torch_zip(archive(good, extra=[("a/byteorder", b"big")]))
    torch.save({}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match="before PyTorch"):
        read_torch_zip(tmp_path / "old.pt")


@pytest.mark.parametrize(
    "program",
    [
        b"",
        b".",
        b"\x80\x02}",  # no end
        b"\x80\x02h\x05.",  # a memo that was never stored
        b"\x80\x02K\x01u.",  # no mark
        b"\x80\x02](K\x01K\x02u.",  # items into a list
        b"\x80\x02}]K\x01s.",  # a list as a key
        b"\x80\x02r\xff\xff\xff\xff.",  # a memo slot of 32 GB
        b"\x80\x02X\xff\xff\xff\x7f.",  # a text of 2 GB
        b"\x80\x04\x8b\xff\xff\xff\x7f.",  # a number of 2 GB
        b"\x80\x02K\x01}b.",  # a state for a number
        b"\x80\x04\x8c\x03o\ns\x8c\x01x\x93.",  # a name of two lines
        b"I" + b"9" * 10_000 + b"\n.",
        b"(" * 1_000_000,
        b"\x80\x02})" + b"\x85" * 1_000_000 + b"Ns.",  # a key nested so deeply that to hash it would overflow the stack
    ],
)
def test_a_damaged_pickle_is_one_error(archive, program):
    with pytest.raises(UserError) as caught:
        read_torch_zip(archive(program))
    assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)
