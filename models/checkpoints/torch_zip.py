"""Read a ``torch.save`` file without running its pickle: out come tensors, plain containers and inert records.

A pickle is a small program that may call any function. This reader interprets its opcodes itself and *calls nothing
that the file names*: a module object becomes a :class:`Record` of its state, four known constructors (``OrderedDict``,
``set``, a tensor, a parameter) are done by hand, and any other global is refused by its name. Tensors are read straight
from the zip archive, with every size, offset and stride checked against the bytes that are there.
"""

from __future__ import annotations

import math
import os
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from utils.errors import UserError

PICKLE_LIMIT = 32 << 20  # bytes; the largest official YOLOv5 checkpoint has well under one MiB
DIMENSIONS_LIMIT = 8  # of a tensor
EXPANSION_LIMIT = 1 << 22  # elements of a tensor that repeats its storage (stride 0), as YOLOv5's cached grids may
SCALARS = (str, int, float, bool, bytes, type(None))  # what may be a key; anything else could be costly to hash

# Classes whose objects are only recorded, never built: PyTorch's layers and those of the YOLOv5 repository.
RECORDED_PACKAGES = ("torch.nn.modules.",)
RECORDED_MODULES = ("models.yolo", "models.common", "models.experimental")
# Values that a training run leaves in its checkpoint and that we never look at.
RECORDED_VALUES = (
    "_codecs.encode", "numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar",
    "pathlib.PosixPath", "pathlib.WindowsPath", "pathlib.PurePosixPath", "pathlib.PureWindowsPath",
    "torch.device", "torch.Size",
)  # fmt: skip
SETS = ("builtins.set", "__builtin__.set")
STORAGES = {
    "torch.HalfStorage": torch.float16, "torch.BFloat16Storage": torch.bfloat16, "torch.FloatStorage": torch.float32,
    "torch.DoubleStorage": torch.float64, "torch.LongStorage": torch.int64, "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16, "torch.CharStorage": torch.int8, "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}  # fmt: skip
DTYPES = tuple(str(dtype) for dtype in STORAGES.values())
ORDERED_DICT = "collections.OrderedDict"
TENSOR = "torch._utils._rebuild_tensor_v2"
PARAMETER = "torch._utils._rebuild_parameter"
ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    struct.error,
    ValueError,
    OverflowError,
    NotImplementedError,
    RuntimeError,
)


@dataclass
class Record:
    """An object that was not built: its class's name and the state that the pickle wanted to give it."""

    class_name: str  # with its module, as "models.common.Conv"
    state: dict[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """The class's name without its module."""
        return self.class_name.rpartition(".")[2]


@dataclass(frozen=True)
class _Name:
    """A global that the pickle mentions; only ever compared with the names above."""

    text: str


class _RefusedError(Exception):
    """Why the file is not read; becomes a UserError where the path is known."""


def read_torch_zip(path: str | Path) -> Any:
    """Return the object that was saved, with inert records for the objects of known module classes.

    Raises:
        UserError: no torch archive, damaged, larger than its bytes allow, or a global that is not in the short list of
            this file; the message names it. Nothing that the file asks for was run.
        OSError: the file cannot be opened.
    """
    size = os.path.getsize(path)
    try:
        with zipfile.ZipFile(path) as archive:
            storages = _Storages(archive, size)
            return _Machine(storages.tensor_storage).run(storages.pickle())
    except _RefusedError as refusal:
        raise UserError(f"{path}: {refusal}") from None
    except ZIP_ERRORS as error:
        raise UserError(
            f"{path}: not a readable torch checkpoint ({str(error)[:120] or type(error).__name__}); files from before "
            "PyTorch 1.6 and incomplete downloads look like this"
        ) from error


class _Storages:
    """The zip archive of a ``torch.save`` file: one pickle and one entry of raw bytes per storage."""

    def __init__(self, archive: zipfile.ZipFile, file_size: int) -> None:
        self.archive = archive
        entries = archive.infolist()
        packed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
        if packed:
            raise _RefusedError(f"its entry '{packed[0][:60]}' is compressed, which torch.save never does")
        if sum(entry.file_size for entry in entries) > file_size:
            raise _RefusedError("its entries claim more bytes than the file has")
        self.entries = {entry.filename: entry for entry in entries}
        pickles = [name for name in self.entries if name == "data.pkl" or name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise _RefusedError(f"a torch checkpoint has one data.pkl, this archive has {len(pickles)}")
        self.pickle_name = pickles[0]
        self.prefix = self.pickle_name.removesuffix("data.pkl")
        order = self.entries.get(self.prefix + "byteorder")
        if order is not None and (order.file_size > 16 or archive.read(order) != b"little"):
            raise _RefusedError("its numbers are not little-endian")
        self.cache: dict[str, Tensor] = {}

    def pickle(self) -> bytes:
        entry = self.entries[self.pickle_name]
        if entry.file_size > PICKLE_LIMIT:
            raise _RefusedError(
                f"its pickle has {entry.file_size:,} bytes, more than the {PICKLE_LIMIT:,} that we read"
            )
        return self.archive.read(entry)

    def tensor_storage(self, persistent_id: Any) -> Tensor:
        """Return the flat tensor of ``("storage", type, key, location, number of elements)``."""
        if not (isinstance(persistent_id, tuple) and len(persistent_id) == 5 and persistent_id[0] == "storage"):
            raise _RefusedError("it refers to something that is not a tensor storage")
        _, kind, key, _, count = persistent_id
        if not (isinstance(kind, _Name) and kind.text in STORAGES and isinstance(key, str) and _is_count(count)):
            raise _RefusedError("it describes a tensor storage of an unknown kind")
        dtype = STORAGES[kind.text]
        if key not in self.cache:
            entry = self.entries.get(f"{self.prefix}data/{key}")
            if entry is None:
                raise _RefusedError(f"its storage '{key[:40]}' is missing from the archive")
            if entry.file_size != count * dtype.itemsize:
                wanted = count * dtype.itemsize
                raise _RefusedError(
                    f"its storage '{key[:40]}' has {entry.file_size} bytes where {wanted} are announced"
                )
            raw = bytearray(self.archive.read(entry))
            self.cache[key] = torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype)
        storage = self.cache[key]
        if storage.dtype != dtype or len(storage) != count:
            raise _RefusedError(f"its storage '{key[:40]}' is described in two ways")
        return storage


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 48


def _view(storage: Any, offset: Any, size: Any, stride: Any) -> Tensor:
    """Return the tensor that looks at a storage through a size and a stride, both checked against its length."""
    shapes_good = all(
        isinstance(numbers, tuple) and len(numbers) <= DIMENSIONS_LIMIT and all(map(_is_count, numbers))
        for numbers in (size, stride)
    )
    if not (isinstance(storage, Tensor) and storage.ndim == 1 and _is_count(offset) and shapes_good):
        raise _RefusedError("it describes a tensor without a storage, a size and a stride")
    if len(size) != len(stride):
        raise _RefusedError("a tensor has as many strides as dimensions")
    last = offset + sum((count - 1) * step for count, step in zip(size, stride, strict=True))
    empty = math.prod(size) == 0
    if (
        math.prod(size) > max(len(storage), EXPANSION_LIMIT)
        or (not empty and last >= len(storage))
        or (empty and offset > len(storage))
    ):
        raise _RefusedError(f"a tensor of size {'x'.join(map(str, size))} reaches beyond its storage of {len(storage)}")
    return torch.empty(size, dtype=storage.dtype) if empty else torch.as_strided(storage, size, stride, offset)


class _Machine:
    """The pickle virtual machine, less everything that could call, import or set an attribute."""

    def __init__(self, load_storage: Callable[[Any], Tensor]) -> None:
        self.load_storage = load_storage
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, program: bytes) -> Any:
        position = 0
        try:
            for opcode, argument, place in pickletools.genops(program):
                position = place or 0
                if opcode.name == "STOP":
                    return self.pop()
                if opcode.name not in OPCODES:
                    raise _RefusedError(f"it uses the pickle instruction {opcode.name}, which no torch.save writes")
                OPCODES[opcode.name](self, argument)
        except ValueError as error:
            raise _RefusedError(f"its pickle is damaged after byte {position} ({str(error)[:80]})") from error
        raise _RefusedError("its pickle has no end")

    def fail(self, what: str) -> NoReturn:
        raise _RefusedError(f"its pickle is damaged: {what}")

    def pop(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            self.fail("a value is missing")
        return self.stack.pop()

    def top(self) -> Any:
        value = self.pop()
        self.stack.append(value)
        return value

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop_to_mark(self) -> list[Any]:
        if not self.marks:
            self.fail("a mark is missing")
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def drop(self, _: Any) -> None:
        self.pop()

    def drop_to_mark(self, _: Any) -> None:
        self.pop_to_mark()

    def pop_many(self, count: int) -> tuple[Any, ...]:
        return tuple(reversed([self.pop() for _ in range(count)]))

    def mark(self, _: Any) -> None:
        self.marks.append(len(self.stack))

    def put(self, index: int | None) -> None:
        self.memo[len(self.memo) if index is None else index] = self.top()

    def get(self, index: int) -> None:
        if index not in self.memo:
            self.fail("it refers to a value that it never stored")
        self.push(self.memo[index])

    def set_items(self, keys_and_values: list[Any]) -> None:
        target = self.top()
        if not isinstance(target, dict) or len(keys_and_values) % 2:
            self.fail("items without a dictionary")
        for key, value in zip(keys_and_values[::2], keys_and_values[1::2], strict=True):
            if not isinstance(key, SCALARS):
                self.fail(f"a dictionary key of type {type(key).__name__}")
            target[key] = value

    def append(self, values: list[Any]) -> None:
        target = self.top()
        if not isinstance(target, list):
            self.fail("values without a list")
        target.extend(values)

    def add(self, values: list[Any]) -> None:
        target = self.top()
        if not isinstance(target, set):
            self.fail("values without a set")
        target.update(self.hashable(values))

    def hashable(self, values: Any) -> list[Any]:
        if not isinstance(values, (list, tuple)) or not all(isinstance(value, SCALARS) for value in values):
            self.fail("a set of something else than plain values")
        return list(values)

    def name(self, text: str) -> None:
        """Push a global, if it is one of those we know how to treat without it."""
        recorded = text.startswith(RECORDED_PACKAGES) or text.rpartition(".")[0] in RECORDED_MODULES
        known = (ORDERED_DICT, TENSOR, PARAMETER, *SETS, *STORAGES, *RECORDED_VALUES, *DTYPES)
        if not recorded and text not in known:
            raise _RefusedError(
                f"its pickle asks for '{text[:80]}', which is no tensor, container or layer; nothing was run, "
                "and the file is refused"
            )
        self.push(_Name(text))

    def global_name(self, argument: str) -> None:
        self.name(argument.replace(" ", "."))

    def stack_global(self, _: Any) -> None:
        module, name = self.pop_many(2)
        if not (isinstance(module, str) and isinstance(name, str)):
            self.fail("a global without a name")
        self.name(f"{module}.{name}")

    def new_object(self, _: Any) -> None:
        kind, _ = self.pop_many(2)
        if not isinstance(kind, _Name):
            self.fail("an object without a class")
        if kind.text == ORDERED_DICT:
            self.push({})
        elif kind.text in SETS:
            self.push(set())
        else:
            self.push(Record(kind.text))

    def build(self, _: Any) -> None:
        target, state = self.pop_many(2)
        if isinstance(target, Record) and isinstance(state, dict):
            target.state.update(state)
        elif not isinstance(target, (dict, Record)):  # a dict's own attributes (a state dict's _metadata) are not ours
            self.fail("a state for something that has none")
        self.push(target)

    def reduce(self, _: Any) -> None:
        """Do by hand what the few known constructors would do."""
        function, arguments = self.pop_many(2)
        if not (isinstance(function, _Name) and isinstance(arguments, tuple)):
            self.fail("a call of something that is no global")
        text = function.text
        if text == ORDERED_DICT and not arguments:
            self.push({})
        elif text in SETS and len(arguments) <= 1:
            self.push(set(self.hashable(arguments[0])) if arguments else set())
        elif text == TENSOR and len(arguments) >= 4:
            self.push(_view(*arguments[:4]))
        elif text == PARAMETER and arguments and isinstance(arguments[0], Tensor):
            self.push(arguments[0])
        elif text in RECORDED_VALUES:
            self.push(Record(text))
        else:
            raise _RefusedError(f"its pickle wants to call '{text[:80]}', which is refused; nothing was run")

    def storage(self, _: Any) -> None:
        self.push(self.load_storage(self.pop()))


Step = Callable[[_Machine, Any], None]
OPCODES: dict[str, Step] = {
    "MARK": _Machine.mark,
    "POP": _Machine.drop,
    "POP_MARK": _Machine.drop_to_mark,
    "DUP": lambda machine, _: machine.push(machine.top()),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_SET": lambda machine, _: machine.push(set()),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.pop_to_mark())),
    "TUPLE1": lambda machine, _: machine.push(machine.pop_many(1)),
    "TUPLE2": lambda machine, _: machine.push(machine.pop_many(2)),
    "TUPLE3": lambda machine, _: machine.push(machine.pop_many(3)),
    "APPEND": lambda machine, _: machine.append([machine.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.pop_to_mark()),
    "ADDITEMS": lambda machine, _: machine.add(machine.pop_to_mark()),
    "SETITEM": lambda machine, _: machine.set_items(list(machine.pop_many(2))),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_to_mark()),
    "MEMOIZE": lambda machine, _: machine.put(None),
    "GLOBAL": _Machine.global_name,
    "STACK_GLOBAL": _Machine.stack_global,
    "NEWOBJ": _Machine.new_object,
    "REDUCE": _Machine.reduce,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.storage,
}
OPCODES |= dict.fromkeys(("PROTO", "FRAME"), lambda machine, _: None)
OPCODES |= dict.fromkeys(("BINPUT", "LONG_BINPUT"), _Machine.put)
OPCODES |= dict.fromkeys(("BINGET", "LONG_BINGET"), _Machine.get)
OPCODES |= dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"), _Machine.push)
OPCODES |= dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"), _Machine.push)
OPCODES |= dict.fromkeys(("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"), _Machine.push)
