"""Reading PyTorch checkpoints without PyTorch, and without running anything that is in them.

Both formats are read: zip archives (PyTorch 1.6 and later) and the older plain pickles. PyTorch's own reader ends the
process on some damaged files, which no caller can turn into a line.
"""

import io
import mmap
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dh_keras.errors import DataError
from dh_keras.pretrained.torch_pickle import CodeRefused, Storage, StoredTensor, read_pickle

# Where training programs keep the network inside a checkpoint, and what they put in front of every name.
MODEL_KEYS = ("model", "state_dict")
WRAPPER_PREFIX = "module."

_OLD_MAGIC = 0x1950A86A20F9469CFC6C  # the first of the pickles of the older format


@dataclass(frozen=True, eq=False)
class TorchFile:
    """What a checkpoint holds.

    Args:
        path: the file.
        tensors: arrays by name, without the prefix that parallel training adds; float32 where they are not integers.
        extras: keys beside the network, such as "optimizer".
        meta: the value of the key "meta", if it is a dict.
    """

    path: Path
    tensors: dict[str, np.ndarray]
    extras: tuple[str, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)


def read_torch_file(path: str | Path) -> TorchFile:
    """Read the network's tensors.

    Args:
        path: a .pth file that holds the tensors by name, or a dict with them under "model" or "state_dict".

    Raises:
        DataError: when the file is missing, damaged, needs code to be run, or holds no network.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        return _read_zip(path) if _begins_as_zip(path) else _read_old(path)
    except DataError:
        raise
    except CodeRefused as error:
        raise DataError(
            f"{path}: refused, because reading it would run code of {error}; where it was written, save its tensors "
            "alone: torch.save({'state_dict': model.state_dict()}, 'tensors.pth')"
        ) from error
    except Exception as error:  # Python raises anything on a damaged pickle
        raise DataError(
            f"{path}: not a complete PyTorch file; it may be cut off, damaged, or of another kind"
        ) from error


def _begins_as_zip(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _read_zip(path: Path) -> TorchFile:
    """A pickle, and a file for each storage beside it."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        root = next(name for name in names if name.endswith("/data.pkl")).removesuffix("data.pkl")

        def read(name: str) -> bytes:
            if archive.getinfo(root + name).compress_type != zipfile.ZIP_STORED:  # PyTorch compresses nothing
                raise ValueError(f"{name} is compressed")
            return archive.read(root + name)

        order = ">" if f"{root}byteorder" in names and read("byteorder") == b"big" else "<"
        content = read_pickle(io.BytesIO(read("data.pkl")))
        return _pick_network(path, content, lambda storage: read(f"data/{storage.key}"), order)


def _read_old(path: Path) -> TorchFile:
    """Five pickles after each other, then the storages, each behind the number of its elements."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory:
        if read_pickle(memory) != _OLD_MAGIC:
            raise ValueError("no PyTorch file")
        read_pickle(memory)  # the version of the format
        order = "<" if read_pickle(memory)["little_endian"] else ">"
        storages: dict[str, Storage] = {}
        content, keys = read_pickle(memory, storages), read_pickle(memory)
        places, place = {}, memory.tell()
        for key in keys:
            (count,) = struct.unpack_from(f"{order}q", memory, place)
            start, size = place + 8, count * storages[key].itemsize
            if count < 0 or start + size > len(memory):
                raise ValueError("cut off")
            places[key] = slice(start, start + size)
            place = start + size
        return _pick_network(path, content, lambda storage: memory[places[storage.key]], order)


def _pick_network(path: Path, content: Any, read: Callable[[Storage], bytes], order: str) -> TorchFile:
    """Read the tensors of the network; those of an optimizer stay where they are."""
    if not isinstance(content, Mapping):
        raise DataError(f"{path}: expected a dict of tensors by name, got {type(content).__name__}")
    key = next((key for key in MODEL_KEYS if isinstance(content.get(key), Mapping)), None)
    network = content if key is None else content[key]
    stored = {str(name): value for name, value in network.items() if isinstance(value, StoredTensor)}
    if not stored:
        keys = ", ".join(f"{key!s:.40}" for key in list(content)[:8])
        raise DataError(f"{path}: holds no tensors by name; its keys are {keys}")
    if all(name.startswith(WRAPPER_PREFIX) for name in stored):
        stored = {name.removeprefix(WRAPPER_PREFIX): value for name, value in stored.items()}
    meta = content.get("meta")
    return TorchFile(
        path=path,
        tensors={name: value.to_array(read(value.storage), order) for name, value in stored.items()},
        extras=() if key is None else tuple(str(other) for other in content if other != key),
        meta=dict(meta) if isinstance(meta, Mapping) else {},
    )
