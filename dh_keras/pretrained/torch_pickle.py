"""The pickles inside of PyTorch checkpoints: tensors, and plain values around them, and no code."""

import math
import pickle
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any, ClassVar

import numpy as np

# BFloat16 has no type of NumPy's: it is the upper half of a float32.
BFLOAT16 = "bfloat16"
_STORAGES = {
    "FloatStorage": "f4",
    "DoubleStorage": "f8",
    "HalfStorage": "f2",
    "BFloat16Storage": BFLOAT16,
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}
_DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")


class CodeRefused(Exception):
    """A pickle asks for a function or class that is not known to be harmless; the message is its name."""


@dataclass(frozen=True)
class Storage:
    """A row of numbers that tensors look into.

    Args:
        key: its name in the file.
        dtype: NumPy's, without the order of bytes, or `BFLOAT16`.
        count: how many numbers.
    """

    key: str
    dtype: str
    count: int

    @property
    def itemsize(self) -> int:
        """Bytes of a number."""
        return 2 if self.dtype == BFLOAT16 else np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor's numbers are in a storage; offset and strides count numbers."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def to_array(self, data: bytes, order: str) -> np.ndarray:
        """The tensor's values, float32 where they are not integers.

        Args:
            data: of its storage.
            order: of bytes, as in struct.

        Raises:
            ValueError: when it reaches beyond its storage, or is larger.
        """
        number = np.dtype("u2" if self.storage.dtype == BFLOAT16 else self.storage.dtype).newbyteorder(order)
        numbers = np.frombuffer(data, number, self.storage.count)
        if min((0, self.offset, *self.shape, *self.strides)) < 0 or len(self.shape) != len(self.strides):
            raise ValueError("a tensor of no shape")
        size = math.prod(self.shape)
        last = self.offset + sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))
        if size > len(numbers) or (size and last >= len(numbers)):
            raise ValueError("a tensor beyond its storage")
        strides = [stride * number.itemsize for stride in self.strides]
        array = np.lib.stride_tricks.as_strided(numbers[self.offset :], self.shape, strides)
        if self.storage.dtype == BFLOAT16:
            return (array.astype(np.uint32) << 16).view(np.float32)
        with np.errstate(over="ignore"):  # infinite, which whoever takes it refuses by name
            return array.astype(np.float32 if number.kind == "f" else number.newbyteorder("="))


def read_pickle(file: IO[bytes], storages: dict[str, Storage] | None = None) -> Any:
    """Read one pickle; tensors become `StoredTensor`.

    Args:
        file: stands behind the pickle afterwards.
        storages: takes the storages that are found, by key.

    Raises:
        CodeRefused: when something is needed that is not known to be harmless.
        Exception: anything, when the pickle is damaged.
    """
    return _Unpickler(file, {} if storages is None else storages).load()


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> StoredTensor:
    if not isinstance(storage, Storage) or any(type(number) is not int for number in (offset, *shape, *strides)):
        raise pickle.UnpicklingError("a tensor of something else")
    return StoredTensor(storage, offset, tuple(shape), tuple(strides))


def _first(value: Any, *_: Any) -> Any:
    return value


def _to_bytes(text: str, encoding: str) -> bytes:
    return text.encode("latin-1" if encoding == "latin1" else "utf-8")


_HARMLESS: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _first,
    ("torch._utils", "_rebuild_parameter_with_state"): _first,
    ("torch", "Size"): tuple,
    ("torch", "device"): lambda kind, *index: ":".join(map(str, (kind, *index))),
    ("_codecs", "encode"): _to_bytes,
    ("__builtin__", "set"): set,
    ("builtins", "set"): set,
}


class _Unpickler(pickle._Unpickler):
    """Python's own in Python: the one in C takes all memory when a damaged pickle numbers its memo to billions."""

    def __init__(self, file: IO[bytes], storages: dict[str, Storage]):
        super().__init__(file)
        self.storages = storages

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if module == "torch" and name in _DTYPES:
            return name
        if (module, name) not in _HARMLESS:
            raise CodeRefused(f"{module}.{name}"[:100])
        return _HARMLESS[module, name]

    def persistent_load(self, pid: Any) -> Storage:
        kind, dtype, key, _, count, *view = pid
        if kind != "storage" or dtype not in _STORAGES.values() or type(count) is not int or any(view):
            raise pickle.UnpicklingError("no storage")
        return self.storages.setdefault(str(key), Storage(str(key), dtype, count))

    def load_build(self) -> None:
        """Attributes, such as the versions of layers in a state_dict, are dropped."""
        self.stack.pop()
        if not isinstance(self.stack[-1], OrderedDict):
            raise CodeRefused(type(self.stack[-1]).__name__)

    dispatch: ClassVar = {**pickle._Unpickler.dispatch, pickle.BUILD[0]: load_build}
