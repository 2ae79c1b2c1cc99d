"""Read a ``torch.save`` file without running code of it: it becomes tensors, plain containers and inert records.

A pickle is a small program that may call any function by its name. ``torch.load(weights_only=True)`` runs it with a
list of allowed names. Inert classes are added to that list here, which stand for PyTorch's layers and YOLOv5's modules:
no name in a file leads to a real class, least of all YOLOv5's ``models.yolo`` to a file of our ``models``. torch's list
is longer than we need; so every name is checked against our own first, and torch reads only a copy of what was checked.
"""

from __future__ import annotations

import io
import os
import pickletools
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils.errors import UserError

PICKLE_LIMIT = 32 << 20  # bytes; the largest official YOLOv5 checkpoint has well under one MiB
# Tuples in a pickle, about six per tensor; a training checkpoint of yolov5x6 has 20,000. Tuples nested in one another
# and used as a key take 80 bytes of C's stack per level when they are hashed: this many need half of the usual 8 MB,
# and 120,000 would crash Python.
TUPLES_LIMIT = 50_000
DIMENSIONS_LIMIT = 8  # of a tensor
EXPANSION_LIMIT = 1 << 22  # elements of a tensor that repeats its storage (stride 0), as YOLOv5's cached grids may

# Classes whose objects are only recorded, never built: PyTorch's layers and those of the YOLOv5 repository.
RECORDED_MODULE = re.compile(r"(torch\.nn\.modules(\.\w+)*|models\.(yolo|common|experimental))\.\w+", re.ASCII)
# Values that a training run leaves in its checkpoint and that we never look at.
RECORDED_VALUES = (
    "numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar",
    "pathlib.PosixPath", "pathlib.WindowsPath", "pathlib.PurePosixPath", "pathlib.PureWindowsPath",
)  # fmt: skip
# What torch makes by its own list: containers, a tensor from its storage, the types of storages and numbers.
MADE_BY_TORCH = (
    "collections.OrderedDict", "builtins.set", "__builtin__.set", "torch.Size", "torch.device",
    "_codecs.encode",  # the bytes of a numpy number
    "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter",
    "torch.HalfStorage", "torch.BFloat16Storage", "torch.FloatStorage", "torch.DoubleStorage", "torch.LongStorage",
    "torch.IntStorage", "torch.ShortStorage", "torch.CharStorage", "torch.ByteStorage", "torch.BoolStorage",
    "torch.float16", "torch.bfloat16", "torch.float32", "torch.float64", "torch.int64",
    "torch.int32", "torch.int16", "torch.int8", "torch.uint8", "torch.bool",
)  # fmt: skip


class Record:
    """Stands for an object of the file that is not built; the state that the pickle gives it becomes its attributes.

    As in ``nn.Module``, a module's parts, parameters and buffers are attributes, too. There are no methods to be called
    by accident, and the two properties below win over attributes from the file.
    """

    def __init__(self, *_: Any) -> None:  # reached by a call only: torch.save's pickles make modules by __new__ alone
        raise _RefusedError(f"its pickle wants to call '{self.class_name[:80]}', which is refused; nothing was run")

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            vars(self).update(state)

    def __getattr__(self, name: str) -> Any:
        for table in ("_parameters", "_buffers", "_modules"):
            values = vars(self).get(table)
            if isinstance(values, dict) and name in values:
                return values[name]
        raise AttributeError(f"a {self.kind[:40]} without '{name}'")

    @property
    def class_name(self) -> str:
        """The class's name with its module, as "models.common.Conv"."""
        return f"{type(self).__module__}.{type(self).__name__}"

    @property
    def kind(self) -> str:
        """The class's name without its module."""
        return type(self).__name__


class _ValueRecord(Record):
    """Stands for a value that the pickle makes by a call, such as a numpy scalar; the arguments are dropped."""

    def __init__(self, *_: Any) -> None:
        pass


class _RefusedError(Exception):
    """The reason why the file is not read; becomes a UserError where the path is known."""


def read_torch_zip(path: str | Path) -> Any:
    """Return the object that was saved, with inert records for the objects of known module classes.

    Raises:
        UserError: no torch archive, damaged, larger than its bytes allow, or a global that is not in the short list of
            this file; the message names it. Nothing that the file asks for was run.
        OSError: the file cannot be opened.
    """
    try:
        program, archive = _checked_copy(path)
        names = _global_names(program)
        content = _interpret(archive, [_stand_in(name) for name in names if name not in MADE_BY_TORCH])
        _check_tensors(content)
        return content
    except _RefusedError as refusal:
        raise UserError(f"{path}: {refusal}") from None


def check_archive(path: str | Path) -> None:
    """Refuse an archive that torch.save has not written so, before torch reads it: nothing in it is run or unpacked.

    Raises:
        UserError: as :func:`read_torch_zip`.
        OSError, zipfile.BadZipFile and others of ``zipfile``: damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _global_names(archive.read(_pickle_name(archive, os.path.getsize(path))))
    except _RefusedError as refusal:
        raise UserError(f"{path}: {refusal}") from None


def _checked_copy(path: str | Path) -> tuple[bytes, io.BytesIO]:
    """Return an archive's pickle, and a new archive of that pickle and the storages.

    torch is given the copy because it may read a forged archive, with two directories for instance, otherwise than
    Python does, so that something else would be read than was checked.

    Raises:
        _RefusedError: no archive, damaged, not torch's, or larger than its bytes allow.
    """
    size = os.path.getsize(path)
    copy = io.BytesIO()
    try:
        with zipfile.ZipFile(path) as archive, zipfile.ZipFile(copy, "w") as clean:
            # One pickle, and the storages beside it; whatever else the archive holds is left behind.
            pickle_name = _pickle_name(archive, size)
            prefix = pickle_name.removesuffix("data.pkl")
            program = archive.read(pickle_name)
            for name, content in (("data.pkl", program), ("version", b"3\n"), ("byteorder", b"little")):
                clean.writestr(f"archive/{name}", content)
            for name in dict.fromkeys(archive.namelist()):  # a repeated name once, with Python's choice of its content
                if name.startswith(prefix + "data/"):
                    clean.writestr(f"archive/{name.removeprefix(prefix)}", archive.read(name))
    except (_RefusedError, OSError):
        raise
    except Exception as error:  # what zipfile raises on damaged bytes: BadZipFile, struct.error, RuntimeError, ...
        raise _RefusedError(
            f"not a readable torch checkpoint ({str(error)[:120] or type(error).__name__}); files from before "
            "PyTorch 1.6 and incomplete downloads look like this"
        ) from error
    copy.seek(0)
    return program, copy


def _pickle_name(archive: zipfile.ZipFile, file_size: int) -> str:
    """Return the name of the one pickle in an archive file of ``file_size`` bytes, after checks of its directory.

    Raises:
        _RefusedError: compressed entries, entries larger than the file, no or several pickles, a pickle over the limit,
            or another byte order.
    """
    entries = {entry.filename: entry for entry in archive.infolist()}
    for name, entry in entries.items():
        if entry.compress_type != zipfile.ZIP_STORED:
            raise _RefusedError(f"its entry {name[:60]!r} is compressed, which torch.save never does")
    if sum(entry.file_size for entry in archive.infolist()) > file_size:
        raise _RefusedError("its entries claim more bytes than the file has")
    pickles = [name for name in entries if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise _RefusedError(f"a torch checkpoint has one data.pkl, this archive has {len(pickles)}")
    length = entries[pickles[0]].file_size
    if length > PICKLE_LIMIT:
        raise _RefusedError(f"its pickle has {length:,} bytes, more than the {PICKLE_LIMIT:,} that we read")
    byte_order = pickles[0].removesuffix("data.pkl") + "byteorder"
    if byte_order in entries and archive.read(byte_order) != b"little":
        raise _RefusedError("its numbers are not little-endian")
    return pickles[0]


def _global_names(program: bytes) -> set[str]:
    """Return every global that a pickle mentions, all of them in our list; nothing is run.

    What is checked here is what torch will read: its interpreter stops at an instruction that it does not know and
    reads the others as ``pickletools`` does.

    Raises:
        _RefusedError: a name that is not in the list, another pickle protocol than 2 or 3, or damaged.
    """
    names: set[str] = set()
    memo: dict[int, Any] = {}
    texts: list[Any] = [None, None]  # the last two values, for STACK_GLOBAL, whose name is on the stack
    protocol = position = tuples = 0
    argument: Any  # a number, a text or nothing, as the instruction says
    try:
        for opcode, argument, place in pickletools.genops(program):
            position = place or 0
            if opcode.name == "PROTO":
                protocol = max(protocol, argument)
            elif opcode.name in ("GLOBAL", "INST"):
                names.add(_checked(argument.replace(" ", ".", 1)))  # "module name"
            elif opcode.name == "STACK_GLOBAL":
                _checked(".".join(map(str, texts)))  # for the message only; the protocol is refused below
            tuples += opcode.name.startswith("TUPLE")
            # Follow the last two values, through the memo too, which keeps values for later under a number.
            if opcode.name in ("MEMOIZE", "BINPUT", "LONG_BINPUT"):
                memo[len(memo) if argument is None else argument] = texts[1]
            else:
                texts = [texts[1], memo.get(argument) if "BINGET" in opcode.name else argument]
    except (ValueError, OverflowError) as error:
        raise _RefusedError(f"its pickle is damaged after byte {position} ({str(error)[:80]})") from error
    if protocol > 3:
        raise _RefusedError(f"it is in pickle protocol {protocol}; only 2 is read, which torch.save takes by itself")
    if tuples > TUPLES_LIMIT:
        raise _RefusedError(f"its pickle has {tuples:,} tuples, more than the {TUPLES_LIMIT:,} that we read")
    return names


def _checked(name: str) -> str:
    """Return a global's full name, or refuse one that is in none of the lists above."""
    if name not in MADE_BY_TORCH and name not in RECORDED_VALUES and not RECORDED_MODULE.fullmatch(name):
        raise _RefusedError(
            f"its pickle asks for {name[:80]!r}, which is no tensor, container or layer; nothing was run, "
            "and the file is refused"
        )
    return name


def _stand_in(name: str) -> type[Record]:
    """Return an inert class under the full name of one in the file, with which it shares nothing else."""
    module, _, kind = name.rpartition(".")
    return type(kind, (_ValueRecord if name in RECORDED_VALUES else Record,), {"__module__": module})


def _interpret(archive: io.BytesIO, stand_ins: list[type[Record]]) -> Any:
    """Return what the archive's pickle makes, with the stand-ins allowed under their names."""
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([*stand_ins]):
            warnings.filterwarnings("ignore", "Detected pickle protocol")  # 3 differs in bytes only
            return torch.load(archive, map_location="cpu", weights_only=True, mmap=False)
    except _RefusedError:
        raise
    except Exception as error:  # as open-ended as zipfile's: IndexError, TypeError, RuntimeError, ...
        reason = str(error).rpartition("WeightsUnpickler error:")[2].strip().split("\n")[0]
        raise _RefusedError(
            f"its pickle is damaged, or a tensor does not fit its storage ({reason[:120] or type(error).__name__}); "
            "use another copy of the file"
        ) from error


def _check_tensors(content: Any) -> None:
    """Refuse tensors that torch allows although a copy of them could take any amount of memory.

    A tensor is a view of its storage: with strides of 0 a few bytes can claim to be millions of numbers.
    """
    # Everything that can be reached from the content, each object once.
    todo, seen = [content], set()
    while todo:
        value = todo.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, dict):
            todo += dict.values(value)  # not value.values(): a pickle can give an OrderedDict an attribute "values"
        elif isinstance(value, (list, tuple, set)):
            todo += value
        elif isinstance(value, Record):
            todo.append(vars(value))
        elif isinstance(value, Tensor):
            length = value.untyped_storage().nbytes() // value.itemsize
            if (
                value.ndim > DIMENSIONS_LIMIT
                or value.numel() > max(length, EXPANSION_LIMIT)
                or value.storage_offset() > length
            ):
                shape = "x".join(map(str, value.shape))
                raise _RefusedError(f"a tensor of size {shape} does not fit its storage of {length} numbers")
